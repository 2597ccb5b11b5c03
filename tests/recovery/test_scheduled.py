"""Training that something else looks into after every step."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from pruning_server.recovery.checkpoint import Checkpoint
from pruning_server.recovery.finetune import NORMALIZED_RECIPES
from pruning_server.recovery.objective import Objective, TargetForm
from pruning_server.recovery.optimizer import Rule
from pruning_server.recovery.schedule import TrainingPlan
from pruning_server.recovery.scheduled import SteppedTraining, judged, prepare
from pruning_server.recovery.trainer import Recipe, steps_per_epoch
from pruning_server.spec.request import Task

STEADY = Recipe(Rule.ADAMW, 1e-3)


def plan(learning_rate: float | None = 1e-3, batch_size: int = 32) -> TrainingPlan:
    return TrainingPlan(
        epochs=3, batch_size=batch_size, learning_rate=learning_rate, weight_decay=0.01, patience_epochs=None, seed=0
    )


def values(room: object) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in room.lesson.tensors()]  # type: ignore[attr-defined]


def test_steps_in_parts_are_the_steps_at_once(classroom: Callable) -> None:
    results = []
    for parts in ([10], [3, 1, 6]):
        room = classroom(plan=plan())
        torch.manual_seed(0)
        training = SteppedTraining(room.lesson, STEADY, 10)
        samples = sum(training.run(steps).samples for steps in parts)
        results.append((training.steps, samples, values(room)))
    (one, first, a), (other, second, b) = results
    assert one == other == 10
    assert first == second
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_zeros_hold_and_the_rate_falls_to_half(classroom: Callable) -> None:
    room = classroom(plan=plan())
    training = SteppedTraining(room.lesson, STEADY, 12)
    rates, held = [training.learning_rate], []

    def after(step: int) -> None:
        rates.append(training.learning_rate)
        held.append((step, room.zeros_hold()))

    trained = training.run(12, after)
    assert held == [(step, True) for step in range(1, 13)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1e-3
    assert rates[-1] == pytest.approx(5e-4)
    assert math.isfinite(trained.loss)


def test_the_gradient_of_what_is_off_can_be_read(classroom: Callable) -> None:
    room = classroom(plan=plan())
    training = SteppedTraining(room.lesson, STEADY, 1)
    training.run(1)
    for name, removed in room.masks.removed.items():
        gradient = training.gradient(name)
        assert gradient is not None
        assert bool((gradient[removed] != 0).any())
    assert training.gradient("nothing") is None


def test_an_epoch_has_as_many_steps_as_it_takes_to_see_every_sample(classroom: Callable) -> None:
    room = classroom(plan=plan(batch_size=32))
    assert steps_per_epoch(room.lesson) == 7
    training = SteppedTraining(room.lesson, STEADY, 7)
    assert training.run(7).samples == room.lesson.data.samples


def test_a_model_whose_only_batch_is_larger_than_the_data_takes_no_step(classroom: Callable) -> None:
    room = classroom(plan=plan(), exact_batch=1000)
    training = SteppedTraining(room.lesson, STEADY, 4)
    trained = training.run(4)
    assert training.steps == trained.samples == 0
    assert math.isnan(trained.loss)


def test_a_rate_is_found_and_leaves_no_trace(classroom: Callable) -> None:
    room = classroom(plan=plan(learning_rate=None))
    before, seen = values(room), []
    training = prepare(room.lesson, lambda: seen.append(judged(room.lesson).loss), 20, room.lesson.tensors)
    assert training.first_rate in [recipe.rate for recipe in NORMALIZED_RECIPES]
    assert training.steps == 0
    assert all(torch.equal(a, b) for a, b in zip(before, values(room), strict=True))
    # Each rate starts from the same weights.
    assert len(seen) == len(NORMALIZED_RECIPES)
    assert len(set(seen)) == 1
    asked = classroom(plan=plan(0.5)).lesson
    assert prepare(asked, lambda: None, 20, asked.tensors).first_rate == 0.5


def test_training_that_is_not_finite_stops_and_keeps_the_weights(classroom: Callable) -> None:
    objective = Objective(task=Task.CLASSIFICATION, loss=None, form=TargetForm.LABELS)
    room = classroom(plan=plan(), objective=objective, loss_module=torch.jit.script(NotANumber()))
    before = Checkpoint.of(lambda: [t.tensor for t in room.student.parameters])
    training = SteppedTraining(room.lesson, STEADY, 50)
    training.run(50)
    assert training.diverged
    assert training.steps < 50
    assert all(torch.equal(t.tensor, value) for t, value in zip(room.student.parameters, before.values, strict=True))


class NotANumber(torch.nn.Module):
    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output.sum() * target.float().mean() * float("nan")
