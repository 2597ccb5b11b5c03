"""Judging a model on rows of a set: its outputs, the metric and the loss of each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.evaluation.metrics import Metric
from pruning_server.recovery.losses import LossFunction, distillation, shape_target
from pruning_server.recovery.objective import Objective, TargetForm
from pruning_server.recovery.ports import Score
from pruning_server.spec.request import Task
from pruning_server.worker.feeding import Feed, Rows
from pruning_server.worker.next_tokens import NextTokens
from pruning_server.worker.running import Subject

# Outputs of language models have a number for each token and word: blocks are bounded in rows and in bytes.
LOSS_BLOCK_ROWS = 1024
LOSS_BLOCK_BYTES = 1 << 26


@dataclass(frozen=True)
class Outputs:
    """A model's outputs [n, ...] in float32 for `rows` of a set."""

    rows: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Reference:
    """The original's outputs for every row of a set, where row and position are the same."""

    values: np.ndarray
    device: str

    def tensor(self, rows: Rows) -> torch.Tensor:
        """Outputs of these rows."""
        return torch.from_numpy(self.values[np.asarray(rows, dtype=np.intp)]).to(self.device)


@dataclass(frozen=True)
class SampleValues:
    """What each sample says of a model: [n] metric values and [n] losses."""

    metric: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class Judging:
    """How models are judged: the same for the original, the student and the final model.

    Attributes:
        feed: the set that is judged on.
        objective: task, loss and form of the targets.
        loss: the loss itself.
        metric: the task's metric.
        batch_size: samples per pass; halved where memory runs out.
        scratch: makes arrays to work with.
        tokens: where the next tokens are the targets, which input has them.
    """

    feed: Feed
    objective: Objective
    loss: LossFunction
    metric: Metric
    batch_size: int
    scratch: Callable[[tuple[int, ...]], np.ndarray]
    tokens: NextTokens | None = None

    def target(self, rows: Rows, reference: torch.Tensor) -> torch.Tensor | None:
        """What the loss compares the rows' outputs with; None where that is the original's output itself."""
        if self.objective.form is TargetForm.NONE:
            return None
        return shape_target(self._stored(rows), reference, self.objective)

    def _stored(self, rows: Rows) -> torch.Tensor | None:
        if self.objective.next_tokens and self.tokens is not None:
            return torch.from_numpy(self.tokens.targets(self.feed.samples, rows)).to(self.feed.device)
        # Where agreement is judged, targets that were sent along are not the truth.
        return None if self.objective.task is Task.AGREEMENT else self.feed.targets(rows)

    def outputs(self, subject: Subject, rows: Rows, done: Callable[[float, int], None] | None = None) -> Outputs:
        """Runs the model over the rows; `done` hears the fraction and the samples of each pass.

        Raises:
            JobFailureError: the model raised (MODEL_RUN_FAILED), or returned NaN (MODEL_NOT_FINITE).
        """
        values: np.ndarray | None = None
        start = 0
        for part, output in subject.outputs(self.feed, rows, self.batch_size):
            if values is None:
                values = self.scratch((len(rows), *output.shape[1:]))
            values[start : start + len(part)] = output.float().cpu().numpy()
            require_numbers(values[start : start + len(part)], part, self.feed.name)
            start += len(part)
            if done is not None:
                done(start / len(rows), len(part))
        return Outputs(np.asarray(rows), np.zeros((0,), np.float32) if values is None else values)

    def values(self, outputs: Outputs, reference: np.ndarray) -> SampleValues:
        """Metric and loss of each sample; `reference`: the original's outputs for the same rows."""
        losses = []
        for block in blocks_of(outputs.values):
            output, original = _tensor(outputs.values[block], self.feed), _tensor(reference[block], self.feed)
            wanted = self.target(outputs.rows[block], original)
            wanted = original if wanted is None else wanted
            with torch.no_grad():
                losses.append(self.loss.per_sample(output, wanted).detach().double().cpu().numpy())
        metric = self.metric_of(outputs, reference)
        return SampleValues(metric, np.concatenate(losses) if losses else np.zeros(0))

    def divergence(self, outputs: Outputs, reference: np.ndarray) -> float:
        """How far outputs are from the original's, `reference`, for the same rows: the task's distillation loss, mean.

        0 where they are equal. Where the loss is the caller's own, the mean absolute change of each sample's loss.
        """
        count = len(outputs.rows)
        total = 0.0
        for block in blocks_of(outputs.values):
            output, original = _tensor(outputs.values[block], self.feed), _tensor(reference[block], self.feed)
            wanted = self.target(outputs.rows[block], original)
            with torch.no_grad():
                found = distillation(output, original, self.objective, wanted)
                least = distillation(original, original, self.objective, wanted)
            if found is None or least is None:
                theirs = Outputs(outputs.rows, np.ascontiguousarray(reference))
                return float(np.abs(self.values(outputs, reference).loss - self.values(theirs, reference).loss).mean())
            total += float(found - least) * len(output)
        return total / count if count else 0.0

    def metric_of(self, outputs: Outputs, reference: np.ndarray) -> np.ndarray:
        """The metric of each sample; of a metric such as R2, relative to these rows alone."""
        if self.metric.compares_with_original:
            return self.metric.per_sample(outputs.values, None, reference)
        return self.metric.per_sample(outputs.values, self.truth(outputs.rows, reference), reference)

    def truth(self, rows: Rows, reference: np.ndarray) -> np.ndarray:
        """[n, ...] what the metric compares the rows' outputs with; `reference`: the original's outputs for them."""
        targets = []
        for block in blocks_of(reference):
            original = _tensor(reference[block], self.feed)
            wanted = self.target(rows[block], original)
            targets.append((original if wanted is None else wanted).cpu().numpy())
        return np.concatenate(targets) if targets else np.zeros(0)

    def score(self, subject: Subject, rows: Rows, reference: Reference) -> Score:
        """The model's score on the rows; not a number where its outputs are not."""
        try:
            outputs = self.outputs(subject, rows)
        except JobFailureError as error:
            if error.reason is not Reason.MODEL_NOT_FINITE:
                raise
            return Score(float("nan"), float("nan"))
        values = self.values(outputs, reference.values[np.asarray(rows, dtype=np.intp)])
        hits = values.metric if self.metric.is_binary else None
        return Score(self.metric.mean(values.metric), float(values.loss.mean()), hits)


def blocks_of(values: np.ndarray) -> Iterator[slice]:
    """Parts of [n, ...] arrays that are small enough to be copied."""
    row_bytes = 4 * int(np.prod(values.shape[1:], dtype=np.int64))
    rows = max(1, min(LOSS_BLOCK_ROWS, LOSS_BLOCK_BYTES // max(row_bytes, 1)))
    for start in range(0, len(values), rows):
        yield slice(start, start + rows)


def require_numbers(values: np.ndarray, rows: Rows, name: str) -> None:
    """Refuses outputs [n, ...] with NaN; infinities may be meant, as in log-probabilities.

    Raises:
        JobFailureError: MODEL_NOT_FINITE, naming the sample of the set `name`.
    """
    bad = np.isnan(values.reshape(len(rows), -1)).any(axis=1)
    if bad.any():
        row = int(rows[int(np.flatnonzero(bad)[0])])
        text = f"The model's output for sample {row} of the {name} set is NaN, so it cannot be judged."
        raise JobFailureError(Reason.MODEL_NOT_FINITE, text, metadata={"row": str(row)})


def _tensor(values: np.ndarray, feed: Feed) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(feed.device)
