"""What holds for every schedule of the registry."""

from __future__ import annotations

import pytest
import torch

from pruning_server.errors import InvalidRequestError
from pruning_server.graph.values import WeightKind
from pruning_server.pruning import catalogue, schedules
from pruning_server.pruning.dynamic.weights import Choose, WeightUnits, by_count, by_pattern
from pruning_server.pruning.schedules import Schedule, Timing
from pruning_server.pruning.values import ScoredInput
from pruning_server.spec.request import JUDGED_SCHEDULE, Granularity, NmPattern, Scope

STEPS = 12
SPARSITY = 0.37
ALL = [schedules.get(name) for name in schedules.names()]
TIMED = [(one, one.timing) for one in ALL if one.timing is not None]
RULES: dict[str, tuple[Choose, Granularity]] = {
    "global": (by_count(SPARSITY, Scope.GLOBAL), Granularity.WEIGHT),
    "layer": (by_count(SPARSITY, Scope.LAYER), Granularity.WEIGHT),
    "2:4": (by_pattern((1, 1), NmPattern(n=2, m=4)), Granularity.NM),
}


@pytest.mark.parametrize("schedule", ALL, ids=lambda one: one.name)
def test_a_schedule_says_where_it_comes_from_and_what_it_prunes(schedule: Schedule) -> None:
    assert schedules.get(schedule.name) is schedule
    assert schedule.summary
    assert any(character.isdigit() for character in schedule.source)
    assert schedule.granularities
    listed = {info.name: info for info in catalogue()}["dynamic"].schedules
    mine = next(info for info in listed if info.name == schedule.name)
    assert set(mine.granularities) == schedule.granularities
    assert mine.source == schedule.source


@pytest.mark.parametrize(("schedule", "timing"), TIMED, ids=lambda one: getattr(one, "name", ""))
def test_courses_stay_in_range_and_end_at_the_target(schedule: Schedule, timing: Timing) -> None:
    progress = [step / 100 for step in range(101)]
    removed = [timing.removed(one) for one in progress]
    exchanged = [timing.exchanged(one) for one in progress]
    assert all(0.0 <= share <= 1.0 for share in removed + exchanged)
    assert removed == sorted(removed), f"{schedule.name} gives back in between"
    assert removed[-1] == 1.0
    assert exchanged[-1] == 0.0
    assert exchanged == sorted(exchanged, reverse=True)
    # What comes back at the very end could no longer learn.
    assert exchanged[80] == 0.0


def drive(timing: Timing, choose: Choose, seed: int = 0) -> tuple[list[int], list[torch.Tensor]]:
    """Moves two weights as a schedule would, with noise for training; returns how many were off, and the weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(8, 12, generator=generator), torch.randn(5, 8, 3, generator=generator)]
    weights = [ScoredInput(f"{n}.weight", str(n), WeightKind.LINEAR, one) for n, one in enumerate(tensors)]
    gradients = {weight.name: torch.randn(weight.tensor.shape, generator=generator) for weight in weights}
    units = WeightUnits(weights, lambda: [weight.tensor.abs() for weight in weights], choose)
    counts = []
    for step in range(STEPS + 1):
        if step:
            for tensor in tensors:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        progress = step / STEPS
        if timing.holds:
            units.hold()
            units.exchange(timing.exchanged(progress), gradients.__getitem__)
            units.advance(timing.removed(progress))
        else:
            units.reselect(timing.removed(progress))
        counts.append(units.reach.removed)
        off = units.plan({}).masks
        assert sum(mask.removed_count for mask in off.values()) == counts[-1]
        assert all(bool((weight.tensor[off[weight.name].removed] == 0).all()) for weight in weights)
    return counts, tensors


@pytest.mark.parametrize(
    ("schedule", "timing", "rule"),
    [(*one, rule) for one in TIMED for rule, (_, granularity) in RULES.items() if granularity in one[0].granularities],
    ids=lambda one: one if isinstance(one, str) else getattr(one, "name", ""),
)
def test_counts_are_exact_never_fall_and_end_at_the_target(schedule: Schedule, timing: Timing, rule: str) -> None:
    counts, tensors = drive(timing, RULES[rule][0])
    sizes = [tensor.numel() for tensor in tensors]
    assert counts == sorted(counts), schedule.name
    if rule == "global":
        assert counts == [round(SPARSITY * timing.removed(step / STEPS) * sum(sizes)) for step in range(STEPS + 1)]
    if rule == "layer":
        assert counts[-1] == sum(round(SPARSITY * size) for size in sizes)
    if rule == "2:4":
        assert counts[-1] == sum(sizes) // 2
        for tensor in tensors:
            blocks = tensor.movedim(1, -1).reshape(-1, 4)
            assert bool(((blocks == 0).sum(dim=1) == 2).all())


@pytest.mark.parametrize(("schedule", "timing"), TIMED, ids=lambda one: getattr(one, "name", ""))
def test_the_same_seed_gives_the_same_zeros(schedule: Schedule, timing: Timing) -> None:
    (one, mine), (other, theirs) = (drive(timing, by_count(SPARSITY, Scope.GLOBAL), seed=3) for _ in range(2))
    assert one == other, schedule.name
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_names_default_and_what_needs_no_target() -> None:
    assert schedules.get(None).name == schedules.get("").name == schedules.DEFAULT
    assert [one.name for one in ALL if not one.needs_target] == [JUDGED_SCHEDULE]
    with pytest.raises(InvalidRequestError, match="known: cubic, rigl, soft, controller"):
        schedules.get("linear")
