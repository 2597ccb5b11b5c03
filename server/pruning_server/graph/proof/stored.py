"""Everything that a module stores, by name, constants of its code included; and its conversion to a wider type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pruning_server.graph import ir, ir_edits
from pruning_server.graph.coupling.leaves import constant_name
from pruning_server.graph.coupling.leaves import enumerate_constants as baked_constants
from pruning_server.graph.execution import compile_methods
from pruning_server.graph.slots import find_places, group_by_memory
from pruning_server.graph.survey import model_order

HALF = frozenset({torch.float16, torch.bfloat16})
_WIDENED = HALF | {torch.float32}
# torch's numbers of the types, as they stand in a model's code.
_DTYPE_NUMBERS = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}


@dataclass(frozen=True)
class Stored:
    """One memory of a module.

    Attributes:
        tensors: by name, the tensors on it; the first covers all of them.
        constant: it is a constant of the code.
        parameter: one of its names is a parameter's.
        whole: all names mean the same elements in the same order.
    """

    tensors: dict[str, torch.Tensor]
    constant: bool
    parameter: bool
    whole: bool

    @property
    def main(self) -> torch.Tensor:
        """The tensor that covers the memory."""
        return next(iter(self.tensors.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the main one first."""
        return tuple(self.tensors)


def find_stored(module: ir.Module) -> tuple[Stored, ...]:
    """Every memory that a module holds, parameters first, the constants of its code last."""
    constants = (
        Stored({constant_name(number): tensors[0]}, constant=True, parameter=False, whole=True)
        for number, tensors in enumerate(enumerate_constants(module))
    )
    return (*_find_slots(module), *constants)


def _find_slots(module: ir.Module) -> Iterator[Stored]:
    for group in group_by_memory(model_order(find_places(module))):
        tensors = {slot.name: slot.tensor for slot in group.slots}
        views = {(one.storage_offset(), one.shape, one.stride()) for one in tensors.values() if _is_plain(one)}
        parameter = any(slot.parameter for slot in group.slots)
        yield Stored(tensors, constant=False, parameter=parameter, whole=len(views) <= 1)


def counterparts(original: ir.Module, shrunk: ir.Module) -> dict[str, torch.Tensor]:
    """The shrunk model's tensors under every name that the original has for them.

    Constants of the code are paired by what reads them, since torch merges those that have become equal when it saves.
    """
    found = {name: tensor for stored in _find_slots(shrunk) for name, tensor in stored.tensors.items()}
    names = {_memory_key(tensors[0]): constant_name(n) for n, tensors in enumerate(enumerate_constants(original))}
    ours, theirs = list(_constant_uses(original)), list(_constant_uses(shrunk))
    if [place for place, _ in ours] == [place for place, _ in theirs]:
        for (_, mine), (_, other) in zip(ours, theirs, strict=True):
            found.setdefault(names[_memory_key(mine)], other)
    else:
        constants = enumerate_constants(shrunk)
        found.update((constant_name(number), tensors[0]) for number, tensors in enumerate(constants))
    return found


def enumerate_constants(module: ir.Module) -> list[tuple[torch.Tensor, ...]]:
    """The floating-point tensors in the code, one object per node; the position of those on one memory is its number."""
    found = []
    for baked in baked_constants(compile_methods(module).values()):
        tensors = (ir.constant_tensor(node) for node in baked.nodes)
        found.append(tuple(tensor for tensor in tensors if tensor is not None))
    return found


def _constant_uses(module: ir.Module) -> Iterator[tuple[tuple[str, int], torch.Tensor]]:
    """((op, argument), tensor) of every use of a floating-point tensor in the code."""
    for method in ir.method_names(module):
        for node in ir.walk(ir.inlined_copy(module, method)):
            for index, value in enumerate(node.inputs()):
                tensor = _constant(value.node())
                if tensor is not None:
                    yield (node.kind(), index), tensor


def _constant(node: ir.Node) -> torch.Tensor | None:
    tensor = ir.constant_tensor(node)
    cuttable = tensor is not None and tensor.is_floating_point() and tensor.numel() and _is_plain(tensor)
    return tensor if cuttable else None


