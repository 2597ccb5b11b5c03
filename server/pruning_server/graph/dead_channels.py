"""Channels that weight pruning left empty: found, and removed with what is left of them folded into biases."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pruning_server.graph.coupling.leaves import constant_name, enumerate_constants
from pruning_server.graph.execution import compile_methods
from pruning_server.graph.slots import get_tensor
from pruning_server.graph.structure import Structure, assemble, shrink
from pruning_server.graph.surgery.cut import Cut, Removal
from pruning_server.graph.surgery.dead import Fold, find_dead
from pruning_server.graph.surgery.tracing import Samples, trace_module


@dataclass(frozen=True)
class DeadChannels:
    """Channels that can go without a change of the outputs.

    Attributes:
        structure: of the model.
        removal: the channels.
        folds: what biases take over first.
    """

    structure: Structure
    removal: Removal
    folds: tuple[Fold, ...]


def find_dead_channels(module: torch.jit.ScriptModule, samples: Samples) -> DeadChannels:
    """Finds channels whose kernels are all zero, and what constants are left of them; raises as `analyse` does."""
    traced = trace_module(module, samples)
    dead = find_dead(module, traced.tracer, traced.methods, samples.get("forward", ()))
    structure = assemble(module, traced, 1)
    removal = {
        number: [channel for channel, root in enumerate(group.classes) if root in dead.classes]
        for number, group in enumerate(structure.groups)
    }
    return DeadChannels(structure, {number: gone for number, gone in removal.items() if gone}, dead.folds)


def remove_dead_channels(module: torch.jit.ScriptModule, dead: DeadChannels) -> Cut:
    """Folds the constants into the biases and removes the channels, in place; as `shrink` otherwise."""
    methods = compile_methods(module, in_place=True)
    baked = {constant_name(number): one.tensor for number, one in enumerate(enumerate_constants(methods.values()))}
    with torch.no_grad():
        for fold in dead.folds:
            bias = baked[fold.bias] if fold.bias in baked else get_tensor(module, fold.bias)
            bias.copy_((bias.double() + fold.addend.to(bias.device)).to(bias.dtype))
    return shrink(module, dead.structure, dead.removal)
