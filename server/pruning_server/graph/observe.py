"""Shapes of one run of `forward`, from the real interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from pruning_server.graph import ir, ir_edits
from pruning_server.graph.interpreter import analyse
from pruning_server.graph.macs import may_multiply, sum_macs
from pruning_server.graph.slots import Path, Places, find_places
from pruning_server.graph.values import Macs, NodeShapes, Observation, Shape

__all__ = ["Macs", "Observation", "count_macs", "observe"]


def observe(
    module: torch.jit.ScriptModule, inputs: Sequence[object], wanted: Callable[[str], bool] = lambda _: True
) -> Observation:
    """Runs `forward` once on a private copy and returns the shapes that every op with tensors saw.

    Ops inside If and Loop are observed each time they run; calls through an interface appear as one op.

    Args:
        module: it is neither run nor changed.
        inputs: the arguments of `forward`; defaults are filled in. They are passed as they are.
        wanted: which ops to observe, by name; few are observed several times faster than all.

    Raises:
        TypeError: too few arguments.
        RuntimeError: whatever the model raises.
    """
    copy = ir.duplicate(module)
    graph = ir.inlined_copy(copy, "forward")
    arguments = [*inputs, *ir.default_arguments(copy, len(inputs))]
    places = find_places(copy)
    findings = analyse(places, {"forward": graph})
    nodes = [node for node in ir.walk(graph) if wanted(node.kind()) and _has_tensors(node)]
    drafts = [_draft(node, places, findings.weights_of_result.get(("forward", _number(node)), ())) for node in nodes]
    log = ir_edits.ShapeLog(graph)
    counts = [_instrument(log, node, number) for number, node in enumerate(nodes)]
    with torch.no_grad():
        entries = log.run(copy, arguments)
    return Observation(_assemble(drafts, counts, entries))


def count_macs(module: torch.jit.ScriptModule, inputs: Sequence[object], batch_size: int) -> Macs:
    """Multiply-accumulates of `forward` per sample, from one run on `batch_size` samples.

    Counted densely: a weight that is 0 still multiplies. Total None, with a reason, where an op cannot be counted.
    Raises as `observe` does.
    """
    return sum_macs(observe(module, inputs, may_multiply), batch_size)


def _has_tensors(node: ir.Node) -> bool:
    if node.kind().startswith("prim::") and node.kind() != "prim::CallMethod":
        return False
    return any(ir.is_tensor(value) for value in (*node.inputs(), *node.outputs()))


def _number(node: ir.Node) -> int:
    return next((value.unique() for value in node.outputs()), -1)


def _draft(node: ir.Node, places: Places, paths: Sequence[Path]) -> NodeShapes:
    slots = [places.slots[path] for path in paths]
    constants = {}
    for index, value in enumerate(node.inputs()):
        known, content = ir.constant_of(value)
        if known and isinstance(content, str | bool | int):
            constants[index] = content
    return NodeShapes(
        op=node.kind(),
        source=ir.source_of(node),
        # The tensor with most axes is the kernel; a bias may belong to another layer.
        layer=max(slots, key=lambda slot: slot.tensor.dim()).layer if slots else "",
        stored=tuple((slot.name, tuple(slot.tensor.shape)) for slot in slots),
        arguments=tuple(argument.name for argument in ir.arguments_of(node)),
        constants=constants,
        inputs=(),
        outputs=(),
    )


def _instrument(log: ir_edits.ShapeLog, node: ir.Node, number: int) -> int:
    """Logs inputs before the op, which may write to them, and results after it; returns how many there are."""
    inputs = [(i, tensor) for i, value in enumerate(node.inputs()) for tensor in ir.tensors_in(value)]
    results = [(i, value) for i, value in enumerate(node.outputs()) if ir.is_tensor(value)]
    log.start(node, number)
    for index, value in inputs:
        log.record(node, value, index, after=False)
    for index, value in results:
        log.record(node, value, -1 - index, after=True)
    return len(inputs) + len(results)


def _assemble(
    drafts: Sequence[NodeShapes], counts: Sequence[int], log: Sequence[tuple[int, ...]]
) -> tuple[NodeShapes, ...]:
    """Reads the log back: ops do not nest, so what follows a start belongs to that execution."""
    inputs: list[list[dict[int, tuple[Shape, ...]]]] = [[] for _ in drafts]
    outputs: list[list[dict[int, Shape]]] = [[] for _ in drafts]
    entries, number, expected = iter(log), -1, 0
    for (head,) in entries:
        if not expected:
            number, expected = head, counts[head]
            inputs[number].append({})
            outputs[number].append({})
            continue
        shape, expected = next(entries), expected - 1
        if head >= 0:
            inputs[number][-1][head] = (*inputs[number][-1].get(head, ()), shape)
        else:
            outputs[number][-1][-1 - head] = shape
    return tuple(
        replace(draft, inputs=tuple(seen), outputs=tuple(given))
        for draft, seen, given in zip(drafts, inputs, outputs, strict=True)
    )
