"""From scores of elements to scores of channels: sums over everything that goes with a channel, relative to the layer.

Where several groups share an axis (splits, shuffles, concatenations) a mean over a group of one channel would say nothing:
a layer is the whole axis then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.coupling.groups import Member
from pruning_server.pruning.criteria.base import Basis, Score, Scored
from pruning_server.pruning.scoring import seed_of

_BLOCK_ELEMENTS = 1 << 18

Lines = Callable[[str, Collection[int]], Mapping[int, torch.Tensor]]
"""(tensor, axes) -> by axis, a score per coordinate, float64."""


def sum_elements(scored: Scored, basis: Basis, score: Score) -> dict[int, torch.Tensor]:
    """Per channel the sum of its elements' scores, relative to the mean of its layers.

    An element that lies in two slices of one channel, as in a weight with the group on both its axes, counts for each.
    """

    def lines(name: str, axes: Collection[int]) -> Mapping[int, torch.Tensor]:
        scores = score(basis.tensors(name), seed_of(name, basis.seed)).cpu()
        return {axis: sum_over_others(scores, axis) for axis in axes}

    return sum_lines(scored, lines)


def sum_lines(scored: Scored, lines: Lines) -> dict[int, torch.Tensor]:
    """Per channel the sum over its coordinates in all its tensors, relative to the mean of these axes.

    Raises:
        JobFailureError: MODEL_NOT_FINITE where the sums are too large.
    """
    sums = {number: torch.zeros(len(members[0].coordinates), dtype=torch.float64) for number, members in scored.items()}
    usual = {number: torch.zeros((), dtype=torch.float64) for number in scored}
    by_tensor: dict[str, list[tuple[int, Member]]] = {}
    for number, members in scored.items():
        for member in members:
            by_tensor.setdefault(member.tensor, []).append((number, member))
    for name, uses in by_tensor.items():  # one tensor's scores at a time: they take twice its memory
        found = lines(name, {member.axis for _, member in uses})
        for number, member in uses:
            rows, line = rows_of(member), found[member.axis]
            sums[number] += line[rows].sum(dim=1)
            usual[number] += line.mean() * rows.shape[1]
    return {number: _relative(sums[number], usual[number], scored[number]) for number in scored}


def rows_of(member: Member) -> torch.Tensor:
    """The coordinates of each channel: int64 [channels, coordinates]."""
    return torch.tensor(member.coordinates, dtype=torch.int64)


def sum_over_others(scores: torch.Tensor, axis: int) -> torch.Tensor:
    """Sums in float64 along all other axes, block by block: widened at once, a large kernel would take several times its memory."""
    lines = scores.movedim(axis, 0)
    if lines.dim() == 1:
        return lines.double()
    rows = max(1, _BLOCK_ELEMENTS // max(1, lines[0].numel()))
    return torch.cat([block.flatten(1).sum(dim=1, dtype=torch.float64) for block in lines.split(rows)])


def producers(members: tuple[Member, ...]) -> tuple[Member, ...]:
    """The members that make the channels; all of them where none does."""
    return tuple(member for member in members if not member.consumer) or members


def consumers(members: tuple[Member, ...]) -> tuple[Member, ...]:
    """The members that take the channels in, whose zeros switch them off; all of them where none does."""
    return tuple(member for member in members if member.consumer) or members


# --- Layers -----------------------------------------------------------------------------------------------------------


def by_layer(
    scores: Mapping[int, torch.Tensor], scored: Scored, change: Callable[[torch.Tensor], torch.Tensor]
) -> dict[int, torch.Tensor]:
    """Changes the scores of all channels of a layer at once: of the groups that share an axis, mostly one."""
    found: dict[int, torch.Tensor] = {}
    for numbers in _sharing_axes({number: scored[number] for number in scores}):
        changed = change(torch.cat([scores[number] for number in numbers]))
        parts = changed.split([len(scores[number]) for number in numbers])
        found.update(zip(numbers, parts, strict=True))
    return {number: found[number] for number in scores}


def _sharing_axes(scored: Scored) -> list[tuple[int, ...]]:
    first: dict[tuple[str, int], int] = {}
    parents = {number: number for number in scored}

    def top(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    for number, members in scored.items():
        for member in members:
            one, other = top(number), top(first.setdefault((member.tensor, member.axis), number))
            parents[max(one, other)] = min(one, other)
    layers: dict[int, list[int]] = {}
    for number in scored:
        layers.setdefault(top(number), []).append(number)
    return [tuple(numbers) for numbers in layers.values()]


def _relative(sums: torch.Tensor, usual: torch.Tensor, members: tuple[Member, ...]) -> torch.Tensor:
    if not bool(torch.isfinite(sums).all()) or not bool(torch.isfinite(usual)):
        name = members[0].tensor
        raise JobFailureError(
            Reason.MODEL_NOT_FINITE,
            f"{name} or a weight coupled to it is too large: its scores cannot be added. Send a model with smaller weights",
            metadata={"tensor": name},
        )
    return sums / usual if bool(usual > 0) else sums
