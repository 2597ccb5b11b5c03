"""A part of a phase that tells its progress as its share of the whole."""

from __future__ import annotations

from pruning_server.jobs.events import Severity, WorkerMessage
from pruning_server.worker.story import Story


class _Nowhere:
    """A sink for what the whole tells itself."""

    def send(self, message: WorkerMessage) -> None:
        """Drops it."""


class StoryPart(Story):
    """A part of a phase: its progress goes from `start` to `end` of the whole, and its candidate's notes are not the run's."""

    def __init__(self, story: Story, start: float, end: float) -> None:
        super().__init__(_Nowhere(), story.clock)
        self._whole = story
        self._start, self._length = start, end - start

    def progress(
        self,
        fraction: float,
        *,
        epoch: int = 0,
        epochs: int = 0,
        metrics: dict[str, float] | None = None,
        forced: bool = False,
    ) -> None:
        """Tells the whole."""
        del forced
        if self._length > 0:
            self._whole.progress(self._start + self._length * fraction, epoch=epoch, epochs=epochs, metrics=metrics)

    def count(
        self,
        *,
        parameters_processed: int = 0,
        parameters_removed: int = 0,
        samples_trained: int = 0,
        samples_evaluated: int = 0,
    ) -> None:
        """Counts work; a candidate's parameters are counted when it is chosen."""
        del parameters_processed, parameters_removed
        if samples_trained or samples_evaluated:
            self._whole.count(samples_trained=samples_trained, samples_evaluated=samples_evaluated)

    def note(self, text: str, severity: Severity = Severity.INFO) -> None:
        """Says nothing."""
        del text, severity
