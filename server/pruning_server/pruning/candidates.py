"""Which groups of channels a request lets go, and why the others stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.coupling.groups import ChannelGroup
from pruning_server.graph.values import FrozenUse
from pruning_server.pruning.criteria import Criterion
from pruning_server.pruning.importance import Scored, find_scored, find_unscored
from pruning_server.pruning.room import HEAD, Lengths
from pruning_server.pruning.selection import matches, report_excluded
from pruning_server.pruning.values import StructuralInput
from pruning_server.spec.request import Granularity

_MAX_REASONS = 3


@dataclass(frozen=True)
class Candidates:
    """The groups that may lose channels, by number; what keeps others, and how many the request excludes."""

    groups: Mapping[int, ChannelGroup]
    scored: Scored
    frozen: tuple[FrozenUse, ...]
    notes: tuple[str, ...]
    excluded: int


def find_candidates(
    structure: StructuralInput, granularity: Granularity, patterns: Sequence[str], criterion: Criterion
) -> Candidates:
    """Groups of the granularity that no pattern excludes and whose elements the criterion can score.

    Raises:
        JobFailureError: NOTHING_PRUNABLE: there are none; the message says why.
    """
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
    names = structure.scales() if criterion.of_scales else structure.scored
    scored = find_scored(free, structure.tensors, names)
    if free and not scored and criterion.of_scales:
        raise _nothing_scored(criterion)
    if not scored:
        raise JobFailureError(Reason.NOTHING_PRUNABLE, _why_nothing(structure, granularity, wanted, excluded))
    unscored = find_unscored(free, scored, criterion)
    by_name = {name: pattern for found in excluded.values() for name, pattern in found.items()}
    others = [name for use in structure.frozen for name in use.layers]
    idle = set(patterns) - set(patterns_by_name.values())
    idle -= {pattern for pattern in idle if matches(others, pattern) or _match(structure.groups, [pattern])}
    return Candidates(
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


def without_unscored(found: Candidates, scores: Mapping[int, object], criterion: Criterion) -> Candidates:
    """The same without the groups that got no score.

    Raises:
        JobFailureError: NOTHING_PRUNABLE: none got one.
    """
    if not scores:
        raise _nothing_scored(criterion)
    return replace(
        found,
        groups={number: group for number, group in found.groups.items() if number in scores},
        scored={number: members for number, members in found.scored.items() if number in scores},
        frozen=(*found.frozen, *find_unscored(found.groups, scores, criterion)),
    )


def _nothing_scored(criterion: Criterion) -> JobFailureError:
    return JobFailureError(
        Reason.NOTHING_PRUNABLE, f"the criterion {criterion.name} scores no channel of the model: {criterion.unscored}"
    )


def _match(groups: Sequence[ChannelGroup], patterns: Sequence[str]) -> dict[str, str]:
    """The first pattern that means it, by name, for each tensor that the request leaves alone."""
    aliases = {member.tensor: member.aliases for group in groups for member in group.members}
    return {
        name: found
        for name, others in aliases.items()
        if (found := next((pattern for pattern in patterns if matches((name, *others), pattern)), None)) is not None
    }


def lengths_of(structure: StructuralInput) -> Lengths:
    """How long a stored tensor's axis is."""
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
    return f"the model has no channels that can be removed{name_reasons(structure.frozen)}"


def name_reasons(frozen: Sequence[FrozenUse]) -> str:
    """The first reasons in brackets; empty where there are none."""
    reasons = list(dict.fromkeys(f"{use.op}: {use.reason}" if use.op else use.reason for use in frozen))
    more = "; and more" if len(reasons) > _MAX_REASONS else ""
    return f" ({'; '.join(reasons[:_MAX_REASONS])}{more})" if reasons else ""
