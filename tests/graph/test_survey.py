"""Which stored tensors are weights: whatever way an archive holds and uses them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers import zoo
from pruning_server.graph.modules import KERNEL_KINDS, WeightKind, find_weights, get_tensor


def kernels(module: torch.jit.ScriptModule) -> dict[str, str]:
    return {weight.name: weight.kind.value for weight in find_weights(module).weights if weight.kind in KERNEL_KINDS}


def reasons(module: torch.jit.ScriptModule) -> dict[str, str]:
    return {name: f"{use.op} {use.reason}" for use in find_weights(module).frozen for name in use.layers}


VIEWS = dict.fromkeys(["transposed", "permuted", "chunked", "sliced", "flat", "scaled", "cast", "stacked"], "linear")
PRODUCTS = dict.fromkeys(["addmm", "left", "bmm", "baddbmm", "einsum", "mv", "bilinear.weight"], "linear")
CONVOLUTIONS = {f"{name}.weight": "conv" for name in ["one", "two", "deep", "up", "three", "up1", "up3"]}


@pytest.mark.parametrize(
    ("make", "example", "expected"),
    [
        pytest.param(zoo.Views, torch.randn(2, 8), VIEWS, id="views"),
        pytest.param(zoo.Products, torch.randn(4, 4), PRODUCTS, id="products"),
        pytest.param(zoo.Convolutions, torch.randn(2, 2, 5), CONVOLUTIONS, id="convolutions"),
    ],
)
def test_every_kernel_is_found_however_it_is_used(make: type, example: Tensor, expected: dict[str, str]) -> None:
    module = make()
    assert kernels(zoo.scripted(module)) == expected
    assert kernels(zoo.traced(module, example)) == expected


def test_weights_in_attributes_buffers_lists_dicts_and_tuples_are_found() -> None:
    found = find_weights(zoo.scripted(zoo.Functional()))
    assert {weight.name: weight.kind.value for weight in found.weights} == {
        "plain": "linear",
        "buffer": "linear",
        "listed.0": "linear",
        "listed.1": "bias",
        "named.a.b": "linear",
        "named.shift": "bias",
        "pair.0": "linear",
    }
    assert not any(weight.parameter for weight in found.weights)


def test_every_found_name_leads_to_the_tensor_itself() -> None:
    for make in (zoo.Functional, zoo.Text, zoo.Views, zoo.Switch):
        module = zoo.scripted(make())
        for weight in find_weights(module).weights:
            for name in (weight.name, *weight.aliases):
                tensor = get_tensor(module, name)
                with torch.no_grad():
                    tensor.fill_(7.0)
                assert torch.equal(get_tensor(module, weight.name), torch.full(weight.shape, 7.0))


@pytest.mark.parametrize("name", ["", ".", "words", "words.weight.x", "nothing", "lstm._flat_weights.99"])
def test_a_name_that_is_no_tensor_is_a_key_error(name: str) -> None:
    with pytest.raises(KeyError):
        get_tensor(zoo.scripted(zoo.Text()), name)


def test_tied_weights_and_flat_lists_come_once_under_the_name_of_the_parameter() -> None:
    found = {weight.name: weight for weight in find_weights(zoo.scripted(zoo.Text())).weights}
    assert found["words.weight"].aliases == ("output.weight",)
    assert found["words.weight"].kind is WeightKind.EMBEDDING
    assert found["lstm.weight_ih_l0"].aliases == ("lstm._flat_weights.0",)
    assert "output.weight" not in found
    assert not [name for name in found if "_flat" in name]


def test_kinds_of_a_text_model() -> None:
    module = zoo.Text()
    expected = {
        "words.weight": "embedding",
        "bag.weight": "embedding",
        "attention.in_proj_weight": "linear",
        "attention.out_proj.weight": "linear",
    }
    recurrent = {name for name, _ in module.named_parameters() if name.startswith(("lstm.weight", "cell.weight"))}
    script = find_weights(zoo.scripted(module)).weights
    kinds = {weight.name: weight.kind.value for weight in script}
    assert {name: kind for name, kind in kinds.items() if kind in KERNEL_KINDS} == {
        **expected,
        **dict.fromkeys(recurrent, "recurrent"),
    }
    assert kinds["norm.weight"] == kinds["norm.bias"] == "norm"
    scales = {weight.name for weight in script if weight.scale}
    assert "norm.weight" in scales
    assert "norm.bias" not in scales
    assert kinds["lstm.bias_hh_l1_reverse"] == kinds["output.bias"] == "bias"
    trace = {weight.name for weight in find_weights(zoo.traced(module, torch.zeros(2, 5, dtype=torch.long))).weights}
    assert trace == set(kinds)


def test_a_branch_not_taken_a_training_branch_and_another_method_count() -> None:
    expected = {"main", "rare", "auxiliary", "exported", "layers.0", "layers.1", "layers.2"}
    module = zoo.scripted(zoo.Switch())
    assert set(kernels(module)) == {f"{name}.weight" for name in expected}
    assert "no method" in reasons(module)["idle"]


def test_weights_that_go_through_a_list_in_a_loop_are_found() -> None:
    found = {weight.name: weight.kind.value for weight in find_weights(zoo.scripted(zoo.Looped())).weights}
    assert found == {"first": "linear", "second": "linear", "bias": "bias"}


def test_state_is_no_weight() -> None:
    assert set(kernels(zoo.scripted(zoo.Stateful()))) == {"input.weight", "recurrent"}


def test_what_must_be_left_alone_is_reported_with_op_and_reason() -> None:
    module = zoo.scripted(zoo.Frozenish())
    assert set(kernels(module)) == {"kept.weight"}
    found = reasons(module)
    assert "slogdet" in found["logdet"]
    assert "aten::exp" in found["exponential"]
    assert "writes" in found["written"]
    assert "aten::add" in found["added"]
    assert "divide by zero" in found["divisor"]
    assert all(use.source for use in find_weights(module).frozen)


class Overlapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        flat = torch.randn(40)
        self.first = nn.Parameter(flat[:16].view(4, 4))
        self.second = nn.Parameter(flat[16:32].view(4, 4))
        self.whole = nn.Parameter(torch.randn(6, 4))
        self.part = nn.Parameter(torch.empty(0))
        self.part.data = self.whole.data[:4]
        self.astride = nn.Parameter(torch.empty(0))
        self.astride.data = torch.randn(1, 4).expand(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(functional.linear(x, self.first), self.second)
        x = functional.linear(functional.linear(x, self.part), self.astride)
        return functional.linear(x, self.whole)


def test_views_of_one_storage_are_one_weight_only_where_they_overlap() -> None:
    module = zoo.scripted(Overlapping())
    found = {weight.name: weight.aliases for weight in find_weights(module).weights}
    assert found == {"first": (), "second": (), "whole": ("part",)}
    assert "same memory" in reasons(module)["astride"]


class Partly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        base = torch.randn(6, 4)
        self.upper = nn.Parameter(base[:4])
        self.lower = nn.Parameter(torch.empty(0))
        self.lower.data = self.upper.data.new_empty(0).set_(self.upper.data.untyped_storage(), 8, (4, 4), (4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, self.upper), self.lower)


def test_weights_that_overlap_in_part_are_left_alone() -> None:
    module = zoo.scripted(Partly())
    assert kernels(module) == {}
    assert "overlaps" in reasons(module)["upper"]


class Types(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.halved = nn.Linear(4, 4).half()
        self.brain = nn.Linear(4, 4).bfloat16()
        self.doubled = nn.Linear(4, 4).double()
        self.register_buffer("whole", torch.ones(4, 4, dtype=torch.int64))
        self.imaginary = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.doubled(self.brain(self.halved(x.half()).to(torch.bfloat16)).double())
        y = x.to(torch.int64) @ self.whole
        return torch.real(y.to(torch.complex64) @ self.imaginary)


def test_types() -> None:
    module = zoo.scripted(Types())
    found = {weight.name: weight.dtype for weight in find_weights(module).weights if weight.kind in KERNEL_KINDS}
    assert found == {"halved.weight": torch.half, "brain.weight": torch.bfloat16, "doubled.weight": torch.double}
    assert "int64" in reasons(module)["whole"]
    assert "complex64" in reasons(module)["imaginary"]


class Modulated(nn.Module):
    """A kernel scaled by the input, one normalized, one masked, one read by statistics, a scale and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.modulated = nn.Parameter(torch.randn(4, 4))
        self.cosine = nn.Parameter(torch.randn(4, 4))
        self.masked = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("mask", torch.ones(4, 4))
        self.gamma = nn.Parameter(torch.randn(4))
        self.query = nn.Parameter(torch.randn(1, 4))
        self.key = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.modulated * x.mean()
        x = functional.linear(x, weight * torch.rsqrt(weight.square().sum()))
        x = functional.linear(x, functional.normalize(self.cosine, dim=1))
        x = functional.linear(x, self.masked * self.mask)
        x = (x * self.gamma) @ self.key(x).t()
        return x + (self.query * x.mean()).sum()


