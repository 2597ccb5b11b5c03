"""What is read off a module's graphs, as values."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch


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
    """

    name: str
    aliases: tuple[str, ...]
    kind: WeightKind
    layer: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    numel: int
    parameter: bool


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
        inputs: per execution, the shapes of its tensor arguments by argument index.
        outputs: per execution, the shapes of its tensor results by result index.
    """

    op: str
    source: str
    layer: str
    inputs: tuple[dict[int, tuple[int, ...]], ...]
    outputs: tuple[dict[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Observation:
    """One run of `forward`: the shapes that every op with tensors saw, inside If and Loop too."""

    nodes: tuple[NodeShapes, ...]


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one sample; None with a reason where an op cannot be counted."""

    total: int | None
    by_layer: dict[str, int]
    reason: str | None
