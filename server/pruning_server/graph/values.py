"""What is read off a module's graphs, as values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

Shape: TypeAlias = tuple[int, ...]


class WeightKind(enum.StrEnum):
    """The role in which the graph uses a stored tensor."""

    CONV = "conv"
    LINEAR = "linear"
    EMBEDDING = "embedding"
    RECURRENT = "recurrent"
    BIAS = "bias"
    NORM = "norm"


KERNEL_KINDS = frozenset({WeightKind.CONV, WeightKind.LINEAR, WeightKind.EMBEDDING, WeightKind.RECURRENT})


@dataclass(frozen=True)
class Weight:
    """One stored tensor that can be pruned; tensors on the same memory are one weight.

    Attributes:
        name: dotted path for `get_tensor`; the first name of the memory, parameters before buffers before attributes.
        aliases: further names of the same memory.
        kind: the role in which the graph uses it.
        layer: path of the module that holds it; the name itself where it is held by the root.
        shape: lengths of its axes.
        dtype: a floating-point type.
        numel: number of elements.
        parameter: False for buffers, plain attributes, list elements and thawed constants.
        scale: of a `NORM`: activations are multiplied by it.
    """

    name: str
    aliases: tuple[str, ...]
    kind: WeightKind
    layer: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    numel: int
    parameter: bool
    scale: bool = False


@dataclass(frozen=True)
class FrozenUse:
    """Why stored tensors cannot be pruned: the op, where it stands in the model's code, and the tensors' names."""

    op: str
    source: str
    reason: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class WeightSurvey:
    """Every weight that could be pruned, in the model's order, and what was left out and why."""

    weights: tuple[Weight, ...]
    frozen: tuple[FrozenUse, ...]


@dataclass(frozen=True)
class NodeShapes:
    """Shapes that one op saw, once per execution.

    Attributes:
        op: as in the graph, e.g. `aten::conv2d`.
        source: where it stands in the model's code.
        layer: the layer whose stored tensor it uses, "" where it uses none.
        stored: names and shapes of the stored tensors that reach it.
        arguments: names of the arguments in the op's schema.
        constants: Python values of the arguments that are constants, by argument index.
        inputs: per execution, by argument index, the shapes of its tensors: one, or one per element of a list.
        outputs: per execution, by result index, the shape.
    """

    op: str
    source: str
    layer: str
    stored: tuple[tuple[str, Shape], ...]
    arguments: tuple[str, ...]
    constants: Mapping[int, object]
    inputs: tuple[Mapping[int, tuple[Shape, ...]], ...]
    outputs: tuple[Mapping[int, Shape], ...]


@dataclass(frozen=True)
class Observation:
    """One run of `forward`: the shapes that every op with tensors saw, inside If and Loop too."""

    nodes: tuple[NodeShapes, ...]


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one sample; None with a reason where an op cannot be counted."""

    total: int | None
    by_layer: Mapping[str, int]
    reason: str | None
