"""Which groups of channels a condition is asked about, and what makes and takes their channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pruning_server.graph.coupling.groups import ChannelGroup, Member
from pruning_server.graph.values import FrozenUse
from pruning_server.pruning.conditions.observing import observe_consumers
from pruning_server.pruning.conditions.problem import Problem
from pruning_server.pruning.conditions.tables import GroupMembers, Producer
from pruning_server.pruning.features import FEATURES
from pruning_server.pruning.features.base import ActivationFeature, ActivationRelation, Layer, SliceRelation
from pruning_server.pruning.room import HEAD
from pruning_server.pruning.selection import matches, report_excluded
from pruning_server.pruning.values import StructuralInput
from pruning_server.spec.request import Granularity


@dataclass(frozen=True)
class Candidates:
    """The groups that may lose channels, by number; why others stay; and, where there are none, why."""

    groups: Mapping[int, GroupMembers]
    frozen: tuple[FrozenUse, ...]
    nothing: str


def find_candidates(structure: StructuralInput, problem: Problem) -> Candidates:
    """The groups of the granularity, less what is excluded or made by no layer; runs the model where features need it."""
    only_heads = problem.strategy.granularity is Granularity.HEAD
    wanted = {n: group for n, group in enumerate(structure.groups) if group.kind == HEAD or not only_heads}
    excluded = {number: by for number, group in wanted.items() if (by := _excluded(group, problem.exclude_layers))}
    free = {number: group for number, group in wanted.items() if number not in excluded}
    producers = {number: _producers(group, problem.layers) for number, group in free.items()}
    asked = {number: group for number, group in free.items() if producers[number]}
    consumers = {
        number: tuple(one for one in group.members if one.consumer and _layer(one, problem.layers) is not None)
        for number, group in asked.items()
    }
    seen = observe_consumers(problem.evidence, asked, consumers) if needs_activations(problem) else {}
    groups = {}
    for number, group in asked.items():
        found = seen.get(number, ())
        reached = {one.member.tensor for one in found}
        unseen = tuple(one.tensor for one in consumers[number] if one.tensor not in reached)
        groups[number] = GroupMembers(group, producers[number], found, unseen)
    by_name = {name: pattern for found in excluded.values() for name, pattern in found.items()}
    nothing = "" if asked else _why_nothing(structure, problem, wanted, excluded)
    return Candidates(groups, (*report_excluded(by_name), *_unmade(free, asked)), nothing)


def needs_activations(problem: Problem) -> bool:
    """Whether consumers must be watched: for features of activations, and to merge twins."""
    kinds = (ActivationFeature, ActivationRelation, SliceRelation)
    return any(isinstance(FEATURES[name], kinds) for name in problem.condition.features)


def _layer(member: Member, layers: Mapping[str, Layer]) -> Layer | None:
    return next((layers[name] for name in (member.tensor, *member.aliases) if name in layers), None)


def _producers(group: ChannelGroup, layers: Mapping[str, Layer]) -> tuple[Producer, ...]:
    found = [(member, _layer(member, layers)) for member in group.members if not member.consumer]
    return tuple(Producer(member, layer) for member, layer in found if layer is not None)


def _excluded(group: ChannelGroup, patterns: Sequence[str]) -> dict[str, str]:
    found = {}
    for member in group.members:
        names = (member.tensor, *member.aliases)
        by = next((pattern for pattern in patterns if matches(names, pattern)), None)
        if by is not None:
            found[member.tensor] = by
    return found


def _unmade(free: Mapping[int, ChannelGroup], asked: Mapping[int, ChannelGroup]) -> tuple[FrozenUse, ...]:
    return tuple(
        FrozenUse(
            op="",
            source="",
            reason="no layer's kernel makes these channels, so that the condition says nothing of them",
            layers=tuple(dict.fromkeys(member.tensor for member in group.members)),
        )
        for number, group in free.items()
        if number not in asked
    )


def _why_nothing(
    structure: StructuralInput, problem: Problem, wanted: Mapping[int, object], excluded: Mapping[int, object]
) -> str:
    if wanted and len(excluded) == len(wanted):
        return f"exclude_layers excludes all {len(wanted)} groups of channels that could go; exclude fewer layers"
    if problem.strategy.granularity is Granularity.HEAD and structure.groups:
        return "the model has no attention heads that can be removed as a whole; use granularity channel"
    reasons = list(dict.fromkeys(f"{use.op}: {use.reason}" if use.op else use.reason for use in structure.frozen))
    why = f" ({'; '.join(reasons[:3])})" if reasons else ""
    return f"the model has no channels that can be removed{why}"
