"""Axes of any length: what is pruned is observed, proven and right at sizes that the caller's samples do not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers import zoo
from helpers.runs import Ran
from pruning_server.errors import Reason
from pruning_server.spec.request import (
    ChannelConstraints,
    DynamicAxes,
    FineTune,
    Granularity,
    Recovery,
    StaticStrategy,
    Target,
    TargetKind,
)
from pruning_server.worker.sizes import settle_sizes

CHANNELS = StaticStrategy(granularity=Granularity.CHANNEL, channels=ChannelConstraints(multiple=1))
HEIGHT_AND_WIDTH = (DynamicAxes(input=0, axes=(2, 3)),)
IMAGES = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)


class Convolutional(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 8, 3, padding=1)
        self.last = nn.Linear(8, 5)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.second(self.between(x))).mean(dim=[2, 3]))


class SplitByHeight(Convolutional):
    """Channels are doubled up to the height: at 8 rows the first half of them, which loses more, at 16 all.

    Seen at 8 rows only, the height would be taken for "half of the channels", and less than all be doubled at 16.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.first.weight[:8] *= 0.1

    def between(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.size(2)
        return torch.cat([x[:, :rows] * 2, x[:, rows:]], dim=1)


class Rolled(Convolutional):
    """Height and width are looked up, multiplied and put back."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, c, h * w).permute(0, 2, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)


class Fixed(Convolutional):
    """Numbers in the code that only fit 8 x 8."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, 16, 64).view(-1, 16, 8, 8)


def job(prune: Callable[..., Ran], model: torch.jit.ScriptModule, **fields: Any) -> Ran:
    return prune(
        model, {"inputs": IMAGES}, strategy=CHANNELS, target=Target(kind=TargetKind.PARAMETER_RATIO, value=0.7),
        **({"dynamic_axes": HEIGHT_AND_WIDTH, "recovery": Recovery(disabled=True), "fine_tune": FineTune()} | fields),
    )  # fmt: skip


def masked(net: Convolutional, ran: Ran) -> Convolutional:
    """The original without the channels that went; every activation in between keeps zeros."""
    kept = {layer["name"]: layer["kept"].get("0", range(layer["shape_before"][0])) for layer in ran.report["layers"]}
    with torch.no_grad():
        for name in ("first", "second"):
            layer = getattr(net, name)
            gone = sorted(set(range(len(layer.weight))) - set(kept[f"{name}.weight"]))
            layer.weight[gone] = 0.0
            layer.bias[gone] = 0.0
    return net


def shapes_proven(ran: Ran) -> set[tuple[int, ...]]:
    return {tuple(shape[2:]) for call in ran.report["verify"]["input_shapes"] for shape in call}


def notes(ran: Ran) -> str:
    return "\n".join(ran.report["strategy"]["notes"])


@pytest.mark.parametrize("kind", [Convolutional, Rolled, SplitByHeight])
@pytest.mark.parametrize("way", ["scripted", "traced", "frozen"])
def test_the_pruned_archive_is_right_at_sizes_that_the_samples_do_not_have(
    way: str, kind: type[Convolutional], prune: Callable
) -> None:
    net = kind().eval()
    model = zoo.traced(net, torch.zeros(2, 3, 8, 8)) if way == "traced" else getattr(zoo, way)(net)
    ran = job(prune, model)
    ran.check()
    assert shapes_proven(ran) == {(8, 8), (16, 24)}
    assert "16 along axis 2 of input 0, 24 along axis 3" in notes(ran)
    if way == "frozen":
        return  # whose tensors have other names; the proof has compared it
    reference = masked(kind().eval(), ran)
    if way == "traced":
        reference = zoo.traced(reference, torch.zeros(2, 3, 8, 8))
    for size in ((8, 8), (16, 24), (5, 9), (12, 32)):
        inputs = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(ran.pruned(inputs), reference(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", ["scripted", "traced", "frozen"])
def test_a_model_of_one_size_says_so_and_is_pruned_all_the_same(way: str, prune: Callable) -> None:
    net = Fixed().eval()
    model = zoo.traced(net, torch.zeros(2, 3, 8, 8)) if way == "traced" else getattr(zoo, way)(net)
    ran = job(prune, model)
    ran.check()
    assert shapes_proven(ran) == {(8, 8)}
    assert "does not run at any other length of axis 2 of input 0" in notes(ran)


def test_without_dynamic_axes_nothing_else_is_run(prune: Callable) -> None:
    ran = job(prune, zoo.scripted(Convolutional().eval()), dynamic_axes=())
    assert shapes_proven(ran) == {(8, 8)}
    assert "Other sizes" not in notes(ran)


class Words(nn.Module):
    """Tokens and which of them count, along the same axis; at most 12, which is how long its table is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(12, 8))
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(self.words(tokens) + self.places[: tokens.size(1)]))
        return self.last((hidden * counts.unsqueeze(2)).sum(dim=1))


def test_inputs_of_one_length_change_together_and_shrink_where_they_cannot_grow(prune: Callable) -> None:
    rng = np.random.default_rng(0)
    data = {"inputs_0": rng.integers(0, 11, size=(40, 10)), "inputs_1": np.ones((40, 10), np.float32)}
    ran = prune(
        zoo.scripted(Words()), data, strategy=CHANNELS, target=Target(kind=TargetKind.PARAMETER_RATIO, value=0.8),
        dynamic_axes=(DynamicAxes(input=0, axes=(1,)), DynamicAxes(input=1, axes=(1,))), fine_tune=FineTune(epochs=0),
    )  # fmt: skip
    ran.check()
    shapes = {tuple(map(tuple, call)) for call in ran.report["verify"]["input_shapes"]}
    assert any(call[0][1] == call[1][1] == 2 for call in shapes)


@pytest.mark.parametrize(("position", "axes"), [(1, (2,)), (0, (4,))])
def test_an_axis_that_the_samples_lack_is_named(position: int, axes: tuple[int, ...], prune: Callable) -> None:
    failure = job(
        prune, zoo.scripted(Convolutional().eval()), dynamic_axes=(DynamicAxes(input=position, axes=axes),)
    ).failure
    assert failure.reason is Reason.MODEL_INPUT_MISMATCH
    assert "dynamic_axes" in failure.text


def test_axes_that_only_change_alone_are_found_alone() -> None:
    own = {(0, 2): 8, (0, 3): 8}

    def error(lengths: tuple[tuple[int, int, int], ...]) -> str | None:
        return "no" if {(p, a): n for p, a, n in lengths}.get((0, 2), 8) != 8 else None

    found = settle_sizes(list(own), own, error)
    assert found.found == (((0, 3, 16),),)
    assert any("axis 2 of input 0" in note and "(no)" in note for note in found.notes)


def test_a_net_of_whole_windows_is_run_at_twice_the_size() -> None:
    own = {(0, 2): 112, (0, 3): 112}
    found = settle_sizes(list(own), own, lambda lengths: "no" if any(n % 112 for _, _, n in lengths) else None)
    assert found.found == (((0, 2, 224), (0, 3, 224)),)


def test_tries_are_few_and_never_many_times_larger() -> None:
    own, tried = {(0, 2): 100, (0, 3): 3}, []

    def error(lengths: tuple[tuple[int, int, int], ...]) -> str | None:
        tried.append(lengths)
        return "no"

    assert settle_sizes(list(own), own, error).found == ()
    assert 10 < len(tried) <= 90
    assert all(0 < length <= 400 for lengths in tried for _, _, length in lengths)
