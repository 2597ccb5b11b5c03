"""Kernels that make up for missing inputs: least squares on the original's activations, for trials of one layer at a time.

He, Zhang, Sun 2017, arXiv:1707.06168. Nothing but the original runs: the second moments of what a layer takes in give the
refitted kernel for any inputs that are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pruning_server.graph.capture import LinearCall
from pruning_server.graph.coupling.groups import ChannelGroup, Member
from pruning_server.graph.surgery.cut import Removal
from pruning_server.pruning.criteria import signals
from pruning_server.pruning.criteria.base import Basis
from pruning_server.pruning.scoring import seed_of

SAMPLES = 256
RIDGE = 1e-3
"""Added to the moments' diagonal, relative to its mean."""

MAX_FEATURES = 1152
"""Of a layer that is refitted place by place of its kernel; a larger one is refitted by channels, all places alike."""

MAX_CHANNELS = 4608
_POSITIONS_PER_CALL = 1024


@dataclass
class _Layer:
    """A kernel [out, in, places] and the second moments [features, features] of what it takes in.

    Attributes:
        stored: the kernel as stored, where `axes` are its outputs and inputs.
        places: how many of the kernel's places are features of their own: all, or none (1).
    """

    kernel: torch.Tensor
    stored: torch.Tensor
    axes: tuple[int, int]
    places: int
    moments: torch.Tensor

    @classmethod
    def of(cls, call: LinearCall) -> _Layer:
        moved = call.kernel.detach().movedim((call.out_axis, call.in_axis), (0, 1))
        kernel = moved.reshape(*moved.shape[:2], -1).cpu().float()
        places = kernel.shape[2] if call.has_design and kernel[0].numel() <= MAX_FEATURES else 1
        size = kernel.shape[1] * places
        return cls(kernel, call.kernel.detach(), (call.out_axis, call.in_axis), places, torch.zeros(size, size))

    def add(self, call: LinearCall, generator: torch.Generator) -> None:
        """Adds a call's positions, or as many of them as say enough."""
        if self.places > 1:
            count = call.positions()
            rows = call.design(torch.randperm(count, generator=generator)[:_POSITIONS_PER_CALL])[0]
        else:
            columns = call.columns()
            chosen = torch.randperm(columns.shape[1], generator=generator)[:_POSITIONS_PER_CALL]
            rows = columns[:, chosen.to(columns.device)].t()
        rows = rows.detach().cpu().float()
        self.moments += rows.t() @ rows

    def without(self, inputs: torch.Tensor) -> torch.Tensor:
        """The kernel as stored, refitted to the other inputs; those that are gone are 0.

        Args:
            inputs: int64, the input channels that go.
        """
        out, width, places = self.kernel.shape
        stays = torch.ones(width, dtype=torch.bool)
        stays[inputs] = False
        kept = stays.repeat_interleave(self.places).nonzero().flatten()
        among = self.moments[kept][:, kept]
        ridge = RIDGE * self.moments.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        among.diagonal().add_(ridge)
        solved = torch.linalg.solve(among.double(), self.moments[kept].double()).float()  # [kept, features]
        refitted = torch.zeros_like(self.kernel)
        if self.places > 1 or places == 1:
            flat = self.kernel.flatten(1) @ solved.t()
            refitted[:, stays] = flat.reshape(out, -1, places)
        else:
            refitted[:, stays] = torch.einsum("oip,ki->okp", self.kernel, solved)
        return self._stored(refitted)

    def _stored(self, kernel: torch.Tensor) -> torch.Tensor:
        shape = self.stored.movedim(self.axes, (0, 1)).shape
        return kernel.reshape(shape).movedim((0, 1), self.axes).to(self.stored)


class Refits:
    """The layers that take the groups' channels in, and how to refit them.

    Args:
        groups: by number.
        basis: with evidence; a few hundred fit samples run through the original once.
    """

    def __init__(self, groups: Mapping[int, ChannelGroup], basis: Basis) -> None:
        self._layers: dict[str, _Layer] = {}
        self._taken: dict[int, dict[str, torch.Tensor]] = {number: {} for number in groups}
        self._generators: dict[str, torch.Generator] = {}
        self._seen: LinearCall | None = None
        self._seed = basis.seed
        scored = {number: group.members for number, group in groups.items()}
        signals.watch(scored, basis, self._add, samples=SAMPLES)

    def without(self, removal: Removal, off: Removal | None = None) -> dict[str, torch.Tensor]:
        """New kernels, by name, for all layers that take in what goes, where `off` has gone before."""
        touched = self._inputs(removal)
        before = self._inputs(off or {})
        gone = {name: torch.cat([*inputs, *before.get(name, ())]).unique() for name, inputs in touched.items()}
        return {
            name: self._layers[name].without(inputs)
            for name, inputs in gone.items()
            if len(inputs) < self._layers[name].kernel.shape[1]
        }

    def _inputs(self, removal: Removal) -> dict[str, list[torch.Tensor]]:
        found: dict[str, list[torch.Tensor]] = {}
        for number, channels in removal.items():
            for name, inputs in self._taken.get(number, {}).items():
                found.setdefault(name, []).append(inputs[list(channels)].flatten())
        return found

    def _add(self, number: int, member: Member, inputs: torch.Tensor, call: LinearCall) -> None:
        # What a part of a grouped convolution loses, no other part can make up for.
        if member.axis != call.in_axis or call.groups != 1:
            return
        if call.kernel.shape[call.in_axis] > MAX_CHANNELS:
            return
        name = call.weight
        if name not in self._layers:
            self._layers[name] = _Layer.of(call)
            self._generators[name] = torch.Generator().manual_seed(seed_of(name, self._seed))
        self._taken[number][name] = inputs
        if self._seen is not call:  # several groups may share the axis
            self._seen = call
            self._layers[name].add(call, self._generators[name])
