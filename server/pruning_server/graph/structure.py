"""What can be removed of a model, what that would cost and save, and its removal."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pruning_server.graph.channels import Channels
from pruning_server.graph.coupling.groups import ChannelGroup, find_frozen, find_groups
from pruning_server.graph.coupling.tracer import Tracer
from pruning_server.graph.execution import compile_methods
from pruning_server.graph.slots import find_places
from pruning_server.graph.surgery.costs import (
    ShapeLengths,
    StructureCost,
    Work,
    count_bytes,
    count_values,
    find_work,
    leaf_lengths,
)
from pruning_server.graph.surgery.cut import AxisCut, Cut, Removal
from pruning_server.graph.surgery.editing import edit_code
from pruning_server.graph.surgery.edits import Edit
from pruning_server.graph.surgery.tensors import shrink_tensors
from pruning_server.graph.surgery.tracing import Samples, Traced, trace_module
from pruning_server.graph.values import FrozenUse

__all__ = [
    "Cut",
    "Removal",
    "Samples",
    "Structure",
    "StructureCost",
    "analyse",
    "shrink",
]


@dataclass(frozen=True)
class _StoredAxis:
    """One axis of one stored tensor: the class of every coordinate, and which of them are switched off there."""

    tensor: str
    aliases: tuple[str, ...]
    axis: int
    classes: tuple[int, ...]
    switches: tuple[bool, ...]


@dataclass(frozen=True)
class Structure:
    """The channels of a model.

    Attributes:
        groups: channels that can be removed, each with everything that belongs to it.
        frozen: what cannot, and why.
        methods: methods that were run to find this out.
        failed_rules: forms of ops that a rule did not foresee; what they touch is frozen.
        attention_by_dims: how many attentions lose dimensions inside heads, not whole heads.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenUse, ...]
    methods: tuple[str, ...]
    failed_rules: tuple[str, ...]
    edits: tuple[Edit, ...]
    axes: tuple[_StoredAxis, ...]
    stored: tuple[ShapeLengths, ...]
    work: tuple[Work, ...]
    batch_size: int
    attention_by_dims: int = 0

    def classes(self, removal: Removal) -> frozenset[int]:
        """The classes of the channels to remove.

        Raises:
            ValueError: a group or channel that does not exist.
        """
        found = set()
        for number, channels in removal.items():
            if not 0 <= number < len(self.groups):
                raise ValueError(f"there is no group {number}")
            group = self.groups[number]
            for channel in channels:
                if not 0 <= channel < group.size:
                    raise ValueError(f"group {number} has no channel {channel}")
                found.add(group.classes[channel])
        return frozenset(found)

    def cost(self, removal: Removal) -> StructureCost:
        """Parameters, and multiply-accumulates of one sample of `forward`, after a removal."""
        removed = self.classes(removal)
        return StructureCost(
            parameters=count_values([one for one in self.stored if one.is_parameter], removed),
            stored_bytes=count_bytes(self.stored, removed),
            macs=self._macs(removed),
        )

    def _macs(self, removed: frozenset[int]) -> int | None:
        counted = [work.macs(removed) for work in self.work]
        known = [macs for macs in counted if macs is not None]
        if len(known) < len(counted):
            return None
        return (2 * sum(known) + self.batch_size) // (2 * self.batch_size)

    def cut(self, removal: Removal) -> Cut:
        """What a removal takes from each stored tensor.

        Raises:
            ValueError: nothing would be left of an axis, or the removal names what does not exist.
        """
        removed = self.classes(removal)
        cuts = []
        for one in self.axes:
            gone = [number for number, root in enumerate(one.classes) if root in removed]
            if not gone:
                continue
            kept = tuple(number for number, root in enumerate(one.classes) if root not in removed)
            if not kept:
                raise ValueError(f"nothing would be left of axis {one.axis} of {one.tensor}")
            zeroed = tuple(number for number in gone if one.switches[number])
            cuts.append(AxisCut(one.tensor, one.aliases, one.axis, len(one.classes), kept, zeroed))
        return tuple(cuts)


def analyse(
    module: torch.jit.ScriptModule, samples: Samples, *, batch_size: int = 1, head_dims: bool = False
) -> Structure:
    """Finds out which channels can be removed, by running the model with labels on every axis.

    Methods without samples are run with those of `forward`, or without arguments, where they take them; what only
    they use, and cannot be reached so, stays as it is.

    Args:
        module: a load of the archive that nobody else uses; it is the same afterwards.
        samples: by method, the inputs of each run; two batch sizes at least, where the model allows.
        batch_size: samples in the first run of `forward`, for the cost per sample.
        head_dims: attention may lose the same dimensions of every head, those of queries and keys apart from those of
            values, where that leaves more to choose from than whole heads.

    Raises:
        TypeError: too few arguments.
        RuntimeError: whatever the model raises, or a node that cannot be executed.
    """
    return assemble(module, trace_module(module, samples, head_dims=head_dims), batch_size)


def assemble(module: torch.jit.ScriptModule, traced: Traced, batch_size: int) -> Structure:
    """What tracing found, without the tensors and nodes that it holds."""
    tracer, channels = traced.tracer, traced.tracer.channels
    parameters = _parameters(module) or frozenset(leaf.name for leaf in tracer.leaves)
    return Structure(
        groups=find_groups(tracer.leaves, channels),
        frozen=find_frozen(tracer.leaves, channels),
        methods=traced.run,
        failed_rules=tuple(dict.fromkeys(tracer.failed_rules)),
        edits=traced.edits,
        axes=_stored_axes(tracer, channels),
        stored=tuple(leaf_lengths(leaf, channels, is_parameter=leaf.name in parameters) for leaf in tracer.leaves),
        work=find_work(tracer.visits[: traced.visited], channels),
        batch_size=batch_size,
        attention_by_dims=channels.choices.by_dims() if channels.choices is not None else 0,
    )


def shrink(
    module: torch.jit.ScriptModule, structure: Structure, removal: Removal, *, channels_last: bool = False
) -> Cut:
    """Removes channels from a load of the analysed archive, in place; returns what was taken from each tensor.

    `channels_last`: cut kernels over images are stored in that memory format, which changes no value.
    Save and load the module before running it: torch may still run the old code until then.

    Raises:
        ValueError: nothing would be left of an axis, or the removal names what does not exist.
    """
    cut = structure.cut(removal)
    methods = compile_methods(module, in_place=True)
    # Tensors first: editing may replace nodes, and constants are found through them.
    shrink_tensors(module, methods.values(), cut, channels_last=channels_last)
    edit_code(methods, structure.edits, structure.classes(removal))
    return cut


def _parameters(module: torch.jit.ScriptModule) -> frozenset[str]:
    return frozenset(slot.name for slot in find_places(module).slots.values() if slot.parameter)


def _stored_axes(tracer: Tracer, channels: Channels) -> tuple[_StoredAxis, ...]:
    at_producers = channels.switch_off_at_producers()
    found = []
    for leaf in tracer.leaves:
        for axis, line in enumerate(leaf.lines):
            if line is None:
                continue
            roots = channels.roots(line).tolist()
            if all(channels.is_frozen(root) for root in roots):
                continue
            switches = tuple(
                channels.is_consumer(element) or root in at_producers
                for element, root in zip(line.tolist(), roots, strict=True)
            )
            classes = tuple(-1 if channels.is_frozen(root) else root for root in roots)
            found.append(_StoredAxis(leaf.name, leaf.aliases, axis, classes, switches))
    return tuple(found)
