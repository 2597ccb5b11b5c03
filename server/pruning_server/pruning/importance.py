"""How much each channel matters: one score for everything that goes with it.

The score of a channel is the sum of the criterion's scores over its slices of all weights of the group, of those that make
the channel and of those that use it: with l1 the filter norm of Li et al. 2017 (arXiv:1608.08710), extended to coupled
weights as the group norm of DepGraph (Fang et al. 2023, arXiv:2301.12900). As there, scores are then relative to the mean
of their layers, so that large weights, wide layers and groups of many members do not win by that alone. The mean is taken
over the whole axes in which the group lies. Mostly these are the group's own channels; where several groups share an axis
(splits, shuffles, concatenations), a mean over a group of one channel would say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.coupling.groups import ChannelGroup, Member
from pruning_server.pruning.criteria import Criterion
from pruning_server.pruning.criteria.base import ChannelScore
from pruning_server.pruning.scoring import check_finite, seed_of

_BLOCK_ELEMENTS = 1 << 18

Tensors = Callable[[str], torch.Tensor]
Scored = Mapping[int, tuple[Member, ...]]


def find_scored(groups: Mapping[int, ChannelGroup], tensors: Tensors, names: frozenset[str]) -> Scored:
    """The members of each group whose elements count: the named weights of real numbers; groups without one are left out.

    Args:
        groups: by number.
        tensors: a stored tensor by name.
        names: the weights; running statistics, counters and other buffers are none.
    """
    found = {
        number: tuple(
            member
            for member in group.members
            if not names.isdisjoint((member.tensor, *member.aliases)) and tensors(member.tensor).is_floating_point()
        )
        for number, group in groups.items()
    }
    return {number: members for number, members in found.items() if members}


def score_channels(scored: Scored, tensors: Tensors, criterion: Criterion, seed: int) -> dict[int, torch.Tensor]:
    """A score per channel, float64, comparable between groups, by group number; the lowest are removed first.

    An element that lies in two slices of one channel, as in a weight with the group on both its axes, counts for each.

    Args:
        scored: the members that count, by group number.
        tensors: a stored tensor by name; read, never written.
        criterion: what an element, or a channel, is worth.
        seed: for criteria that draw.

    Raises:
        JobFailureError: MODEL_NOT_FINITE where a weight is not, or its scores are too large to be added.
    """
    for name in dict.fromkeys(member.tensor for members in scored.values() for member in members):
        check_finite(name, tensors(name))
    if criterion.score_channels is not None:
        by_channels = criterion.score_channels
        return {number: _by_channels(members, tensors, by_channels, seed) for number, members in scored.items()}
    return _by_elements(scored, tensors, criterion, seed)


def slices_of(member: Member, tensor: torch.Tensor) -> torch.Tensor:
    """A member's elements by channel: [channels, elements of each]."""
    rows = _rows(member).to(tensor.device)
    taken = tensor.detach().movedim(member.axis, 0)[rows.reshape(-1)]
    return taken.reshape(len(rows), -1)


def _by_elements(scored: Scored, tensors: Tensors, criterion: Criterion, seed: int) -> dict[int, torch.Tensor]:
    sums = {number: torch.zeros(len(members[0].coordinates), dtype=torch.float64) for number, members in scored.items()}
    usual = {number: torch.zeros((), dtype=torch.float64) for number in scored}
    by_tensor: dict[str, list[tuple[int, Member]]] = {}
    for number, members in scored.items():
        for member in members:
            by_tensor.setdefault(member.tensor, []).append((number, member))
    for name, uses in by_tensor.items():  # one tensor's scores at a time: they take twice its memory
        scores = criterion.score(tensors(name), seed_of(name, seed)).cpu()
        lines = {axis: _sum_over_others(scores, axis) for axis in {member.axis for _, member in uses}}
        for number, member in uses:
            rows, line = _rows(member), lines[member.axis]
            sums[number] += line[rows].sum(dim=1)
            usual[number] += line.mean() * rows.shape[1]
    return {number: _relative(sums[number], usual[number], scored[number]) for number in scored}


def _by_channels(members: tuple[Member, ...], tensors: Tensors, score: ChannelScore, seed: int) -> torch.Tensor:
    first = members[0]
    own_seed = seed_of(f"{first.tensor}:{first.axis}:{first.coordinates[0][0]}", seed)
    return score([slices_of(member, tensors(member.tensor)) for member in members], own_seed).cpu().double()


def _rows(member: Member) -> torch.Tensor:
    return torch.tensor(member.coordinates, dtype=torch.int64)


def _sum_over_others(scores: torch.Tensor, axis: int) -> torch.Tensor:
    """Sums in float64 along all other axes, block by block: widened at once, a large kernel would take several times its memory."""
    lines = scores.movedim(axis, 0)
    if lines.dim() == 1:
        return lines.double()
    rows = max(1, _BLOCK_ELEMENTS // max(1, lines[0].numel()))
    return torch.cat([block.flatten(1).sum(dim=1, dtype=torch.float64) for block in lines.split(rows)])


def _relative(sums: torch.Tensor, usual: torch.Tensor, members: tuple[Member, ...]) -> torch.Tensor:
    if not bool(torch.isfinite(sums).all()) or not bool(torch.isfinite(usual)):
        name = members[0].tensor
        raise JobFailureError(
            Reason.MODEL_NOT_FINITE,
            f"{name} or a weight coupled to it is too large: its scores cannot be added. Send a model with smaller weights",
            metadata={"tensor": name},
        )
    return sums / usual if bool(usual > 0) else sums
