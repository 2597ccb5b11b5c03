"""Models of every kind that callers have: their inputs, state, batch sizes and ways of holding weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from helpers import zoo
from helpers.models import fitted, mlp, table_data
from helpers.runs import Ran, make_spec, sparsity
from pruning_server.spec.request import FineTune, Layout, Loss, Preprocessing, Recovery, ScalarArgument, Task

WAYS = ["scripted", "traced", "frozen"]
RNG = np.random.default_rng(0)


def notes(ran: Ran) -> str:
    """All notes in one string."""
    return "\n".join(ran.report["strategy"]["notes"])


ZOO = {
    "Functional": RNG.normal(size=(40, 4)).astype(np.float32),
    "Views": RNG.normal(size=(40, 8)).astype(np.float32),
    "Products": RNG.normal(size=(40, 4)).astype(np.float32),
    "Convolutions": RNG.normal(size=(40, 2, 5)).astype(np.float32),
    "Text": RNG.integers(0, 11, size=(40, 5)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ZOO)
def test_every_way_of_holding_weights(name: str, way: str, prune: Callable) -> None:
    torch.manual_seed(0)
    net, inputs = getattr(zoo, name)(), ZOO[name]
    model = zoo.traced(net, torch.from_numpy(inputs[:2])) if way == "traced" else getattr(zoo, way)(net)
    ran = prune(model, {"inputs": inputs}, target=sparsity(0.5), fine_tune=FineTune(epochs=1, learning_rate=1e-3))
    report = ran.report
    zeros = sum(round(layer["sparsity"] * np.prod(layer["shape_before"])) for layer in report["layers"])
    assert zeros == report["strategy"]["pruned_weights"] == round(0.5 * report["strategy"]["prunable_weights"])
    assert {rung["name"] for rung in report["strategy"]["recovery"]["select"]} >= {"nothing", "fine_tuning"}
    ran.check()
    with torch.no_grad():
        assert ran.pruned(torch.from_numpy(inputs[:3])).shape == model(torch.from_numpy(inputs[:3])).shape


class Remembers(nn.Module):
    """An LSTM policy: batch 1 only, state in buffers, written in place; a counter attribute; a method that resets."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8)
        self.head = nn.Linear(8, 3)
        self.calls = 0
        self.register_buffer("hidden", torch.zeros(1, 1, 8))
        self.register_buffer("cell", torch.zeros(1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, (h, c) = self.rnn(x.unsqueeze(0), (self.hidden, self.cell))
        self.hidden[:] = h
        self.cell[:] = c
        self.calls += 1
        return self.head(out.squeeze(0))

    @torch.jit.export
    def reset(self) -> None:
        self.hidden[:] = 0.0
        self.cell[:] = 0.0


def test_a_stateful_model_is_run_one_sample_at_a_time_from_its_own_state(prune: Callable) -> None:
    torch.manual_seed(0)
    net = Remembers()
    net.hidden.fill_(0.3)
    inputs = RNG.normal(size=(40, 6)).astype(np.float32)
    model = zoo.scripted(net)
    ran = prune(model, {"inputs": inputs}, target=sparsity(0.8), fine_tune=FineTune(epochs=16, learning_rate=1e-2))
    assert "one sample at a time" in notes(ran)
    pruned = ran.pruned
    assert pruned.calls == 0
    assert torch.equal(pruned.hidden, torch.full((1, 1, 8), 0.3))
    assert torch.equal(pruned.cell, torch.zeros(1, 1, 8))
    pruned(torch.from_numpy(inputs[:1]))
    assert pruned.calls == 1
    pruned.reset()
    assert torch.equal(pruned.hidden, torch.zeros(1, 1, 8))
    ran.require_recovered()
    # The same sample gives the same output wherever it stands: state does not leak from one to the next.
    again = prune(model, {"inputs": inputs[::-1].copy()}, target=sparsity(0.8), recovery=Recovery(disabled=True))
    assert again.report["strategy"]["pruned_weights"] == ran.report["strategy"]["pruned_weights"]


class Images(nn.Module):
    """Takes [N, 3, 4, 4] scaled and normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


@pytest.mark.parametrize("layout", [Layout.NCHW, Layout.NHWC, None])
def test_bytes_are_scaled_normalized_and_turned(layout: Layout | None, prune: Callable) -> None:
    torch.manual_seed(0)
    model = zoo.scripted(Images().eval())
    images = RNG.integers(0, 256, size=(60, 3, 4, 4), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    scaled = (images / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    with torch.no_grad():
        targets = model(torch.from_numpy(scaled.astype(np.float32))).argmax(dim=1).numpy()
    stored = images.transpose(0, 2, 3, 1).copy() if layout is Layout.NHWC else images
    ran = prune(
        model, {"inputs": stored, "targets": targets}, target=sparsity(0.0), recovery=Recovery(disabled=True),
        preprocessing=Preprocessing(mean=mean, std=std, layout=layout),
    )  # fmt: skip
    assert ran.report["accuracy"]["original"] == 1.0
    assert "0.00392157" in ran.report["data"]["inputs"][0]["fed_as"]


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.int16, np.float64, np.float16, np.int8, bool])
def test_numbers_of_every_type_reach_a_model_of_floats(dtype: type, prune: Callable) -> None:
    torch.manual_seed(0)
    model = zoo.scripted(nn.Sequential(nn.Linear(8, 3)))
    values = RNG.integers(0, 2 if dtype is bool else 5, size=(60, 8)).astype(dtype)
    with torch.no_grad():
        targets = model(torch.from_numpy(values.astype(np.float32))).argmax(dim=1).numpy()
    ran = prune(
        model, {"inputs": values, "targets": targets}, target=sparsity(0.0), recovery=Recovery(disabled=True),
        preprocessing=Preprocessing(scale=1.0),
    )  # fmt: skip
    assert ran.report["accuracy"]["original"] == 1.0
    assert ran.report["data"]["inputs"][0]["fed_as"] == "float32"


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16, np.uint8])
def test_indices_stay_indices(dtype: type, prune: Callable) -> None:
    torch.manual_seed(0)
    model = zoo.scripted(zoo.Text())
    ran = prune(model, {"inputs": RNG.integers(0, 11, size=(40, 5)).astype(dtype)}, target=sparsity(0.2))
    assert ran.report["data"]["inputs"][0]["fed_as"] in {"int64", "int32"}


class Mixed(nn.Module):
    """Indices, numbers, and a scalar between them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor, scale: float, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.words(tokens).mean(dim=1) * scale, x], dim=1))


