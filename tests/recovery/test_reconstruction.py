"""Refitted layers give the original's results again, as far as what is left of them can."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from pruning_server.graph.chains import ChainRun
from pruning_server.graph.modules import get_tensor
from pruning_server.recovery.reconstruction import Method, Pair, Reconstructed, reconstruct

REDUNDANT, KEPT = 12, 6


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Layers(nn.Module):
    """Two linear ops of one kind around a ReLU, perhaps with a normalization and a shortcut."""

    def __init__(self, first: nn.Module, norm: nn.Module, second: nn.Module, *, shortcut: bool) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.shortcut = first, norm, second, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns what the second gives."""
        out = self.second(torch.relu(self.norm(self.first(x))))
        return torch.relu(out + x) if self.shortcut else out


def convolutions(width: int, space: int, *, bias: bool, **options: int) -> nn.Module:
    kind = [nn.Conv1d, nn.Conv2d, nn.Conv3d][space - 1]
    norm = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][space - 1]
    shortcut = not options
    return Layers(
        kind(4, width, 3, padding=1, bias=bias), norm(width), kind(width, 4, 3, padding=1, bias=bias, **options),
        shortcut=shortcut,
    )  # fmt: skip


def products(width: int, **_: object) -> nn.Module:
    return Layers(nn.Linear(4, width), nn.Identity(), nn.Linear(width, 4), shortcut=True)


NETS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda width: convolutions(width, 1, bias=True), (4, 24)),
    "conv2d": (lambda width: convolutions(width, 2, bias=False), (4, 8, 8)),
    "conv2d strided": (lambda width: convolutions(width, 2, bias=True, stride=2, dilation=2), (4, 12, 9)),
    "conv3d": (lambda width: convolutions(width, 3, bias=True), (4, 4, 4, 4)),
    "linear": (products, (4,)),
    "linear over places": (products, (5, 4)),
}


