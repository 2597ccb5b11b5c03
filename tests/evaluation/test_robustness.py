"""What holds for every perturbation, what inputs are taken for, and the arithmetic of curves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pruning_server.evaluation.robustness import OCCLUSION, PERTURBATIONS, find, names_for
from pruning_server.evaluation.robustness.base import InputFacts, InputKind, Perturbation, perturb
from pruning_server.evaluation.robustness.budget import MAX_PASSES, MAX_SAMPLES, plan_budget
from pruning_server.evaluation.robustness.curves import LevelValues, Rules, area, points, trapezoid_weights
from pruning_server.evaluation.robustness.kinds import recognise
from pruning_server.spec.request import Verdict

SEED = 7
# Of one sample, with dtype and whether they are indices and channels come last.
SHAPES: dict[InputKind, list[tuple[tuple[int, ...], str, bool, bool]]] = {
    InputKind.IMAGE: [
        ((3, 12, 10), "uint8", False, False),
        ((9, 13, 1), "float32", False, True),
        ((16, 8, 3), "float16", False, False),
        ((28, 28), "uint8", False, False),
    ],
    InputKind.TOKENS: [((16,), "int64", True, False), ((5,), "int32", True, False)],
    InputKind.STEPS: [((20, 3), "float32", False, False), ((2, 50), "float64", False, False)],
    InputKind.TABLE: [((8,), "float32", False, False), ((3,), "int16", False, False), ((64,), "uint8", False, False)],
}


def samples(shape: tuple[int, ...], dtype: str, count: int = 24) -> np.ndarray:
    rng = np.random.default_rng(3)
    if dtype.startswith("float"):
        return rng.normal(1.0, 2.0, (count, *shape)).astype(dtype)
    return rng.integers(0, 50, (count, *shape)).astype(dtype)


def cases() -> Iterator[tuple[Perturbation, np.ndarray, InputFacts]]:
    for perturbation in PERTURBATIONS:
        for shape, dtype, is_index, channels_last in SHAPES[perturbation.kind]:
            values = samples(shape, dtype)
            found = recognise(values, np.arange(len(values)), is_index=is_index, channels_last=channels_last)
            assert found.facts is not None, found.reason
            assert found.facts.kind is perturbation.kind
            yield perturbation, values, found.facts


def named(case: object) -> str | None:
    return f"{case.name}-{case.kind}" if isinstance(case, Perturbation) else None


every_case = pytest.mark.parametrize(("perturbation", "values", "facts"), list(cases()), ids=named)


@every_case
def test_level_zero_changes_nothing(perturbation: Perturbation, values: np.ndarray, facts: InputFacts) -> None:
    same = perturb(perturbation, values, 0.0, facts, seed=SEED, rows=np.arange(len(values)))
    np.testing.assert_array_equal(same, values)
    assert same is not values


@every_case
def test_harder_inputs_keep_their_form(perturbation: Perturbation, values: np.ndarray, facts: InputFacts) -> None:
    before = values.copy()
    for level in (*perturbation.levels, 1.0):
        changed = perturb(perturbation, values, level, facts, seed=SEED, rows=np.arange(len(values)))
        np.testing.assert_array_equal(values, before)
        assert (changed.shape, changed.dtype) == (values.shape, values.dtype)
        assert np.isfinite(changed.astype(np.float64)).all()
        if facts.kind is InputKind.IMAGE:
            low, high = (0, 255) if values.dtype == np.uint8 else (values.min(), values.max())
            assert changed.min() >= low
            assert changed.max() <= high
        if facts.kind is InputKind.TOKENS:
            assert set(np.unique(changed)) <= set(np.unique(values))
    assert not np.array_equal(changed, values)


@every_case
def test_a_sample_is_changed_alike_whatever_is_beside_it(
    perturbation: Perturbation, values: np.ndarray, facts: InputFacts
) -> None:
    level, rows = perturbation.levels[-1], np.arange(100, 100 + len(values))
    together = perturb(perturbation, values, level, facts, seed=SEED, rows=rows)
    again = perturb(perturbation, values, level, facts, seed=SEED, rows=rows)
    np.testing.assert_array_equal(together, again)
    alone = perturb(perturbation, values[5:6], level, facts, seed=SEED, rows=rows[5:6])
    np.testing.assert_array_equal(alone[0], together[5])


@every_case
def test_chance_comes_of_seed_row_and_draw(perturbation: Perturbation, values: np.ndarray, facts: InputFacts) -> None:
    if perturbation.name in {"blur", "contrast"}:
        pytest.skip("nothing in it is drawn")
    rows = np.arange(len(values))
    first = perturb(perturbation, values, perturbation.levels[0], facts, seed=SEED, rows=rows)
    others = (
        perturb(perturbation, values, perturbation.levels[0], facts, seed=SEED + 1, rows=rows),
        perturb(perturbation, values, perturbation.levels[0], facts, seed=SEED, rows=rows + 50),
        perturb(perturbation, values, perturbation.levels[0], facts, seed=SEED, rows=rows, draw=1),
    )
    for other in others:
        assert not np.array_equal(first, other)


@every_case
def test_levels_ascend_and_so_does_the_change(
    perturbation: Perturbation, values: np.ndarray, facts: InputFacts
) -> None:
    assert list(perturbation.levels) == sorted(set(perturbation.levels))
    assert perturbation.levels[0] > 0
    realized = [perturbation.realize(level, values.shape[1:], facts) for level in perturbation.levels]
    assert realized == sorted(realized)
    sizes = []
    for level in perturbation.levels:
        changed = perturb(perturbation, values, level, facts, seed=SEED, rows=np.arange(len(values)))
        sizes.append(float((changed != values).mean()))
    assert sizes[-1] >= sizes[0]
    assert sizes[-1] > 0


@pytest.mark.parametrize("level", [-0.1, float("nan"), float("inf")])
def test_a_level_must_make_sense(level: float) -> None:
    perturbation, values, facts = next(cases())
    with pytest.raises(ValueError, match="level"):
        perturb(perturbation, values, level, facts, seed=0, rows=np.arange(len(values)))


def test_names_are_unique_per_kind_and_every_kind_has_its_occlusion() -> None:
    pairs = [(one.name, one.kind) for one in PERTURBATIONS]
    assert len(set(pairs)) == len(pairs)
    for kind in InputKind:
        assert find(OCCLUSION, kind) is not None
        assert names_for(frozenset({kind}))[0] == OCCLUSION
    assert names_for(frozenset()) == ()


def test_the_hidden_area_is_the_one_that_is_told_and_holds_the_mean_of_the_set() -> None:
    values = samples((3, 16, 24), "float32")
    facts = recognise(values, np.arange(len(values)), is_index=False, channels_last=False).facts
    occlusion = find(OCCLUSION, InputKind.IMAGE)
    assert facts is not None
    assert occlusion is not None
    for level in occlusion.levels:
        changed = perturb(occlusion, values, level, facts, seed=SEED, rows=np.arange(len(values)))
        hidden = (changed != values).any(axis=1)
        told = occlusion.realize(level, (3, 16, 24), facts)
        np.testing.assert_allclose(hidden.mean(axis=(1, 2)), told, rtol=0, atol=1e-12)
        assert told == pytest.approx(level, abs=0.05)
        means = values.astype(np.float64).mean(axis=(0, 2, 3))
        np.testing.assert_allclose(changed[0][:, hidden[0]], np.repeat(means[:, None], hidden[0].sum(), 1), rtol=1e-5)


def test_statistics_are_those_of_the_rows_in_use() -> None:
    values = samples((6,), "float64") * 1e6 + 1e9
    rows = np.array([1, 4, 5, 9, 17])
    facts = recognise(values, rows, is_index=False, channels_last=False).facts
    assert facts is not None
    np.testing.assert_allclose(facts.mean, values[rows].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(facts.std, values[rows].std(axis=0), rtol=1e-9)


def test_a_hidden_token_becomes_the_padding_and_a_category_one_that_its_column_has() -> None:
    text = np.array([[5, 7, 0, 0], [5, 0, 0, 0], [5, 9, 3, 0]])
    facts = recognise(text, np.arange(3), is_index=True, channels_last=False).facts
    assert facts is not None
    assert facts.filler is not None
    # The first column never has the padding, so that it keeps what it has most.
    assert facts.filler.tolist() == [5, 0, 0, 0]


@pytest.mark.parametrize(
    ("shape", "dtype", "is_index"),
    [
        ((), "float32", False),
        ((1,), "float32", False),
        ((12, 8, 8), "float32", False),
        ((3, 2, 2), "float32", False),
        ((4, 3, 8, 8), "float32", False),
        ((4, 4), "int64", True),
        ((), "int64", True),
        ((7,), "bool", False),
        ((2, 2), "float32", False),
    ],
)
def test_what_is_not_recognised_is_left_alone_with_a_reason(shape: tuple[int, ...], dtype: str, is_index: bool) -> None:
    found = recognise(samples(shape, dtype), np.arange(24), is_index=is_index, channels_last=False)
    assert found.facts is None
    assert found.reason


def test_masks_and_holes_are_left_alone() -> None:
    mask = np.random.default_rng(0).integers(0, 2, (20, 9))
    assert recognise(mask, np.arange(20), is_index=True, channels_last=False).facts is None
    table = samples((5,), "float32")
    table[3, 2] = np.nan
    assert recognise(table, np.arange(24), is_index=False, channels_last=False).facts is None
    assert recognise(table, np.arange(3), is_index=False, channels_last=False).facts is not None


# --- Curves -----------------------------------------------------------------------------------------------------------


def rules(**changes: object) -> Rules:
    fields: dict[str, object] = {
        "is_binary": True, "is_bounded": True, "units": None, "confidence_level": 0.95, "margin": 0.05, "seed": 0,
    }  # fmt: skip
    return Rules(**(fields | changes))  # type: ignore[arg-type]


def curve(original: np.ndarray, pruned: np.ndarray, levels: tuple[float, ...]) -> list[LevelValues]:
    """`[k, n]` values."""
    return [
        LevelValues(level, one, other, bool((one == other).all()))
        for level, one, other in zip(levels, original, pruned, strict=True)
    ]


def test_the_area_is_the_trapezoidal_mean_along_the_curve() -> None:
    levels = (0.0, 0.1, 0.4, 0.5)
    rng = np.random.default_rng(1)
    original, pruned = rng.random((2, 4, 60))
    found = area(curve(original, pruned, levels), rules(is_binary=False))
    np.testing.assert_allclose(found.original, np.trapezoid(original, levels, axis=0) / 0.5, rtol=1e-12)
    assert found.delta == pytest.approx(float((found.pruned - found.original).mean()), abs=1e-12)
    assert found.interval.low <= found.delta <= found.interval.high
    np.testing.assert_allclose(trapezoid_weights(levels).sum(), 1.0, rtol=1e-12)


@pytest.mark.parametrize("levels", [(), (0.0,), (0.0, 0.0), (0.2, 0.1)])
def test_a_curve_needs_ascending_levels(levels: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        trapezoid_weights(levels)


def test_equal_models_pass_and_differ_nowhere() -> None:
    values = (np.random.default_rng(2).random((3, 20)) < 0.7).astype(float)
    same = curve(values, values, (0.0, 0.2, 0.5))
    assert area(same, rules()).verdict is Verdict.PASS
    assert all(point.delta == 0 for point in points(same, rules()))


def test_a_worse_model_fails_and_few_samples_tell_nothing() -> None:
    rng = np.random.default_rng(3)
    right = (rng.random((3, 800)) < 0.9).astype(float)
    worse = right * (rng.random((3, 800)) < 0.7)
    assert area(curve(right, worse, (0.0, 0.2, 0.5)), rules()).verdict is Verdict.FAIL
    few = curve(right[:, :12], right[:, :12] * 1.0, (0.0, 0.2, 0.5))
    few = [LevelValues(one.level, one.original, one.pruned, identical=False) for one in few]
    assert area(few, rules()).verdict is Verdict.INCONCLUSIVE


def test_groups_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    units = np.repeat(np.arange(50), 8)
    shift = np.repeat(rng.normal(0, 0.1, 50), 8)
    original = np.full((2, 400), 0.5)
    values = curve(original, original + shift, (0.0, 0.5))
    alone, grouped = (area(values, rules(is_binary=False, units=one)).interval for one in (None, units))
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_intervals_of_sparse_differences_keep_their_level() -> None:
    """Samples that rarely differ, and then by a part of one: the area's interval holds the truth as often as it says."""
    rng = np.random.default_rng(5)
    draws, count, share = 100, 120, 0.02
    held = 0
    for _ in range(draws):
        changed = (rng.random(count) < share) * rng.choice([-1.0, 1.0], count, p=[0.7, 0.3])
        difference = changed * rng.uniform(0.1, 0.9, count)
        values = curve(np.zeros((2, count)), np.stack([difference, difference]), (0.0, 0.5))
        found = area(values, rules(is_binary=False)).interval
        held += found.low <= -0.4 * 0.5 * share <= found.high
    assert held / draws >= 0.95


