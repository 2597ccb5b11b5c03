"""Invariants that every criterion for single weights must hold, and the registry itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping

import pytest
import torch

from helpers.toy_evidence import NoTrials, scores
from pruning_server.errors import InvalidRequestError, JobFailureError, Reason
from pruning_server.graph.values import WeightKind
from pruning_server.pruning import criteria
from pruning_server.pruning.criteria.auto import choose
from pruning_server.pruning.criteria.base import Needs
from pruning_server.pruning.evidence import SampleScores
from pruning_server.pruning.strategies import get
from pruning_server.pruning.values import PruningPlan, ScoredInput
from pruning_server.pruning.weighing import score_weights
from pruning_server.spec.request import Granularity, NmPattern, Scope, StaticStrategy, Target, TargetKind

SCORING = [name for name in criteria.names() if criteria.get(name).needs is not Needs.TRIALS]
FOR_WEIGHTS = [name for name in SCORING if Granularity.WEIGHT in criteria.get(name).granularities]
EVERY = pytest.mark.parametrize("name", FOR_WEIGHTS)
SCOPES = pytest.mark.parametrize("scope", [Scope.GLOBAL, Scope.LAYER])
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


class Drawn(NoTrials):
    """Gradients that are drawn by the weight's name; none for `flat`."""

    def __init__(self, weights: list[ScoredInput], flat: Collection[str] = (), bad: Collection[str] = ()) -> None:
        self.tensors = {weight.name: weight.tensor for weight in weights}
        self.flat, self.bad = flat, bad
        self.asked = 0

    def gradients(
        self, names: Collection[str], *, samples: int, batch_size: int = 1
    ) -> Iterator[Mapping[str, torch.Tensor]]:
        del samples, batch_size
        self.asked += 1
        for batch in range(3):
            yield {name: self._one(name, batch) for name in names}

    def _one(self, name: str, batch: int) -> torch.Tensor:
        tensor = self.tensors[name]
        generator = torch.Generator().manual_seed(sum(name.encode()) * 7 + batch)
        drawn = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        return drawn * float("nan") if name in self.bad else drawn * 0 if name in self.flat else drawn

    def calls(self, visit: object, *, samples: int, names: Collection[str] | None = None) -> None:
        raise AssertionError(visit, samples, names)


def weights(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[ScoredInput]:
    generator = torch.Generator().manual_seed(11)
    shapes = {"a": (7, 5, 3, 3), "b": (64, 7), "c": (13,)}
    return [
        ScoredInput(name, name, WeightKind.LINEAR, (torch.randn(shape, generator=generator) * scale).to(dtype))
        for name, shape in shapes.items()
    ]


def of(values: list[float], dtype: torch.dtype = torch.float32) -> ScoredInput:
    return ScoredInput("a", "a", WeightKind.LINEAR, torch.tensor(values, dtype=dtype))


def plan(name: str, sparsity: float, *, seed: int = 3, scope: Scope = Scope.GLOBAL, **kinds: object) -> PruningPlan:
    given = weights(**kinds)
    target = Target(kind=TargetKind.SPARSITY, value=sparsity)
    return get("static").plan(given, StaticStrategy(criterion=name, scope=scope), target, seed, Drawn(given))


def removed(made: PruningPlan) -> dict[str, torch.Tensor]:
    return {name: mask.removed for name, mask in made.masks.items()}


def equal(one: PruningPlan, other: PruningPlan) -> bool:
    return all(torch.equal(removed(one)[name], removed(other)[name]) for name in one.masks)


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_have_the_weight_s_shape_and_are_finite_and_not_negative(name: str, dtype: torch.dtype) -> None:
    given = weights(dtype=dtype)
    before = [weight.tensor.clone() for weight in given]
    found = score_weights(given, criteria.get(name), 5, Drawn(given))
    assert list(found) == [weight.name for weight in given]
    for weight, was in zip(given, before, strict=True):
        one = found[weight.name]
        assert one.shape == weight.tensor.shape
        assert one.dtype in {torch.float32, torch.float64}
        assert bool(torch.isfinite(one).all())
        assert bool((one >= 0).all())
        assert torch.equal(weight.tensor, was)


@EVERY
@SCOPES
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.987])
def test_the_count_is_exact(name: str, scope: Scope, sparsity: float) -> None:
    made = plan(name, sparsity, scope=scope)
    sizes = [weight.tensor.numel() for weight in weights()]
    if scope is Scope.GLOBAL:
        assert made.removed_weights == round(sparsity * sum(sizes))
    else:
        assert [mask.removed_count for mask in made.masks.values()] == [round(sparsity * size) for size in sizes]


@EVERY
def test_the_same_seed_gives_the_same_masks(name: str) -> None:
    assert equal(plan(name, 0.4), plan(name, 0.4))


