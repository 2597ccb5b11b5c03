"""What the next layers' outputs lose without a channel when the channels that stay take over for it, in least squares.

Channels are taken away one by one, each time the one whose loss is smallest, with the kernels of all layers that take the
group in refitted to the inputs that are left (the update of Hassibi, Stork 1993, Second order derivatives for network
pruning, NIPS 5, for blocks). So of two channels that can replace each other one goes early and the other late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning_server.graph.capture import LinearCall
from pruning_server.graph.coupling.groups import Member
from pruning_server.pruning.criteria import signals
from pruning_server.pruning.criteria.base import CHANNELS_ONLY, Basis, Criterion, Needs, Scored
from pruning_server.pruning.scoring import seed_of

SAMPLES = 256
RIDGE = 1e-4
"""Added to the features' variances, relative to their mean."""

MAX_FEATURES = 1152
"""Of a layer that is refitted place by place of its kernel; a larger one is refitted by channels."""

MAX_CHANNELS = 4096
_POSITIONS_PER_CALL = 2048
_POSITIONS = 4096
_POSITIONS_PER_FEATURE = 4

_STEPS = 128
"""A group of more channels loses several at a time, as long as together they lose no more than this times what each would."""

_MAX_OVERLAP = 1.25


def _score_channels(scored: Scored, basis: Basis) -> Mapping[int, torch.Tensor]:
    layers: dict[str, _Moments] = {}
    taken: dict[int, dict[str, torch.Tensor]] = {}

    def add(number: int, member: Member, inputs: torch.Tensor, call: LinearCall) -> None:
        # A part of a grouped convolution that goes takes its outputs along: nothing is left to compare.
        if member.axis == call.in_axis and _channels(call) <= MAX_CHANNELS:
            if call.weight not in layers:
                layers[call.weight] = _Moments(call, seed_of(call.weight, basis.seed))
            layers[call.weight].add(call)
            taken.setdefault(number, {})[call.weight] = inputs

    signals.watch(scored, basis, add, samples=SAMPLES)
    return {
        number: _errors([layers[name].problem(inputs) for name, inputs in by_layer.items()])
        for number, by_layer in taken.items()
    }


def _channels(call: LinearCall) -> int:
    return call.columns().shape[0]


