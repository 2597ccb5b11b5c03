"""What fine-tuning costs is bounded, what it shows and adds is what it says, and nothing is chosen by what was trained on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from helpers.lessons import TensorData
from pruning_server.recovery.augmentation import Augmentation
from pruning_server.recovery.finetune import MIN_TRIAL_STEPS, NORMALIZED_RECIPES, TRIED_SHARE, fine_tune
from pruning_server.recovery.optimizer import Rule
from pruning_server.recovery.ports import Batch
from pruning_server.recovery.schedule import TARGET_STEPS, TrainingPlan
from pruning_server.recovery.trainer import Recipe, Trainer, steps_per_epoch


def plan(**changes: object) -> TrainingPlan:
    base = TrainingPlan(epochs=8, batch_size=32, learning_rate=None, weight_decay=0.0, patience_epochs=None, seed=0)
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 200), (1, 64), (2, 32)])
def test_a_short_training_is_run_whole_at_every_rate(epochs: int, batch_size: int, classroom: Callable) -> None:
    room = classroom(plan=plan(epochs=epochs, batch_size=batch_size))
    asked = epochs * steps_per_epoch(room.lesson)
    fractions: list[float] = []
    lesson = dataclasses.replace(room.lesson, progress=lambda *, fraction, **_: fractions.append(fraction))
    start = room.lesson.judge()
    tuned = fine_tune(lesson, start)
    assert tuned.steps == asked * len(NORMALIZED_RECIPES) <= TARGET_STEPS
    assert len(tuned.history) == epochs
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    for recipe in NORMALIZED_RECIPES:
        alone = classroom(plan=plan(epochs=epochs, batch_size=batch_size))
        trainer = Trainer(alone.lesson, recipe, asked)
        generator = np.random.default_rng(0)
        torch.manual_seed(0)
        for _ in range(epochs):
            trainer.epoch(generator)
        alone.lesson.student.eval()
        assert not alone.lesson.judge().beats(tuned.score), recipe


@pytest.mark.parametrize(("epochs", "affordable"), [(1, 1), (60, 60)])
def test_rehearsals_of_longer_or_dearer_trainings_are_bounded(
    epochs: int, affordable: int, classroom: Callable
) -> None:
    room = classroom(plan=plan(epochs=epochs, batch_size=16, affordable_epochs=affordable))
    asked = epochs * steps_per_epoch(room.lesson)
    tuned = fine_tune(room.lesson, room.lesson.judge())
    count = len(NORMALIZED_RECIPES)
    assert asked < tuned.steps <= asked + max(asked * TRIED_SHARE, count * min(asked, MIN_TRIAL_STEPS))


def test_a_found_rate_is_one_of_those_tried_and_a_given_one_is_taken(classroom: Callable) -> None:
    tuned = fine_tune((room := classroom(plan=plan())).lesson, room.lesson.judge())
    assert tuned.learning_rate in {recipe.rate for recipe in NORMALIZED_RECIPES}
    assert any(f"rate of {tuned.learning_rate:g}" in note for note in tuned.notes)
    tuned = fine_tune((room := classroom(plan=plan(learning_rate=3e-4))).lesson, room.lesson.judge())
    assert tuned.learning_rate == 3e-4
    assert tuned.notes == ()


@pytest.mark.parametrize("rule", list(Rule))
def test_zeros_hold_under_every_rule(rule: Rule, classroom: Callable) -> None:
    room = classroom()
    trainer = Trainer(room.lesson, Recipe(rule, 1e-2), total_steps=20)
    first = trainer.epoch(np.random.default_rng(0))
    for _ in range(3):
        last = trainer.epoch(np.random.default_rng(0))
    assert last < first
    assert room.zeros_hold()


def test_the_original_answers_for_the_variants_that_are_shown(classroom: Callable) -> None:
    room = classroom()
    asked: list[torch.Tensor] = []

    class Doubling(Augmentation):
        def apply(self, inputs: Sequence[object], generator: np.random.Generator) -> tuple[object, ...]:
            generator.random()
            return tuple(2 * one for one in inputs if isinstance(one, torch.Tensor))

    class Original:
        def outputs(self, inputs: Sequence[object]) -> torch.Tensor:
            (shown,) = inputs
            assert isinstance(shown, torch.Tensor)
            asked.append(shown)
            return torch.zeros(len(shown), 3)

    lesson = dataclasses.replace(room.lesson, teacher=Original())
    Trainer(lesson, Recipe(Rule.ADAMW, 1e-3), 10, Doubling(0, flips=True, shift=0)).epoch(np.random.default_rng(0))
    assert len(asked) == steps_per_epoch(lesson)
    largest = max(float(one.abs().max()) for one in asked)
    assert largest == pytest.approx(2 * float(room.lesson.data.inputs.abs().max()))


@dataclasses.dataclass
class Counting(TensorData):
    """Remembers how often its samples were asked for."""

    batches: int = 0

    def batch(self, rows: Sequence[int]) -> Batch:
        self.batches += 1
        return super().batch(rows)


def more_data(classroom: Callable, **changes: object) -> tuple[object, Counting]:
    room = classroom(sparsity=0.85, plan=plan(**changes))
    data = room.lesson.data
    both = Counting(data.inputs.repeat(2, 1)[:300], data.targets.repeat(2)[:300], data.reference.repeat(2, 1)[:300])
    return dataclasses.replace(room.lesson, all_data=both), both


def test_where_training_helped_beyond_doubt_select_is_trained_on_too(classroom: Callable) -> None:
    lesson, both = more_data(classroom, refits=True, epochs=12, learning_rate=3e-3)
    start = lesson.judge()
    tuned = fine_tune(lesson, start)
    clear = tuned.score.metric - start.metric >= 0.5 / math.sqrt(100)
    assert clear
    assert both.batches > 0
    told = [note for note in tuned.notes if "fit and select together" in note]
    best = min(epoch.epoch for epoch in tuned.history if epoch.select_loss == tuned.score.loss)
    if told:
        assert f"for {best} epochs" in told[0]
        assert not tuned.score.beats(lesson.judge())
    else:
        assert lesson.judge() == tuned.score


@pytest.mark.parametrize("changes", [{"refits": False, "learning_rate": 3e-3}, {"refits": True, "learning_rate": 1e-7}])
def test_otherwise_select_is_never_trained_on(changes: dict[str, object], classroom: Callable) -> None:
    lesson, both = more_data(classroom, epochs=4, **changes)
    fine_tune(lesson, lesson.judge())
    assert both.batches == 0
