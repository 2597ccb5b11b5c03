"""Which task a model is judged on and which loss recovers it: what the caller said, else what is safe to infer."""

from __future__ import annotations

from collections.abc import Callable

from pruning_server.errors import JobFailureError, Reason
from pruning_server.recovery.cases import NAMED, Case, both, class_axes, described, labels_fit, mismatch, shown
from pruning_server.recovery.element_tasks import language_modelling, next_tokens, segmentation, sequence_labelling
from pruning_server.recovery.flat_tasks import agreement, classification, embedding, multilabel, regression
from pruning_server.recovery.objective import Objective, OutputFacts, TargetFacts, TokenFacts, elements
from pruning_server.spec.request import Loss, Task

_BY_TASK: dict[Task, Callable[[Case], Objective]] = {
    Task.CLASSIFICATION: classification,
    Task.MULTILABEL: multilabel,
    Task.REGRESSION: regression,
    Task.SEGMENTATION: segmentation,
    Task.SEQUENCE_LABELLING: sequence_labelling,
    Task.LANGUAGE_MODELLING: language_modelling,
}


def choose_objective(
    *,
    task: Task | None,
    loss: Loss | None,
    has_loss_module: bool,
    output: OutputFacts,
    targets: TargetFacts | None,
    tokens: TokenFacts | None = None,
) -> Objective:
    """Returns task, loss and form of the targets; whatever the request leaves open is inferred where that is safe.

    Args:
        task: None: to be inferred.
        loss: None: to be inferred.
        has_loss_module: whether the caller's own loss takes the place of `loss`.
        output: of the original.
        targets: None where the set has none.
        tokens: the input that holds token numbers, where one does.

    Raises:
        JobFailureError: the targets do not fit output, task or loss (DATASET_TARGETS, LOSS_UNSUITABLE), or they leave
            open what is meant; the message says what to send.
    """
    chosen = None if has_loss_module else loss
    if task is Task.EMBEDDING:
        return embedding(chosen, has_loss_module, has_targets=targets is not None)
    if task is Task.LANGUAGE_MODELLING and (targets is None or (tokens is not None and tokens.repeated)):
        return next_tokens(chosen, has_loss_module, output, targets, tokens)
    if targets is None or task is Task.AGREEMENT:
        return agreement(task, loss, output, tokens, has_loss_module=has_loss_module, has_targets=targets is not None)
    case = Case(chosen, has_loss_module, output, targets, tokens, task is not None, NAMED)
    wanted, reason = (task, case.reason) if task is not None else _find_task(case)
    case = Case(chosen, has_loss_module, output, targets, tokens, case.named, reason)
    if wanted is Task.LANGUAGE_MODELLING and tokens is not None and tokens.repeated:
        return next_tokens(chosen, has_loss_module, output, targets, tokens, reason)
    return _BY_TASK[wanted](case)


# --- Inference --------------------------------------------------------------------------------------------------------


def _find_task(case: Case) -> tuple[Task, str]:
    """The task and why, from the loss and the targets."""
    by_loss = _task_of_loss(case)
    if by_loss is not None:
        return by_loss, f"The loss {case.loss} with {described(case)} is that of {by_loss.value}."
    targets, output = case.targets, case.output
    if targets.integral and labels_fit(output, targets):
        return (
            Task.CLASSIFICATION,
            f"There is one class number for each sample and an output for each class: {both(case)}.",
        )
    if targets.integer and targets.binary and not elements(targets.shape) and not elements(output.shape):
        return Task.CLASSIFICATION, f"There is one output and one target of 0 or 1 for each sample: {both(case)}."
    if targets.integral and elements(targets.shape) and class_axes(output, targets.shape):
        return _task_of_elements(case)
    if not targets.integer and case.is_same_shape and not (targets.binary or targets.distributions):
        return Task.REGRESSION, f"There is one number for each output: {both(case)}."
    raise JobFailureError(Reason.DATASET_TARGETS, _open_question(case) if case.is_same_shape else mismatch(case))


def _task_of_loss(case: Case) -> Task | None:
    """The task that a named loss leaves; None where there is no loss, or targets decide between several tasks."""
    scalar = not elements(case.output.shape) and not elements(case.targets.shape)
    match case.loss:
        case Loss.CROSS_ENTROPY if not elements(case.targets.shape) or not class_axes(case.output, case.targets.shape):
            return Task.CLASSIFICATION
        case Loss.BCE_WITH_LOGITS if scalar:
            return Task.CLASSIFICATION
        case Loss.BCE_WITH_LOGITS:
            return Task.SEGMENTATION if len(elements(case.output.shape)) > 1 else Task.MULTILABEL
        case Loss.MSE | Loss.L1:
            return Task.REGRESSION
        case _:
            return None


def _task_of_elements(case: Case) -> tuple[Task, str]:
    found = f"one class number for each element of a sample, and an output for each class: {both(case)}"
    if len(elements(case.targets.shape)) > 1:
        return Task.SEGMENTATION, f"There is {found}, over several axes."
    if case.tokens is not None and (case.tokens.shifted or case.tokens.repeated):
        return Task.LANGUAGE_MODELLING, f"There is {found}, and these are the numbers of the input's tokens."
    return Task.SEQUENCE_LABELLING, f"There is {found}, over one axis."


def _open_question(case: Case) -> str:
    unknown = "The loss module does not say what the task is, and the" if case.has_loss_module else "The"
    text = (
        f"{unknown} {case.targets.dtype} targets {shown(case.targets.shape)}, shaped like the output, can mean more than "
        "one task. Name it: --task classification, multilabel"
    )
    if case.targets.distributions and not case.targets.binary:
        return (
            f"{unknown} {case.targets.dtype} targets {shown(case.targets.shape)} are probabilities, shaped like the output. "
            "Send their largest class as integers [N] for a classification, or name --task regression to have the numbers "
            "themselves judged."
        )
    return f"{text}{', segmentation' if len(elements(case.output.shape)) > 1 else ''} or regression."
