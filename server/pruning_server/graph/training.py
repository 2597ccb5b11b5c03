"""Makes `.train()` mean something for traced and frozen archives, and puts everything back.

Tracing bakes `training=False` into batch norm, dropout and recurrent ops. In a copy those constants become reads of the
root's `training` attribute, which `.train()` and `.eval()` switch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pruning_server.graph import ir, ir_edits
from pruning_server.graph.interpreter import analyse
from pruning_server.graph.rules import base_name
from pruning_server.graph.slots import Places, find_places
from pruning_server.graph.thawing import copy_tensors, restore_constants, thaw

__all__ = ["TrainingHandle", "enable_training", "restore_constants", "set_training_modes", "thaw", "training_modes"]

_FLAG = "training"

# The name of the flag in each op's schema.
_FLAG_NAMES = {
    "aten::batch_norm": "training",
    "aten::native_batch_norm": "training",
    "aten::cudnn_batch_norm": "training",
    "aten::miopen_batch_norm": "training",
    "aten::_batch_norm_impl_index": "training",
    "aten::dropout": "train",
    "aten::native_dropout": "train",
    "aten::feature_dropout": "train",
    "aten::alpha_dropout": "train",
    "aten::feature_alpha_dropout": "train",
    "aten::rrelu": "training",
    "aten::lstm": "train",
    "aten::gru": "train",
    "aten::rnn_tanh": "train",
    "aten::rnn_relu": "train",
}


@dataclass(frozen=True)
class TrainingHandle:
    """The module to train in the place of another.

    Attributes:
        module: train this one; it is the original itself where nothing had to be rewritten.
        original: the module that `enable_training` got.
        rewritten: number of baked flags that now follow `.train()` and `.eval()`.
        modes: the original's training flags as they were.
    """

    module: torch.jit.ScriptModule
    original: torch.jit.ScriptModule
    rewritten: int
    modes: tuple[tuple[torch.jit.ScriptModule, bool], ...]

    def restore(self) -> torch.jit.ScriptModule:
        """Returns the original, with every tensor of the trained module copied into it and its own training flags."""
        if self.module is not self.original:
            copy_tensors(self.module, self.original)
        set_training_modes(self.modes)
        return self.original


def enable_training(module: torch.jit.ScriptModule) -> TrainingHandle:
    """Lets `handle.module.train()` and `.eval()` switch batch norm, dropout and recurrent ops with baked flags.

    The original is not changed; train `handle.module` and call `handle.restore()`. A batch norm whose scale is no
    parameter stays as it is: its author froze it.
    """
    modes = training_modes(module)
    if not any(_baked_flags(ir.inlined_copy(module, method), frozenset()) for method in ir.method_names(module)):
        return TrainingHandle(module, module, 0, modes)
    copy = ir.duplicate(module)
    if not ir.has_attribute(copy, _FLAG):
        ir.register_flag(copy, _FLAG, value=False)
    places = find_places(copy)
    rewritten = 0
    for method in ir.method_names(copy):
        graph = ir.inline_in_place(copy, method)
        for node, index in _baked_flags(graph, _fixed_scales(places, method, graph)):
            like = list(node.inputs())[index]
            ir_edits.replace_input(node, index, ir_edits.insert_attribute_read(graph, node, _FLAG, like))
            rewritten += 1
    if not rewritten:
        return TrainingHandle(module, module, 0, modes)
    # What torch has compiled before an edit stays in use; a fresh load runs the edited code.
    return TrainingHandle(ir.duplicate(copy), module, rewritten, modes)


def training_modes(module: torch.jit.ScriptModule) -> tuple[tuple[torch.jit.ScriptModule, bool], ...]:
    """Every submodule that has a training flag, with its value; a flag may differ from its parent's."""
    modules = find_places(module).modules.values()
    return tuple((owner, bool(ir.read_attribute(owner, _FLAG))) for owner in modules if ir.has_attribute(owner, _FLAG))


def set_training_modes(modes: tuple[tuple[torch.jit.ScriptModule, bool], ...]) -> None:
    """Puts training flags back to what `training_modes` returned."""
    for owner, mode in modes:
        ir.set_attribute(owner, _FLAG, mode)


def _baked_flags(graph: ir.Graph, skipped: frozenset[int]) -> list[tuple[ir.Node, int]]:
    """The ops whose flag is the constant False, with the flag's position; `skipped` are numbers of first results."""
    found = []
    for node in ir.walk(graph):
        flag = _FLAG_NAMES.get(base_name(node.kind()))
        names = [argument.name for argument in ir.arguments_of(node)] if flag else []
        if flag not in names or next(iter(node.outputs())).unique() in skipped:
            continue
        index = names.index(flag)
        known, value = ir.constant_of(list(node.inputs())[index])
        if known and value is False:
            found.append((node, index))
    return found


def _fixed_scales(places: Places, method: str, graph: ir.Graph) -> frozenset[int]:
    """The first results of normalizations whose scale is stored but is no parameter."""
    found = analyse(places, {method: graph})
    fixed = set()
    for node in ir.walk(graph):
        if "batch_norm" in node.kind():
            number = next(iter(node.outputs())).unique()
            affine = set(found.weights_of_result.get((method, number), ())) - found.statistics
            if affine and not any(places.slots[path].parameter for path in affine):
                fixed.add(number)
    return frozenset(fixed)
