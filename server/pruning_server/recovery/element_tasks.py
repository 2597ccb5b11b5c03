"""Tasks with a class for each pixel or token: what their targets and outputs must be like."""

from __future__ import annotations

from pruning_server.errors import JobFailureError, Reason
from pruning_server.recovery.cases import (
    NAMED,
    Case,
    binary_link,
    class_axes,
    class_link,
    labels_fit,
    require_class_loss,
    shown,
)
from pruning_server.recovery.objective import (
    IGNORED_BYTE,
    IGNORED_LABEL,
    Objective,
    OutputFacts,
    TargetFacts,
    TargetForm,
    TokenFacts,
    elements,
)
from pruning_server.spec.request import Loss, Task


def segmentation(case: Case) -> Objective:
    """A class for each pixel, or yes or no where there is one output for each."""
    return _binary_or_classes(case, Task.SEGMENTATION, axes=2)


def sequence_labelling(case: Case) -> Objective:
    """A class for each token, or yes or no where there is one output for each."""
    return _binary_or_classes(case, Task.SEQUENCE_LABELLING, axes=1)


def _binary_or_classes(case: Case, task: Task, axes: int) -> Objective:
    """By the targets; `axes` that a sample's elements have: with one more, targets may be one-hot, which nobody said."""
    if not case.is_same_shape or not case.targets.binary_or_ignored or case.loss is Loss.CROSS_ENTROPY:
        return _elements(case, task)
    if case.loss is None and case.targets.one_hot_axes and len(elements(case.output.shape)) > axes:
        raise JobFailureError(Reason.DATASET_TARGETS, _element_mismatch(case, task))
    return _binary_elements(case, task)


def language_modelling(case: Case) -> Objective:
    """The next token of each place, or of each sample, as the targets say."""
    if case.targets.integral and labels_fit(case.output, case.targets):
        require_class_loss(case.loss, Task.LANGUAGE_MODELLING)
        return Objective(
            task=Task.LANGUAGE_MODELLING,
            loss=case.loss_or(Loss.CROSS_ENTROPY),
            form=TargetForm.LABELS,
            link=class_link(case.loss, case.output, 1),
            classes=case.output.shape[0],
            class_axis=1,
            reason=case.reason,
        )
    return _elements(case, Task.LANGUAGE_MODELLING)


def _binary_elements(case: Case, task: Task) -> Objective:
    """One output for each element: yes or no."""
    if case.loss in {Loss.MSE, Loss.L1}:
        raise JobFailureError(
            Reason.LOSS_UNSUITABLE, f"The loss {case.loss} does not fit the task {task.value}. Use bce_with_logits."
        )
    return Objective(
        task=task,
        loss=case.loss_or(Loss.BCE_WITH_LOGITS),
        form=TargetForm.ELEMENTS,
        link=binary_link(case.loss, case.output),
        classes=2,
        ignored=_ignored(task, 2),
        reason=case.reason,
    )


def _elements(case: Case, task: Task) -> Objective:
    """One output for each element and class."""
    require_class_loss(case.loss, task)
    axes = class_axes(case.output, case.targets.shape)
    if not axes or not case.targets.integral:
        raise JobFailureError(Reason.DATASET_TARGETS, _element_mismatch(case, task))
    return _of_elements(task, case.loss, case.has_loss_module, case.output, axes, case.reason)


def _of_elements(
    task: Task,
    loss: Loss | None,
    has_loss_module: bool,
    output: OutputFacts,
    axes: tuple[int, ...],
    reason: str,
    *,
    next_tokens: bool = False,
    notes: tuple[str, ...] = (),
) -> Objective:
    # torch puts the classes of a map first; models of sequences mostly last.
    axis = axes[0] if task is Task.SEGMENTATION else axes[-1]
    classes = output.shape[axis - 1]
    if len(axes) > 1:
        other = axes[-1] if axis == axes[0] else axes[0]
        notes = (*notes, f"The {classes} classes were taken from axis {axis} of the output; axis {other} is as long.")
    return Objective(
        task=task,
        loss=None if has_loss_module else Loss.CROSS_ENTROPY,
        form=TargetForm.ELEMENTS,
        link=class_link(loss, output, axis),
        classes=classes,
        class_axis=axis,
        ignored=_ignored(task, classes),
        next_tokens=next_tokens,
        reason=reason,
        notes=notes,
    )


def next_tokens(
    loss: Loss | None,
    has_loss_module: bool,
    output: OutputFacts,
    targets: TargetFacts | None,
    tokens: TokenFacts | None,
    reason: str = NAMED,
) -> Objective:
    """The next token of each place, as the input says."""
    require_class_loss(loss, Task.LANGUAGE_MODELLING)
    axes = class_axes(output, (tokens.length,)) if tokens is not None else ()
    if tokens is None or not axes:
        text = (
            "The task language_modelling needs targets: the next token of each place, integers [N, length]. Without them "
            "they are taken from the input, which must hold token numbers, integers [N, length], for an output [N, length, "
            f"vocabulary]; the model's output is {shown(output.shape)}. Add `targets`, or leave the task open."
        )
        raise JobFailureError(Reason.DATASET_TARGETS, text)
    said = "The targets are the input's own tokens" if targets is not None else "There are no targets"
    note = f"{said}, so that each place is judged by the next token of the input."
    return _of_elements(
        Task.LANGUAGE_MODELLING, loss, has_loss_module, output, axes, reason, next_tokens=True, notes=(note,)
    )


def _ignored(task: Task, classes: int) -> tuple[int, ...]:
    if task is Task.SEGMENTATION and classes <= IGNORED_BYTE:
        return (IGNORED_LABEL, IGNORED_BYTE)
    return (IGNORED_LABEL,)


def _element_mismatch(case: Case, task: Task) -> str:
    if case.is_same_shape:
        text = "Store class numbers, not one value for each class: the argmax over the class axis"
        text += (
            ", or 0 and 1 where there is one output for each element." if task is not Task.LANGUAGE_MODELLING else "."
        )
    elif not case.targets.integral:
        text = "Store whole numbers: the class of each element."
    else:
        text = "The targets must be shaped like the output without its class axis."
    return (
        f"The task {task.value} needs one class number for each element: integers [N, ...] for an output [N, classes, ...] "
        f"or [N, ..., classes]. The targets are {case.targets.dtype} {shown(case.targets.shape)} and the model's output is "
        f"{case.output.dtype} {shown(case.output.shape)}. {text} See --task."
    )
