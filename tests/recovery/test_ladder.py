"""The ladder keeps the best on select, and zeros stay zeros."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from pruning_server.errors import JobFailureError, Reason
from pruning_server.recovery.ladder import FINE_TUNING, NORMALIZATION, NOTHING, recover
from pruning_server.recovery.objective import Objective, TargetForm
from pruning_server.recovery.ports import Score
from pruning_server.recovery.schedule import TrainingPlan
from pruning_server.spec.request import Loss, Task

CLASSES = 3
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def plan(**changes: object) -> TrainingPlan:
    base = TrainingPlan(epochs=3, batch_size=32, learning_rate=1e-3, weight_decay=0.0, patience_epochs=None, seed=0)
    return dataclasses.replace(base, **changes)


def state(classroom) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in classroom.student.module.state_dict().items()}


def test_recovery_beats_the_pruned_model_and_keeps_every_zero(classroom: Callable) -> None:
    room = classroom(sparsity=0.8)
    before = room.lesson.judge.__call__()
    recovered = recover(room.lesson)
    assert recovered.score.metric > before.metric + 0.02
    assert room.zeros_hold()
    assert recovered.score == room.lesson.judge()
    assert [rung.kept for rung in recovered.rungs].count(True) == 1
    assert not room.student.module.training


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_precision_learns_with_zeros_held(dtype: torch.dtype, classroom: Callable) -> None:
    room = classroom(sparsity=0.8, dtype=dtype, plan=plan(epochs=8, learning_rate=3e-3, weight_decay=0.01))
    before = room.lesson.judge()
    recovered = recover(room.lesson)
    assert recovered.score.beats(before)
    losses = [epoch.train_loss for epoch in recovered.history]
    assert len(losses) == 8
    assert losses[-1] < 0.95 * losses[0]
    assert room.zeros_hold()
    assert {tensor.dtype for tensor in room.student.module.parameters()} == {dtype}


def test_a_seed_gives_the_same_bits_and_another_seed_others(classroom: Callable) -> None:
    states = []
    for seed in (1, 1, 2):
        room = classroom(plan=plan(seed=seed))
        recover(room.lesson)
        states.append(state(room))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_nothing_is_kept_where_training_makes_it_worse(classroom: Callable) -> None:
    room = classroom(sparsity=0.1, plan=plan(learning_rate=30.0, epochs=2))
    before, start = state(room), room.lesson.judge()
    recovered = recover(room.lesson)
    assert not start.beats(recovered.score)
    if recovered.kept == NOTHING:
        after = state(room)
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert recovered.kept != FINE_TUNING


def test_what_is_not_kept_leaves_no_trace(classroom: Callable) -> None:
    room = classroom(plan=plan(epochs=1, learning_rate=1e-2))
    before = state(room)
    scores = iter(range(100, 0, -1))
    lesson = dataclasses.replace(room.lesson, judge=lambda: Score(float(next(scores)), 0.0))
    assert recover(lesson).kept == NOTHING
    after = state(room)
    assert "1.num_batches_tracked" in before
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_many_ties_do_not_add_up_to_a_loss(classroom: Callable) -> None:
    room = classroom(plan=plan(epochs=12))
    judged = []

    def judge() -> Score:
        # Each misses one more than the last, which is a tie, with a lower loss.
        hits = np.ones(100)
        hits[: len(judged)] = 0
        judged.append(Score(float(hits.mean()), 1.0 - 0.01 * len(judged), hits))
        return judged[-1]

    recovered = recover(dataclasses.replace(room.lesson, judge=judge))
    assert len(judged) > 8
    assert recovered.kept != NOTHING
    assert recovered.score.metric >= 0.98


def test_no_epochs_means_no_gradient_step(classroom: Callable) -> None:
    room = classroom(plan=plan(epochs=0))
    before = state(room)
    recovered = recover(room.lesson)
    after = state(room)
    assert recovered.kept in {NOTHING, NORMALIZATION}
    assert recovered.history == ()
    for name, tensor in before.items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, after[name]), name


def test_divergence_ends_in_finite_weights(classroom: Callable) -> None:
    class Exploding(nn.Module):
        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (output * 1e30).pow(3).mean() * target.float().mean()

    objective = Objective(task=Task.CLASSIFICATION, loss=None, form=TargetForm.LABELS)
    room = classroom(objective=objective, loss_module=torch.jit.script(Exploding()), plan=plan(epochs=5))
    recovered = recover(room.lesson)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state(room).values())
    assert any("no longer finite" in note for note in recovered.notes)


def test_a_model_without_gradients_keeps_its_pruned_weights(classroom: Callable) -> None:
    room = classroom()

    def detached(inputs: tuple[object, ...]) -> torch.Tensor:
        return room.student.module(*inputs).detach()

    room.student.forward = detached
    recovered = recover(room.lesson)
    assert recovered.kept in {NOTHING, NORMALIZATION}
    assert any("no gradient" in note for note in recovered.notes)


def test_a_model_that_raises_in_training_keeps_its_pruned_weights(classroom: Callable) -> None:
    room = classroom()
    before = state(room)

    def raising(inputs: tuple[object, ...]) -> torch.Tensor:
        if room.student.module.training or torch.is_grad_enabled():
            raise RuntimeError("cannot be trained")
        return room.student.module(*inputs)

    room.student.forward = raising
    recovered = recover(room.lesson)
    assert recovered.kept == NOTHING
    assert any("cannot be trained" in note for note in recovered.notes)
    after = state(room)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_without_a_training_mode_is_trained_as_it_runs_at_inference(classroom: Callable) -> None:
    room = classroom(plan=plan(epochs=6))
    before = {name: tensor.detach().clone() for name, tensor in room.student.module.named_buffers()}
    start = room.lesson.judge()

    def raising(inputs: tuple[object, ...]) -> torch.Tensor:
        if room.student.module.training:
            raise RuntimeError("only for inference")
        return room.student.module(*inputs)

    room.student.forward = raising
    recovered = recover(room.lesson)
    assert recovered.score.beats(start)
    assert recovered.kept == FINE_TUNING
    assert room.zeros_hold()
    assert any("only for inference" in note for note in recovered.notes)
    assert all(torch.equal(before[name], tensor) for name, tensor in room.student.module.named_buffers())


def test_a_state_written_in_place_does_not_stop_training(classroom: Callable) -> None:
    room = classroom(plan=plan(epochs=1, batch_size=50))
    memory = torch.ones(1, CLASSES)

    def writing(inputs: tuple[object, ...]) -> torch.Tensor:
        output = room.student.module(*inputs) * memory
        memory.add_(0.0)
        return output

    room.student.forward = writing
    recovered = recover(room.lesson)
    assert len(recovered.history) == 1


def test_running_out_of_memory_halves_the_passes(classroom: Callable) -> None:
    room = classroom(plan=plan(epochs=2, batch_size=64))
    sizes: list[int] = []

    def hungry(inputs: tuple[object, ...]) -> torch.Tensor:
        if room.student.module.training and torch.is_grad_enabled():
            sizes.append(len(inputs[0]))
            if len(inputs[0]) > 16:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return room.student.module(*inputs)

    room.student.forward = hungry
    recovered = recover(room.lesson)
    assert len(recovered.history) == 2
    assert sizes.count(max(sizes)) <= 2
    assert min(sizes) <= 16


@pytest.mark.parametrize("exact", [1, 4])
def test_models_with_one_batch_size_are_trained_with_it(exact: int, classroom: Callable) -> None:
    room = classroom(plan=plan(epochs=1, batch_size=16), exact_batch=exact)
    sizes: set[int] = set()

    def watched(inputs: tuple[object, ...]) -> torch.Tensor:
        sizes.add(len(inputs[0]))
        # Batch normalization cannot train on a single sample.
        room.student.module.eval()
        return room.student.module(*inputs)

    room.student.forward = watched
    recovered = recover(room.lesson)
    assert sizes == {exact}
    assert len(recovered.history) == 1


def test_without_targets_the_original_is_distilled(classroom: Callable) -> None:
    objective = Objective(task=Task.AGREEMENT, loss=Loss.MSE, form=TargetForm.NONE)
    room = classroom(objective=objective, plan=plan(epochs=5, learning_rate=3e-3))
    before = room.lesson.judge()
    assert recover(room.lesson).score.beats(before)


def test_early_stop_and_progress(classroom: Callable) -> None:
    room = classroom(sparsity=0.3, plan=plan(epochs=40, patience_epochs=3, learning_rate=1e-4))
    recovered = recover(room.lesson)
    assert 3 <= len(recovered.history) < 40
    fractions = [call["fraction"] for call in room.calls]
    assert fractions == sorted(fractions)
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert sum(call["samples"] for call in room.calls) == 200 * len(recovered.history)
    assert all(math.isfinite(epoch.train_loss) for epoch in recovered.history)


def test_a_loss_module_that_does_not_fit_ends_the_run(classroom: Callable) -> None:
    class Vector(nn.Module):
        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return output.sum(dim=1) + target.float()

    objective = Objective(task=Task.CLASSIFICATION, loss=None, form=TargetForm.LABELS)
    room = classroom(objective=objective, loss_module=torch.jit.script(Vector()), plan=plan())
    with pytest.raises(JobFailureError) as caught:
        recover(room.lesson)
    assert caught.value.reason is Reason.LOSS_UNSUITABLE


def test_every_rung_says_what_it_gained_and_what_it_cost(classroom: Callable) -> None:
    room = classroom(plan=plan(epochs=4, learning_rate=3e-3))
    now = iter(range(10**6))
    lesson = dataclasses.replace(room.lesson, seconds=lambda: float(next(now)))
    recovered = recover(lesson)
    names = [rung.name for rung in recovered.rungs]
    assert names == [NOTHING, NORMALIZATION, FINE_TUNING]
    assert all(rung.seconds > 0 for rung in recovered.rungs)
    assert [rung.steps > 0 for rung in recovered.rungs] == [False, False, True]
    first, second, third = recovered.rungs
    assert second.before == first.score
    assert third.before in {first.score, second.score}
    assert third.gain == pytest.approx(third.score.metric - third.before.metric)


def test_statistics_that_raise_the_loss_are_not_taken_for_a_lucky_hit(classroom: Callable) -> None:
    room = classroom(plan=plan(epochs=0))
    scores = iter([Score(0.5, 1.0), Score(0.6, 2.0)])
    before = state(room)
    recovered = recover(dataclasses.replace(room.lesson, judge=lambda: next(scores)))
    assert recovered.kept == NOTHING
    assert all(torch.equal(before[name], tensor) for name, tensor in state(room).items())
