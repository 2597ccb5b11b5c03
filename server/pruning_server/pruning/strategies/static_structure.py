"""Static pruning of channels and heads: the least important go at once, up to a sparsity or down to a cost.

Li, Kadav, Durdanovic, Samet, Graf 2017, arXiv:1608.08710 (filters by magnitude); Fang, Ma, Song, Mi, Wang 2023,
arXiv:2301.12900 (coupled channels as one, scores relative to their layers).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from pruning_server.errors import InvalidRequestError, JobFailureError, NotImplementedFeatureError, Reason
from pruning_server.graph.coupling.groups import ChannelGroup
from pruning_server.graph.surgery.cut import Removal
from pruning_server.graph.values import FrozenUse
from pruning_server.pruning import criteria
from pruning_server.pruning.importance import Scored, find_scored, score_channels
from pruning_server.pruning.ladder import HEAD, SOFT_FLOOR, Ladder, Lengths, build_ladder
from pruning_server.pruning.rounding import round_down, round_up
from pruning_server.pruning.selection import matches, report_excluded
from pruning_server.pruning.values import Cost, StructuralInput, StructuralPlan
from pruning_server.spec.request import Granularity, Scope, StaticStrategy, Target, TargetKind

_MAX_REASONS = 3
_RATIOS: Mapping[TargetKind, Callable[[Cost], int | None]] = {
    TargetKind.PARAMETER_RATIO: lambda cost: cost.parameters,
    TargetKind.MACS_RATIO: lambda cost: cost.macs,
}


def plan_structure(
    structure: StructuralInput,
    config: StaticStrategy,
    target: Target,
    seed: int,
    *,
    exclude_layers: Sequence[str] = (),
) -> StructuralPlan:
    """Decides which channels go; reads tensors, writes none, and asks for the cost about 20 times at most.

    Args:
        structure: the model.
        config: with granularity HEAD only whole heads go, with CHANNEL everything that can. `channels.min_channels` stay
            in every layer (all, where it has fewer; heads where it has heads). What a group keeps is rounded up to
            `channels.multiple`; heads are not rounded.
        target: SPARSITY s in [0, 1): of the n channels of all groups that may lose some, the fewest that are at least
            round(s * n) after rounding: exactly that many without multiples. PARAMETER_RATIO and MACS_RATIO r in (0, 1]:
            the fewest, in the criterion's order, with which after / before is at most r.
        seed: for criteria that draw.
        exclude_layers: shell wildcards as `selection.select` takes them; a group with any member in them stays whole.

    Raises:
        InvalidRequestError: an unknown criterion, or a target out of its range.
        JobFailureError: NOTHING_PRUNABLE; MODEL_NOT_FINITE where a weight is NaN or infinite; TARGET_UNREACHABLE, with
            the nearest target that can be met, and where the model's MACs are not known.
        NotImplementedFeatureError: another granularity or target.
    """
    _check(config, target)
    structure = replace(structure, tensors=cache(structure.tensors))
    criterion = criteria.get(config.criterion)
    found = _find_candidates(structure, config.granularity, exclude_layers)
    scores = score_channels(found.scored, structure.tensors, criterion, seed)
    ladder = build_ladder(found.groups, scores, _lengths(structure), config.channels, config.scope)
    if target.kind is TargetKind.SPARSITY:
        chosen = _to_sparsity(ladder, target.value)
    else:
        chosen = _to_ratio(ladder, structure.cost, target, _RATIOS[target.kind])
    if not chosen.is_reached:
        raise _unreachable(structure, config, target, found, chosen)
    counts = ladder.counts(chosen.steps)
    return StructuralPlan(
        removal=ladder.removal(counts),
        removable=dict(ladder.sizes),
        achieved=chosen.achieved,
        frozen=found.frozen,
        notes=(*found.notes, *_notes(ladder, config, target, chosen)),
    )


def _check(config: StaticStrategy, target: Target) -> None:
    if config.granularity not in {Granularity.CHANNEL, Granularity.HEAD}:
        raise NotImplementedFeatureError(f"structural pruning with granularity {config.granularity.value}")
    value = target.value
    if target.kind is TargetKind.SPARSITY:
        if not 0 <= value < 1:
            raise InvalidRequestError.for_field("spec.sparsity", f"must be at least 0 and less than 1, not {value}")
    elif target.kind not in _RATIOS:
        raise NotImplementedFeatureError(f"a {target.kind.value} target with {config.granularity.value} granularity")
    elif not 0 < value <= 1:
        raise InvalidRequestError.for_field(f"spec.{target.kind.value}", f"must be above 0 and at most 1, not {value}")


# --- What may go ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidates:
    """The groups that may lose channels, by number; what keeps others, and how many the request excludes."""

    groups: Mapping[int, ChannelGroup]
    scored: Scored
    frozen: tuple[FrozenUse, ...]
    notes: tuple[str, ...]
    excluded: int


def _find_candidates(structure: StructuralInput, granularity: Granularity, patterns: Sequence[str]) -> _Candidates:
    wanted = {
        number: group
        for number, group in enumerate(structure.groups)
        if granularity is Granularity.CHANNEL or group.kind == HEAD
    }
    patterns_by_name = _match(structure.groups, patterns)
    excluded = {
        number: by
        for number, group in wanted.items()
        if (by := {one.tensor: patterns_by_name[one.tensor] for one in group.members if one.tensor in patterns_by_name})
    }
    free = {number: group for number, group in wanted.items() if number not in excluded}
    scored = find_scored(free, structure.tensors, structure.scored)
    if not scored:
        raise JobFailureError(Reason.NOTHING_PRUNABLE, _why_nothing(structure, granularity, wanted, excluded))
    unscored = tuple(
        FrozenUse(
            op="",
            source="",
            reason="none of the tensors that go together is a weight, so nothing says how much they matter",
            layers=tuple(dict.fromkeys(member.tensor for member in group.members)),
        )
        for number, group in free.items()
        if number not in scored
    )
    by_name = {name: pattern for found in excluded.values() for name, pattern in found.items()}
    others = [name for use in structure.frozen for name in use.layers]
    idle = set(patterns) - set(patterns_by_name.values())
    idle -= {pattern for pattern in idle if matches(others, pattern) or _match(structure.groups, [pattern])}
    return _Candidates(
        groups={number: free[number] for number in scored},
        scored=scored,
        frozen=(*report_excluded(by_name), *unscored),
        notes=tuple(
            f"exclude_layers: {pattern!r} matches nothing that could be removed"
            for pattern in patterns
            if pattern in idle
        ),
        excluded=len(excluded),
    )


def _match(groups: Sequence[ChannelGroup], patterns: Sequence[str]) -> dict[str, str]:
    """The first pattern that means it, by name, for each tensor that the request leaves alone."""
    aliases = {member.tensor: member.aliases for group in groups for member in group.members}
    return {
        name: found
        for name, others in aliases.items()
        if (found := next((pattern for pattern in patterns if matches((name, *others), pattern)), None)) is not None
    }


def _lengths(structure: StructuralInput) -> Lengths:
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


def _why_nothing(
    structure: StructuralInput, granularity: Granularity, wanted: Mapping[int, object], excluded: Mapping[int, object]
) -> str:
    if wanted and len(excluded) == len(wanted):
        return f"exclude_layers excludes all {len(wanted)} groups of channels that could go; exclude fewer layers"
    if granularity is Granularity.HEAD and structure.groups:
        return "the model has no attention heads that can be removed as a whole; use granularity channel"
    return f"the model has no channels that can be removed{_reasons(structure.frozen)}"


def _reasons(frozen: Sequence[FrozenUse]) -> str:
    reasons = list(dict.fromkeys(f"{use.op}: {use.reason}" if use.op else use.reason for use in frozen))
    more = "; and more" if len(reasons) > _MAX_REASONS else ""
    return f" ({'; '.join(reasons[:_MAX_REASONS])}{more})" if reasons else ""


# --- How far ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chosen:
    """The fewest steps that meet the target, or, if none do, all; `achieved` is in the target's unit."""

    steps: int
    achieved: float
    is_reached: bool