@pytest.mark.parametrize("way", ["scripted", "traced"])
def test_several_inputs_and_a_scalar(way: str, prune: Callable) -> None:
    torch.manual_seed(0)
    tokens, numbers = RNG.integers(0, 7, size=(60, 3)), RNG.normal(size=(60, 4)).astype(np.float32)
    net = Mixed()
    example = (torch.from_numpy(tokens[:2]), torch.tensor(2.0), torch.from_numpy(numbers[:2]))
    model = zoo.traced(net, *example) if way == "traced" else zoo.scripted(net)
    with torch.no_grad():
        scale = torch.tensor(2.0) if way == "traced" else 2.0
        targets = model(torch.from_numpy(tokens), scale, torch.from_numpy(numbers)).argmax(dim=1).numpy()
    ran = prune(
        model, {"inputs_0": tokens, "inputs_1": numbers, "targets": targets},
        arguments=(ScalarArgument(position=1, value=2),), target=sparsity(0.0), recovery=Recovery(disabled=True),
    )  # fmt: skip
    assert ran.report["accuracy"]["original"] == 1.0
    assert [one["fed_as"] for one in ran.report["data"]["inputs"]] == ["int64", "float32"]
    ran.check()


class ScalesItself(nn.Module):
    """Takes bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x / 255)


def test_a_model_that_may_scale_bytes_itself_is_pointed_out(prune: Callable) -> None:
    data = {"inputs": RNG.integers(0, 256, size=(60, 8), dtype=np.uint8)}
    model = zoo.scripted(ScalesItself())
    assert "--scale 1" in notes(prune(model, data, recovery=Recovery(disabled=True)))
    told = prune(model, data, recovery=Recovery(disabled=True), preprocessing=Preprocessing(scale=1.0))
    assert "--scale 1" not in notes(told)
    assert told.report["data"]["inputs"][0]["fed_as"] == "float32"


class Summed(nn.Module):
    """Returns one number for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).sum()


def test_one_number_per_call_is_one_per_sample(prune: Callable) -> None:
    inputs, _ = table_data(60)
    ran = prune(zoo.scripted(Summed()), {"inputs": inputs, "targets": inputs[:, 0]}, target=sparsity(0.2))
    assert ran.report["data"]["task"] == "regression"
    assert "one sample at a time" in notes(ran)
    ran.check()


