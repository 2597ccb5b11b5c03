"""What could be removed from a model: layers, groups of channels, what is frozen. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch

from pruning_server.graph.coupling.groups import ChannelGroup, Coupling
from pruning_server.graph.modules import KERNEL_KINDS, FrozenUse, WeightKind, find_weights
from pruning_server.graph.observe import count_macs
from pruning_server.graph.slots import MemoryGroup, Slot, find_places, group_by_memory
from pruning_server.graph.structure import analyse
from pruning_server.graph.survey import model_order
from pruning_server.graph.training import thaw
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.recovery.raised import is_out_of_memory, last_line
from pruning_server.spec.inspection import (
    FrozenInspection,
    GroupInspection,
    Inspection,
    LayerInspection,
    TensorSpec,
)

# What the analysis may raise on a model that its own interpreter cannot follow.
_ANALYSIS_ERRORS: tuple[type[Exception], ...] = (*MODEL_ERRORS, ArithmeticError, AttributeError, LookupError)
_Place = tuple[str, int]


@dataclass
class _Layer:
    """The trainable tensors of one layer, the roles that they play, and those of them that are kernels."""

    tensors: list[Slot] = field(default_factory=list)
    kinds: list[WeightKind] = field(default_factory=list)
    kernels: list[Slot] = field(default_factory=list)


def inspect_model(
    module: torch.jit.ScriptModule,
    inputs: Sequence[object],
    others: Sequence[Sequence[object]] = (),
    notes: Sequence[str] = (),
) -> Inspection:
    """Finds what could be removed, from runs of `forward`.

    A model that the analysis cannot execute comes back wholly frozen, with the reason.

    Args:
        module: a load of the archive that nobody else uses, in evaluation mode; weights that are constants of the code
            get the names that a job's report gives them. Its state is the same afterwards.
        inputs: arguments of `forward`; multiply-accumulates are per sample, the first axis being the samples.
        others: further arguments, best of another number of samples: what one run leaves open, a second may settle.
        notes: on these, passed on.

    Raises:
        RuntimeError: an allocation failed.
    """
    thawed = thaw(module)
    slots = group_by_memory(model_order(find_places(thawed)))
    layers, layer_of = _layers(thawed, slots)
    macs = _macs(thawed, inputs)
    coupling = _coupling(thawed, (inputs, *others), tuple(layers))
    remaining = _Remaining(coupling.groups, (group.main for group in slots))
    in_groups = [
        tuple(dict.fromkeys(layer_of.get(member.tensor, member.tensor) for member in group.members))
        for group in coupling.groups
    ]
    return Inspection(
        inputs=tuple(spec_of(value) for value in inputs if isinstance(value, torch.Tensor)),
        layers=tuple(
            LayerInspection(
                name=name,
                kind=_kind(layer),
                shape=tuple(_main(layer).tensor.shape),
                parameters=sum(slot.tensor.numel() for slot in layer.tensors),
                macs=macs.get(name, 0),
                group_indices=tuple(index for index, names in enumerate(in_groups) if name in names),
                min_parameter_ratio=remaining.ratio(layer.tensors),
            )
            for name, layer in layers.items()
        ),
        groups=tuple(
            GroupInspection(channels=group.size, layers=names)
            for group, names in zip(coupling.groups, in_groups, strict=True)
        ),
        frozen=tuple(
            FrozenInspection(
                op=use.op,
                source=use.source,
                reason=use.reason,
                layers=tuple(dict.fromkeys(layer_of.get(name, name) for name in use.layers)),
            )
            for use in coupling.frozen
        ),
        notes=tuple(notes),
    )


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """Shape and dtype of a tensor."""
    return TensorSpec(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


def batch_size_of(inputs: Sequence[object]) -> int:
    """Number of samples: the length of the first axis that all tensors share; 1 where they differ."""
    lengths = {len(value) for value in inputs if isinstance(value, torch.Tensor) and value.dim()}
    return max(1, lengths.pop()) if len(lengths) == 1 else 1


def _layers(module: torch.jit.ScriptModule, slots: Iterable[MemoryGroup]) -> tuple[dict[str, _Layer], dict[str, str]]:
    """Layers that hold something trainable, in the model's order, and the layer of every stored tensor by its names."""
    weights = {weight.name: weight for weight in find_weights(module).weights}
    layers: dict[str, _Layer] = {}
    layer_of: dict[str, str] = {}
    for group in slots:
        main = group.main
        layer_of.update((slot.name, main.layer) for slot in group.slots)
        weight = weights.get(main.name)
        if not (main.parameter or weight is not None) or not main.tensor.is_floating_point():
            continue
        layer = layers.setdefault(main.layer, _Layer())
        layer.tensors.append(main)
        if weight is not None:
            layer.kinds.append(weight.kind)
            if weight.kind in KERNEL_KINDS:
                layer.kernels.append(main)
    return layers, layer_of