# --- Budget -----------------------------------------------------------------------------------------------------------


def budget(**changes: object) -> tuple[int, int]:
    fields: dict[str, object] = {
        "levels_by_name": {"occlusion": 5, "noise": 3, "blur": 3, "brightness": 2, "contrast": 2},
        "report_samples": 5000, "validation_samples": 20_000, "macs": 10**6, "device_type": "cpu",
        "exact_batch": None, "output_bytes": 40,
    }  # fmt: skip
    found = plan_budget(**(fields | changes))  # type: ignore[arg-type]
    return found.samples, found.positions


def test_a_cheap_model_gets_everything_and_a_costly_one_less() -> None:
    samples_of_cheap, positions = budget()
    assert (samples_of_cheap, positions) == (MAX_SAMPLES, 2)
    assert 10 + 5 * positions <= MAX_PASSES
    assert 50 <= budget(macs=10**9, validation_samples=100)[0] < 100
    assert budget(macs=10**13, validation_samples=100)[0] >= 2
    # Passes over the whole set are affordable to whoever sent it.
    assert budget(macs=10**13, validation_samples=20_000)[0] > 500


def test_what_is_known_bounds_the_samples() -> None:
    assert budget(report_samples=30)[0] == 30
    assert budget(macs=None)[0] == 256
    assert budget(exact_batch=1)[0] == 256
    assert budget(output_bytes=1 << 27)[0] == 2
    assert budget(levels_by_name={"occlusion": 5})[1] == 4
