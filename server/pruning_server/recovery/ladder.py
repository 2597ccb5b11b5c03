"""The ladder of recovery: nothing, normalization re-estimation, fine-tuning; the best on select is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pruning_server.recovery.checkpoint import Checkpoint
from pruning_server.recovery.finetune import Epoch, FineTuned, fine_tune
from pruning_server.recovery.lesson import Lesson, NoGradientError, require_gradient
from pruning_server.recovery.model_errors import TRAINING_ERRORS
from pruning_server.recovery.normalization import reestimate
from pruning_server.recovery.ports import Score
from pruning_server.recovery.raised import is_out_of_memory, last_line


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


# In the message of the error that torch raises then.
OVERWRITTEN = "inplace operation"
RAISED = "the model raised"
NOTHING, NORMALIZATION, FINE_TUNING = "nothing", "normalization", "fine_tuning"


def recover(lesson: Lesson) -> Recovered:
    """Climbs the ladder and leaves the student with the best weights found on select, the pruned ones included.

    A model that raises while it is trained keeps its pruned weights, and a note says why.
    """
    lesson.student.eval()
    start = lesson.judge()
    scores: list[tuple[str, Score]] = [(NOTHING, start)]
    kept, best = NOTHING, start
    lesson, notes, trainable = _prepared(lesson)
    normalized = _normalized(lesson, notes)
    if normalized is not None:
        score, before = normalized
        scores.append((NORMALIZATION, score))
        if score.beats(best):
            kept, best = NORMALIZATION, score
        else:
            before.restore()
    tuned = _fine_tuned(lesson, best, notes) if trainable else None
    if tuned is not None:
        last = tuned.history[-1] if tuned.history else None
        ended = Score(last.select_metric, last.select_loss) if last and not tuned.improved else tuned.score
        scores.append((FINE_TUNING, ended))
        if tuned.improved:
            kept, best = FINE_TUNING, tuned.score
    lesson.masks.hold()
    lesson.student.eval()
    return Recovered(
        kept=kept,
        score=best,
        rungs=tuple(Rung(name, score, name == kept) for name, score in scores),
        learning_rate=tuned.learning_rate if tuned else None,
        history=tuned.history if tuned else (),
        notes=tuple(notes),
    )


def _prepared(lesson: Lesson) -> tuple[Lesson, list[str], bool]:
    """The lesson in a mode in which the model can be trained, notes, and whether a gradient reaches its weights."""
    checkpoint = Checkpoint.of(lesson.tensors)
    notes: list[str] = []
    problem: Exception | None = None
    for variant in _variants(lesson):
        if variant.keeps_overwritten and OVERWRITTEN not in str(problem):
            continue
        try:
            require_gradient(variant)
        except NoGradientError as error:
            return variant, [f"Not fine-tuned: {error}"], False
        except TRAINING_ERRORS as error:
            problem = error
            continue
        finally:
            checkpoint.restore()
        if problem is not None and variant.training_mode != lesson.training_mode:
            notes.append(f"Trained as it runs at inference, since in training mode {RAISED}: {last_line(problem)}")
        return variant, notes, True
    return lesson, [_why_stopped("Fine-tuning", problem or RuntimeError())], False


def _variants(lesson: Lesson) -> Iterator[Lesson]:
    """Ways to train, the best first."""
    for training_mode in (True, False) if lesson.training_mode else (False,):
        for keeps_overwritten in (False, True):
            yield replace(lesson, training_mode=training_mode, keeps_overwritten=keeps_overwritten)


def _fine_tuned(lesson: Lesson, best: Score, notes: list[str]) -> FineTuned | None:
    if lesson.plan.epochs == 0:
        return None
    checkpoint = Checkpoint.of(lesson.tensors)
    try:
        tuned = fine_tune(lesson, best)
    except TRAINING_ERRORS as error:
        notes.append(_why_stopped("Fine-tuning", error))
        checkpoint.restore()
        return None
    notes.extend(tuned.notes)
    return tuned


def _normalized(lesson: Lesson, notes: list[str]) -> tuple[Score, Checkpoint] | None:
    if not lesson.training_mode:
        return None
    checkpoint = Checkpoint.of(lesson.tensors)
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


def _why_stopped(what: str, error: BaseException) -> str:
    if is_out_of_memory(error):
        return f"{what} was given up: it needed more memory than the run may use, even one sample at a time."
    return f"{what} was given up: {RAISED}: {last_line(error)}"