@EVERY
@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e6])
def test_scaling_all_weights_changes_nothing(name: str, scale: float) -> None:
    assert equal(plan(name, 0.4), plan(name, 0.4, scale=scale))


@EVERY
def test_a_higher_sparsity_removes_more_of_the_same(name: str) -> None:
    low, high = removed(plan(name, 0.3)), removed(plan(name, 0.6))
    assert all(bool((high[key] | ~low[key]).all()) for key in low)


@EVERY
@SCOPES
def test_no_data_is_touched_without_need(name: str, scope: Scope) -> None:
    given = weights()
    evidence = Drawn(given)
    target = Target(kind=TargetKind.SPARSITY, value=0.5)
    get("static").plan(given, StaticStrategy(criterion=name, scope=scope), target, 0, evidence)
    assert evidence.asked == (1 if criteria.get(name).needs is Needs.GRADIENTS else 0)


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [[0.0] * 6, [1.0] * 6, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0], [1.0]], ids=str)
def test_zeros_and_equal_weights_are_counted_exactly_too(name: str, dtype: torch.dtype, values: list[float]) -> None:
    given = [of(values, dtype)]
    target = Target(kind=TargetKind.SPARSITY, value=0.5 if len(values) > 1 else 0.0)
    made = get("static").plan(given, StaticStrategy(criterion=name), target, 0, Drawn(given))
    assert made.removed_weights == len(values) // 2


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_and_the_smallest_numbers_of_a_type_keep_their_order(name: str, dtype: torch.dtype) -> None:
    numbers = torch.finfo(dtype)
    values = torch.tensor([numbers.max, numbers.tiny, 1.0, numbers.max / 2, 0.0], dtype=dtype)
    given = [ScoredInput("a", "a", WeightKind.LINEAR, values)]
    if dtype is torch.float64 and name in {"l2", "taylor", "fisher"}:
        with pytest.raises(JobFailureError) as refused:  # squares that are no numbers are not guessed at
            score_weights(given, criteria.get(name), 0, Drawn(given))
        assert refused.value.reason is Reason.MODEL_NOT_FINITE
        return
    found = score_weights(given, criteria.get(name), 0, Drawn(given))["a"]
    assert bool(torch.isfinite(found).all())
    assert bool((found >= 0).all())
    if name not in {"random", "taylor", "fisher"}:
        order = found.argsort(stable=True).tolist()
        assert found[4] == found[1:].min()
        assert order[-1] == 0
        assert found[1] <= found[2] <= found[3]


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_a_weight_that_no_gradient_reaches_stays_and_the_plan_says_why(name: str) -> None:
    given = weights()
    target = Target(kind=TargetKind.SPARSITY, value=0.5)
    made = get("static").plan(given, StaticStrategy(criterion=name), target, 0, Drawn(given, flat={"b"}))
    assert list(made.masks) == ["a", "c"]
    assert made.sparsity == pytest.approx(0.5, abs=0.01)
    assert [use.layers for use in made.frozen] == [("b",)]
    assert "no gradient" in made.frozen[0].reason
    with pytest.raises(JobFailureError, match="no gradient") as refused:
        get("static").plan(given, StaticStrategy(criterion=name), target, 0, Drawn(given, flat={"a", "b", "c"}))
    assert refused.value.reason is Reason.NOTHING_PRUNABLE


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_gradients_that_are_not_finite_are_refused_by_name(name: str) -> None:
    given = weights()
    with pytest.raises(JobFailureError, match=r"gradient for b is NaN") as refused:
        score_weights(given, criteria.get(name), 0, Drawn(given, bad={"b"}))
    assert refused.value.reason is Reason.MODEL_NOT_FINITE


@pytest.mark.parametrize(("name", "factor"), [("taylor", 1.0), ("fisher", 0.5)])
def test_terms_of_single_weights_are_squared_batch_by_batch(name: str, factor: float) -> None:
    given = weights()
    evidence = Drawn(given)
    batches = [one["b"].double() for one in evidence.gradients(["b"], samples=1)]
    wanted = factor * sum((given[1].tensor.double() * one) ** 2 for one in batches) / len(batches)
    found = score_weights(given, criteria.get(name), 0, evidence)["b"]
    assert torch.allclose(found, wanted, rtol=1e-12, atol=0.0)


