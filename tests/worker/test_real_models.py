"""Archives that other people made, and trained nets on real images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from helpers import zoo
from helpers.resnet import MEAN, STD, trained_resnet
from helpers.runs import sparsity
from helpers.shared_data import shared_file
from pruning_server.errors import Reason
from pruning_server.jobs.events import RunSucceeded
from pruning_server.spec.request import FineTune, Layout, Preprocessing, ScalarArgument

pytestmark = pytest.mark.shared_data

RNG = np.random.default_rng(0)
ARCHIVES = {
    "policy_go2": (RNG.normal(size=(60, 45)), {}, 188_416),
    "policy_go2_himloco": (RNG.normal(size=(60, 270)), {}, 242_112),
    "policy_g1_loco_lstm": (RNG.normal(size=(24, 96)), {}, 528_000),
    "wtw_adaptation": (RNG.normal(size=(60, 2100)), {}, 570_624),
    "silero_vad": (RNG.normal(size=(24, 512)) * 0.1, {"arguments": (ScalarArgument(position=1, value=16000),)}, 679_552),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_comes_back_pruned_and_otherwise_the_same(name: str, prune: Callable) -> None:
    inputs, fields, macs = ARCHIVES[name]
    path = shared_file(f"torchscript/{name}.pt")
    fine_tune = FineTune(epochs=1, learning_rate=1e-4)
    ran = prune(path, {"inputs": inputs.astype(np.float32)}, target=sparsity(0.3), fine_tune=fine_tune, **fields)
    report = ran.report
    assert report["cost"]["original"]["macs"] == macs
    assert report["strategy"]["pruned_weights"] == round(0.3 * report["strategy"]["prunable_weights"])
    assert {rung["name"] for rung in report["strategy"]["recovery"]["select"]} >= {"nothing", "fine_tuning"}
    assert report["cost"]["pruned"]["bytes"] < report["cost"]["original"]["bytes"]
    ran.check()
    before, after = torch.jit.load(str(path)), ran.pruned
    assert before.training == after.training
    assert [(n, t.shape, t.dtype) for n, t in before.state_dict().items()] == [
        (n, t.shape, t.dtype) for n, t in after.state_dict().items()
    ]
    state = {n for n, _ in before.named_buffers()} - {layer["name"] for layer in report["layers"]}
    for buffer in state:
        torch.testing.assert_close(before.state_dict()[buffer], after.state_dict()[buffer], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "inputs", "fields", "reason"),
    [
        ("silero_vad", np.zeros((20, 512)), {}, Reason.MODEL_INPUT_MISMATCH),
        ("silero_vad", np.zeros((20, 100)), ARCHIVES["silero_vad"][1], Reason.MODEL_INPUT_MISMATCH),
        ("policy_go2", np.zeros((20, 44)), {}, Reason.MODEL_INPUT_MISMATCH),
        ("tchrs_foo1", np.zeros((20, 4)), {}, Reason.NOTHING_PRUNABLE),
    ],
)
def test_what_does_not_fit_is_told(
    name: str, inputs: np.ndarray, fields: dict[str, Any], reason: Reason, prune: Callable
) -> None:
    failure = prune(shared_file(f"torchscript/{name}.pt"), {"inputs": inputs.astype(np.float32)}, **fields).failure
    assert failure.reason is reason


@pytest.mark.parametrize("way", ["scripted", "traced", "frozen"])
def test_resnet_20_recovers_on_real_images(way: str, prune: Callable) -> None:
    net = trained_resnet(20)
    model = zoo.traced(net, torch.zeros(2, 3, 32, 32)) if way == "traced" else getattr(zoo, way)(net)
    with np.load(shared_file("cifar10_test.npz")) as data:
        images, labels = data["images"][:400], data["labels"][:400]
    ran = prune(
        model, {"inputs": images, "targets": labels}, target=sparsity(0.8),
        preprocessing=Preprocessing(mean=MEAN, std=STD, layout=Layout.NHWC),
        fine_tune=FineTune(epochs=1, learning_rate=1e-3),
    )  # fmt: skip
    assert isinstance(ran.last, RunSucceeded)
    report = ran.report
    assert report["accuracy"]["original"] > 0.75
    recovery = {rung["name"]: rung for rung in report["strategy"]["recovery"]["select"]}
    assert recovery["nothing"]["metric"] < 0.5
    assert recovery["fine_tuning"]["loss"] < recovery["nothing"]["loss"]
    # Freezing folds normalization into the convolutions: nothing is left to re-estimate, and one epoch wins less.
    assert ("normalization" in recovery) == (way != "frozen")
    if way != "frozen":
        assert report["accuracy"]["pruned"] > recovery["nothing"]["metric"] + 0.1
    ran.check()
