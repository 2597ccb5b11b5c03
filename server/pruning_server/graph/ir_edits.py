"""Edits of graphs: with `ir`, the only place that touches `torch._C`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning_server.graph.ir import Graph, Module, Node, Value, type_kind


def insert_attribute_read(graph: Graph, before: Node, name: str, like: Value) -> Value:
    """Inserts a read of `self.<name>` before a node; the value has the type of `like`."""
    node = graph.create("prim::GetAttr", [next(iter(graph.inputs()))], 1)
    node.s_("name", name)
    node.insertBefore(before)
    node.output().setType(like.type())
    return node.output()


def replace_input(node: Node, index: int, value: Value) -> None:
    """Replaces one argument of one node; other users of the old value keep it."""
    node.replaceInput(index, value)


def replace_constant_by_attribute(graph: Graph, constant: Node, name: str) -> None:
    """Every user of a constant reads `self.<name>` instead."""
    old = constant.output()
    read = insert_attribute_read(graph, constant, name, old)
    # A constant's type carries its sizes and that it needs no gradient; an attribute's does not.
    read.setType(torch._C.TensorType.get())
    old.replaceAllUsesWith(read)
    constant.destroy()


def insert_constant(graph: Graph, before: Node, value: float) -> Value:
    """A new number before a node, in its block."""
    with graph.insert_point_guard(before):
        return graph.insertConstant(value)


def insert_arithmetic(graph: Graph, before: Node, op: str, one: Value, other: Value, like: Value) -> Value:
    """A new op on two numbers before a node; the result has the type of `like`."""
    node = graph.create(op, [one, other], 1)
    node.insertBefore(before)
    node.output().setType(like.type())
    return node.output()


def insert_list(graph: Graph, before: Node, elements: Sequence[Value], like: Value | None) -> Value:
    """A new list of numbers before a node, of the type of `like`; a list of ints without one."""
    node = graph.create("prim::ListConstruct", list(elements), 1)
    node.insertBefore(before)
    is_list = like is not None and type_kind(like) == "ListType"
    node.output().setType(like.type() if like is not None and is_list else torch._C.ListType.ofInts())
    return node.output()


def insert_unpack(graph: Graph, before: Node, content: Value, length: int) -> list[Value]:
    """The elements of a list of ints, as it is right before a node."""
    node = graph.create("prim::ListUnpack", [content], length)
    node.insertBefore(before)
    values = list(node.outputs())
    for value in values:
        value.setType(torch._C.IntType.get())
    return values


def insert_op(graph: Graph, before: Node, op: str, inputs: Sequence[Value]) -> Node:
    """A new op with one result before a node."""
    node = graph.create(op, list(inputs), 1)
    node.insertBefore(before)
    return node


def replace_node(old: Node, new: Node) -> None:
    """Every user of a node's only result takes that of another, and the node goes."""
    new.output().setType(old.output().type())
    old.output().replaceAllUsesWith(new.output())
    old.destroy()


def is_private_list(value: Value) -> bool:
    """Whether a list is built right from its elements for one user, so that nothing can have changed it since."""
    return value.node().kind() == "prim::ListConstruct" and len(value.uses()) == 1


def set_constant_tensor(node: Node, tensor: torch.Tensor) -> None:
    """Replaces the tensor of a constant node."""
    node.t_("value", tensor)
    node.output().inferTypeFrom(tensor)


class ShapeLog:
    """Instruments a private graph so that one call returns the shapes of the values asked for, run by run.

    Only sizes are kept, appended to one list in the graph, so activations can be freed and the blocks of If and Loop
    are reached too.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        first = next(iter(graph.nodes()), graph.return_node())
        self._log = graph.create("prim::ListConstruct", [], 1).insertBefore(first).output()
        self._log.setType(torch._C.ListType(torch._C.ListType.ofInts()))

    def start(self, node: Node, number: int) -> None:
        """Logs that node `number` begins another execution; call before recording any of its values."""
        with self._graph.insert_point_guard(node):
            self._append(self._graph.insertConstant([number])).insertBefore(node)

    def record(self, node: Node, value: Value, slot: int, *, after: bool) -> None:
        """Logs the sizes of a tensor right before or after `node` runs, under a number of the caller's choice."""
        with self._graph.insert_point_guard(node):
            label = self._append(self._graph.insertConstant([slot]))
        sizes = self._graph.create("aten::size", [value], 1)
        sizes.output().setType(torch._C.ListType.ofInts())
        content = self._append(sizes.output())
        if after:
            sizes.insertAfter(node)
            label.insertAfter(sizes)
            content.insertAfter(label)
        else:
            for created in (sizes, label, content):
                created.insertBefore(node)

    def _append(self, value: Value) -> Node:
        node = self._graph.create("aten::append", [self._log, value], 1)
        node.output().setType(self._log.type())
        return node

    def run(self, module: Module, inputs: Sequence[object]) -> list[tuple[int, ...]]:
        """Runs the graph once; returns what was logged, in order: `(number,)` per start, `(slot,)` and sizes per record."""
        self._graph.registerOutput(self._log)
        self._graph.makeMultiOutputIntoTuple()
        function = torch._C._create_function_from_graph("observed", self._graph)
        return [tuple(entry) for entry in function(module._c, *inputs)[-1]]
