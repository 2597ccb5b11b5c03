"""Shapes of one run of `forward`, from the real interpreter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning_server.graph import ir
from pruning_server.graph.interpreter import analyse
from pruning_server.graph.macs import sum_macs
from pruning_server.graph.slots import Places, dotted, find_places
from pruning_server.graph.values import Macs, NodeShapes, Observation

__all__ = ["Macs", "Observation", "count_macs", "observe"]

_Tag = tuple[int, int]


def observe(module: torch.jit.ScriptModule, inputs: Sequence[object]) -> Observation:
    """Runs `forward` once on a private copy and returns the shapes that every op with tensors saw.

    Ops inside If and Loop are observed each time they run; calls through an interface appear as one op.

    Args:
        module: it is neither run nor changed.
        inputs: the arguments of `forward`; defaults are filled in. They are passed as they are.

    Raises:
        TypeError: too few arguments.
        RuntimeError: whatever the model raises.
    """
    copy = ir.duplicate(module)
    graph = ir.inlined_copy(copy, "forward")
    arguments = [*inputs, *ir.default_arguments(copy, len(inputs))]
    places = find_places(copy)
    findings = analyse(places, {"forward": graph})
    nodes = [node for node in ir.walk(graph) if _has_tensors(node)]
    drafts = [_draft(node, places, findings.weights_of_result.get(("forward", _number(node)), ())) for node in nodes]
    log = ir.ShapeLog(graph)
    for number, node in enumerate(nodes):
        _instrument(log, node, number)
    with torch.no_grad():
        records = log.run(copy, arguments)
    return Observation(_assemble(drafts, records))


def count_macs(module: torch.jit.ScriptModule, inputs: Sequence[object], batch_size: int) -> Macs:
    """Multiply-accumulates of `forward` per sample, from one run on `batch_size` samples.

    Counted densely: a weight that is 0 still multiplies. Total None, with a reason, where an op cannot be counted.
    Raises as `observe` does.
    """
    return sum_macs(observe(module, inputs), batch_size)


def _has_tensors(node: ir.Node) -> bool:
    if node.kind().startswith("prim::") and node.kind() != "prim::CallMethod":
        return False
    return any(ir.is_tensor(value) for value in (*node.inputs(), *node.outputs()))


def _number(node: ir.Node) -> int:
    return next((value.unique() for value in node.outputs()), -1)


def _draft(node: ir.Node, places: Places, paths: tuple[tuple[str, ...], ...]) -> NodeShapes:
    slots = [places.slots[path] for path in paths]
    stored = sorted(slots, key=lambda slot: -slot.tensor.dim())
    constants = {}
    for index, value in enumerate(node.inputs()):
        known, content = ir.constant_of(value)
        if known and isinstance(content, str | bool | int):
            constants[index] = content
    return NodeShapes(
        op=node.kind(),
        source=ir.source_of(node),
        layer=stored[0].layer if stored else "",
        stored=tuple((slot.name, tuple(slot.tensor.shape)) for slot in slots),
        constants=constants,
        inputs=(),
        outputs=(),
    )


def _instrument(log: ir.ShapeLog, node: ir.Node, number: int) -> None:
    """Inputs before the op, since it may write to them; results after it; a list of tensors element by element."""
    log.start(node, (number, 0))
    for index, value in enumerate(node.inputs()):
        for element, tensor in log.tensors(value):
            log.record(node, tensor, (number, _slot(index, element)), after=False)
    for index, value in enumerate(node.outputs()):
        if ir.is_tensor(value):
            log.record(node, value, (number, -1 - index), after=True)


def _assemble(
    drafts: Sequence[NodeShapes], records: Sequence[tuple[_Tag, tuple[int, ...]]]
) -> tuple[NodeShapes, ...]:
    raise NotImplementedError