def _to_sparsity(ladder: Ladder, sparsity: float) -> _Chosen:
    total = sum(ladder.sizes.values())
    wanted = round(sparsity * total)

    def removed(steps: int) -> int:
        return sum(ladder.counts(steps).values())

    steps = _fewest(len(ladder), lambda steps: removed(steps) >= wanted)
    return _Chosen(steps, removed(steps) / total, removed(steps) >= wanted)


def _to_ratio(
    ladder: Ladder,
    cost: Callable[[Removal], Cost],
    target: Target,
    pick: Callable[[Cost], int | None],
) -> _Chosen:
    known: dict[tuple[int, ...], float] = {}
    before = pick(cost({}))
    if not before:
        raise _unknown_cost(target)

    def ratio(steps: int) -> float:
        counts = ladder.counts(steps)
        key = tuple(counts.values())
        if key not in known:
            after = pick(cost(ladder.removal(counts))) if any(key) else before
            if after is None:
                raise _unknown_cost(target)
            known[key] = after / before
        return known[key]

    steps = _fewest(len(ladder), lambda steps: ratio(steps) <= target.value)
    return _Chosen(steps, ratio(steps), ratio(steps) <= target.value)


def _fewest(most: int, is_enough: Callable[[int], bool]) -> int:
    """The smallest number in [0, most] that is enough, by bisection; `most` where none is."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


# --- What is said -----------------------------------------------------------------------------------------------------


def _unknown_cost(target: Target) -> JobFailureError:
    return JobFailureError(
        Reason.TARGET_UNREACHABLE,
        f"a {target.kind.value} needs the model's {target.kind.value.removesuffix('_ratio')}, and they cannot be counted;"
        " ask for a sparsity" + (" or a parameter_ratio" if target.kind is TargetKind.MACS_RATIO else ""),
        metadata={"target": target.kind.value},
    )


def _unreachable(
    structure: StructuralInput, config: StaticStrategy, target: Target, found: _Candidates, chosen: _Chosen
) -> JobFailureError:
    if target.kind is TargetKind.SPARSITY:
        nearest, word = round_down(chosen.achieved), "at most"
    else:
        nearest, word = round_up(chosen.achieved), "at least"
    floor = config.channels.min_channels
    limits = [f"every layer keeps {floor} channel{'s' if floor > 1 else ''}"]
    if config.channels.multiple != 1:
        limits.append("kept channels are rounded up to a multiple, which multiple 1 switches off")
    if found.excluded:
        limits.append(f"exclude_layers keeps {found.excluded} groups")
    if config.granularity is Granularity.HEAD:
        limits.append("only whole heads go")
    if target.kind is not TargetKind.SPARSITY:
        limits.append(f"the rest of the model is frozen{_reasons(structure.frozen)}")
    return JobFailureError(
        Reason.TARGET_UNREACHABLE,
        f"{target.kind.value} {target.value:g} cannot be reached; ask for {word} {nearest:g}. What stays:"
        f" {'; '.join(limits)}",
        metadata={"target": target.kind.value, "nearest": repr(nearest)},
    )


def _notes(ladder: Ladder, config: StaticStrategy, target: Target, chosen: _Chosen) -> tuple[str, ...]:
    exact = dict.fromkeys(ladder.sizes, 0)
    for number in ladder.steps[: chosen.steps]:
        exact[number] += 1
    rounded = ladder.counts(chosen.steps)
    changed = [number for number in exact if rounded[number] != exact[number]]
    notes = []
    if changed:
        multiples = ", ".join(str(one) for one in sorted({ladder.multiples[number] for number in changed}))
        notes.append(
            f"{len(changed)} of {len(exact)} groups keep more channels than the order says, to keep a multiple of"
            f" {multiples}; {target.kind.value} is {chosen.achieved:.4g}"
        )
    if config.scope is Scope.GLOBAL and chosen.steps > ladder.soft_steps:
        notes.append(
            f"some layers keep fewer than {SOFT_FLOOR:.0%} of their channels: the rest was not enough for the target"
        )
    return tuple(notes)
