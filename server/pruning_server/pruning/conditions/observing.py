"""What the caller's samples say for a condition: gradients of kernels, and what consumers take of channels."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning_server.graph.capture import LinearCall
from pruning_server.graph.coupling.groups import ChannelGroup, Member
from pruning_server.pruning.evidence import Evidence
from pruning_server.pruning.features.base import Activations, GradientMoments

MAX_SAMPLES = 512
_MAX_VALUES = 1 << 23
"""Values of one call that are looked at; of more, every k-th place."""


@dataclass(frozen=True)
class Consumer:
    """A kernel that takes the channels of a group.

    Attributes:
        member: the kernel's axis, and where the channels lie on it.
        activations: what it takes of them.
        bias: name of the stored bias that is added to its output and to no other's, where there is one.
        adds_evenly: whether a constant in a channel adds the same to every place of the output, but for zeros around
            the borders of an image; a transposed convolution does not.
        pads: whether there are such zeros.
    """

    member: Member
    activations: Activations
    bias: str | None
    adds_evenly: bool
    pads: bool


def observe_gradients(evidence: Evidence, names: Sequence[str]) -> dict[str, GradientMoments]:
    """Moments of the gradients of these kernels over up to `MAX_SAMPLES` fit samples, one at a time.

    Raises:
        JobFailureError: no gradient flows through the model.
    """
    means: dict[str, torch.Tensor] = {}
    squares: dict[str, torch.Tensor] = {}
    batches = 0
    for found in evidence.gradients(names, samples=min(MAX_SAMPLES, evidence.samples), batch_size=1):
        batches += 1
        for name, gradient in found.items():
            wide = gradient.detach().double().cpu()
            means[name] = means[name] + wide if name in means else wide
            squares[name] = squares[name] + wide.square() if name in squares else wide.square()
    return {name: GradientMoments(means[name] / batches, squares[name] / batches, evidence.samples) for name in means}


def observe_consumers(
    evidence: Evidence, groups: Mapping[int, ChannelGroup], members: Mapping[int, Sequence[Member]]
) -> dict[int, tuple[Consumer, ...]]:
    """What the given members take of their groups' channels, over up to `MAX_SAMPLES` fit samples.

    Members whose kernel is used by another kind of op, or not reached, are left out.

    Args:
        evidence: runs the model.
        groups: by number.
        members: by number of the group, consumers of it.
    """
    logs: dict[tuple[int, int], _Log] = {}
    uses: dict[str, list[tuple[tuple[int, int], Member, int]]] = {}
    for number, found in members.items():
        for place, member in enumerate(found):
            for name in (member.tensor, *member.aliases):
                uses.setdefault(name, []).append(((number, place), member, groups[number].size))

    adding: dict[str, set[str]] = {}

    def visit(call: LinearCall) -> None:
        if call.bias is not None:
            adding.setdefault(call.bias, set()).add(call.weight)
        columns: torch.Tensor | None = None
        for key, member, size in uses.get(call.weight, ()):
            if member.axis != call.in_axis:
                continue
            columns = call.columns() if columns is None else columns
            logs.setdefault(key, _Log(size)).add(call, columns, member)

    if uses:
        # All kernels, as another may add the bias of one of these, too.
        evidence.calls(visit, samples=min(MAX_SAMPLES, evidence.samples))
    shared = {bias for bias, kernels in adding.items() if len(kernels) > 1}
    return {
        number: tuple(
            logs[number, place].finish(member, shared) for place, member in enumerate(found) if (number, place) in logs
        )
        for number, found in members.items()
    }


class _Log:
    def __init__(self, channels: int) -> None:
        self._count = 0
        self._zeros = torch.zeros(channels, dtype=torch.float64)
        self._sums = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)
        self._biases: set[str | None] = set()
        self._adds_evenly = True
        self._pads = False

    def add(self, call: LinearCall, columns: torch.Tensor, member: Member) -> None:
        values = _values(columns, call.kernel.shape[call.in_axis], member).double().cpu()
        self._count += values.shape[1]
        self._zeros += (values == 0).sum(dim=1)
        self._sums += values.sum(dim=1)
        self._products += values @ values.T
        self._biases.add(call.bias)
        geometry = call.geometry
        if geometry is not None:
            self._adds_evenly &= not geometry.transposed
            self._pads |= any(any(pair) for pair in geometry.padding)

    def finish(self, member: Member, shared: Collection[str]) -> Consumer:
        bias = next(iter(self._biases)) if len(self._biases) == 1 else None
        bias = None if bias in shared else bias
        activations = Activations(self._count, self._zeros, self._sums, self._products)
        return Consumer(member, activations, bias, self._adds_evenly, self._pads)


def _values(columns: torch.Tensor, length: int, member: Member) -> torch.Tensor:
    """[channels, values]: of each channel all its coordinates at all places, in the same order for every channel."""
    places = torch.tensor(member.coordinates, dtype=torch.int64)
    # The input of a grouped convolution has the kernel's axis once per group.
    repeats = torch.arange(columns.shape[0] // length) * length
    rows = (places[:, :, None] + repeats).reshape(len(places), -1).to(columns.device)
    step = max(1, math.ceil(rows.numel() * columns.shape[1] / _MAX_VALUES))
    return columns[:, ::step][rows.reshape(-1)].reshape(len(places), -1)
