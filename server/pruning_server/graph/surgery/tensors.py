"""Replaces stored tensors by smaller ones: tied names stay tied, containers keep their form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from pruning_server.graph import ir, ir_edits
from pruning_server.graph.coupling.leaves import constant_name, enumerate_constants
from pruning_server.graph.program import Method
from pruning_server.graph.slots import Path, Slot, find_places
from pruning_server.graph.surgery.cut import AxisCut, Cut


def shrink_tensors(module: ir.Module, methods: Iterable[Method], cut: Cut, *, channels_last: bool = False) -> None:
    """Cuts parameters, buffers, attributes and constants of the code of a module, in place.

    `channels_last`: kernels over images are stored so; all others keep their memory format.
    """
    by_name: dict[str, list[AxisCut]] = {}
    for one in cut:
        by_name.setdefault(one.tensor, []).append(one)
    _shrink_slots(module, by_name, channels_last=channels_last)
    for number, baked in enumerate(enumerate_constants(methods)):
        cuts = by_name.get(constant_name(number))
        if cuts:
            smaller = cut_tensor(baked.tensor, cuts, channels_last=channels_last)
            for node in baked.nodes:
                ir_edits.set_constant_tensor(node, smaller)


def cut_tensor(tensor: torch.Tensor, cuts: Sequence[AxisCut], *, channels_last: bool = False) -> torch.Tensor:
    """A copy of what stays, in the same memory format, or channels last where it has four axes and that is asked for."""
    smaller = tensor.detach()
    for one in cuts:
        kept = torch.tensor(one.kept, dtype=torch.int64, device=tensor.device)
        smaller = smaller.index_select(one.axis, kept)
    was_last = (
        not tensor.is_contiguous() and tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    if was_last or (channels_last and tensor.dim() == 4):
        return smaller.contiguous(memory_format=torch.channels_last)
    return smaller.contiguous()


def _shrink_slots(module: ir.Module, by_name: Mapping[str, Sequence[AxisCut]], *, channels_last: bool) -> None:
    places = find_places(module)
    replaced: dict[Path, torch.Tensor] = {}
    named = {slot.name: slot for slot in places.slots.values()}
    for name, cuts in by_name.items():
        if name not in named:
            continue  # a constant of the code
        slots = [named[name], *(named[alias] for alias in cuts[0].aliases)]
        smaller = cut_tensor(slots[0].tensor, cuts, channels_last=channels_last)
        if any(slot.parameter for slot in slots):
            smaller = torch.nn.Parameter(smaller, requires_grad=slots[0].tensor.requires_grad)
        elif slots[0].tensor.requires_grad:
            smaller.requires_grad_()
        replaced.update((slot.path, smaller) for slot in slots)
    for owner, name in dict.fromkeys(_holder(places.slots[path]) for path in replaced):
        holder = places.modules[owner]
        value = _rebuilt(ir.read_attribute(holder, name), (*owner, name), replaced)
        ir.set_attribute(holder, name, value)


def _holder(slot: Slot) -> tuple[Path, str]:
    return slot.owner, slot.path[len(slot.owner)]


def _rebuilt(value: Any, path: Path, replaced: Mapping[Path, torch.Tensor]) -> Any:
    """The attribute's value with the smaller tensors in their places."""
    if isinstance(value, torch.Tensor):
        return replaced.get(path, value)
    if isinstance(value, dict):
        return {key: _rebuilt(one, (*path, str(key)), replaced) for key, one in value.items()}
    if isinstance(value, list | tuple):
        entries = [_rebuilt(one, (*path, str(number)), replaced) for number, one in enumerate(value)]
        return entries if isinstance(value, list) else tuple(entries)
    return value
