"""What a model is judged on: the facts that a choice rests on, and the choice as a value; `choosing.py` makes it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pruning_server.spec.request import Loss, Task

# As in torch's cross entropy: an element that does not count.
IGNORED_LABEL = -100
# What unsigned masks hold instead, in the convention of Pascal VOC and Cityscapes; it counts where it is a class.
IGNORED_BYTE = 255


class Link(enum.StrEnum):
    """What the model's output is, where a loss expects logits."""

    IDENTITY = "identity"  # logits, or values
    PROBABILITIES = "probabilities"  # rows that add up to 1, or independent values in [0, 1]


class TargetForm(enum.StrEnum):
    """How stored targets become what the loss takes."""

    NONE = "none"  # the original's output is the target
    LABELS = "labels"  # integers [N]
    ONE_HOT = "one_hot"  # [N, C] with a single 1 per row, turned into labels
    VALUES = "values"  # numbers, shaped like the output
    ELEMENTS = "elements"  # one class number for each pixel or token, shaped like the output without its class axis


@dataclass(frozen=True)
class OutputFacts:
    """The original's output on some samples.

    Attributes:
        dtype: as torch names it.
        shape: without the batch axis.
        distribution_axes: axes of [n, ...], from 1, along which values are not negative and add up to 1.
        in_unit_interval: whether all observed values are in [0, 1].
    """

    dtype: str
    shape: tuple[int, ...]
    distribution_axes: tuple[int, ...] = ()
    in_unit_interval: bool = False


@dataclass(frozen=True)
class TargetFacts:
    """The stored targets.

    Attributes:
        dtype: as numpy names it.
        shape: without the sample axis.
        integer: whether their type is a whole number or a boolean.
        integral: only whole numbers occur, whatever the type.
        binary: only 0 and 1 occur.
        one_hot: [N, C] of 0 and 1, with a single 1 per row.
        distributions: [N, C], not negative, rows add up to 1.
        binary_or_ignored: only 0, 1, -100 and 255 occur.
        one_hot_axes: of [N, ...] with 3 axes or more of 0 and 1, those of axis 1 and the last with a single 1 everywhere.
    """

    dtype: str
    shape: tuple[int, ...]
    integer: bool
    integral: bool
    binary: bool
    one_hot: bool
    distributions: bool = False
    binary_or_ignored: bool = False
    one_hot_axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class TokenFacts:
    """The input that holds token numbers, [N, length]; `repeated`: the targets are those numbers themselves, unshifted.

    `shifted`: the targets are the numbers of the next tokens.
    """

    length: int
    repeated: bool = False
    shifted: bool = False


@dataclass(frozen=True)
class Objective:
    """The decision.

    Attributes:
        task: what is judged.
        loss: None: the caller's module.
        form: what targets are.
        link: what outputs are.
        classes: number of classes where the task has them.
        class_axis: the axis of outputs [n, ...] that numbers the classes; None: an output is yes or no, or a number.
        ignored: labels of elements that do not count.
        next_tokens: whether the targets are the input's own tokens, one place on.
        reason: why this task, in a sentence.
        notes: what else people should know.
    """

    task: Task
    loss: Loss | None
    form: TargetForm
    link: Link = Link.IDENTITY
    classes: int | None = None
    class_axis: int | None = None
    ignored: tuple[int, ...] = ()
    next_tokens: bool = False
    reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def loss_name(self) -> str:
        """For the report."""
        return "module" if self.loss is None else self.loss.value


def elements(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without axes of length 1: [N], [N, 1] and [N, 1, 1] hold the same values."""
    return tuple(size for size in shape if size != 1)


def without_axis(shape: tuple[int, ...], class_axis: int | None) -> tuple[int, ...]:
    """What one sample's targets are shaped like; `shape` of one output without the batch axis."""
    return shape if class_axis is None else shape[: class_axis - 1] + shape[class_axis:]
