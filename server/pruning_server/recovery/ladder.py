"""The ladder of recovery: nothing, closed-form reconstruction, normalization re-estimation, fine-tuning; best on select.

Every rung starts from the best so far and is kept only where select says that it is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pruning_server.recovery.checkpoint import Checkpoint
from pruning_server.recovery.finetune import Epoch, FineTuned, fine_tune
from pruning_server.recovery.lesson import Lesson, NoGradientError, require_gradient
from pruning_server.recovery.model_errors import TRAINING_ERRORS
from pruning_server.recovery.normalization import reestimate
from pruning_server.recovery.ports import Score
from pruning_server.recovery.raised import is_out_of_memory, last_line
from pruning_server.recovery.reconstruction import Method, Reconstructed, reconstruct


@dataclass(frozen=True)
class Rung:
    """One way of recovering.

    Attributes:
        name: how.
        score: on select, of the model that it left.
        before: of the model that it began with.
        kept: whether the delivered weights are its.
        seconds: what it took, by the run's clock.
        steps: gradient steps.
    """

    name: str
    score: Score
    kept: bool
    before: Score
    seconds: float = 0.0
    steps: int = 0

    @property
    def gain(self) -> float:
        """By how much the metric on select rose; NaN where one of the two is not a number."""
        return self.score.metric - self.before.metric


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
NOTHING, RECONSTRUCTION, AFFINE = "nothing", Method.REFIT.value, Method.AFFINE.value
NORMALIZATION, FINE_TUNING = "normalization", "fine_tuning"
MAX_LISTED = 5


def recover(lesson: Lesson) -> Recovered:
    """Climbs the ladder and leaves the student with the best weights found on select, the pruned ones included.

    A model that raises while it is trained keeps what the closed forms left, and a note says why.
    """
    lesson.student.eval()
    climb = _Climb(lesson)
    climb.try_closed_form(Method.REFIT)
    if not lesson.student.statistics and climb.kept == NOTHING:
        climb.try_closed_form(Method.AFFINE)
    trainable = climb.prepare()
    climb.try_normalization()
    tuned = climb.try_fine_tuning() if trainable else None
    climb.lesson.masks.hold()
    climb.lesson.student.eval()
    return Recovered(
        kept=climb.kept,
        score=climb.best,
        rungs=tuple(replace(rung, kept=rung.name == climb.kept) for rung in climb.rungs),
        learning_rate=tuned.learning_rate if tuned else None,
        history=tuned.history if tuned else (),
        notes=tuple(climb.notes),
    )


class _Climb:
    """How far the ladder was climbed; the student holds the best weights between two rungs."""

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        self.notes: list[str] = []
        self.kept = NOTHING
        began = lesson.seconds()
        self.best = lesson.judge()
        self.rungs = [Rung(NOTHING, self.best, True, self.best, lesson.seconds() - began)]

    def try_closed_form(self, method: Method) -> None:
        """Refits, or scales and shifts, layer by layer."""
        if self.lesson.pair is not None:
            self._try(method.value, lambda: self._reconstructed(method))

    def try_normalization(self) -> None:
        """Measures running statistics again."""
        lesson = self.lesson
        if lesson.training_mode:
            self._try(
                NORMALIZATION,
                lambda: reestimate(lesson.student, lesson.data, lesson.plan.batch_size, lesson.plan.seed),
                # After a reconstruction it mostly harms, which few right or wrong answers may not show.
                wary=True,
            )

    def try_fine_tuning(self) -> FineTuned | None:
        """Trains from the best weights so far."""
        lesson, before = self.lesson, self.best
        if lesson.plan.epochs == 0:
            return None
        began, checkpoint = lesson.seconds(), Checkpoint.of(lesson.tensors)
        try:
            tuned = fine_tune(lesson, before)
        except TRAINING_ERRORS as error:
            self.notes.append(_why_stopped("Fine-tuning", error))
            checkpoint.restore()
            return None
        self.notes.extend(tuned.notes)
        last = tuned.history[-1] if tuned.history else None
        ended = Score(last.select_metric, last.select_loss) if last and not tuned.improved else tuned.score
        self.rungs.append(Rung(FINE_TUNING, ended, False, before, lesson.seconds() - began, tuned.steps))
        if tuned.improved and not self._nothing.beats(tuned.score):
            self.kept, self.best = FINE_TUNING, tuned.score
        else:
            checkpoint.restore()
        return tuned

    @property
    def _nothing(self) -> Score:
        """The pruned model's own; every rung may tie with the one before, and the last still be worse than this."""
        return self.rungs[0].score

    def prepare(self) -> bool:
        """Finds a mode in which the model can be trained; whether a gradient reaches its weights there."""
        lesson = self.lesson
        checkpoint = Checkpoint.of(lesson.tensors)
        problem: Exception | None = None
        for variant in _variants(lesson):
            if variant.keeps_overwritten and OVERWRITTEN not in str(problem):
                continue
            try:
                require_gradient(variant)
            except NoGradientError as error:
                self.lesson = variant
                self.notes.append(f"Not fine-tuned: {error}")
                return False
            except TRAINING_ERRORS as error:
                problem = error
                continue
            finally:
                checkpoint.restore()
            if problem is not None and variant.training_mode != lesson.training_mode:
                why = last_line(problem)
                self.notes.append(f"Trained as it runs at inference, since in training mode {RAISED}: {why}")
            self.lesson = variant
            return True
        self.notes.append(_why_stopped("Fine-tuning", problem or RuntimeError()))
        return False

    def _try(self, name: str, change: Callable[[], bool], *, wary: bool = False) -> None:
        """Runs a rung that changes weights in place, and takes it back where select does not say that it helped.

        `wary`: a higher loss speaks against it, whatever the metric says.
        """
        lesson, before = self.lesson, self.best
        began, checkpoint = lesson.seconds(), Checkpoint.of(lesson.tensors)
        try:
            changed = change()
        except TRAINING_ERRORS as error:
            self.notes.append(_why_stopped(_TITLES[name], error))
            changed = False
        lesson.masks.hold()
        lesson.student.eval()
        score = lesson.judge() if changed else before
        if changed:
            self.rungs.append(Rung(name, score, False, before, lesson.seconds() - began))
        helped = score.beats(before) and not self._nothing.beats(score)
        if changed and helped and not (wary and score.loss > before.loss):
            self.kept, self.best = name, score
        else:
            checkpoint.restore()

    def _reconstructed(self, method: Method) -> bool:
        pair = self.lesson.pair
        if pair is None:
            return False
        done = reconstruct(pair, method, self.lesson.plan.seed)
        if method is Method.REFIT:
            self.notes.extend(_left_out(done))
        return bool(done.refitted or done.scaled)


_TITLES = {
    RECONSTRUCTION: "Reconstruction",
    AFFINE: "Scaling and shifting",
    NORMALIZATION: "Normalization re-estimation",
}


def _variants(lesson: Lesson) -> Iterator[Lesson]:
    """Ways to train, the best first."""
    for training_mode in (True, False) if lesson.training_mode else (False,):
        for keeps_overwritten in (False, True):
            yield replace(lesson, training_mode=training_mode, keeps_overwritten=keeps_overwritten)


def _left_out(done: Reconstructed) -> list[str]:
    """A line about the kernels that reconstruction left alone."""
    if not done.skipped:
        return []
    shown = [f"{name} ({reason})" for name, reason in list(done.skipped.items())[:MAX_LISTED]]
    more = f" and {len(done.skipped) - MAX_LISTED} more" if len(done.skipped) > MAX_LISTED else ""
    return [f"Not reconstructed: {', '.join(shown)}{more}."]


def _why_stopped(what: str, error: BaseException) -> str:
    if is_out_of_memory(error):
        return f"{what} was given up: it needed more memory than the run may use, even one sample at a time."
    return f"{what} was given up: {RAISED}: {last_line(error)}"
