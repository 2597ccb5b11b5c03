"""A condition over channels or heads: which go, in which order, how far, and what takes over from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from msgspec import structs

from pruning_server.errors import JobFailureError, NotImplementedFeatureError, Reason
from pruning_server.pruning.conditions import harm
from pruning_server.pruning.conditions.candidates import Candidates, find_candidates
from pruning_server.pruning.conditions.describing import Sketch, count_of, range_of, ranges_note, texts_of
from pruning_server.pruning.conditions.greedy import (
    Step,
    counts_after,
    first_of_each,
    order_channels,
    ordering_feature,
)
from pruning_server.pruning.conditions.merging import Merged, merge
from pruning_server.pruning.conditions.problem import Problem
from pruning_server.pruning.conditions.tables import GroupTable
from pruning_server.pruning.ladder import multiple_of
from pruning_server.pruning.room import Room
from pruning_server.pruning.rounding import round_down, round_up
from pruning_server.pruning.values import Cost, StructuralInput, StructuralPlan
from pruning_server.spec.condition.tree import comparisons_in, render
from pruning_server.spec.report_strategy import ConditionalDetails, HarmSection
from pruning_server.spec.request import Target, TargetKind

_MAX_LISTED = 1_000
_RATIOS: Mapping[TargetKind, Callable[[Cost], int | None]] = {
    TargetKind.PARAMETER_RATIO: lambda cost: cost.parameters,
    TargetKind.MACS_RATIO: lambda cost: cost.macs,
}


def plan_channels(structure: StructuralInput, problem: Problem) -> StructuralPlan:
    """Decides which channels go; reads tensors, writes none.

    Without a target everything that qualifies goes, with one the fewest that meet it. Nothing that qualifies is no error.

    Raises:
        JobFailureError: NOTHING_PRUNABLE; TARGET_UNREACHABLE where what qualifies is not enough, with the nearest target.
        NotImplementedFeatureError: another target.
    """
    structure = replace(structure, tensors=cache(structure.tensors))
    found = find_candidates(structure, problem)
    if not found.groups:
        raise JobFailureError(Reason.NOTHING_PRUNABLE, found.nothing)
    tables = {number: GroupTable(members, problem.condition.features) for number, members in found.groups.items()}
    tested = harm.try_each(tables, problem) if harm.NAME in problem.condition.features else None
    given = {number: {harm.NAME: values} for number, values in tested.values.items()} if tested else {}
    groups = {number: members.group for number, members in found.groups.items()}
    room = Room(groups, _lengths(structure), problem.strategy.channels.min_channels)
    steps, held = order_channels(tables, problem.condition, given, tested.losses if tested else {}, room)
    qualified = len(steps) + held
    section: HarmSection | None = None
    if tested is not None:
        steps, joint = harm.try_together(steps, tables, problem)
        section = harm.describe(tested, joint, steps, problem)
    bounds = _Bounds(
        {number: group.size for number, group in groups.items()},
        {number: multiple_of(group, problem.strategy.channels) for number, group in groups.items()},
    )
    chosen, achieved = _choose(steps, bounds, structure, problem.target)
    merged = merge(chosen, found.groups, structure.tensors, lambda name: _kind(problem, name))
    details = structs.replace(
        _describe(problem, tables, given),
        qualified=qualified,
        removed=len(chosen),
        kept_by_floors=held + (len(steps) - len(chosen) if problem.target is None else 0),
        merged_channels=len({(pair.group, pair.removed) for pair in merged.pairs}),
        merged=merged.pairs[:_MAX_LISTED],
        harm=section,
    )
    return _plan(problem, found, bounds, chosen, achieved, merged, details)


@dataclass(frozen=True)
class _Bounds:
    """Sizes of the groups, and what the numbers of channels that stay are multiples of."""

    sizes: Mapping[int, int]
    multiples: Mapping[int, int]

    def rounded(self, steps: Sequence[Step]) -> list[Step]:
        """The steps without the last ones of each group that rounding keeps."""
        return list(first_of_each(steps, counts_after(steps, self.sizes, self.multiples)))


def _removal(steps: Sequence[Step]) -> dict[int, tuple[int, ...]]:
    channels: dict[int, list[int]] = {}
    for step in steps:
        channels.setdefault(step.group, []).append(step.channel)
    return {number: tuple(sorted(found)) for number, found in sorted(channels.items())}


# --- How far ----------------------------------------------------------------------------------------------------------


def _choose(
    steps: Sequence[Step], bounds: _Bounds, structure: StructuralInput, target: Target | None
) -> tuple[list[Step], float]:
    """The channels that go, after rounding, and what the target's kind (else the sparsity) comes to."""
    total = sum(bounds.sizes.values())
    if target is None or target.kind is TargetKind.SPARSITY:
        most = bounds.rounded(steps)
        if target is None:
            return most, len(most) / total
        wanted = round(target.value * total)
        if len(most) < wanted:
            raise _unreachable(target, round_down(len(most) / total), "at most")
        count = _fewest(len(steps), lambda count: len(bounds.rounded(steps[:count])) >= wanted)
        chosen = bounds.rounded(steps[:count])
        return chosen, len(chosen) / total
    if target.kind not in _RATIOS:
        raise NotImplementedFeatureError(f"a condition with a {target.kind.value} target")
    pick = _RATIOS[target.kind]
    before = pick(structure.cost({}))

    @cache
    def ratio(count: int) -> float:
        after = pick(structure.cost(_removal(bounds.rounded(steps[:count]))))
        if not before or after is None:
            text = f"{target.kind.value}: the model's cost cannot be counted; ask for a sparsity"
            raise JobFailureError(Reason.TARGET_UNREACHABLE, text, metadata={"target": target.kind.value})
        return after / before

    if ratio(len(steps)) > target.value:
        raise _unreachable(target, round_up(ratio(len(steps))), "at least")
    count = _fewest(len(steps), lambda count: ratio(count) <= target.value)
    return bounds.rounded(steps[:count]), ratio(count)


