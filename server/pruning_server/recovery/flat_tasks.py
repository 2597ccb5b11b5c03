"""Tasks with one target for each sample or output, and those without targets."""

from __future__ import annotations

from pruning_server.errors import JobFailureError, Reason
from pruning_server.recovery.cases import (
    NAMED,
    Case,
    binary_link,
    class_axes,
    class_link,
    labels_fit,
    mismatch,
    require_same_shape,
    shown,
)
from pruning_server.recovery.objective import Link, Objective, OutputFacts, TargetForm, TokenFacts, elements
from pruning_server.spec.request import Loss, Task


def agreement(
    task: Task | None,
    loss: Loss | None,
    output: OutputFacts,
    tokens: TokenFacts | None,
    *,
    has_loss_module: bool,
    has_targets: bool,
) -> Objective:
    """The original is the truth, as there is no other."""
    if task not in {None, Task.AGREEMENT}:
        text = f"The task {task} needs targets, and the validation set has none. Add `targets`, or leave the task open."
        raise JobFailureError(Reason.DATASET_TARGETS, text)
    notes = ["Judged by agreement with the original model: there is no ground truth in it."]
    if has_targets:
        notes.append("The targets were not used, as the task is agreement.")
    elif tokens is not None and class_axes(output, (tokens.length,)):
        notes.append("If this model predicts the next token, --task language_modelling judges it on its own inputs.")
    if loss is Loss.CROSS_ENTROPY and (len(output.shape) != 1 or output.shape[0] < 2):
        text = (
            "Without targets the loss cross_entropy needs outputs [N, classes], whose highest is the target; the model's "
            f"output is {shown(output.shape)}. Use mse or l1, or add targets."
        )
        raise JobFailureError(Reason.LOSS_UNSUITABLE, text)
    chosen = None if has_loss_module else loss or Loss.MSE
    # What the original chooses is the target of losses that want a choice.
    form = {Loss.CROSS_ENTROPY: TargetForm.LABELS, Loss.BCE_WITH_LOGITS: TargetForm.VALUES}.get(
        chosen or Loss.MSE, TargetForm.NONE
    )
    reason = NAMED if task else "The validation set has no targets."
    return Objective(task=Task.AGREEMENT, loss=chosen, form=form, reason=reason, notes=tuple(notes))


def embedding(loss: Loss | None, has_loss_module: bool, *, has_targets: bool) -> Objective:
    """The original's embeddings are the truth."""
    if loss not in {None, Loss.MSE, Loss.L1}:
        text = f"The loss {loss} does not fit the task embedding, which compares with the original's. Use mse or l1."
        raise JobFailureError(Reason.LOSS_UNSUITABLE, text)
    notes = ["Judged by likeness to the original's embeddings: there is no ground truth in it."]
    if has_targets:
        notes.append("The targets are only used to tell which samples belong together, where they are class numbers.")
    chosen = None if has_loss_module else loss or Loss.MSE
    reason = NAMED
    return Objective(task=Task.EMBEDDING, loss=chosen, form=TargetForm.NONE, reason=reason, notes=tuple(notes))


def classification(case: Case) -> Objective:
    """One class for each sample."""
    loss, output, targets = case.loss, case.output, case.targets
    if loss in {Loss.MSE, Loss.L1}:
        text = f"The loss {loss} does not fit the task classification. Use cross_entropy, or --task regression."
        raise JobFailureError(Reason.LOSS_UNSUITABLE, text)
    single = not elements(output.shape)
    if single and targets.binary and not elements(targets.shape) and loss is not Loss.CROSS_ENTROPY:
        chosen, link = case.loss_or(Loss.BCE_WITH_LOGITS), binary_link(loss, output)
        return Objective(
            task=Task.CLASSIFICATION, loss=chosen, form=TargetForm.VALUES, link=link, classes=2, reason=case.reason
        )
    if loss is Loss.BCE_WITH_LOGITS:
        text = (
            "bce_with_logits judges one output as yes or no, with targets of 0 and 1. For one class out of several use "
            "cross_entropy; for several labels per sample use --task multilabel."
        )
        raise JobFailureError(Reason.LOSS_UNSUITABLE, text)
    notes: list[str] = []
    if targets.one_hot and case.named and case.is_same_shape:
        form = TargetForm.ONE_HOT
        notes.append("One-hot targets were read as class numbers.")
    elif targets.integral and labels_fit(output, targets):
        form = TargetForm.LABELS
        if not targets.integer:
            notes.append(f"The {targets.dtype} targets hold whole numbers only and were read as class numbers.")
    else:
        raise JobFailureError(Reason.DATASET_TARGETS, mismatch(case))
    link = class_link(loss, output, 1)
    if link is Link.PROBABILITIES and not case.has_loss_module:
        notes.append("The model returns probabilities; the cross entropy is taken of them as they are.")
    return Objective(
        task=Task.CLASSIFICATION,
        loss=case.loss_or(Loss.CROSS_ENTROPY),
        form=form,
        link=link,
        classes=output.shape[0],
        class_axis=1,
        reason=case.reason,
        notes=tuple(notes),
    )


def multilabel(case: Case) -> Objective:
    """Several labels for each sample, yes or no."""
    if case.loss not in {None, Loss.BCE_WITH_LOGITS}:
        text = f"The loss {case.loss} does not fit the task multilabel. Use bce_with_logits."
        raise JobFailureError(Reason.LOSS_UNSUITABLE, text)
    require_same_shape(case)
    if not case.targets.binary:
        text = (
            "Targets of bce_with_logits and of the task multilabel are 0 or 1, one per output; these hold other values."
        )
        raise JobFailureError(Reason.DATASET_TARGETS, text)
    link = binary_link(case.loss, case.output)
    loss = case.loss_or(Loss.BCE_WITH_LOGITS)
    return Objective(task=Task.MULTILABEL, loss=loss, form=TargetForm.VALUES, link=link, reason=case.reason)


def regression(case: Case) -> Objective:
    """Numbers, one for each output."""
    if case.loss not in {None, Loss.MSE, Loss.L1}:
        text = f"The loss {case.loss} does not fit the task regression. Use mse or l1."
        raise JobFailureError(Reason.LOSS_UNSUITABLE, text)
    require_same_shape(case)
    return Objective(task=Task.REGRESSION, loss=case.loss_or(Loss.MSE), form=TargetForm.VALUES, reason=case.reason)
