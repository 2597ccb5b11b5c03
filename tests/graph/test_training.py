"""`.train()` and `.eval()` work for traced archives, and nothing but tensors comes back into them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers import zoo
from pruning_server.graph.training import enable_training, thaw, training_modes

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def traced() -> torch.jit.ScriptModule:
    torch.manual_seed(7)
    module = zoo.Residual()
    module.train()
    module(IMAGES)
    return zoo.traced(module, IMAGES)


def test_eval_mode_is_equal_to_the_archive(traced: torch.jit.ScriptModule) -> None:
    handle = enable_training(traced)
    assert handle.rewritten == 3
    assert torch.equal(handle.module.eval()(IMAGES), traced(IMAGES))


def test_train_mode_drops_out_and_updates_statistics(traced: torch.jit.ScriptModule) -> None:
    trained = enable_training(traced).module.train()
    before = trained.bn1.running_mean.clone()
    torch.manual_seed(0)
    one, other = trained(IMAGES), trained(IMAGES)
    assert not torch.equal(one, other)
    assert not torch.equal(trained.bn1.running_mean, before)
    trained.eval()
    assert torch.equal(trained(IMAGES), trained(IMAGES))


def test_an_archive_that_has_run_already_can_still_be_switched(traced: torch.jit.ScriptModule) -> None:
    for _ in range(3):
        traced(IMAGES)
    trained = enable_training(traced).module.train()
    assert not torch.equal(trained(IMAGES), trained(IMAGES))


def test_restoring_changes_tensors_only(traced: torch.jit.ScriptModule) -> None:
    code, before = traced.code, traced(IMAGES)
    handle = enable_training(traced)
    trained = handle.module.train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    trained(IMAGES).square().sum().backward()
    optimizer.step()
    assert torch.equal(traced(IMAGES), before)  # the original is untouched until then
    restored = handle.restore()
    assert restored is traced
    assert traced.code == code
    assert torch.allclose(traced(IMAGES), trained.eval()(IMAGES), atol=1e-6)
    assert not torch.equal(traced(IMAGES), before)
    assert torch.equal(traced.bn1.running_mean, trained.bn1.running_mean)


def test_a_scripted_module_is_trained_itself_and_gets_its_modes_back() -> None:
    module = zoo.scripted(zoo.Residual().train())
    module.bn1.eval()
    before = [mode for _, mode in training_modes(module)]
    handle = enable_training(module)
    assert handle.module is module
    assert handle.rewritten == 0
    handle.module.eval()
    handle.restore()
    assert [mode for _, mode in training_modes(module)] == before
    assert len(set(before)) == 2


class Flags(nn.Module):
    """A frozen batch norm by hand, alpha dropout, an LSTM with dropout between its layers."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("scale", "mean", "variance", "shift"):
            self.register_buffer(name, torch.rand(4) + 0.5)
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.batch_norm(x, self.mean, self.variance, self.scale, self.shift, False)
        x = functional.alpha_dropout(x, 0.5, self.training)
        return self.lstm(x)[0]


def test_a_normalization_that_its_author_froze_stays_frozen() -> None:
    x = torch.randn(2, 4, 4)
    archive = zoo.traced(Flags(), x)
    handle = enable_training(archive)
    assert handle.rewritten == 2  # alpha dropout and the LSTM
    before = handle.module.mean.clone()
    handle.module.train()(x)
    assert torch.equal(handle.module.mean, before)


def test_frozen_archives_get_a_switch_of_their_own() -> None:
    x = torch.randn(2, 4, 4)
    thawed = thaw(zoo.frozen(Flags()))
    assert training_modes(thawed) == ()
    handle = enable_training(thawed)
    assert handle.rewritten == 2  # not the batch norm, whose scale is no parameter
    handle.module.train()
    assert not torch.equal(handle.module(x), handle.module(x))
    handle.module.eval()
    assert torch.equal(handle.module(x), thawed(x))