class Baked(nn.Module):
    """A trace of it takes batches of exactly 4."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.linear(x).view(4, 6))


def test_a_batch_size_that_was_baked_in(prune: Callable) -> None:
    torch.manual_seed(0)
    inputs, targets = table_data(90)
    ran = prune(zoo.traced(Baked(), torch.zeros(4, 8)), {"inputs": inputs, "targets": targets}, target=sparsity(0.5))
    assert "exactly 4" in notes(ran)
    assert ran.report["cost"]["original"]["latency_seconds"]["batch"] == 4
    assert ran.report["cost"]["original"]["macs"] == 8 * 6 + 6 * 3
    assert ran.report["strategy"]["recovery"]["epochs"] == 2
    ran.check()


@pytest.mark.parametrize("samples", [5, 30])
def test_a_set_that_does_not_divide_by_the_only_batch_size(samples: int, prune: Callable) -> None:
    torch.manual_seed(0)
    inputs, targets = table_data(samples)
    ran = prune(zoo.traced(Baked(), torch.zeros(4, 8)), {"inputs": inputs, "targets": targets}, target=sparsity(0.5))
    ran.check()
    warnings = "\n".join(ran.report["data"]["warnings"])
    assert "batches of exactly 4 samples, and these parts do not divide by that: fit" in warnings
    assert sum(ran.report["data"]["splits"].values()) == samples
    assert ran.report["accuracy"]["samples"] == ran.report["data"]["splits"]["report"]
    steps = ran.rungs["fine_tuning"]["gradient_steps"] if "fine_tuning" in ran.rungs else 0
    assert ("less than one batch of 4" in warnings) == (steps == 0) == (samples == 5)


class Centred(nn.Module):
    """Its outputs depend on the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x - x.mean(dim=0, keepdim=True) * 0.5)


def test_samples_that_see_each_other_are_judged_apart(prune: Callable) -> None:
    torch.manual_seed(0)
    inputs, targets = table_data(60)
    ran = prune(zoo.scripted(Centred()), {"inputs": inputs, "targets": targets}, target=sparsity(0.2))
    assert "one sample at a time" in notes(ran)


class Single(nn.Module):
    """Takes one sample and returns its scores without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.reshape(8))


def test_an_output_without_a_batch_axis(prune: Callable) -> None:
    torch.manual_seed(0)
    inputs, targets = table_data(60)
    ran = prune(zoo.scripted(Single()), {"inputs": inputs, "targets": targets}, target=sparsity(0.2))
    assert ran.report["data"]["task"] == "classification"
    ran.check()


class Parts(nn.Module):
    """Returns a tuple with a dict in it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return x, {"logits": self.linear(x)}


def test_the_selected_part_of_the_output_is_judged(prune: Callable) -> None:
    torch.manual_seed(0)
    inputs, targets = table_data(60)
    ran = prune(
        zoo.scripted(Parts()), {"inputs": inputs, "targets": targets}, target=sparsity(0.2), output_selector="1.logits"
    )
    assert ran.report["strategy"]["recovery"]["kept"] in {"fine_tuning", "nothing"}
    assert ran.report["accuracy"]["samples"] == 15
    ran.check()


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("shape", [(60,), (60, 1)])
def test_binary_models(logits: bool, shape: tuple[int, ...], prune: Callable) -> None:
    torch.manual_seed(0)
    inputs, _ = table_data(60)
    targets = (inputs[:, 0] > 0).astype(np.int64).reshape(shape)
    net = nn.Sequential(nn.Linear(8, 1), *([] if logits else [nn.Sigmoid()]))
    nn.init.zeros_(net[0].weight)
    with torch.no_grad():
        net[0].weight[0, 0] = 5.0
        net[0].bias.zero_()
    ran = prune(
        zoo.scripted(net),
        {"inputs": inputs, "targets": targets},
        target=sparsity(0.5),
        recovery=Recovery(disabled=True),
    )
    assert ran.report["data"]["task"] == "classification"
    assert ran.report["accuracy"]["original"] == 1.0
    assert ran.report["data"]["loss"] == "bce_with_logits"


def test_one_hot_targets_of_a_named_classification(prune: Callable) -> None:
    inputs, targets = table_data(90)
    data = {"inputs": inputs, "targets": np.eye(3, dtype=np.uint8)[targets]}
    ran = prune(zoo.scripted(fitted(mlp(), inputs, targets)), data, task=Task.CLASSIFICATION, target=sparsity(0.3))
    assert ran.report["data"]["loss"] == "cross_entropy"
    assert ran.report["accuracy"]["metric"] == "accuracy"


