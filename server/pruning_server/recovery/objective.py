"""Which task a model is judged on and which loss recovers it: what the caller said, else what is safe to infer."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pruning_server.errors import JobFailureError, Reason
from pruning_server.spec.request import Loss, Task

_SHAPE_ADVICE = "Check that the targets belong to this model, or name the task and the loss (--task, --loss)."


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


@dataclass(frozen=True)
class OutputFacts:
    """The original's output on some samples. `shape` without the batch axis; ranges over the observed values."""

    dtype: str
    shape: tuple[int, ...]
    rows_are_distributions: bool = False
    in_unit_interval: bool = False


@dataclass(frozen=True)
class TargetFacts:
    """The stored targets. `shape` without the sample axis."""

    dtype: str
    shape: tuple[int, ...]
    integer: bool
    integral: bool  # only whole numbers occur, whatever the type
    binary: bool  # only 0 and 1 occur
    one_hot: bool  # [N, C] of 0 and 1, with a single 1 per row


@dataclass(frozen=True)
class Objective:
    """The decision. `loss` None: the caller's module. `classes`: number of classes where the task has them."""

    task: Task
    loss: Loss | None
    form: TargetForm
    link: Link = Link.IDENTITY
    classes: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def loss_name(self) -> str:
        """For the report."""
        return "module" if self.loss is None else self.loss.value


def choose_objective(
    *, task: Task | None, loss: Loss | None, has_loss_module: bool, output: OutputFacts, targets: TargetFacts | None
) -> Objective:
    """Returns task, loss and form of the targets; whatever the request leaves open is inferred where that is safe.

    Raises:
        JobFailureError: the targets do not fit output, task or loss (DATASET_TARGETS, LOSS_UNSUITABLE), or they leave
            open what is meant; the message says what to send.
    """
    if targets is None or task is Task.AGREEMENT:
        return _agreement(task, loss, has_loss_module=has_loss_module, ignored_targets=targets is not None)
    if task not in {None, Task.CLASSIFICATION, Task.MULTILABEL, Task.REGRESSION}:
        raise JobFailureError(Reason.NOT_IMPLEMENTED, f"The task {task} is not implemented in this version.")
    wanted = task or _task_of_loss(loss) or _infer_task(output, targets, has_loss_module=has_loss_module)
    chosen = None if has_loss_module else loss
    match wanted:
        case Task.CLASSIFICATION:
            return _classification(chosen, has_loss_module, output, targets, named=task is not None)
        case Task.MULTILABEL:
            return _multilabel(chosen, has_loss_module, output, targets)
        case _:
            return _regression(chosen, has_loss_module, output, targets)