def _kernel(call: LinearCall, *, by_place: bool) -> torch.Tensor:
    """[features, outputs]; without its places a channel's kernel gives one output per place.

    The parts of a grouped convolution are blocks on the diagonal. `split` is [parts, inputs, outputs, places].
    """
    kernel, parts = call.kernel.detach().cpu().double(), call.groups
    if call.has_design:
        ordered = kernel.movedim(call.out_axis, 0)
        split = ordered.reshape(parts, len(ordered) // parts, ordered.shape[1], -1).transpose(1, 2)
    else:
        split = kernel.reshape(parts, len(kernel) // parts, kernel.shape[1], -1)
    blocks = split.transpose(2, 3).flatten(1, 2) if by_place else split.flatten(2)
    whole: torch.Tensor = torch.block_diag(*blocks)
    return whole


class _Moments:
    """Second moments of what a layer takes in; features are input channels, with the kernel's places where those are few."""

    def __init__(self, call: LinearCall, seed: int) -> None:
        places = call.kernel[0, 0].numel()
        self._by_place = call.has_design and _channels(call) * places <= MAX_FEATURES
        self._places = places if self._by_place else 1
        self._parts = call.groups
        kernel = _kernel(call, by_place=self._by_place)
        self._size = len(kernel)
        self._kernel = kernel @ kernel.t()
        self._sum = torch.zeros(self._size, dtype=torch.float64)
        self._square = torch.zeros(self._size, self._size, dtype=torch.float64)
        self._count = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._last: LinearCall | None = None

    def add(self, call: LinearCall) -> None:
        """Adds a call's positions, or as many of them, drawn by the seed, as say enough."""
        if self._last is call or self._count >= max(_POSITIONS, _POSITIONS_PER_FEATURE * self._size):
            return  # it was added for another group on the same axis, or there are enough
        self._last = call
        values = call.columns() if not self._by_place else None
        count = call.positions() if values is None else values.shape[1]
        chosen = torch.randperm(count, generator=self._generator)[:_POSITIONS_PER_CALL]
        if values is None:
            rows = call.design(chosen).movedim(0, 1).flatten(1)
        else:
            rows = values[:, chosen.to(values.device)].t()
        rows = rows.cpu().double()
        self._sum += rows.sum(dim=0)
        self._square += rows.t() @ rows
        self._count += len(rows)

    def problem(self, inputs: torch.Tensor) -> _Problem:
        """The least squares of this layer for channels with these input channels: int64 [channels, inputs]."""
        mean = self._sum / self._count
        # A constant goes into the next bias or normalization: what counts is how values vary.
        covariance = self._square / self._count - torch.outer(mean, mean)
        if self._parts > 1:  # no part can take over for another one
            size = self._size // self._parts
            covariance *= torch.block_diag(*[covariance.new_ones(size, size)] * self._parts)
        ridge = RIDGE * covariance.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        inverse = torch.linalg.inv(covariance + ridge * torch.eye(self._size, dtype=torch.float64))
        places = (inputs.unsqueeze(2) * self._places + torch.arange(self._places)).flatten(1)
        return _Problem(inverse, self._kernel.clone(), places, float((self._kernel * covariance).sum()))


@dataclass
class _Problem:
    """One layer's regression, of what is left of it.

    Attributes:
        inverse: of the features' covariance: [features, features].
        kernel: the refitted kernel times itself: [features, features].
        places: the features of each channel: int64 [channels, features of each].
        energy: the outputs' variance, all of it.
    """

    inverse: torch.Tensor
    kernel: torch.Tensor
    places: torch.Tensor
    energy: float

    def losses(self, sets: torch.Tensor) -> torch.Tensor:
        """The share of the outputs' variance that goes with each set of channels when the others are refitted: [sets].

        Args:
            sets: int64 [sets, channels].
        """
        places = self.places[sets].flatten(1)
        rows, columns = places.unsqueeze(2), places.unsqueeze(1)
        parts = torch.linalg.solve(self.inverse[rows, columns], self.kernel[rows, columns])
        lost = parts.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=0)
        return lost / self.energy if self.energy > 0 else torch.zeros_like(lost)

    def remove(self, channels: torch.Tensor) -> None:
        """Takes some away and refits the others."""
        places = self.places[channels].flatten()
        columns = self.inverse[:, places]
        update = torch.linalg.solve(self.inverse[places][:, places], columns.t()).t()
        moved = update @ self.kernel[places]
        self.kernel += update @ (self.kernel[places][:, places] @ update.t()) - moved - moved.t()
        self.inverse -= update @ columns.t()
        # What is gone must not come back by rounding.
        for matrix in (self.kernel, self.inverse):
            matrix[places] = 0
            matrix[:, places] = 0
        self.inverse[places, places] = 1


def _errors(problems: Sequence[_Problem]) -> torch.Tensor:
    """By channel, the share of the outputs' variance that is lost when it goes, in order, summed over the layers."""
    size = len(problems[0].places)
    left = torch.arange(size)
    errors = torch.zeros(size, dtype=torch.float64)
    total = 0.0
    while len(left):
        lost = _sum_of_losses(problems, left.unsqueeze(1))
        order = torch.argsort(lost, stable=True)[: max(1, size // _STEPS)]
        together = float(_sum_of_losses(problems, left[order].unsqueeze(0))) if len(order) > 1 else float(lost[order])
        if together > _MAX_OVERLAP * float(lost[order].sum()):  # they stand in for each other
            order = order[:1]
            together = float(lost[order])
        gone = left[order]
        shares = lost[order].cumsum(0)
        errors[gone] = total + (shares / shares[-1] if shares[-1] > 0 else torch.ones_like(shares)) * together
        total += together
        for problem in problems:
            problem.remove(gone)
        left = left[~torch.isin(left, gone)]
    return errors


def _sum_of_losses(problems: Sequence[_Problem], sets: torch.Tensor) -> torch.Tensor:
    return torch.stack([problem.losses(sets) for problem in problems]).sum(dim=0)


CRITERION = Criterion(
    name="reconstruction",
    summary="channels only: what the next layers' outputs lose without it when the other channels take over, one by one",
    source="Luo, Wu, Lin 2017, arXiv:1707.06342; refitted as in He, Zhang, Sun 2017, arXiv:1707.06168",
    formula=(
        "sum over the layers that take it in of tr(W_c' [(S^-1)_cc]^-1 W_c) / tr(W' S W), S the covariance of their inputs,"
        " added up in the order of removal"
    ),
    needs=Needs.ACTIVATIONS,
    score_channels=_score_channels,
    granularities=CHANNELS_ONLY,
    unscored=signals.UNSCORED,
)
