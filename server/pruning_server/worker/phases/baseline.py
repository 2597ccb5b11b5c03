"""BASELINE: the original's outputs, which everything later is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning_server.errors import JobFailureError, Reason
from pruning_server.worker.judging import Judging, Outputs, Reference, SampleValues
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.running import Subject, rows_of
from pruning_server.worker.story import Story


@dataclass(frozen=True)
class Judged:
    """A model's outputs on a whole set and what each sample says, by row."""

    reference: Reference
    values: SampleValues


@dataclass(frozen=True)
class Baseline:
    """The original, judged; `train` None where no training set was sent."""

    validation: Judged
    train: Judged | None


def judge_original(loaded: Loaded, observed: Observed, story: Story) -> Baseline:
    """Runs the original over all sets.

    Raises:
        JobFailureError: the model raised, or returned NaN, or its loss is not finite (LOSS_NOT_FINITE).
    """
    subject = Subject.of(loaded.original, observed.rule)
    validation = _judge(subject, observed.judging, story)
    train = _judge(subject, observed.train_judging, story) if observed.train_judging else None
    return Baseline(validation, train)


def _judge(subject: Subject, judging: Judging, story: Story) -> Judged:
    rows = rows_of(len(judging.feed.samples))

    def done(fraction: float, samples: int) -> None:
        story.progress(fraction)
        story.count(samples_evaluated=samples)

    outputs: Outputs = judging.outputs(subject, rows, done)
    values = judging.values(outputs, outputs.values)
    bad = np.flatnonzero(~np.isfinite(values.loss))
    if bad.size:
        text = (
            f"The loss of the original model on sample {int(bad[0])} of the {judging.feed.name} set is "
            f"{values.loss[bad[0]]}. Check that outputs, targets and loss belong together."
        )
        raise JobFailureError(Reason.LOSS_NOT_FINITE, text, metadata={"row": str(int(bad[0]))})
    return Judged(Reference(outputs.values, judging.feed.device), values)