def test_scaled_kernels_are_kernels_and_scales_are_not() -> None:
    module = zoo.scripted(Modulated())
    kinds = {weight.name: weight.kind.value for weight in find_weights(module).weights}
    assert kinds == {
        "modulated": "linear",
        "cosine": "linear",
        "masked": "linear",
        "gamma": "norm",
        "query": "norm",
        "key.weight": "linear",
        "key.bias": "bias",
    }


@torch.jit.interface
class Block(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pass


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class ThroughInterface(nn.Module):
    block: Block

    def __init__(self) -> None:
        super().__init__()
        self.block = Inner()
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(x))


ThroughInterface.__annotations__["block"] = Block


def test_calls_through_an_interface_are_followed() -> None:
    assert set(kernels(zoo.scripted(ThroughInterface()))) == {"block.linear.weight", "last.weight"}


def test_parametrized_weights_are_found_behind_their_parametrization() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    assert kernels(zoo.traced(nn.Sequential(normed), torch.randn(2, 4))) == {
        "0.parametrizations.weight.original1": "linear"
    }
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    assert kernels(zoo.traced(nn.Sequential(spectral), torch.randn(2, 4))) == {
        "0.parametrizations.weight.original": "linear"
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize:UserWarning")
def test_quantized_models_have_no_weights_to_prune() -> None:
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, dtype=torch.qint8)
    assert find_weights(zoo.scripted(quantized)).weights == ()


def test_the_module_is_neither_run_nor_changed() -> None:
    module = zoo.scripted(zoo.Stateful())
    code, hidden = module.code, module.hidden.clone()
    find_weights(module)
    assert module.code == code
    assert "CallMethod" in str(module.graph)  # inlining happened on a copy
    assert module.calls == 0
    assert torch.equal(module.hidden, hidden)
