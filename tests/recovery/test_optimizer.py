"""The optimiser steps as AdamW does, and pruned weights stay zero whatever it does."""

from __future__ import annotations

import pytest
import torch

from pruning_server.recovery.optimizer import MaskedOptimizer, Rule
from pruning_server.recovery.ports import Trainable


class NoMasks:
    """Holds nothing."""

    def hold(self) -> None:
        """Does nothing."""


class FirstRow:
    """Holds the first row at zero."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def hold(self) -> None:
        """Writes the zeros."""
        with torch.no_grad():
            self.tensor[0] = 0.0


def small_gradients(seed: int, shape: tuple[int, ...], steps: int) -> list[torch.Tensor]:
    """Gradients whose norm stays below the clipping."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) * 0.05 for _ in range(steps)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_equal_torchs_adamw(weight_decay: float) -> None:
    start = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimizer = MaskedOptimizer([Trainable("w", ours)], NoMasks(), weight_decay)
    reference = torch.optim.AdamW([theirs], lr=0.0, weight_decay=weight_decay)
    for number, gradient in enumerate(small_gradients(1, (3, 4), 20)):
        rate = 1e-2 / (number + 1)
        optimizer.zero_grad()
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        reference.param_groups[0]["lr"] = rate
        reference.step()
        assert optimizer.step(rate)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_large_gradients_are_clipped_to_norm_one() -> None:
    one, other = (torch.ones(4, requires_grad=True) for _ in range(2))
    clipped = MaskedOptimizer([Trainable("w", one)], NoMasks(), 0.0)
    plain = MaskedOptimizer([Trainable("w", other)], NoMasks(), 0.0)
    for scale in (1.0, 1000.0, 3.0):
        direction = torch.tensor([1.0, -2.0, 3.0, 0.5])
        one.grad = direction / direction.norm() * scale
        other.grad = direction / direction.norm()
        clipped.step(1e-2)
        plain.step(1e-2)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_momentum_and_decay_cannot_move_a_zero() -> None:
    tensor = torch.ones(3, 2, requires_grad=True)
    masks = FirstRow(tensor)
    optimizer = MaskedOptimizer([Trainable("w", tensor)], masks, 0.5)
    for number in range(10):
        tensor.grad = torch.full((3, 2), 0.1 if number < 5 else 0.0)
        assert optimizer.step(0.1)
        assert torch.equal(tensor[0], torch.zeros(2))
    assert bool((tensor[1:] != 0).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    tensor = torch.ones(3, requires_grad=True)
    optimizer = MaskedOptimizer([Trainable("w", tensor)], NoMasks(), 0.1)
    tensor.grad = torch.tensor([1.0, bad, 1.0])
    assert not optimizer.step(0.1)
    assert torch.equal(tensor, torch.ones(3))


def test_an_overflow_of_the_half_precision_scale_lowers_it() -> None:
    tensor = torch.ones(3, dtype=torch.float16, requires_grad=True)
    optimizer = MaskedOptimizer([Trainable("w", tensor)], NoMasks(), 0.0)
    tensor.grad = torch.full((3,), float("inf"), dtype=torch.float16)
    outcomes = []
    for _ in range(8):
        outcomes.append(optimizer.step(0.1))
        assert torch.equal(tensor, torch.ones(3, dtype=torch.float16))
    assert outcomes[0]
    assert not outcomes[-1]


def test_small_half_precision_updates_add_up() -> None:
    tensor = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    optimizer = MaskedOptimizer([Trainable("w", tensor)], NoMasks(), 0.0)
    for _ in range(50):
        # Each step of 1e-3 is below the resolution of bfloat16 at 1.
        tensor.grad = torch.full((1,), 0.5, dtype=torch.bfloat16)
        optimizer.step(1e-3)
    assert float(tensor.detach()) == pytest.approx(0.95, abs=0.006)


def test_gradients_of_tensors_that_share_memory_add_up() -> None:
    memory = torch.ones(4)
    one, other = memory.detach().requires_grad_(), memory.detach().requires_grad_()
    alone = torch.ones(4, requires_grad=True)
    shared = MaskedOptimizer([Trainable("w", one, (other,))], NoMasks(), 0.0)
    single = MaskedOptimizer([Trainable("w", alone)], NoMasks(), 0.0)
    for _ in range(3):
        other.grad = torch.full((4,), 0.2)
        one.grad = torch.tensor([0.1, 0.0, -0.1, 0.3])
        alone.grad = one.grad + other.grad
        shared.step(0.1)
        single.step(0.1)
    assert torch.equal(memory, alone.detach())


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_momentum_steps_equal_torchs(weight_decay: float) -> None:
    start = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimizer = MaskedOptimizer([Trainable("w", ours)], NoMasks(), weight_decay, Rule.MOMENTUM)
    reference = torch.optim.SGD([theirs], lr=0.0, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    for number, gradient in enumerate(small_gradients(1, (3, 4), 20)):
        rate = 1e-2 / (number + 1)
        optimizer.zero_grad()
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        reference.param_groups[0]["lr"] = rate
        reference.step()
        assert optimizer.step(rate)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
