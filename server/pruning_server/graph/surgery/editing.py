"""Carries out edits on the graphs of a module's own methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from pruning_server.graph import ir, ir_edits
from pruning_server.graph.program import Method, all_steps
from pruning_server.graph.surgery.edits import Address, Divide, Edit, Rescale, Resize, Unfuse
from pruning_server.graph.surgery.unfused import unfuse


def edit_code(methods: Mapping[str, Method], edits: Iterable[Edit], removed: AbstractSet[int]) -> int:
    """Adapts the numbers in the code to the removal of these classes; returns how many nodes were edited.

    Args:
        methods: compiled in place (`compile_methods(module, in_place=True)`): their graphs are the module's own.
        edits: from `plan_edits` on another load of the same archive.
        removed: classes, as `Length` counts them.
    """
    nodes = {
        Address(name, number): (method.graph, step.node)
        for name, method in methods.items()
        for number, step in enumerate(all_steps(method.program))
    }
    numbers: dict[tuple[Address, int], list[Resize]] = {}
    others: list[Divide | Rescale | Unfuse] = []
    for edit in edits:
        if not isinstance(edit, Resize):
            others += [edit] if edit.is_needed(removed) else []
        elif edit.factors(removed) != (1, 1):
            numbers.setdefault((edit.address, edit.position), []).append(edit)
    for (address, position), wanted in numbers.items():
        _Editor(*nodes[address], removed).change(position, wanted)
    for one in others:
        editor = _Editor(*nodes[one.address], removed)
        if isinstance(one, Divide):
            editor.divide(one)
        elif isinstance(one, Rescale):
            editor.rescale(one)
        else:
            editor.unfuse(one)
    return len({address for address, _ in numbers} | {one.address for one in others})


class _Editor:
    """Edits one node."""

    def __init__(self, graph: ir.Graph, node: ir.Node, removed: AbstractSet[int]) -> None:
        self._graph = graph
        self._node = node
        self._removed = removed

    def change(self, position: int, wanted: Sequence[Resize]) -> None:
        """Replaces one argument, or elements of it."""
        old = list(self._node.inputs())[position]
        if wanted[0].element is None:
            (edit,) = wanted
            ir_edits.replace_input(self._node, position, self._number(old, edit))
            return
        elements = self._elements(old, wanted[0].elements)
        for edit in wanted:
            if edit.element is not None:
                elements[edit.element] = self._number(elements[edit.element], edit)
        ir_edits.replace_input(self._node, position, ir_edits.insert_list(self._graph, self._node, elements, old))

    def divide(self, division: Divide) -> None:
        """Replaces an equal split by one with lengths."""
        lengths = [self._constant(length.kept(self._removed)) for length in division.lengths]
        inputs = list(self._node.inputs())
        sizes = ir_edits.insert_list(self._graph, self._node, lengths, None)
        new = ir_edits.insert_op(
            self._graph, self._node, "aten::split_with_sizes", [inputs[0], sizes, inputs[division.axis_position]]
        )
        ir_edits.replace_node(self._node, new)

    def rescale(self, edit: Rescale) -> None:
        """Writes a scale out that was left to the op."""
        scale = ir_edits.insert_constant(self._graph, self._node, edit.scale)
        ir_edits.replace_input(self._node, edit.position, scale)

    def unfuse(self, edit: Unfuse) -> None:
        """Replaces fused attention by stock ops."""
        left = (one.kept(self._removed) for one in (edit.heads, edit.width, edit.made))
        unfuse(self._graph, self._node, *left, scale=edit.scale)

    def _elements(self, old: ir.Value, length: int) -> list[ir.Value]:
        """The elements of a list argument; a list that others may change is read right before the node."""
        known, content = ir.constant_of(old)
        if known:
            return [self._constant(int(number)) for number in content]
        if ir_edits.is_private_list(old):
            return list(old.node().inputs())
        return ir_edits.insert_unpack(self._graph, self._node, old, length)

    def _number(self, old: ir.Value, edit: Resize) -> ir.Value:
        """The number that is right now: a new constant, or the old one scaled, which leaves no remainder."""
        if edit.length is not None and edit.read is None and ir.constant_of(old)[0]:
            return self._constant(edit.length.kept(self._removed))
        factor, divisor = edit.factors(self._removed)
        scaled = ir_edits.insert_arithmetic(self._graph, self._node, "aten::mul", old, self._constant(factor), old)
        if divisor == 1:
            return scaled
        return ir_edits.insert_arithmetic(
            self._graph, self._node, "aten::floordiv", scaled, self._constant(divisor), old
        )

    def _constant(self, value: int) -> ir.Value:
        return ir_edits.insert_constant(self._graph, self._node, value)
