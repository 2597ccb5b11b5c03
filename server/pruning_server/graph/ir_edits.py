"""Edits of graphs: with `ir`, the only place that touches `torch._C`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning_server.graph.ir import Block, Graph, Module, Node, Value, is_tensor, type_kind


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


def insert_tuple_unpack(graph: Graph, before: Node, value: Value, length: int) -> list[Value]:
    """The elements of a tuple of tensors before a node."""
    node = graph.create("prim::TupleUnpack", [value], length)
    node.insertBefore(before)
    for element in node.outputs():
        element.setType(torch._C.TensorType.get())
    return list(node.outputs())


def replace_results(old: Node, results: Sequence[Value]) -> None:
    """Every user of a node's results takes these, and the node goes."""
    for value, result in zip(old.outputs(), results, strict=True):
        result.setType(value.type())
        value.replaceAllUsesWith(result)
    old.destroy()


def is_private_list(value: Value) -> bool:
    """Whether a list is built right from its elements for one user, so that nothing can have changed it since."""
    return value.node().kind() == "prim::ListConstruct" and len(value.uses()) == 1


def set_constant_tensor(node: Node, tensor: torch.Tensor) -> None:
    """Replaces the tensor of a constant node."""
    node.t_("value", tensor)
    node.output().inferTypeFrom(tensor)


def end_of(block: Graph | Block) -> Node:
    """The node behind the last one of a graph or block: new nodes before it are the last to run."""
    return block.return_node() if hasattr(block, "return_node") else block.returnNode()


def insert_tensor_op(graph: Graph, before: Node, op: str, inputs: Sequence[Value]) -> Value:
    """A new op with one tensor as its result before a node."""
    node = insert_op(graph, before, op, inputs)
    node.output().setType(torch._C.TensorType.get())
    return node.output()


def insert_largest_two(graph: Graph, before: Node, tensor: Value) -> Value:
    """The two largest values along the last axis, the largest first."""
    numbers = [insert_constant(graph, before, number) for number in (2, -1, True, True)]
    node = graph.create("aten::topk", [tensor, *numbers], 2)
    node.insertBefore(before)
    for value in node.outputs():
        value.setType(torch._C.TensorType.get())
    return next(iter(node.outputs()))


def insert_test(graph: Graph, before: Node, op: str, inputs: Sequence[Value]) -> Value:
    """A new op with a bool as its result before a node."""
    node = insert_op(graph, before, op, inputs)
    node.output().setType(torch._C.BoolType.get())
    return node.output()


def insert_flag_read(graph: Graph, before: Node, name: str) -> Value:
    """Inserts a read of the bool `self.<name>` before a node."""
    node = graph.create("prim::GetAttr", [next(iter(graph.inputs()))], 1)
    node.s_("name", name)
    node.insertBefore(before)
    node.output().setType(torch._C.BoolType.get())
    return node.output()


def insert_number_read(graph: Graph, before: Node, name: str) -> Value:
    """Inserts a read of the float `self.<name>` before a node."""
    node = graph.create("prim::GetAttr", [next(iter(graph.inputs()))], 1)
    node.s_("name", name)
    node.insertBefore(before)
    node.output().setType(torch._C.FloatType.get())
    return node.output()


def insert_branch(graph: Graph, before: Node, condition: Value) -> tuple[Node, Block, Block]:
    """An If before a node, with its empty blocks for True and for False; `close_branch` gives it results."""
    node = graph.create("prim::If", [condition], 0)
    node.insertBefore(before)
    return node, node.addBlock(), node.addBlock()


def close_branch(node: Node, if_true: Sequence[Value], if_false: Sequence[Value]) -> list[Value]:
    """What an If gives: values of one block or of the other, of the types of the first."""
    when_true, when_false = node.blocks()
    results = []
    for one, other in zip(if_true, if_false, strict=True):
        when_true.registerOutput(one)
        when_false.registerOutput(other)
        result = node.addOutput()
        result.setType(torch._C.TensorType.get() if type_kind(one) == "TensorType" else one.type())
        results.append(result)
    return results


def insert_graph(graph: Graph, before: Node, other: Graph, inputs: Sequence[Value]) -> list[Value]:
    """A copy of another graph's nodes before a node; returns what it returns."""
    with graph.insert_point_guard(before):
        return list(graph.insertGraph(other, list(inputs)))


def narrow_uses(graph: Graph, value: Value, axis: int, start: int, end: int) -> list[Value]:
    """Every user of a tensor takes coordinates `start` to `end` of an axis instead; returns the new values."""
    narrowed = []
    for use in list(value.uses()):
        numbers = [insert_constant(graph, use.user, number) for number in (axis, start, end, 1)]
        present = value
        if not is_tensor(value):  # a bias is declared as one that may be missing
            present = insert_tensor_op(graph, use.user, "aten::_unwrap_optional", [value])
        smaller = insert_tensor_op(graph, use.user, "aten::slice", [present, *numbers])
        use.user.replaceInput(use.offset, smaller)
        narrowed.append(smaller)
    return narrowed


def pin_flag(graph: Graph, node: Node, value: bool) -> None:
    """What reads a flag through this node takes a constant instead."""
    node.output().replaceAllUsesWith(insert_constant(graph, node, value))


def simplify(graph: Graph) -> None:
    """Decides what constants decide, and drops what nothing needs; tensors are not computed in advance."""
    torch._C._jit_pass_constant_propagation_immutable_types(graph)  # type: ignore[attr-defined]
    torch._C._jit_pass_dce(graph)


def replace_body(graph: Graph, old: Sequence[Node], output: Value) -> None:
    """The graph returns this value, and the old nodes go; nothing may use them any more."""
    graph.return_node().replaceInput(0, output)
    for node in reversed(old):
        node.destroy()


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
