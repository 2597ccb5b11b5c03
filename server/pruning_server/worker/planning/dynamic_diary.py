"""What happened while a model was pruned and trained at once: told as it happens, and kept for the report."""

from __future__ import annotations

import math

from pruning_server.pruning.dynamic.units import Reach
from pruning_server.recovery.ports import Score
from pruning_server.recovery.scheduled import Trained
from pruning_server.spec.report_strategy import DynamicStep
from pruning_server.worker.story import Story

PREPARED = 0.1
"""Of the phase, before the schedule begins."""


class Diary:
    """Every step of a schedule, in order; `epochs` are those that it has. Before it begins the phase is a tenth done."""

    def __init__(self, story: Story, schedule: str, epochs: int) -> None:
        self._story = story
        self._schedule = schedule
        self._epochs = epochs
        self._epoch = 0
        self.steps: list[DynamicStep] = []

    def step(
        self,
        action: str,
        step: int,
        reach: Reach,
        *,
        came_back: int = 0,
        loss: float = math.nan,
        score: Score | None = None,
    ) -> DynamicStep:
        """Keeps one step."""
        found = DynamicStep(
            step=step,
            action=action,
            sparsity=reach.sparsity,
            achieved=reach.achieved,
            came_back=came_back,
            train_loss=_number(loss),
            select_metric=_number(score.metric) if score else None,
            select_loss=_number(score.loss) if score else None,
        )
        self.steps.append(found)
        return found

    def tell(self, text: str) -> None:
        """Writes a line for those who watch."""
        self._story.note(f"Schedule {self._schedule}: {text}")

    def moved(self, fraction: float) -> None:
        """Tells how much of the schedule, in [0, 1], is done."""
        self._story.progress(_of_phase(fraction), epoch=self._epoch, epochs=self._epochs)

    def trained(self, trained: Trained, score: Score, reach: Reach, *, epoch: int, fraction: float) -> None:
        """Tells of some training and how the model stands."""
        metrics = {
            "train_loss": trained.loss,
            "select_metric": score.metric,
            "select_loss": score.loss,
            "sparsity": reach.sparsity,
        }
        self._epoch = epoch
        self._story.count(samples_trained=trained.samples)
        self._story.progress(_of_phase(fraction), epoch=epoch, epochs=self._epochs, metrics=metrics, forced=True)


def _of_phase(fraction: float) -> float:
    return PREPARED + (1 - PREPARED) * fraction


def _number(value: float) -> float | None:
    """JSON has no word for what is not a number."""
    return value if math.isfinite(value) else None
