"""Shrinks archives at random and compares with the masked original, in double precision."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from helpers import cutting, zoo
from pruning_server.graph import ir_edits
from pruning_server.graph.coupling.leaves import constant_name, enumerate_constants
from pruning_server.graph.execution import compile_methods
from pruning_server.graph.structure import Cut, Removal, Structure, analyse, shrink

Runs = Mapping[str, Sequence[Sequence[object]]]
TOLERANCE = 1e-9


def mask(archive: torch.jit.ScriptModule, cut: Cut) -> torch.jit.ScriptModule:
    """A fresh load in which every consumer of a removed channel is zero."""
    masked = zoo.reload(archive)
    tensors = cutting.stored(masked)
    constants = enumerate_constants(compile_methods(masked, in_place=True).values())
    for one in cut:
        if not one.zeroed:
            continue
        gone = torch.tensor(one.zeroed, dtype=torch.int64)
        if one.tensor in tensors:
            with torch.no_grad():
                tensors[one.tensor].index_fill_(one.axis, gone, 0.0)
            continue
        baked = next((b for n, b in enumerate(constants) if constant_name(n) == one.tensor), None)
        if baked is None:
            raise KeyError(one.tensor)
        for node in baked.nodes:
            ir_edits.set_constant_tensor(node, baked.tensor.index_fill(one.axis, gone, 0.0))
    return zoo.reload(masked)


def draw(structure: Structure, seed: int, share: float = 0.5) -> Removal:
    """Some channels of every group, so that no axis loses all."""
    chance = random.Random(seed)
    return {
        number: sorted(chance.sample(range(group.size), min(max(1, round(group.size * share)), group.size - 1)))
        for number, group in enumerate(structure.groups)
    }


def shrunk(archive: torch.jit.ScriptModule, structure: Structure, removal: Removal) -> tuple[Any, Cut]:
    """The archive without these channels, loaded again, and what was taken."""
    smaller = zoo.reload(archive)
    cut = shrink(smaller, structure, removal)
    return zoo.reload(smaller), cut


def tensors_of(output: object) -> list[Tensor]:
    """All tensors in a nest of outputs."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        return [tensor for value in output.values() for tensor in tensors_of(value)]
    if isinstance(output, list | tuple):
        return [tensor for value in output for tensor in tensors_of(value)]
    return []


def assert_same(one: Any, other: Any, method: str, inputs: Sequence[object], tolerance: float = TOLERANCE) -> None:
    """Both give the same output."""
    # Compiling for speed would take longer than the runs.
    with torch.no_grad(), torch.jit.optimized_execution(False):
        torch.manual_seed(0)
        left = tensors_of(getattr(one, method)(*inputs))
        torch.manual_seed(0)
        right = tensors_of(getattr(other, method)(*inputs))
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def assert_shrinks(
    archive: torch.jit.ScriptModule, samples: Runs, checked: Runs, *, seed: int = 0, share: float = 0.5
) -> tuple[Structure, Any]:
    """Analyses, removes channels at random from every group, and compares on other inputs than those analysed."""
    structure = analyse(zoo.reload(archive), samples)
    assert not structure.failed_rules
    smaller, cut = shrunk(archive, structure, draw(structure, seed, share))
    masked = mask(archive, cut)
    for method, runs in checked.items():
        for inputs in runs:
            assert_same(smaller, masked, method, inputs)
    return structure, smaller


def free(structure: Structure) -> set[tuple[str, int]]:
    """The axes of stored tensors of which something can go."""
    return {(member.tensor, member.axis) for group in structure.groups for member in group.members}