def prepared(make: Callable[[int], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A net in which every channel has a twin, and the same without the twins."""
    torch.manual_seed(0)
    whole, part = make(REDUNDANT).eval(), make(KEPT).eval()
    with torch.no_grad():
        for name, tensor in whole.state_dict().items():
            if "running_var" in name or name == "norm.weight":
                tensor.copy_(torch.rand(tensor.shape, generator=generator(1)) + 0.5)
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator(2)) * 0.5)
        for name, tensor in whole.state_dict().items():
            if (name.startswith(("first", "norm"))) and tensor.dim():
                tensor[KEPT:] = tensor[:KEPT]
        for name, tensor in part.state_dict().items():
            source = whole.state_dict()[name]
            tensor.copy_(source[tuple(slice(size) for size in tensor.shape)] if tensor.dim() else source)
    return whole, part


def pair_of(
    original: torch.jit.ScriptModule, pruned: torch.jit.ScriptModule, samples: torch.Tensor, **changes: object
) -> Pair:
    names = [name for name, _ in (*pruned.named_parameters(), *pruned.named_buffers())]
    before, after = dict(original.named_parameters()), dict(pruned.named_parameters())
    fields: dict[str, object] = {
        "original": ChainRun(original).run,
        "pruned": ChainRun(pruned).run,
        "samples": len(samples),
        "exact_batch": None,
        "inputs": lambda rows: ((samples[list(rows)],), (samples[list(rows)],)),
        "tensor": lambda name: get_tensor(pruned, name),
        "kept_outputs": {
            (name, axis): range(size)
            for name, tensor in after.items()
            for axis, size in enumerate(tensor.shape)
            if before[name].shape[axis] != size
        },
        "removed": {},
        "changeable": frozenset(names),
    }
    return Pair(**(fields | changes))


def error(one: torch.jit.ScriptModule, other: torch.jit.ScriptModule, inputs: torch.Tensor) -> float:
    with torch.no_grad():
        wanted, got = one(inputs), other(inputs)
    return float((got - wanted).norm() / wanted.norm())


def both(make: Callable[[int], nn.Module]) -> tuple[torch.jit.ScriptModule, torch.jit.ScriptModule]:
    whole, part = prepared(make)
    return torch.jit.script(whole), torch.jit.script(part)


@pytest.mark.parametrize("name", NETS)
def test_what_is_left_takes_over_from_its_twins(name: str) -> None:
    make, shape = NETS[name]
    original, pruned = both(make)
    inputs, unseen = (torch.randn(200, *shape, generator=generator(seed)) for seed in (3, 4))
    assert error(original, pruned, unseen) > 0.1
    done = reconstruct(pair_of(original, pruned, inputs), Method.REFIT, seed=0)
    assert (done.refitted, done.skipped) == (2, {})
    assert error(original, pruned, unseen) < 0.01


def test_layers_behind_an_input_that_was_written_over_see_what_the_new_kernel_gives() -> None:
    class Written(nn.Module):
        def __init__(self, *, in_place: bool) -> None:
            super().__init__()
            self.in_place = in_place
            self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            held = x * 1.0
            if self.in_place:
                held += self.one(held)
            else:
                held = held + self.one(held)
            return self.two(held)

    results = []
    for in_place in (False, True):
        torch.manual_seed(0)
        net = Written(in_place=in_place).eval()
        original, pruned = torch.jit.script(net), torch.jit.script(copy.deepcopy(net))
        removed = torch.zeros(4, 4, dtype=torch.bool)
        removed[:, :2] = True
        with torch.no_grad():
            pruned.one.weight[removed] = 0
        pair = pair_of(original, pruned, torch.randn(100, 4, generator=generator(3)), removed={"one.weight": removed})
        assert reconstruct(pair, Method.REFIT, seed=0).refitted == 2
        results.append(get_tensor(pruned, "two.weight"))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_grouped_kernels_are_refitted_group_by_group() -> None:
    def make(width: int) -> nn.Module:
        second = nn.Conv2d(width, 4, 3, padding=1, groups=2)
        return Layers(nn.Conv2d(4, width, 1), nn.Identity(), second, shortcut=False)

    whole, part = prepared(make)
    with torch.no_grad():  # twins within a group
        half = REDUNDANT // 2
        for tensor in (whole.first.weight, whole.first.bias):
            for group in (0, 1):
                start = group * half
                tensor[start + half // 2 : start + half] = tensor[start : start + half // 2]
        keep = [channel for group in (0, 1) for channel in range(group * half, group * half + half // 2)]
        part.first.weight.copy_(whole.first.weight[keep])
        part.first.bias.copy_(whole.first.bias[keep])
        part.second.weight.copy_(whole.second.weight[:, : half // 2])
    original, pruned = torch.jit.script(whole), torch.jit.script(part)
    inputs, unseen = (torch.randn(200, 4, 6, 6, generator=generator(seed)) for seed in (3, 4))
    kept = {("first.weight", 0): keep}
    reconstruct(pair_of(original, pruned, inputs, kept_outputs=kept), Method.REFIT, seed=0)
    assert error(original, pruned, unseen) < 0.01


@pytest.mark.parametrize("name", NETS)
def test_an_unpruned_model_stays_as_it_is(name: str) -> None:
    make, shape = NETS[name]
    original, _ = both(make)
    copy, _ = both(make)
    inputs = torch.randn(60, *shape, generator=generator(3))
    reconstruct(pair_of(original, copy, inputs), Method.REFIT, seed=0)
    assert error(original, copy, inputs) < 1e-4


def test_single_weights_that_were_pruned_stay_zero_and_the_others_make_up_for_them() -> None:
    make, shape = NETS["conv2d"]
    original, _ = both(make)
    masked, _ = both(make)
    removed = {}
    with torch.no_grad():
        for name in ("first.weight", "second.weight"):
            tensor = get_tensor(masked, name)
            removed[name] = torch.rand(tensor.shape, generator=generator(7)) < 0.5
            tensor.masked_fill_(removed[name], 0.0)
    inputs, unseen = (torch.randn(200, *shape, generator=generator(seed)) for seed in (3, 4))
    before = error(original, masked, unseen)
    reconstruct(pair_of(original, masked, inputs, removed=removed), Method.REFIT, seed=0)
    for name, where in removed.items():
        assert bool((get_tensor(masked, name)[where] == 0).all())
    assert error(original, masked, unseen) < 0.85 * before


@pytest.mark.parametrize("samples", [1, 3, 8])
def test_few_samples_do_no_harm(samples: int) -> None:
    make, shape = NETS["linear"]
    original, pruned = both(make)
    inputs, unseen = (
        torch.randn(samples, *shape, generator=generator(3)),
        torch.randn(300, *shape, generator=generator(4)),
    )
    before = error(original, pruned, unseen)
    reconstruct(pair_of(original, pruned, inputs), Method.REFIT, seed=0)
    assert error(original, pruned, unseen) < 1.1 * before


def test_the_affine_correction_gives_every_channel_its_mean_and_deviation_back() -> None:
    make, shape = NETS["conv1d"]
    original, pruned = both(make)
    inputs = torch.randn(100, *shape, generator=generator(3))
    done = reconstruct(pair_of(original, pruned, inputs), Method.AFFINE, seed=0)
    assert (done.refitted, done.scaled) == (0, 2)

    def second(module: torch.jit.ScriptModule) -> torch.Tensor:
        with torch.no_grad():
            return module.second(torch.relu(module.norm(module.first(inputs)))).movedim(1, 0).flatten(1)

    wanted, got = second(original), second(pruned)
    torch.testing.assert_close(got.mean(dim=1), wanted.mean(dim=1), rtol=0.02, atol=0.02)
    torch.testing.assert_close(got.std(dim=1), wanted.std(dim=1), rtol=0.02, atol=0.02)


def run(net: nn.Module, inputs: torch.Tensor, **changes: object) -> tuple[Reconstructed, torch.jit.ScriptModule]:
    original, pruned = torch.jit.script(net.eval()), torch.jit.script(net.eval())
    return reconstruct(pair_of(original, pruned, inputs, **changes), Method.REFIT, seed=0), pruned


def test_kernels_that_serve_twice_and_owners_frozen_ones_are_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.frozen(self.shared(torch.relu(self.shared(x))))

    done, _ = run(Twice(), torch.randn(20, 4), changeable=frozenset({"shared.weight", "shared.bias"}))
    assert done.refitted == 0
    assert list(done.skipped) == ["shared.weight"]


def test_transposed_convolutions_are_scaled_and_shifted() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    done, _ = run(net, torch.randn(40, 3, 5, 5))
    assert (done.scaled, done.refitted) == (1, 1)


def test_a_seed_gives_the_same_bits() -> None:
    make, shape = NETS["conv2d"]
    states: list[Sequence[torch.Tensor]] = []
    for _ in range(2):
        original, pruned = both(make)
        reconstruct(pair_of(original, pruned, torch.randn(50, *shape, generator=generator(3))), Method.REFIT, seed=5)
        states.append(list(pruned.state_dict().values()))
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


@pytest.mark.parametrize("exact", [1, 4])
@pytest.mark.parametrize("name", ["conv2d", "linear"])
def test_models_that_take_one_batch_size_are_refitted_on_many_batches(name: str, exact: int) -> None:
    make, shape = NETS[name]
    original, pruned = both(make)
    inputs, unseen = (torch.randn(120, *shape, generator=generator(seed)) for seed in (3, 4))
    sizes: set[int] = set()

    def batch(rows: Sequence[int]) -> tuple[tuple[torch.Tensor], tuple[torch.Tensor]]:
        sizes.add(len(rows))
        return (inputs[list(rows)],), (inputs[list(rows)],)

    done = reconstruct(pair_of(original, pruned, inputs, inputs=batch, exact_batch=exact), Method.REFIT, seed=0)
    assert done.refitted == 2
    assert sizes == {exact}
    assert error(original, pruned, unseen) < 0.02


@pytest.mark.parametrize("method", list(Method))
def test_fewer_samples_than_the_only_batch_size_leave_the_model_alone(method: Method) -> None:
    original, pruned = both(NETS["linear"][0])
    pair = pair_of(original, pruned, torch.randn(5, 4, generator=generator(3)), exact_batch=8)
    assert reconstruct(pair, method, seed=0) == Reconstructed(0, 0, {})