def elements(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without axes of length 1: [N], [N, 1] and [N, 1, 1] hold the same values."""
    return tuple(size for size in shape if size != 1)


def _agreement(task: Task | None, loss: Loss | None, *, has_loss_module: bool, ignored_targets: bool) -> Objective:
    if task not in {None, Task.AGREEMENT}:
        text = f"The task {task} needs targets, and the validation set has none. Add `targets`, or leave the task open."
        raise JobFailureError(Reason.DATASET_TARGETS, text)
    notes = ["Judged by agreement with the original model: there is no ground truth in it."]
    if ignored_targets:
        notes.append("The targets were not used, as the task is agreement.")
    chosen = None if has_loss_module else loss or Loss.MSE
    form = TargetForm.LABELS if chosen is Loss.CROSS_ENTROPY else TargetForm.NONE
    return Objective(task=Task.AGREEMENT, loss=chosen, form=form, notes=tuple(notes))


def _task_of_loss(loss: Loss | None) -> Task | None:
    match loss:
        case Loss.CROSS_ENTROPY:
            return Task.CLASSIFICATION
        case Loss.BCE_WITH_LOGITS:
            return Task.MULTILABEL
        case Loss.MSE | Loss.L1:
            return Task.REGRESSION
        case _:
            return None


def _infer_task(output: OutputFacts, targets: TargetFacts, *, has_loss_module: bool) -> Task:
    same = elements(output.shape) == elements(targets.shape)
    if targets.integer and (_labels_fit(output, targets) or (targets.binary and same and not elements(output.shape))):
        return Task.CLASSIFICATION
    if not targets.integer and same:
        return Task.REGRESSION
    unknown = "The loss module does not say what the task is, and the" if has_loss_module else "The"
    if same:
        text = (
            f"{unknown} {targets.dtype} targets {_shown(targets.shape)}, shaped like the output, can mean more than "
            "one task. Name it: --task classification, multilabel or regression."
        )
        raise JobFailureError(Reason.DATASET_TARGETS, text)
    raise JobFailureError(Reason.DATASET_TARGETS, _mismatch(output, targets))


def _classification(
    loss: Loss | None, has_loss_module: bool, output: OutputFacts, targets: TargetFacts, *, named: bool
) -> Objective:
    if loss in {Loss.MSE, Loss.L1}:
        text = f"The loss {loss} does not fit the task classification. Use cross_entropy, or --task regression."
        raise JobFailureError(Reason.LOSS_UNSUITABLE, text)
    single = not elements(output.shape)
    if single and targets.binary and not elements(targets.shape) and loss is not Loss.CROSS_ENTROPY:
        chosen = None if has_loss_module else Loss.BCE_WITH_LOGITS
        return Objective(
            task=Task.CLASSIFICATION, loss=chosen, form=TargetForm.VALUES, link=_binary_link(loss, output), classes=2
        )
    if loss is Loss.BCE_WITH_LOGITS:
        text = (
            "bce_with_logits judges one output as yes or no. For one class out of several use cross_entropy; for "
            "several labels per sample use --task multilabel."
        )
        raise JobFailureError(Reason.LOSS_UNSUITABLE, text)
    notes: list[str] = []
    if targets.one_hot and named and elements(output.shape) == elements(targets.shape):
        form = TargetForm.ONE_HOT
        notes.append("One-hot targets were read as class numbers.")
    elif (targets.integer or targets.integral) and _labels_fit(output, targets):
        form = TargetForm.LABELS
    else:
        raise JobFailureError(Reason.DATASET_TARGETS, _mismatch(output, targets))
    link = Link.PROBABILITIES if loss is None and output.rows_are_distributions else Link.IDENTITY
    if link is Link.PROBABILITIES and not has_loss_module:
        notes.append("The model returns probabilities; the cross entropy is taken of them as they are.")
    chosen = None if has_loss_module else Loss.CROSS_ENTROPY
    return Objective(
        task=Task.CLASSIFICATION, loss=chosen, form=form, link=link, classes=output.shape[0], notes=tuple(notes)
    )


def _multilabel(loss: Loss | None, has_loss_module: bool, output: OutputFacts, targets: TargetFacts) -> Objective:
    if loss not in {None, Loss.BCE_WITH_LOGITS}:
        text = f"The loss {loss} does not fit the task multilabel. Use bce_with_logits."
        raise JobFailureError(Reason.LOSS_UNSUITABLE, text)
    if elements(output.shape) != elements(targets.shape):
        raise JobFailureError(Reason.LOSS_UNSUITABLE if loss else Reason.DATASET_TARGETS, _mismatch(output, targets))
    if not targets.binary:
        text = (
            "Targets of bce_with_logits and of the task multilabel are 0 or 1, one per output; these hold other values."
        )
        raise JobFailureError(Reason.DATASET_TARGETS, text)
    chosen = None if has_loss_module else Loss.BCE_WITH_LOGITS
    return Objective(task=Task.MULTILABEL, loss=chosen, form=TargetForm.VALUES, link=_binary_link(loss, output))


def _regression(loss: Loss | None, has_loss_module: bool, output: OutputFacts, targets: TargetFacts) -> Objective:
    if loss not in {None, Loss.MSE, Loss.L1}:
        text = f"The loss {loss} does not fit the task regression. Use mse or l1."
        raise JobFailureError(Reason.LOSS_UNSUITABLE, text)
    if elements(output.shape) != elements(targets.shape):
        raise JobFailureError(Reason.LOSS_UNSUITABLE if loss else Reason.DATASET_TARGETS, _mismatch(output, targets))
    chosen = None if has_loss_module else loss or Loss.MSE
    return Objective(task=Task.REGRESSION, loss=chosen, form=TargetForm.VALUES)


def _labels_fit(output: OutputFacts, targets: TargetFacts) -> bool:
    return len(output.shape) == 1 and output.shape[0] >= 2 and not elements(targets.shape)


def _binary_link(loss: Loss | None, output: OutputFacts) -> Link:
    # Who names the loss says that the outputs are logits.
    return Link.PROBABILITIES if loss is None and output.in_unit_interval else Link.IDENTITY


def _mismatch(output: OutputFacts, targets: TargetFacts) -> str:
    return (
        f"The targets are {targets.dtype} {_shown(targets.shape)} and the model's output is {output.dtype} "
        f"{_shown(output.shape)} (N samples first). Class labels are integers [N] for an output [N, classes]; other "
        f"targets are shaped like the output. {_SHAPE_ADVICE}"
    )


def _shown(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(('N', *map(str, shape)))}]"
