"""Dropout rates that the caller sets, or that follow the pruning: a layer with fewer connections overfits less, and needs less of it.

Source: Han, Pool, Tran and Dally, 2015, arXiv 1506.02626, section 3.2: D_r = D_o * sqrt(C_r / C_o).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pruning_server.graph import ir, ir_edits
from pruning_server.graph.flow import Findings
from pruning_server.graph.interpreter import analyse
from pruning_server.graph.rules import base_name
from pruning_server.graph.slots import Places, find_places

_DROPOUTS = frozenset(
    {
        "aten::dropout",
        "aten::native_dropout",
        "aten::feature_dropout",
        "aten::alpha_dropout",
        "aten::feature_alpha_dropout",
    }
)
# Between the layers of a stack of them.
_RECURRENT = frozenset({"aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu"})
_RATES, _FLAGS = frozenset({"p", "dropout"}), frozenset({"train"})
_MAX_STEPS = 64


def scale_dropout(module: torch.jit.ScriptModule, left: Mapping[str, float]) -> tuple[torch.jit.ScriptModule, int]:
    """A copy of the module with lower dropout rates in front of pruned layers, for training; and how many there are.

    Only rates that stand in the code are changed. Where there are none, the module itself is returned.

    Args:
        module: is not changed.
        left: by stored kernel, the share of its connections that is left; a kernel that is missing has all.
    """
    if not any(_drops(node) for method in ir.method_names(module) for node in ir.walk(ir.inlined_copy(module, method))):
        return module, 0
    copy = ir.duplicate(module)
    places, scaled = find_places(copy), 0
    for method in ir.method_names(copy):
        graph = ir.inline_in_place(copy, method)
        findings = analyse(places, {method: graph})
        for node in list(ir.walk(graph)):
            share = _share_behind(node, method, places, findings, left) if _drops(node) else 1.0
            if share < 1.0:
                _, rate = ir.constant_of(list(node.inputs())[1])
                scaled += 1
                ir_edits.replace_input(node, 1, ir_edits.insert_constant(graph, node, float(rate) * math.sqrt(share)))
    return (ir.duplicate(copy), scaled) if scaled else (module, 0)


@dataclass(frozen=True)
class DropoutRates:
    """A module for training, in which every dropout has the same rate.

    Attributes:
        module: the given one itself where there was nothing to set.
        layers: how many rates were set.
        unset: how many dropouts compute their rate, so that it does not stand in the code and stays what it is.
    """

    module: torch.jit.ScriptModule
    layers: int
    unset: int


def set_dropout(module: torch.jit.ScriptModule, rate: float) -> DropoutRates:
    """A copy of the module whose dropouts all have this rate, for training; those that their author set to 0 stay off.

    Args:
        module: is not changed.
        rate: in [0, 1).
    """
    nodes = [node for method in ir.method_names(module) for node in ir.walk(ir.inlined_copy(module, method))]
    unset = sum(_rate_of(node) is None for node in nodes if _is_switched(node))
    if not any(_rate_of(node) for node in nodes if _is_switched(node)):
        return DropoutRates(module, 0, unset)
    copy, found = ir.duplicate(module), 0
    for method in ir.method_names(copy):
        graph = ir.inline_in_place(copy, method)
        for node in [node for node in ir.walk(graph) if _is_switched(node) and _rate_of(node)]:
            found += 1
            ir_edits.replace_input(node, _place(node, _RATES), ir_edits.insert_constant(graph, node, float(rate)))
    return DropoutRates(ir.duplicate(copy), found, unset)


def _is_switched(node: ir.Node) -> bool:
    """Whether it may drop something in training that it keeps at inference."""
    if base_name(node.kind()) not in _DROPOUTS | _RECURRENT:
        return False
    fixed, _ = ir.constant_of(list(node.inputs())[_place(node, _FLAGS)])
    return not fixed


def _rate_of(node: ir.Node) -> float | None:
    """None: it does not stand in the code."""
    known, rate = ir.constant_of(list(node.inputs())[_place(node, _RATES)])
    return float(rate) if known and isinstance(rate, int | float) else None


def _place(node: ir.Node, names: frozenset[str]) -> int:
    """Where the argument of one of these names stands."""
    return next(place for place, argument in enumerate(ir.arguments_of(node)) if argument.name in names)


def _drops(node: ir.Node) -> bool:
    """Whether it drops something in training alone, at a rate that stands in the code."""
    if base_name(node.kind()) not in _DROPOUTS:
        return False
    (known, rate), (fixed, _) = (ir.constant_of(value) for value in list(node.inputs())[1:3])
    # What is dropped at inference too belongs to the model.
    return known and not fixed and isinstance(rate, float) and rate > 0


def _share_behind(node: ir.Node, method: str, places: Places, findings: Findings, left: Mapping[str, float]) -> float:
    """What is left of the first kernels that take what it gives; 1 where none was found."""
    waiting, shares, seen = list(node.outputs())[:1], list[float](), set[int]()
    while waiting and len(seen) < _MAX_STEPS:
        value = waiting.pop(0)
        if value.unique() in seen:
            continue
        seen.add(value.unique())
        for use in value.uses():
            outputs = list(use.user.outputs())
            paths = findings.weights_of_result.get((method, outputs[0].unique()), ()) if outputs else ()
            kernels = [slot.name for path in paths if (slot := places.slots[path]).tensor.dim() >= 2]
            shares.extend(left.get(name, 1.0) for name in kernels)
            if not kernels:
                waiting.extend(one for one in outputs if ir.is_tensor(one))
    return min(shares, default=1.0)
