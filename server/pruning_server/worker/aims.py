"""What the models of a run are judged on: task, loss and metric, chosen once and checked against all targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from pruning_server.evaluation.metrics import choose_metric
from pruning_server.recovery.choosing import choose_objective
from pruning_server.recovery.losses import build_loss, check_loss
from pruning_server.recovery.objective import Link
from pruning_server.spec.request import PruningSpec
from pruning_server.worker.facts import check_alike, check_labels, output_facts, target_facts
from pruning_server.worker.feeding import Feed
from pruning_server.worker.judging import Judging
from pruning_server.worker.next_tokens import find_tokens, require_causal, token_facts
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.running import Subject

DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True)
class Aims:
    """How every model of the run is judged; `train`: on the training set, where one was sent."""

    judging: Judging
    train: Judging | None
    notes: tuple[str, ...]


def find_aims(
    spec: PruningSpec,
    loaded: Loaded,
    subject: Subject,
    feed: Feed,
    output: torch.Tensor,
    scratch: Callable[[tuple[int, ...]], np.ndarray],
) -> Aims:
    """Chooses task, loss and metric.

    Args:
        spec: what the caller named.
        loaded: the sets and the loss module.
        subject: the original.
        feed: the validation set.
        output: of the original for the first samples of it, [n, ...].
        scratch: makes arrays to work with.

    Raises:
        JobFailureError: targets, task and loss do not fit together, or the training set does not fit the validation set.
    """
    found = find_tokens(loaded.original, feed)
    objective = choose_objective(
        task=spec.task,
        loss=spec.loss,
        has_loss_module=loaded.loss_module is not None,
        output=output_facts(output),
        targets=target_facts(loaded.validation.targets),
        tokens=token_facts(found, loaded.validation),
    )
    tokens = found if objective.next_tokens else None
    metric = choose_metric(
        objective.task,
        tuple(output.shape[1:]),
        threshold=0.5 if objective.link is Link.PROBABILITIES else 0.0,
        class_axis=objective.class_axis,
    )
    judging = Judging(
        feed=feed,
        objective=objective,
        loss=build_loss(objective, loaded.loss_module),
        metric=metric,
        batch_size=spec.evaluation.batch_size or DEFAULT_BATCH_SIZE,
        scratch=scratch,
        tokens=tokens,
    )
    notes, train = check_labels(loaded.validation, objective, tokens), None
    if loaded.train is not None:
        check_alike(loaded.validation, loaded.train, objective)
        train = replace(judging, feed=replace(feed, samples=loaded.train))
        notes = (*notes, *check_labels(loaded.train, objective, tokens))
    if tokens is not None:
        require_causal(subject, feed, tokens, objective)
    target = judging.target(list(range(len(output))), output)
    check_loss(judging.loss, output, output if target is None else target)
    return Aims(judging, train, (*objective.notes, *notes))
