"""Frozen archives keep their tensors as constants of the code: here they become attributes, and go back.

Traced archives do the same to tensors that were plain attributes or globals when they were traced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from pruning_server.graph import ir, ir_edits
from pruning_server.graph.flow import Findings, Use
from pruning_server.graph.interpreter import analyse
from pruning_server.graph.slots import Path, Places, Slot, find_places, get_tensor
from pruning_server.graph.values import KERNEL_KINDS

_CONSTANTS = "<constants>"

_MemoryKey = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class _Baked:
    """A tensor in the code: its name as an attribute, and the memory by which its nodes are recognized."""

    name: str
    tensor: torch.Tensor


def thaw(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Turns the floating-point tensors that a module's code holds as constants into attributes of a copy.

    The copy gives equal outputs, `find_weights` and `get_tensor` see its weights, and gradients can reach them.
    Returns `module` itself where there is nothing to turn.
    """
    if not _baked(module):
        return module
    copy = ir.duplicate(module)
    graphs = {method: ir.inline_in_place(copy, method) for method in ir.method_names(copy)}
    baked = _baked(copy)
    for constant in baked.values():
        ir.register_tensor(copy, constant.name, constant.tensor.detach())
    for graph in graphs.values():
        for node in list(ir.walk(graph)):
            tensor = ir.constant_tensor(node)
            if tensor is not None and (found := baked.get(_key(tensor))) is not None:
                ir_edits.replace_constant_by_attribute(graph, node, found.name)
    return ir.duplicate(copy)


def restore_constants(frozen: torch.jit.ScriptModule, thawed: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Writes the tensors of a thawed copy back into a fresh load of the archive that `thaw` got, and returns that.

    Parameters, buffers and attributes are copied too, so that nothing but values differs from the archive. `frozen`
    must not have run yet: torch computes with constants in advance.
    """
    with torch.no_grad():
        for constant in _baked(frozen).values():
            constant.tensor.copy_(get_tensor(thawed, constant.name))
        copy_tensors(thawed, frozen)
    return frozen


def name_constants(module: torch.jit.ScriptModule) -> Callable[[torch.Tensor], str | None]:
    """Finds the attribute that `thaw` would make of a tensor in the module's code; None for one that it leaves alone."""
    baked = _baked(module)

    def name_of(tensor: torch.Tensor) -> str | None:
        found = baked.get(_key(tensor))
        return None if found is None else found.name

    return name_of


def copy_tensors(source: torch.jit.ScriptModule, destination: torch.jit.ScriptModule) -> None:
    """Copies the content of every tensor that both modules hold under the same name, in place."""
    theirs = find_places(source).slots
    with torch.no_grad():
        for path, slot in find_places(destination).slots.items():
            other = theirs.get(path)
            if other is not None and other.tensor.shape == slot.tensor.shape:
                slot.tensor.copy_(other.tensor)


def _key(tensor: torch.Tensor) -> _MemoryKey:
    return (
        tensor.untyped_storage().data_ptr(),
        int(tensor.storage_offset()),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor.dtype,
    )


def _constants(graph: ir.Graph) -> Iterator[torch.Tensor]:
    for node in ir.walk(graph):
        tensor = ir.constant_tensor(node)
        # Scalars in the code are settings, not weights.
        if tensor is not None and tensor.layout is torch.strided and tensor.is_floating_point() and tensor.dim() > 0:
            yield tensor


def _baked(module: ir.Module) -> dict[_MemoryKey, _Baked]:
    """Every constant worth an attribute, named by how the code uses it; the same names for equal archives."""
    graphs = {method: ir.inlined_copy(module, method) for method in ir.method_names(module)}
    tensors = {_key(tensor): tensor for graph in graphs.values() for tensor in _constants(graph)}
    if not tensors:
        return {}
    places = find_places(module)
    paths: dict[_MemoryKey, Path] = {key: (_CONSTANTS, str(number)) for number, key in enumerate(tensors)}
    slots = {path: Slot(path, (), tensors[key], parameter=False) for key, path in paths.items()}
    known = Places(places.modules, {**places.slots, **slots}, places.containers, places.opaque)
    names = _names(paths, analyse(known, graphs, _path_finder(paths)), module)
    return {key: _Baked(name, tensors[key]) for key, name in names.items()}


def _path_finder(paths: Mapping[_MemoryKey, Path]) -> Callable[[ir.Node], Path | None]:
    def find(node: ir.Node) -> Path | None:
        tensor = ir.constant_tensor(node)
        return None if tensor is None or tensor.layout is not torch.strided else paths.get(_key(tensor))

    return find


def _names(paths: Mapping[_MemoryKey, Path], findings: Findings, module: ir.Module) -> dict[_MemoryKey, str]:
    """`constant_0_conv2d_weight` for what the code uses first; constants without such a use come last."""
    keys = {path: key for key, path in paths.items()}
    first_uses = {use.path: use for use in reversed(findings.uses.values()) if use.path in keys}
    used = [path for path in dict.fromkeys(use.path for use in findings.uses.values()) if path in keys]
    others = [path for path in paths.values() if path not in first_uses]
    names: dict[_MemoryKey, str] = {}
    for number, path in enumerate([*used, *others]):
        name = f"constant_{number}{_role(first_uses.get(path))}"
        while ir.has_attribute(module, name):
            name += "_"
        names[keys[path]] = name
    return names


def _role(use: Use | None) -> str:
    if use is None:
        return ""
    op = re.sub(r"\W", "_", use.site.op.rpartition("::")[2]).strip("_")
    return f"_{op}_{'weight' if use.kind in KERNEL_KINDS else use.kind.value}"
