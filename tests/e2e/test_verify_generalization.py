"""The paper's experiment from one command, on a real server: a small net with dropout on real digits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from helpers.models import fitted, save_scripted
from helpers.running_server import RunningServer

FLAGS = ("--epochs", "1", "--scale", "0.0625", "--margin", "0.05")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two jobs at a time, of one thread each."""
    flags = ("--cpu-slots", "2", "--threads-per-job", "1")
    with RunningServer(tmp_path_factory.mktemp("server") / "data", *flags) as running:
        yield running


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A net with dropout, one without, and data that neither saw."""
    folder = tmp_path_factory.mktemp("digits")
    found = load_digits()
    images, labels = found.images[:, None].astype(np.uint8), found.target.astype(np.int64)
    np.savez(folder / "val.npz", inputs=images[1000:1500], targets=labels[1000:1500])
    paths = []
    for name, rate in (("with", 0.4), ("without", 0.0)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Dropout(rate), nn.Linear(48, 10))
        fitted(net, images[:1000].astype(np.float32) / 16, labels[:1000], epochs=5)
        paths.append(save_scripted(net, folder / f"{name}.pt"))
    return paths[0], paths[1], folder / "val.npz"


@pytest.mark.slow
def test_the_experiment_and_going_on_with_it(
    prune: Callable[..., Any], digits: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, _, data = digits
    out = tmp_path / "out"
    command = (
        "verify-generalization", model, "--validation", data, "--ratios", "0.8,0.3", "--dropout", "0,0.5", *FLAGS,
        "-o", out,
    )  # fmt: skip
    answer = prune(*command)
    assert answer.exit_code == 0, answer.stderr
    found = answer.body["verification"]
    assert found == json.loads((out / "verification.json").read_text())
    assert answer.body["message"] == found["conclusion"]
    assert [(cell["ratio"], cell["dropout"], cell["state"]) for cell in found["cells"]] == [
        (ratio, rate, "SUCCEEDED") for ratio in (0.3, 0.8) for rate in (0.0, 0.5)
    ]
    assert (found["target"], found["dropout_layers"], found["samples"]) == ("sparsity", 1, 125)
    for cell in found["cells"]:
        report = json.loads((out / f"report-{cell['ratio']:g}-dropout-{cell['dropout']:g}.json").read_text())
        assert report["strategy"]["recovery"]["dropout"]["asked"] == cell["dropout"]
        assert cell["clean"]["delta"] == report["accuracy"]["delta"]
        assert cell["occlusion"]["delta"] == report["robustness"]["occlusion"]["delta"]
    effects = found["effects"]["occlusion"]
    assert None not in (effects["parameters"], effects["dropout"], effects["interaction"])
    page = (out / "verification.html").read_text()
    assert page.count('<svg class="plot"') == 3 + 4

    # The same again runs no job anew, and a larger grid only what is new.
    again = prune(*command)
    assert [cell["job"] for cell in again.body["verification"]["cells"]] == [cell["job"] for cell in found["cells"]]
    assert "1 of 4" in again.stderr
    assert len(prune("jobs").body["jobs"]) == 4


@pytest.mark.slow
def test_a_model_without_dropout_runs_each_ratio_once(
    prune: Callable[..., Any], digits: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, model, data = digits
    page = tmp_path / "page.html"
    answer = prune(
        "verify-generalization", model, "--validation", data, "--ratios", "0.5", "--dropout", "0,0.25,0.5", *FLAGS,
        "--html", page,
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    found = answer.body["verification"]
    assert len(found["cells"]) == 1
    assert found["effects"]["occlusion"]["dropout"] is None
    assert "dropout was not varied" in found["conclusion"]
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--ratios", "1", "--dropout", "0"), "leave nothing"),
        (("--ratios", "0", "--dropout", "0", "--target", "macs-ratio"), "leave nothing"),
        (("--ratios", "0.5", "--dropout", "1"), "below 1"),
        (("--ratios", "0.5,0.5", "--dropout", "0"), "twice"),
        (("--ratios", "0.5", "--dropout", "nan"), "0, 1"),
        (("--ratios", "0.5", "--dropout", "0", "--epochs", "0"), "no dropout to vary"),
        (("--ratios", "0.5", "--dropout", "0", "--no-recovery"), "no dropout to vary"),
        (("--ratios", "0.5", "--dropout", "0", "--strategy", "conditional"), "static or dynamic"),
        (("--dropout", "0"), "--ratios"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_sent(
    prune: Callable[..., Any], digits: tuple[Path, Path, Path], flags: tuple[str, ...], says: str
) -> None:
    model, _, data = digits
    answer = prune("verify-generalization", model, "--validation", data, *flags)
    assert answer.exit_code == 2
    assert says in answer.stderr
