"""Whole runs on small models: what comes back is the caller's model with exact zeros, and an honest report."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import zoo
from helpers.models import ConvNet, fitted, image_data, mlp, table_data
from helpers.runs import make_spec, make_workspace, run_here, sparsity, threshold
from pruning_server.jobs.events import CountersAdded, PhaseFinished, PhaseStarted, ProgressMade
from pruning_server.jobs.workspace import PRUNED_FILE
from pruning_server.spec.phases import Phase
from pruning_server.spec.report import Report
from pruning_server.spec.request import (
    FineTune,
    Loss,
    Recovery,
    Scope,
    StaticStrategy,
    Task,
)

WAYS = ["scripted", "traced", "frozen"]
# Enough to win back more than the rounding of a processor can take away.
LONG = FineTune(epochs=6, learning_rate=1e-2)


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    """A validation set of small images."""
    inputs, targets = image_data(200, seed=2)
    return {"inputs": inputs, "targets": targets}


@pytest.fixture(scope="module")
def table() -> dict[str, np.ndarray]:
    """A validation set of small rows."""
    inputs, targets = table_data(240)
    return {"inputs": inputs, "targets": targets}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A trained convolutional net."""
    torch.manual_seed(0)
    return fitted(ConvNet(), *image_data(200, seed=1), epochs=6)


def archive(way: str, net: nn.Module) -> torch.jit.ScriptModule:
    """The net as callers save it."""
    return zoo.traced(net, torch.zeros(2, 1, 8, 8)) if way == "traced" else getattr(zoo, way)(net)


@pytest.mark.parametrize("way", WAYS)
def test_the_count_is_exact_and_the_report_is_of_the_file(
    way: str, net: nn.Module, images: dict[str, np.ndarray], prune: Callable
) -> None:
    train = image_data(60, seed=3)
    ran = prune(archive(way, net), images, make_spec(sparsity(0.7)), train={"inputs": train[0], "targets": train[1]})
    report = ran.report
    assert list(report) == list(Report.__struct_fields__)
    prunable = 8 * 9 + 16 * 72 + 256 * 3
    expected = round(0.7 * prunable)
    assert report["strategy"]["prunable_weights"] == prunable
    assert report["strategy"]["pruned_weights"] == expected
    assert sum(round(layer["sparsity"] * math.prod(layer["shape_before"])) for layer in report["layers"]) == expected
    original, pruned = report["cost"]["original"], report["cost"]["pruned"]
    assert original["nonzero_parameters"] - pruned["nonzero_parameters"] == expected
    assert original["macs"] == 8 * 9 * 64 + 16 * 72 * 16 + 256 * 3
    content = (ran.root / PRUNED_FILE).read_bytes()
    assert report["model"]["pruned_sha256"] == hashlib.sha256(content).hexdigest()
    assert pruned["bytes"] == len(content)
    assert report["data"]["splits"] == {"fit": 120, "select": 30, "report": 50, "calibrate": 0}
    accuracy = report["accuracy"]
    assert accuracy["samples"] == 50
    assert accuracy["interval"][0] <= accuracy["delta"] <= accuracy["interval"][1]
    assert report["generalization"]["gap_pruned"] is not None
    assert set(report["timings"]) == {*Phase, "total"}
    assert report["verify"] is None
    assert ran.check().max_relative_error <= 1e-5
    if way != "frozen":
        state = ran.pruned.state_dict()
        assert sum(int((state[layer["name"]] == 0).sum()) for layer in report["layers"]) == expected


@pytest.mark.parametrize("way", WAYS)
def test_the_reports_accuracy_is_that_of_the_delivered_file(
    way: str, net: nn.Module, images: dict[str, np.ndarray], prune: Callable
) -> None:
    marks = np.zeros(200, dtype=np.uint8)
    marks[120:150], marks[150:] = 1, 2
    ran = prune(archive(way, net), {**images, "split": marks}, make_spec(sparsity(0.9)))
    with torch.no_grad():
        output = ran.pruned.eval()(torch.from_numpy(images["inputs"][150:]))
    right = (output.argmax(dim=1).numpy() == images["targets"][150:]).mean()
    assert ran.report["accuracy"]["pruned"] == pytest.approx(right, abs=1e-9)
    assert ran.report["data"]["split_source"] == "caller"


