"""Runs of stateful models leave no trace."""

from __future__ import annotations

import pytest
import torch

from helpers import zoo
from pruning_server.graph.modules import StateGuard


def state_of(module: torch.jit.ScriptModule) -> list[object]:
    tensors = [module.hidden, module.replaced, *module.seen]
    return [module.calls, len(module.seen), *(tensor.detach().clone() for tensor in tensors)]


def same(one: list[object], other: list[object]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


@pytest.fixture
def stateful() -> torch.jit.ScriptModule:
    torch.manual_seed(3)
    module = zoo.scripted(zoo.Stateful())
    module(torch.randn(1, 3))
    return module


def test_numbers_tensors_in_place_replaced_and_listed_come_back(stateful: torch.jit.ScriptModule) -> None:
    before = state_of(stateful)
    x = torch.randn(1, 3)
    guard = StateGuard(stateful)
    outputs = []
    for _ in range(3):
        with guard, torch.no_grad():
            outputs.append(stateful(x))
            assert not same(state_of(stateful), before)
        assert same(state_of(stateful), before)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_the_state_comes_back_after_an_exception(stateful: torch.jit.ScriptModule) -> None:
    before = state_of(stateful)

    def run_and_fail() -> None:
        with StateGuard(stateful):
            stateful(torch.randn(1, 3))
            stateful(torch.randn(1, 17))

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_and_fail()
    assert same(state_of(stateful), before)


class Remembering(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)
        self.register_buffer("replaced", torch.zeros(1, 4))
        self.register_buffer("overwritten", torch.zeros(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.linear(x) + self.replaced + self.overwritten)
        self.replaced = hidden
        self.overwritten.copy_(hidden)
        return hidden


def test_the_state_forgets_how_it_was_computed() -> None:
    module = zoo.scripted(Remembering())
    guard = StateGuard(module, keep_statistics=True)
    for _ in range(2):
        with guard:
            module(torch.randn(1, 3)).sum().backward()
    assert not module.replaced.requires_grad
    assert not module.overwritten.requires_grad
    assert not module.overwritten.any()
    assert module.linear.weight.grad is not None


def test_kernels_that_change_under_the_guard_keep_their_change(stateful: torch.jit.ScriptModule) -> None:
    with StateGuard(stateful), torch.no_grad():
        stateful.input.weight.add_(1.0)
        expected = stateful.input.weight.clone()
    assert torch.equal(stateful.input.weight, expected)


def test_a_parameter_that_the_model_writes_to_comes_back() -> None:
    module = zoo.scripted(zoo.Frozenish())
    before = module.written.detach().clone()
    with StateGuard(module), torch.no_grad():
        module(torch.randn(4, 4))
        assert not torch.equal(module.written, before)
    assert torch.equal(module.written, before)


@pytest.mark.parametrize("keep", [True, False])
def test_normalization_statistics_are_kept_only_where_asked(keep: bool) -> None:
    module = zoo.scripted(zoo.Residual()).train()
    before = module.bn1.running_mean.clone()
    with StateGuard(module, keep_statistics=keep):
        module(torch.randn(4, 3, 8, 8))
    assert torch.equal(module.bn1.running_mean, before) is not keep
    assert int(module.bn1.num_batches_tracked) == int(keep)
    assert module.training
