"""What the choice of an objective is made of, what fits together in it, and how messages say so."""

from __future__ import annotations

from dataclasses import dataclass

from pruning_server.errors import JobFailureError, Reason
from pruning_server.recovery.objective import (
    Link,
    OutputFacts,
    TargetFacts,
    TokenFacts,
    elements,
    without_axis,
)
from pruning_server.spec.request import Loss, Task

NAMED = "The request names the task."
_SHAPE_ADVICE = "Check that the targets belong to this model, or name the task and the loss (--task, --loss)."


@dataclass(frozen=True)
class Case:
    """What the choice is made of; `loss` None where a module takes its place."""

    loss: Loss | None
    has_loss_module: bool
    output: OutputFacts
    targets: TargetFacts
    tokens: TokenFacts | None
    named: bool
    reason: str

    def loss_or(self, default: Loss) -> Loss | None:
        """The loss to take where the request names none."""
        return None if self.has_loss_module else self.loss or default

    @property
    def is_same_shape(self) -> bool:
        """Whether there is one target for each output."""
        return elements(self.output.shape) == elements(self.targets.shape)


def labels_fit(output: OutputFacts, targets: TargetFacts) -> bool:
    """Whether there is one class number for each sample, and several outputs [N, classes]."""
    return len(output.shape) == 1 and output.shape[0] >= 2 and not elements(targets.shape)


def class_axes(output: OutputFacts, target_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of [n, ...] outputs, from 1, without which they are shaped like the targets."""
    return tuple(
        axis
        for axis in range(1, len(output.shape) + 1)
        if output.shape[axis - 1] >= 2 and elements(without_axis(output.shape, axis)) == elements(target_shape)
    )


def binary_link(loss: Loss | None, output: OutputFacts) -> Link:
    """What an output is that says yes or no."""
    # Who names the loss says that the outputs are logits.
    return Link.PROBABILITIES if loss is None and output.in_unit_interval else Link.IDENTITY


def class_link(loss: Loss | None, output: OutputFacts, axis: int) -> Link:
    """What outputs are whose classes stand along the axis."""
    return Link.PROBABILITIES if loss is None and axis in output.distribution_axes else Link.IDENTITY


def require_same_shape(case: Case) -> None:
    """Refuses targets that are not one for each output (DATASET_TARGETS, or LOSS_UNSUITABLE where a loss is named)."""
    if not case.is_same_shape:
        reason = Reason.LOSS_UNSUITABLE if case.loss else Reason.DATASET_TARGETS
        raise JobFailureError(reason, mismatch(case))


def require_class_loss(loss: Loss | None, task: Task) -> None:
    """Refuses losses that know no classes (LOSS_UNSUITABLE)."""
    if loss not in {None, Loss.CROSS_ENTROPY}:
        text = f"The loss {loss} does not fit the task {task.value} with an output for each class. Use cross_entropy."
        raise JobFailureError(Reason.LOSS_UNSUITABLE, text)


# --- Words ------------------------------------------------------------------------------------------------------------


def described(case: Case) -> str:
    """The targets, for a sentence."""
    return f"{case.targets.dtype} targets {shown(case.targets.shape)}"


def both(case: Case) -> str:
    """Targets and output, for a sentence."""
    return f"{described(case)}, output {shown(case.output.shape)}"


def mismatch(case: Case) -> str:
    """The message for targets that fit no task."""
    advice = _SHAPE_ADVICE
    if case.targets.integral and elements(case.targets.shape) and class_axes(case.output, case.targets.shape):
        advice = "These fit --task segmentation, sequence_labelling or language_modelling."
    return (
        f"The targets are {case.targets.dtype} {shown(case.targets.shape)} and the model's output is {case.output.dtype} "
        f"{shown(case.output.shape)} (N samples first). Class labels are integers [N] for an output [N, classes]; other "
        f"targets are shaped like the output. {advice}"
    )


def shown(shape: tuple[int, ...]) -> str:
    """A shape of one sample, with the samples first."""
    return f"[{', '.join(('N', *map(str, shape)))}]"
