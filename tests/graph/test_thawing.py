"""Tensors in the code of frozen and traced archives become attributes, and go back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers import zoo
from pruning_server.graph.modules import KERNEL_KINDS, find_weights, get_tensor
from pruning_server.graph.training import restore_constants, thaw

Make = Callable[[], torch.jit.ScriptModule]

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


ARCHIVES = [
    pytest.param(lambda: zoo.frozen(zoo.Residual()), IMAGES, 3, id="convolutions"),
    pytest.param(lambda: zoo.frozen(zoo.Text()), TOKENS, 14, id="text"),
    pytest.param(lambda: zoo.traced(zoo.Functional(), ROWS), ROWS, 5, id="traced-attributes"),
]


@pytest.mark.parametrize(("make", "inputs", "kernels"), ARCHIVES)
def test_a_thawed_copy_is_equal_and_shows_its_kernels(make: Make, inputs: torch.Tensor, kernels: int) -> None:
    archive = make()
    thawed = thaw(archive)
    with torch.no_grad():
        assert torch.equal(thawed(inputs), archive(inputs))
    found = [weight for weight in find_weights(thawed).weights if weight.kind in KERNEL_KINDS]
    assert len(found) == kernels
    with torch.no_grad():
        before = archive(inputs)
        for weight in found:
            get_tensor(thawed, weight.name).zero_()
        assert not torch.equal(thawed(inputs), before)
        assert torch.equal(archive(inputs), before)


@pytest.mark.parametrize(("make", "inputs", "kernels"), ARCHIVES)
def test_changed_tensors_go_back_into_the_archive_s_own_constants(
    make: Make, inputs: torch.Tensor, kernels: int
) -> None:
    archive = make()
    thawed = thaw(archive)
    weights = find_weights(thawed).weights
    assert len(weights) >= kernels
    with torch.no_grad():
        for weight in weights:
            get_tensor(thawed, weight.name).mul_(0.5)
    restored = zoo.reload(restore_constants(zoo.reload(archive), thawed))
    with torch.no_grad():
        assert torch.equal(restored(inputs), thawed(inputs))
        assert not torch.equal(restored(inputs), archive(inputs))
    assert restored.code == archive.code
    assert [name for name, _ in restored.named_parameters()] == [name for name, _ in archive.named_parameters()]
    assert restored(inputs).requires_grad == archive(inputs).requires_grad


def test_gradients_reach_thawed_tensors() -> None:
    thawed = thaw(zoo.frozen(zoo.Residual()))
    weights = find_weights(thawed).weights
    tensors = [get_tensor(thawed, weight.name).requires_grad_() for weight in weights]
    thawed(IMAGES).sum().backward()
    assert all(tensor.grad is not None and bool(tensor.grad.abs().sum() > 0) for tensor in tensors)


def test_names_say_the_use_and_follow_the_program() -> None:
    names = [weight.name for weight in find_weights(thaw(zoo.frozen(zoo.Residual()))).weights]
    assert names == [
        "constant_0_conv2d_weight",
        "constant_1_conv2d_bias",
        "constant_2_conv2d_weight",
        "constant_3_conv2d_bias",
        "constant_4_linear_weight",
        "constant_5_linear_bias",
    ]


def test_an_archive_without_constants_is_returned_as_it_is() -> None:
    module = zoo.scripted(zoo.Residual())
    assert thaw(module) is module
    assert restore_constants(module, module) is module


def test_a_tensor_used_by_two_methods_is_one_weight() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)

        @torch.jit.export
        def twice(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.linear(x))

    archive = zoo.reload(torch.jit.freeze(torch.jit.script(Two().eval()), preserved_attrs=["twice"]))
    thawed = thaw(archive)
    with torch.no_grad():
        for weight in find_weights(thawed).weights:
            get_tensor(thawed, weight.name).zero_()
        assert not thawed(ROWS).any()
        assert not thawed.twice(ROWS).any()
        restored = restore_constants(zoo.reload(archive), thawed)
        assert not restored.twice(ROWS).any()


def test_constants_that_share_memory_stay_one_weight() -> None:
    class Autoencoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(6, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.nn.functional.linear(x, self.weight)
            return torch.nn.functional.linear(hidden, self.weight.t())

    archive = zoo.frozen(Autoencoder())
    thawed = thaw(archive)
    (weight,) = find_weights(thawed).weights
    assert len(weight.aliases) == 1
    with torch.no_grad():
        get_tensor(thawed, weight.name)[0] = 0.0
        restored = zoo.reload(restore_constants(zoo.reload(archive), thawed))
        assert torch.equal(restored(ROWS), thawed(ROWS))
        assert not torch.equal(restored(ROWS), archive(ROWS))