def test_threshold_zeroes_exactly_the_small_weights(table: dict[str, np.ndarray], prune: Callable) -> None:
    model = zoo.scripted(fitted(mlp(), *table_data(), epochs=3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    limit = float(before["0.weight"].abs().median())
    ran = prune(model, table, target=threshold(limit), recovery=Recovery(disabled=True))
    for name, tensor in ran.pruned.state_dict().items():
        keeps = before[name].abs() >= limit if name.endswith("weight") else torch.ones_like(before[name]) > 0
        assert torch.equal(tensor, before[name] * keeps), name
    assert ran.report["strategy"]["recovery"] == {"disabled": True}
    assert ran.report["strategy"]["criterion"] is None


@pytest.mark.parametrize("way", WAYS)
def test_sparsity_zero_without_recovery_changes_nothing(
    way: str, net: nn.Module, images: dict[str, np.ndarray], prune: Callable
) -> None:
    ran = prune(archive(way, net), images, target=sparsity(0.0), recovery=Recovery(disabled=True))
    assert ran.report["generalization"]["verdict"] == "PASS"
    assert ran.report["accuracy"]["delta"] == 0
    x = torch.from_numpy(images["inputs"][:5])
    with torch.no_grad():
        assert torch.equal(ran.pruned.eval()(x), archive(way, net).eval()(x))


@pytest.mark.parametrize("way", WAYS)
def test_a_seed_gives_the_same_bytes(way: str, net: nn.Module, images: dict[str, np.ndarray], prune: Callable) -> None:
    model = archive(way, net)

    def digest(seed: int) -> str:
        ran = prune(model, images, target=sparsity(0.8), seed=seed, fine_tune=FineTune(epochs=2))
        return ran.report["model"]["pruned_sha256"]

    assert digest(7) == digest(7)
    assert digest(7) != digest(8)


class Everything(nn.Module):
    """Exported methods, attributes of several types, a tied weight, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.first.weight
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(8, 3)
        self.names = {"a": 1}
        self.count = 3
        self.register_buffer("mask", torch.tensor([0.0, 0.0, float("-inf")]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.dropout(torch.relu(self.tied(torch.relu(self.first(x)))))) + self.mask.clamp(min=0.0)

    @torch.jit.export
    def embed(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return self.first(x) * scale

    @torch.jit.export
    def version(self) -> int:
        return self.count + self.names["a"]


def test_what_comes_back_is_the_same_model_in_everything_but_values(
    table: dict[str, np.ndarray], prune: Callable, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = Everything().train()
    net.last.bias.requires_grad_(False)
    path = tmp_path / "model.pt"
    extra = {"labels.txt": "a\nb", "sub/é.bin": b"\xff\x00"}
    path.write_bytes(torch.jit.script(net).save_to_buffer(_extra_files=extra))
    ran = prune(path, table, target=sparsity(0.6))
    files = dict.fromkeys(extra, "")
    after = torch.jit.load(io.BytesIO((ran.root / PRUNED_FILE).read_bytes()), _extra_files=files)
    before = torch.jit.load(str(path))
    assert files == {"labels.txt": b"a\nb", "sub/é.bin": b"\xff\x00"}
    assert after.version() == 4
    assert after.training
    assert after.dropout.training
    assert [p.requires_grad for p in after.parameters()] == [p.requires_grad for p in before.parameters()]
    assert [(n, t.shape, t.dtype) for n, t in after.state_dict().items()] == [
        (n, t.shape, t.dtype) for n, t in before.state_dict().items()
    ]
    assert torch.equal(after.last.bias, before.last.bias)
    assert after.first.weight.data_ptr() == after.tied.weight.data_ptr()
    x = torch.ones(2, 8)
    torch.testing.assert_close(after.embed(x, 2.0), after.first(x) * 2, rtol=0, atol=0)
    assert [layer["name"] for layer in ran.report["layers"]] == ["first.weight", "last.weight"]
    assert ran.report["strategy"]["prunable_weights"] == 64 + 24
    assert ran.report["model"]["methods"] == ["forward", "embed", "version"]
    assert ran.report["model"]["extra_files"] == ["labels.txt", "sub/é.bin"]
    # Judged without dropout although it came in training mode: the original agrees with itself.
    assert ran.report["accuracy"]["original"] == pytest.approx(
        (before.eval()(torch.from_numpy(table["inputs"])).argmax(1).numpy() == table["targets"]).mean(), abs=0.15
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype, way: str, table: dict[str, np.ndarray], prune: Callable) -> None:
    net = fitted(mlp(), *table_data(), epochs=5).to(dtype)
    model = zoo.traced(net, torch.zeros(2, 8, dtype=dtype)) if way == "traced" else getattr(zoo, way)(net)
    ran = prune(model, table, target=sparsity(0.7), fine_tune=FineTune(epochs=4, learning_rate=3e-3))
    assert ran.report["data"]["inputs"][0]["fed_as"].startswith(str(dtype).removeprefix("torch."))
    assert ran.pruned.eval()(torch.zeros(1, 8, dtype=dtype)).dtype == dtype
    ran.require_recovered()
    # Constants of a frozen archive cannot be widened, so that it is trained as it is.
    assert any("in float32" in note for note in ran.report["strategy"]["notes"]) == (way != "frozen")
    ran.check()


def test_weights_are_trained_where_the_archive_wants_no_gradient(table: dict[str, np.ndarray], prune: Callable) -> None:
    net = fitted(mlp(), *table_data()).requires_grad_(requires_grad=False)
    ran = prune(zoo.scripted(net), table, target=sparsity(0.8), fine_tune=LONG)
    assert ran.report["strategy"]["recovery"]["kept"] == "fine_tuning"
    ran.require_recovered()
    assert not any(parameter.requires_grad for parameter in ran.pruned.parameters())


@pytest.mark.parametrize(
    ("loss", "targets", "task"),
    [
        (Loss.MSE, "one_hot", "regression"),
        (Loss.L1, "one_hot", "regression"),
        (Loss.BCE_WITH_LOGITS, "one_hot", "multilabel"),
        (Loss.CROSS_ENTROPY, "labels", "classification"),
        (None, "labels", "classification"),
        (None, "column", "classification"),
        (None, "none", "agreement"),
        (Loss.L1, "none", "agreement"),
        (Loss.CROSS_ENTROPY, "none", "agreement"),
    ],
)
def test_losses_and_tasks(
    loss: Loss | None, targets: str, task: str, table: dict[str, np.ndarray], prune: Callable
) -> None:
    labels = table["targets"]
    data = {"inputs": table["inputs"]}
    if targets != "none":
        data["targets"] = {
            "labels": labels, "one_hot": np.eye(3, dtype=np.float32)[labels], "column": labels[:, None].astype(np.int32)
        }[targets]  # fmt: skip
    model = zoo.scripted(fitted(mlp(), *table_data(), epochs=5))
    ran = prune(model, data, target=sparsity(0.6), loss=loss, fine_tune=LONG)
    assert ran.report["data"]["task"] == task
    ran.require_recovered()
    if task == "agreement":
        assert ran.report["accuracy"]["original"] == 1.0


class Huber(nn.Module):
    """A caller's own loss."""

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.huber_loss(output, target)


def test_a_loss_module_of_the_caller(table: dict[str, np.ndarray], prune: Callable) -> None:
    data = {"inputs": table["inputs"], "targets": np.eye(3, dtype=np.float32)[table["targets"]]}
    ran = prune(
        zoo.scripted(fitted(mlp(), *table_data(), epochs=5)),
        data,
        target=sparsity(0.6),
        task=Task.REGRESSION,
        loss_module=torch.jit.script(Huber()),
        fine_tune=LONG,
    )
    assert ran.report["data"]["loss"] == "module"
    ran.require_recovered()


def test_scope_layer_and_excluded_layers(table: dict[str, np.ndarray], prune: Callable) -> None:
    model = zoo.scripted(fitted(mlp(), *table_data(), epochs=2))
    ran = prune(
        model,
        table,
        target=sparsity(0.5),
        strategy=StaticStrategy(scope=Scope.LAYER, criterion="random", include_biases=True),
        exclude_layers=("3", "nothing*"),
    )
    assert {layer["name"]: layer["sparsity"] for layer in ran.report["layers"]} == {"0.weight": 0.5, "0.bias": 0.5}
    assert {name for use in ran.report["frozen"] for name in use["layers"]} == {"3.weight", "3.bias"}
    assert any("nothing*" in note for note in ran.report["strategy"]["notes"])


def test_the_story_is_told_in_order(table: dict[str, np.ndarray], tmp_path: Path) -> None:
    model = zoo.scripted(fitted(mlp(), *table_data(), epochs=2))
    spec = make_spec(sparsity(0.5), fine_tune=FineTune(epochs=3, learning_rate=1e-3))
    ran = run_here(make_workspace(tmp_path / "run", model, table, spec))
    started = [message.phase for message in ran.messages if isinstance(message, PhaseStarted)]
    finished = [message.phase for message in ran.messages if isinstance(message, PhaseFinished)]
    assert started == finished == list(Phase)
    fractions = [message.progress.fraction for message in ran.messages if isinstance(message, ProgressMade)]
    assert fractions == sorted(fractions)
    assert fractions[-1] <= 1
    epochs = [m.progress.epoch for m in ran.messages if isinstance(m, ProgressMade) and m.progress.epoch]
    assert sorted(set(epochs)) == [1, 2, 3]
    counters = [message for message in ran.messages if isinstance(message, CountersAdded)]
    assert sum(counter.parameters_processed for counter in counters) == 8 * 32 + 32 * 3
    assert sum(counter.parameters_removed for counter in counters) == (8 * 32 + 32 * 3) // 2
    assert sum(counter.samples_trained for counter in counters) == 3 * 144
    assert sum(counter.samples_evaluated for counter in counters) >= 240 + 60
