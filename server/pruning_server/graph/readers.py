"""Which stored tensors are read by more than the ops that are linear in them; from the code alone, nothing is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pruning_server.graph import ir
from pruning_server.graph.slots import Path, Slot, find_places

# What these give is the same tensor, or all of its values in another shape.
_FOLLOWED = frozenset(
    {
        "aten::t",
        "aten::transpose",
        "aten::numpy_T",
        "aten::permute",
        "aten::_unwrap_optional",
        "prim::unchecked_cast",
        "prim::unchecked_unwrap_optional",
    }
)
# What these read is none of its values.
_HARMLESS = frozenset(
    {
        "aten::__is__",
        "aten::__isnot__",
        "aten::dim",
        "aten::size",
        "aten::is_floating_point",
        "prim::dtype",
        "prim::device",
        "prim::is_cuda",
        "prim::isinstance",
        "prim::requires_grad",
    }
)


def read_elsewhere(module: ir.Module, linear: Mapping[str, frozenset[int]]) -> tuple[Slot, ...]:
    """The stored tensors that any method reads at another place than these.

    A value that is added to such a bias, or to such a kernel, would change what else is computed from it.

    Args:
        module: it is neither run nor changed.
        linear: positions of kernel and bias among the arguments, by the name of the op.
    """
    slots = find_places(module).slots
    found: dict[Path, Slot] = {}
    for method in ir.method_names(module):
        for path, value in _stored_values(ir.inlined_copy(module, method), slots):
            if path not in found and any(_reads(user, position, linear) for user, position in _users(value)):
                found[path] = slots[path]
    return tuple(found.values())


def _stored_values(graph: ir.Graph, slots: Mapping[Path, Slot]) -> Iterator[tuple[Path, ir.Value]]:
    paths: dict[int, Path] = {next(graph.inputs()).unique(): ()}
    for node in ir.walk(graph):
        if node.kind() != "prim::GetAttr":
            continue
        holder = paths.get(next(node.inputs()).unique())
        if holder is None:
            continue
        value, path = next(node.outputs()), (*holder, ir.attribute_name(node))
        paths[value.unique()] = path
        if path in slots:
            yield path, value


def _users(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    for use in value.uses():
        if use.user.kind() in _FOLLOWED and use.offset == 0:
            yield from _users(next(use.user.outputs()))
        else:
            yield use.user, use.offset


def _reads(user: ir.Node, position: int, linear: Mapping[str, frozenset[int]]) -> bool:
    return user.kind() not in _HARMLESS and position not in linear.get(user.kind(), frozenset())
