"""The ladder of recovery: nothing, normalization re-estimation, fine-tuning; the best on select is kept."""

from __future__ import annotations

from dataclasses import dataclass

from pruning_server.recovery.checkpoint import Checkpoint
from pruning_server.recovery.finetune import Epoch, Lesson, NoGradientError, fine_tune
from pruning_server.recovery.memory import is_out_of_memory
from pruning_server.recovery.model_errors import TRAINING_ERRORS, last_line
from pruning_server.recovery.normalization import reestimate
from pruning_server.recovery.ports import Score


@dataclass(frozen=True)
class Rung:
    """One way of recovering, and the score on select of the model that it left."""

    name: str
    score: Score
    kept: bool


@dataclass(frozen=True)
class Recovered:
    """What recovery came to; the student holds the weights of the kept rung."""

    kept: str
    score: Score
    rungs: tuple[Rung, ...]
    learning_rate: float | None
    history: tuple[Epoch, ...]
    notes: tuple[str, ...]

    @property
    def fitted(self) -> bool:
        """Whether the returned weights depend on the fit split."""
        return self.kept != NOTHING


NOTHING, NORMALIZATION, FINE_TUNING = "nothing", "normalization", "fine_tuning"


def recover(lesson: Lesson) -> Recovered:
    """Climbs the ladder and leaves the student with the best weights found on select, the pruned ones included.

    A model that raises while it is trained keeps its pruned weights, and a note says why.
    """
    lesson.student.eval()
    start = lesson.judge()
    scores: list[tuple[str, Score]] = [(NOTHING, start)]
    kept, best = NOTHING, start
    notes: list[str] = []
    normalized = _normalized(lesson, notes)
    if normalized is not None:
        score, before = normalized
        scores.append((NORMALIZATION, score))
        if score.beats(best):
            kept, best = NORMALIZATION, score
        else:
            before.restore()
    rate: float | None = None
    history: tuple[Epoch, ...] = ()
    if lesson.plan.epochs > 0:
        checkpoint = Checkpoint.of(lesson.tensors())
        try:
            tuned = fine_tune(lesson, best)
        except NoGradientError as error:
            notes.append(f"Not fine-tuned: {error}")
            checkpoint.restore()
        except TRAINING_ERRORS as error:
            notes.append(_why_stopped("Fine-tuning", error))
            checkpoint.restore()
        else:
            rate, history = tuned.learning_rate, tuned.history
            notes.extend(tuned.notes)
            scores.append((FINE_TUNING, tuned.score if tuned.improved else _last(history, tuned.score)))
            if tuned.improved:
                kept, best = FINE_TUNING, tuned.score
    lesson.masks.hold()
    lesson.student.eval()
    rungs = tuple(Rung(name, score, name == kept) for name, score in scores)
    return Recovered(kept, best, rungs, rate, history, tuple(notes))


def _normalized(lesson: Lesson, notes: list[str]) -> tuple[Score, Checkpoint] | None:
    checkpoint = Checkpoint.of(lesson.tensors())
    try:
        changed = reestimate(lesson.student, lesson.data, lesson.plan.batch_size, lesson.plan.seed)
    except TRAINING_ERRORS as error:
        notes.append(_why_stopped("Normalization re-estimation", error))
        changed = False
    lesson.student.eval()
    if changed:
        return lesson.judge(), checkpoint
    checkpoint.restore()
    return None


def _last(history: tuple[Epoch, ...], otherwise: Score) -> Score:
    return Score(history[-1].select_metric, history[-1].select_loss) if history else otherwise


def _why_stopped(what: str, error: BaseException) -> str:
    if is_out_of_memory(error):
        return f"{what} was given up: it needed more memory than the run may use, even one sample at a time."
    return f"{what} was given up: in training mode the model raised: {last_line(error)}"
