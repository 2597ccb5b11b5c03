"""Shapes from the real interpreter, and multiply-accumulates counted from them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers import zoo
from pruning_server.graph.macs import einsum_macs
from pruning_server.graph.observe import count_macs, observe


def macs(module: nn.Module, *inputs: Tensor, batch: int = 1) -> int | None:
    """Counted on the scripted and on the traced archive, which must agree."""
    by_script = count_macs(zoo.scripted(module.eval()), inputs, batch)
    by_trace = count_macs(zoo.traced(module, *inputs), inputs, batch)
    assert by_script.total == by_trace.total
    assert (by_script.total is None) == (by_script.reason is not None)
    return by_script.total


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        pytest.param(nn.Linear(3, 5), (2, 7, 3), 7 * 3 * 5, id="linear"),
        pytest.param(nn.Conv1d(4, 6, 3), (2, 4, 10), 8 * 6 * 4 * 3, id="conv1d"),
        pytest.param(nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2), (2, 4, 8, 8), 16 * 6 * 2 * 9, id="grouped"),
        pytest.param(nn.Conv3d(1, 2, 2), (2, 1, 3, 3, 3), 8 * 2 * 8, id="conv3d"),
        pytest.param(nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 5, 5), 25 * 4 * 6 * 4, id="transposed"),
        pytest.param(nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 4, 5), 5 * 4 * 3 * 3, id="transposed-grouped"),
        pytest.param(nn.GRUCell(3, 4), (2, 3), 12 * 3 + 12 * 4, id="cell"),
        pytest.param(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3), nn.LayerNorm(3)), (2, 3), 0, id="nothing"),
    ],
)
def test_layers_by_hand(module: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert macs(module, torch.randn(shape), batch=2) == expected


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[0]


def test_recurrent_layers_count_every_step_and_direction() -> None:
    per_step = 2 * (16 * 3 + 16 * 4) + 2 * (16 * 8 + 16 * 4)
    assert macs(Recurrent(), torch.randn(2, 5, 3), batch=2) == 5 * per_step


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v)


def test_attention_counts_scores_and_values() -> None:
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 6)
    assert macs(Attention(), q, k, v, batch=2) == 3 * 5 * 7 * (8 + 6)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.net = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("way", [zoo.scripted, zoo.frozen])
def test_fused_attention_counts_all_its_matrices(way: Callable[[nn.Module], torch.jit.ScriptModule]) -> None:
    per_token = 8 * 24 + 8 * 8 + 2 * 8 * 16 + 2 * 5 * 8
    assert count_macs(way(Encoder().eval()), [torch.randn(2, 5, 8)], 2).total == 5 * per_token


def test_products_of_all_kinds() -> None:
    n = 4
    addmm, left, bmm, einsum, mv = n * n * n, n * n * n, n * n * n, n * n * n, n * n
    total = macs(zoo.Products(), torch.randn(n, n), batch=1)
    assert total == addmm + left + bmm + n * n * n + einsum + n * n * n * n + mv


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)], 30),
        ("bij,bjk", [(4, 2, 3), (4, 3, 5)], 120),
        ("...ij,...jk->...ik", [(4, 2, 3), (1, 3, 5)], 120),
        ("bhid, bhjd -> bhij", [(2, 3, 4, 5), (2, 3, 6, 5)], 720),
        ("ij->ji", [(2, 3)], 0),
        ("i,i->", [(7,), (7,)], 7),
        ("ab,bc,cd->ad", [(2, 3), (3, 4), (4, 5)], 24 + 40),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]], expected: int) -> None:
    assert einsum_macs(equation, shapes) == expected


def test_macs_are_per_layer_and_per_sample() -> None:
    module = zoo.scripted(zoo.Residual().eval())
    one, four = (count_macs(module, (torch.randn(n, 3, 8, 8),), n) for n in (1, 4))
    assert one == four
    assert one.by_layer == {"conv1": 64 * 4 * 27, "conv2": 64 * 4 * 36, "linear": 20}
    assert one.total == sum(one.by_layer.values())


def test_ops_in_loops_and_branches_are_seen_as_often_as_they_run() -> None:
    module = zoo.scripted(zoo.Looped())
    x = torch.randn(2, 4)
    assert [count_macs(module, (x, steps), 2).total for steps in (0, 1, 5)] == [0, 16, 80]
    linear = next(node for node in observe(module, (x, 3)).nodes if node.op == "aten::linear")
    assert [dict(seen) for seen in linear.inputs] == [{0: ((2, 4),), 1: ((4, 4),)}] * 3
    assert [dict(given) for given in linear.outputs] == [{0: (2, 4)}] * 3


def test_a_branch_that_is_not_taken_costs_nothing_and_defaults_are_filled_in() -> None:
    module = zoo.scripted(zoo.Switch().eval())
    x = torch.randn(2, 4)
    assert count_macs(module, (x,), 2).total == 4 * 16
    assert count_macs(module, (x, True), 2).total == 5 * 16


def test_what_cannot_be_counted_has_no_total_and_a_reason() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.fft.fft(x).abs())

    counted = count_macs(zoo.scripted(Spectral()), (torch.randn(2, 4),), 2)
    assert counted.total is None
    assert counted.reason is not None
    assert "fft" in counted.reason
    assert counted.by_layer == {"linear": 16}


def test_observing_leaves_the_module_as_it_was() -> None:
    module = zoo.scripted(zoo.Stateful())
    code = module.code
    observe(module, (torch.randn(1, 3),))
    assert module.calls == 0
    assert not module.hidden.any()
    assert module.code == code


def test_too_few_arguments_are_a_type_error_and_the_model_s_own_error_comes_through() -> None:
    with pytest.raises(TypeError, match="steps"):
        observe(zoo.scripted(zoo.Looped()), (torch.randn(2, 4),))
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        observe(zoo.scripted(zoo.Residual()), (torch.randn(2, 3, 8, 8).transpose(1, 3)[..., :1],))