def _fewest(most: int, is_enough: Callable[[int], bool]) -> int:
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _unreachable(target: Target, nearest: float, word: str) -> JobFailureError:
    return JobFailureError(
        Reason.TARGET_UNREACHABLE,
        f"{target.kind.value} {target.value:g} cannot be reached with the channels that meet the condition; ask for {word}"
        f" {nearest:g}, or for a condition that more channels meet",
        metadata={"target": target.kind.value, "nearest": repr(nearest)},
    )


def _lengths(structure: StructuralInput) -> Callable[[str, int], int]:
    covered: Counter[tuple[str, int]] = Counter()
    for group in structure.groups:
        for member in group.members:
            covered[member.tensor, member.axis] += group.size * len(member.coordinates[0])

    def length(tensor: str, axis: int) -> int:
        try:
            return structure.tensors(tensor).shape[axis]
        except KeyError:  # it stands in the code; with nothing but channels it is no longer than they are
            return covered[tensor, axis]

    return length


def _kind(problem: Problem, name: str) -> str | None:
    layer = problem.layers.get(name)
    return layer.kind if layer is not None else None


# --- What is said -----------------------------------------------------------------------------------------------------


def _plan(
    problem: Problem,
    found: Candidates,
    bounds: _Bounds,
    chosen: Sequence[Step],
    achieved: float,
    merged: Merged,
    details: ConditionalDetails,
) -> StructuralPlan:
    notes = list(merged.notes)
    what = f"{problem.strategy.granularity.value}s"
    if not details.qualified:
        notes.insert(0, ranges_note(details, problem.strategy.granularity.value))
    if details.kept_by_floors:
        notes.append(
            f"{details.kept_by_floors} of {details.qualified} {what} that meet the condition stay: their layers would be too"
            " small, or of a width that is no multiple"
        )
    if details.harm is not None and details.harm.joint and details.harm.joint[-1].channels > len(chosen) > 0:
        notes.append(
            f"p_harm: {details.qualified} channels may go, each alone; tested together, {len(chosen)} may, and"
            f" {details.harm.joint[-1].channels} may not"
        )
    if details.harm is not None and details.harm.needed_samples is not None:
        notes.append(
            f"p_harm was not tested: with {details.harm.samples} select samples and {details.harm.tests} tests it cannot be"
            f" below {details.harm.smallest_p:.3g} at the margin {details.harm.margin:g}; with {details.harm.needed_samples}"
            " it can, or with a larger margin, or fewer channels to test"
        )
    return StructuralPlan(
        removal=_removal(chosen),
        removable=dict(bounds.sizes),
        achieved=achieved,
        frozen=found.frozen,
        notes=tuple(notes),
        updates=merged.updates,
        details=details,
    )


def _describe(
    problem: Problem, tables: Mapping[int, GroupTable], given: Mapping[int, Mapping[str, torch.Tensor]]
) -> ConditionalDetails:
    """What is known of features and comparisons before anything goes."""
    changing = {
        number: {
            **{name: one.values for name, one in table.relations(torch.ones(table.size, dtype=torch.bool)).items()},
            **given.get(number, {}),
        }
        for number, table in tables.items()
    }
    features = []
    for name in problem.condition.features:
        values = [table.values(name, changing[number]) for number, table in tables.items()]
        numbers = [one for one in values if isinstance(one, torch.Tensor)]
        texts = [text for one in values if not isinstance(one, torch.Tensor) for text in one]
        features.append(range_of(name, [Sketch.of(one) for one in numbers]) if numbers else texts_of(name, texts))
    comparisons = []
    for part in comparisons_in(problem.condition.tree):
        counts: Counter[str] = Counter()
        for number, table in tables.items():
            truth = table.truth(part, changing[number])
            holds, fails = int(truth.true.sum()), int(truth.false.sum())
            counts.update(holds=holds, fails=fails, unknown=table.size - holds - fails)
        comparisons.append(count_of(render(part), counts))
    return ConditionalDetails(
        condition=problem.condition.text,
        candidates=sum(table.size for table in tables.values()),
        qualified=0,
        removed=0,
        kept_by_floors=0,
        order=ordering_feature(problem.condition) or "l1 relative to the layer",
        features=tuple(features),
        comparisons=tuple(comparisons),
    )