def _memory_key(tensor: torch.Tensor) -> object:
    return (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


# --- Wider numbers ----------------------------------------------------------------------------------------------------


def stored_dtypes(module: ir.Module) -> tuple[torch.dtype, ...]:
    """The floating-point types of what a module stores, that of most numbers first."""
    counts: dict[torch.dtype, int] = {}
    for stored in find_stored(module):
        if stored.main.is_floating_point():
            counts[stored.main.dtype] = counts.get(stored.main.dtype, 0) + stored.main.numel()
    return tuple(sorted(counts, key=lambda dtype: -counts[dtype]))


def adapted(module: ir.Module, dtype: torch.dtype | None, *, without_dropout: bool = False) -> ir.Module:
    """A module that does the same in a wider type, and with all rates of dropout at 0.

    Everything stored of a narrower floating-point type becomes `dtype`, memory that is shared stays shared; types that
    the code names, such as `x.float()`, become `dtype` too. Rates of dropout are constants or attributes of the code;
    what is dropped depends on how many channels there are, so that two models can only be compared without it.

    Args:
        module: a load that nobody else uses, and that has not run; it may be changed and returned.
        dtype: None leaves types alone.
        without_dropout: whether the rates are set.
    """
    if dtype is not None:
        _widen_tensors(module, dtype)
    edited = dtype is not None and _widen_code(module, dtype)
    edited = (without_dropout and _stop_dropout(module)) or edited
    # What torch has compiled before an edit stays in use, and loading may have compiled something.
    return ir.duplicate(module) if edited else module


def settled(module: ir.Module) -> ir.Module:
    """The module after constants of its code were written to: torch may have computed with the old ones in advance."""
    return ir.duplicate(module) if enumerate_constants(module) else module


def _widen_tensors(module: ir.Module, dtype: torch.dtype) -> None:
    tensors = [slot.tensor for slot in find_places(module).slots.values()]
    tensors += [tensor for one in enumerate_constants(module) for tensor in one]
    storages: dict[object, torch.Tensor] = {}
    for tensor in tensors:
        if not _is_plain(tensor) or tensor.dtype not in _narrower(dtype):
            continue
        key = (tensor.untyped_storage().data_ptr(), tensor.dtype) if tensor.numel() else id(tensor)
        if key not in storages:
            elements = tensor.untyped_storage().nbytes() // tensor.element_size()
            storages[key] = tensor.detach().as_strided((elements,), (1,), 0).to(dtype)
        # The tensor itself changes, so that parameters, lists and dicts that hold it need not be set.
        tensor.data = storages[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def widened(value: object, dtype: torch.dtype) -> object:
    """An argument in the wider type; what is no floating-point tensor stays as it is."""
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.dtype in _narrower(dtype) else value


def _narrower(dtype: torch.dtype) -> frozenset[torch.dtype]:
    return (_WIDENED if dtype is torch.float64 else HALF) - {dtype}


def _widen_code(module: ir.Module, dtype: torch.dtype) -> bool:
    numbers = {_DTYPE_NUMBERS[one] for one in _narrower(dtype)}
    edited = False
    for graph, node, index in _arguments(module, ("dtype",)):
        known, value = ir.constant_of(list(node.inputs())[index])
        if known and type(value) is int and value in numbers:
            ir_edits.replace_input(node, index, ir_edits.insert_constant(graph, node, _DTYPE_NUMBERS[dtype]))
            edited = True
    return edited


_DROPOUTS = frozenset(
    {
        "aten::dropout",
        "aten::dropout_",
        "aten::native_dropout",
        "aten::feature_dropout",
        "aten::feature_dropout_",
        "aten::alpha_dropout",
        "aten::alpha_dropout_",
        "aten::feature_alpha_dropout",
        "aten::feature_alpha_dropout_",
    }
)


def _stop_dropout(module: ir.Module) -> bool:
    edited = False
    for graph, node, index in _arguments(module, ("p", "dropout", "dropout_p")):
        name = ir.arguments_of(node)[index].name
        if name != "p" or node.kind() in _DROPOUTS:  # p is the order of a norm too
            ir_edits.replace_input(node, index, ir_edits.insert_constant(graph, node, 0.0))
            edited = True
    return edited


def _arguments(module: ir.Module, names: Sequence[str]) -> Iterator[tuple[ir.Graph, ir.Node, int]]:
    """(graph, node, position) of the arguments of that name, in the module's own graphs, which edits then reach."""
    for method in ir.method_names(module):
        graph = ir.inline_in_place(module, method)
        for node in list(ir.walk(graph)):
            declared = ir.arguments_of(node)
            count = len(list(node.inputs()))
            yield from (
                (graph, node, index) for index, one in enumerate(declared) if one.name in names and index < count
            )


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