def test_lamp_is_the_share_of_all_that_is_at_least_as_large() -> None:
    found = score_weights([of([2.0, -1.0, 0.0, 3.0])], criteria.get("lamp"), 0)["a"]
    assert torch.allclose(found, torch.tensor([4 / 13, 1 / 14, 0.0, 1.0], dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_magnitudes_remove_the_smallest() -> None:
    for name in ("l1", "l2"):
        made, given = plan(name, 0.4), {weight.name: weight.tensor for weight in weights()}
        gone = torch.cat([given[key][mask].abs() for key, mask in removed(made).items()])
        kept = torch.cat([given[key][~mask].abs() for key, mask in removed(made).items()])
        assert gone.max() <= kept.min()


def test_random_depends_on_the_seed_and_not_on_the_other_weights() -> None:
    one, other = plan("random", 0.4, seed=1), plan("random", 0.4, seed=2)
    assert not equal(one, other)
    config, target = StaticStrategy(criterion="random", scope=Scope.LAYER), Target(kind=TargetKind.SPARSITY, value=0.4)
    both = get("static").plan(weights(), config, target, 1)
    alone = get("static").plan(weights()[1:2], config, target, 1)
    assert torch.equal(both.masks["b"].removed, alone.masks["b"].removed)


# --- The registry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", criteria.names())
def test_it_names_its_source_and_says_what_it_does(name: str) -> None:
    criterion = criteria.get(name)
    assert criterion.name == name
    assert criterion.summary
    assert criterion.formula
    assert any(year.isdigit() and 1980 < int(year) < 2100 for year in criterion.source.replace(",", " ").split())
    if Granularity.WEIGHT not in criterion.granularities:
        assert criterion.summary.startswith("channels only")


@pytest.mark.parametrize("granularity", [Granularity.WEIGHT, Granularity.NM])
@pytest.mark.parametrize("name", sorted({*criteria.names()} - {*FOR_WEIGHTS, "auto"}))
def test_what_scores_channels_is_refused_for_weights_with_what_fits(name: str, granularity: Granularity) -> None:
    pattern = NmPattern(n=2, m=4) if granularity is Granularity.NM else None
    config = StaticStrategy(criterion=name, granularity=granularity, nm_pattern=pattern)
    with pytest.raises(InvalidRequestError, match="use one of l1, l2, lamp, taylor, fisher, random, auto"):
        get("static").plan(weights(), config, Target(kind=TargetKind.SPARSITY, value=0.5), 0)


def test_an_unknown_criterion_is_refused_with_the_known_names() -> None:
    with pytest.raises(InvalidRequestError, match="l1, l2, lamp") as refused:
        plan("astrology", 0.4)
    assert refused.value.reason is Reason.UNKNOWN_CRITERION


def test_two_criteria_of_one_name_are_an_error() -> None:
    one = criteria.get("l1")
    with pytest.raises(ValueError, match="'l1'"):
        criteria.register([one, dataclasses.replace(one, summary="another")])


# --- auto -------------------------------------------------------------------------------------------------------------


def failing(name: str) -> str:
    if name == "bad":
        raise JobFailureError(Reason.TARGET_UNREACHABLE, "too much is frozen")
    return name


GOT: dict[str, SampleScores] = {
    "low": scores([0, 0, 1, 0]),
    "high": scores([1, 0, 1, 1], [1, 1, 1, 1]),
    "same": scores([1, 1, 1, 0], [0, 0, 0, 1]),
    "late": scores([1, 1, 1, 0], [0, 0, 0, 1]),
    "broken": scores([float("nan")] * 4),
}


def test_auto_keeps_the_best_metric_then_the_lower_loss_then_the_first() -> None:
    choice = choose(["low", "high", "same", "late", "broken", "bad"], failing, GOT.__getitem__)
    assert choice.plan == choice.report.chosen == "same"
    assert choice.report.samples == 4
    assert [one.criterion for one in choice.report.trials] == ["low", "high", "same", "late", "broken"]
    assert [one.metric for one in choice.report.trials] == [0.25, 0.75, 0.75, 0.75, None]
    assert choice.report.without_plan == ("bad",)
    assert choice.note.startswith("criterion auto chose same, on 4 select samples")
    assert "low 0.25" in choice.note
    assert choice.note.endswith("without a plan: bad")


def test_auto_fails_as_its_first_candidate_does_when_none_has_a_plan() -> None:
    with pytest.raises(JobFailureError, match="too much is frozen"):
        choose(["bad"], failing, GOT.__getitem__)
    with pytest.raises(JobFailureError, match="NaN with every criterion") as refused:
        choose(["broken"], failing, GOT.__getitem__)
    assert refused.value.reason is Reason.MODEL_NOT_FINITE


def test_auto_does_not_swallow_what_is_no_verdict_on_a_criterion() -> None:
    def lost(name: str) -> str:
        raise JobFailureError(Reason.CANCELLED, name)

    with pytest.raises(JobFailureError) as refused:
        choose(["l1", "l2"], lost, GOT.__getitem__)
    assert refused.value.reason is Reason.CANCELLED


def test_auto_tries_everything_but_chance_and_itself() -> None:
    assert criteria.candidates(Granularity.WEIGHT) == ("l1", "lamp", "taylor", "fisher")
    assert set(criteria.candidates(Granularity.CHANNEL)) == {*criteria.names()} - {"random", "auto"}