def _main(layer: _Layer) -> Slot:
    return max(layer.kernels or layer.tensors, key=lambda slot: slot.tensor.numel())


def _kind(layer: _Layer) -> str:
    kernels = [kind for kind in layer.kinds if kind in KERNEL_KINDS]
    return next(iter(kernels or layer.kinds), "other")


def _macs(module: torch.jit.ScriptModule, inputs: Sequence[object]) -> Mapping[str, int]:
    try:
        return count_macs(module, inputs, batch_size_of(inputs)).by_layer
    except _ANALYSIS_ERRORS as error:
        if is_out_of_memory(error):
            raise
        return {}


def _coupling(module: torch.jit.ScriptModule, runs: Sequence[Sequence[object]], layers: tuple[str, ...]) -> Coupling:
    try:
        found = analyse(module, {"forward": runs}, head_dims=True)
        return Coupling(found.groups, found.frozen)
    except _ANALYSIS_ERRORS as error:
        if is_out_of_memory(error):
            raise
        reason = f"the analysis cannot execute the model ({last_line(error)}), so all of it stays"
        return Coupling((), (FrozenUse("", "", reason, layers),))


class _Remaining:
    """The fewest channels that must stay, if as many as possible go everywhere.

    Args:
        groups: as coupling has found them.
        slots: every stored tensor.
    """

    def __init__(self, groups: Sequence[ChannelGroup], slots: Iterable[Slot]) -> None:
        self._groups = groups
        # Per axis of a stored tensor: (group, coordinates that one channel of it takes).
        self._held: dict[_Place, list[tuple[int, int]]] = {}
        for number, group in enumerate(groups):
            for member in group.members:
                width = len(member.coordinates[0])
                self._held.setdefault((member.tensor, member.axis), []).append((number, width))
        # A group that has an axis to itself anywhere keeps one channel everywhere.
        self._keeps_one = {
            self._held[slot.name, axis][0][0]
            for slot in slots
            for axis in range(slot.tensor.dim())
            if len(self._held.get((slot.name, axis), ())) == 1 and self._fixed(slot, axis) == 0
        }

    def ratio(self, tensors: Sequence[Slot]) -> float:
        """The share of the elements of these tensors that is left."""
        total = sum(slot.tensor.numel() for slot in tensors)
        left = sum(prod(self._least(slot, axis) for axis in range(slot.tensor.dim())) for slot in tensors)
        return left / total if total else 1.0

    def _fixed(self, slot: Slot, axis: int) -> int:
        """Coordinates of an axis that belong to no group."""
        held = self._held.get((slot.name, axis), ())
        return int(slot.tensor.shape[axis]) - sum(self._groups[number].size * width for number, width in held)

    def _least(self, slot: Slot, axis: int) -> int:
        """Coordinates of an axis that stay; where no group has to keep a channel, the cheapest one does."""
        held = self._held.get((slot.name, axis), ())
        kept = self._fixed(slot, axis) + sum(width for number, width in held if number in self._keeps_one)
        return kept or min(width for _, width in held)