def test_targets_may_be_ignored_for_agreement(prune: Callable) -> None:
    inputs, targets = table_data(90)
    ran = prune(
        zoo.scripted(mlp()), {"inputs": inputs, "targets": targets + 50}, task=Task.AGREEMENT, target=sparsity(0.3)
    )
    assert ran.report["accuracy"]["original"] == 1.0


class FullyConvolutional(nn.Module):
    """Returns [N, 3, 1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.unsqueeze(-1)).unsqueeze(-1)


def test_axes_of_length_one_do_not_matter(prune: Callable) -> None:
    inputs, targets = table_data(60)
    model = zoo.scripted(FullyConvolutional())
    ran = prune(model, {"inputs": inputs, "targets": targets}, target=sparsity(0.3))
    assert ran.report["accuracy"]["metric"] == "accuracy"
    floats = prune(
        model, {"inputs": inputs, "targets": targets.astype(np.float32)},
        target=sparsity(0.3), task=Task.CLASSIFICATION,
    )  # fmt: skip
    assert floats.report["data"]["loss"] == "cross_entropy"


@pytest.mark.parametrize("samples", [4, 5, 6, 7, 9])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_smallest_sets_are_split_fitted_and_judged(samples: int, labelled: bool, prune: Callable) -> None:
    inputs, targets = table_data(samples)
    data = {"inputs": inputs, "targets": targets} if labelled else {"inputs": inputs}
    net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    ran = prune(zoo.scripted(net), data, target=sparsity(0.5))
    assert sum(ran.report["data"]["splits"].values()) == samples
    assert ran.report["generalization"]["verdict"] in {"PASS", "FAIL", "INCONCLUSIVE"}
    ran.check()


class Noisy(nn.Module):
    """Draws random numbers at inference."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.dropout(x, 0.2, True))


def test_randomness_at_inference_is_seeded(prune: Callable) -> None:
    inputs, targets = table_data(60)
    model = zoo.scripted(Noisy())
    hashes = {
        prune(model, {"inputs": inputs, "targets": targets}, make_spec(sparsity(0.3), seed=3)).report["model"][
            "pruned_sha256"
        ]
        for _ in range(2)
    }
    assert len(hashes) == 1


class Blind(nn.Module):
    """No gradient reaches its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.round(self.linear(x).detach() * 100)


def test_models_without_gradients_come_back_pruned(prune: Callable) -> None:
    inputs, targets = table_data(60)
    ran = prune(zoo.scripted(Blind()), {"inputs": inputs, "targets": targets}, target=sparsity(0.5))
    assert "no gradient" in notes(ran)
    assert ran.report["strategy"]["recovery"]["kept"] in {"nothing", "reconstruction"}


def test_regression_with_one_value(prune: Callable) -> None:
    inputs, _ = table_data(90)
    targets = inputs[:, :2].sum(axis=1)
    model = zoo.scripted(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)))
    ran = prune(model, {"inputs": inputs, "targets": targets}, target=sparsity(0.5), loss=Loss.L1)
    assert (ran.report["data"]["task"], ran.report["accuracy"]["metric"]) == ("regression", "r2")


class Overwrites(nn.Module):
    """Writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mul_(0.5).add_(1.0))


class Counts(nn.Module):
    """Takes batches of every size, and gives other outputs with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(x) * self.calls


@pytest.mark.parametrize("kind", [Overwrites, Counts])
def test_models_that_leave_traces_of_a_call_pass_the_check(kind: type[nn.Module], prune: Callable) -> None:
    torch.manual_seed(0)
    inputs, targets = table_data(60)
    ran = prune(zoo.scripted(kind()), {"inputs": inputs, "targets": targets}, target=sparsity(0.5))
    assert ran.check().max_relative_error == 0.0


class Alarmed(nn.Module):
    """Has a state that only some samples change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.register_buffer("alarms", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x) + self.alarms
        if bool((x > 99.0).any()):
            self.alarms += 1
        return y


def test_state_that_few_samples_change_is_put_back_too(prune: Callable) -> None:
    torch.manual_seed(0)
    inputs, targets = table_data(90)
    inputs[40:, 0] = 100.0
    ran = prune(zoo.scripted(Alarmed()), {"inputs": inputs, "targets": targets}, target=sparsity(0.5))
    assert torch.equal(ran.pruned.alarms, torch.zeros(1))
    assert ran.report["accuracy"]["loss"]["original"] < 1000
