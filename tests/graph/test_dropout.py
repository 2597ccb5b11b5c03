"""Dropout rates fall with the square root of what is left behind them, and only in the copy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruning_server.graph.dropout import DropoutRates, scale_dropout, set_dropout
from pruning_server.graph.training import enable_training


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 2000),
        nn.Dropout(0.5),
        nn.ReLU(),
        nn.Linear(2000, 8),
        nn.Dropout(0.4),
        nn.Flatten(),
        nn.Linear(8, 2),
    ).eval()


def archive(way: str) -> torch.jit.ScriptModule:
    return torch.jit.script(net()) if way == "scripted" else torch.jit.trace(net(), torch.zeros(2, 4))


def rates(module: torch.jit.ScriptModule) -> list[float]:
    nodes = [node for node in module.inlined_graph.nodes() if "dropout" in node.kind()]
    return sorted(float(list(node.inputs())[1].toIValue()) for node in nodes)


@pytest.mark.parametrize("way", ["scripted", "traced"])
def test_rates_follow_the_layer_behind(way: str) -> None:
    module = enable_training(archive(way)).module
    before = rates(module)
    scaled, count = scale_dropout(module, {"3.weight": 0.25})
    assert count == 1
    assert rates(scaled) == pytest.approx([0.25, 0.4])
    assert rates(module) == before == pytest.approx([0.4, 0.5])
    inputs = torch.randn(3, 4)
    torch.testing.assert_close(scaled.eval()(inputs), module.eval()(inputs))


def test_where_nothing_was_pruned_the_module_itself_is_trained() -> None:
    module = archive("scripted")
    scaled, count = scale_dropout(module, {"0.weight": 0.1})
    assert (scaled is module, count) == (True, 0)


def test_the_lower_rate_is_what_happens() -> None:
    module = enable_training(archive("traced")).module
    scaled, _ = scale_dropout(module, {"3.weight": 0.25})
    shares = []
    for one in (module, scaled):
        parameters = dict(one.named_parameters())
        with torch.no_grad():
            for name, tensor in parameters.items():
                tensor.fill_({"0.bias": 1.0, "3.weight": 1e-3, "6.weight": 1.0}.get(name, 0.0))
        one.train()
        torch.manual_seed(0)
        with torch.no_grad():
            outputs = one(torch.zeros(400, 4))
        shares.append(float(outputs.std() / outputs.mean()))
    # With a lower rate there is less noise.
    assert shares[1] < shares[0]


def test_what_is_dropped_at_inference_too_stays() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(torch.dropout(x, 0.2, True))

    module = torch.jit.script(Noisy())
    assert scale_dropout(module, {"linear.weight": 0.25})[1] == 0


def test_a_rate_that_is_asked_for_is_that_of_every_dropout() -> None:
    for way in ("scripted", "traced"):
        module = enable_training(archive(way)).module
        found = set_dropout(module, 0.125)
        assert (found.layers, found.unset) == (2, 0)
        assert rates(found.module) == pytest.approx([0.125, 0.125])
        assert rates(module) == pytest.approx([0.4, 0.5])
        inputs = torch.randn(3, 4)
        torch.testing.assert_close(found.module.eval()(inputs), module.eval()(inputs))


def test_a_rate_of_zero_switches_dropout_off() -> None:
    found = set_dropout(torch.jit.script(net()), 0.0)
    inputs = torch.randn(5, 4)
    torch.testing.assert_close(found.module.train()(inputs), found.module.eval()(inputs))


def test_a_model_without_dropout_is_left_as_it_is() -> None:
    module = torch.jit.script(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.0)))
    assert set_dropout(module, 0.5) == DropoutRates(module, 0, 0)


class Recurrent(nn.Module):
    """Two layers, with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(3, 4, num_layers=2, dropout=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns [T, N, 4]."""
        return self.cell(x)[0]


def test_stacks_of_recurrent_layers_drop_between_them() -> None:
    found = set_dropout(torch.jit.script(Recurrent()), 0.0)
    assert found.layers == 1
    inputs = torch.randn(5, 2, 3)
    torch.testing.assert_close(found.module.train()(inputs), found.module.eval()(inputs))


class Computed(nn.Module):
    """A rate that does not stand in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor(0.5))
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns [N, 2]."""
        return nn.functional.dropout(self.linear(x), float(self.rate), self.training)


def test_a_computed_rate_stays_and_is_told() -> None:
    module = torch.jit.script(Computed())
    found = set_dropout(module, 0.5)
    assert (found.module, found.layers) == (module, 0)
    assert found.unset > 0
