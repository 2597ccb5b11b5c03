"""What is promised of accuracy, through the command line and a real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.models import fitted, mlp, table_data
from helpers.running_server import RunningServer
from pruning_client import PruningClient


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a large and a small set."""
    folder = tmp_path_factory.mktemp("guarantees")
    torch.jit.script(fitted(mlp(), *table_data(300), epochs=4)).save(str(folder / "model.pt"))
    for name, samples in (("large", 1000), ("small", 60)):
        inputs, targets = table_data(samples, seed=7)
        np.savez(folder / f"{name}.npz", inputs=inputs, targets=targets)
    return folder


def test_a_risk_is_certified(files: Path, prune: Callable, tmp_path: Path) -> None:
    answer = prune(
        "submit", files / "model.pt", "--validation", files / "large.npz", "--strategy", "conditional",
        "--risk", "0.08:0.1", "--epochs", 1, "-o", tmp_path / "pruned.pt",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    report = answer.body["report"]
    details = report["strategy"]["details"]
    assert report["data"]["splits"] == {"fit": 500, "select": 100, "report": 200, "calibrate": 200}
    assert (details["max_loss"], details["error_probability"]) == (0.08, 0.1)
    assert details["bound"] <= 0.08
    assert torch.jit.load(str(tmp_path / "pruned.pt")) is not None


def test_a_drop_is_bounded(files: Path, prune: Callable) -> None:
    answer = prune(
        "submit", files / "model.pt", "--validation", files / "large.npz", "--strategy", "static",
        "--max-accuracy-drop", 0.08, "--epochs", 1,
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    details = answer.body["report"]["strategy"]["details"]
    assert details["upper"] <= details["max_drop"] == 0.08
    assert details["samples"] == 750


@pytest.mark.parametrize(
    "flags",
    [
        ["--strategy", "conditional", "--risk", "0.02:0.1"],
        ["--strategy", "static", "--max-accuracy-drop", "0.02"],
    ],
)
def test_too_few_samples_are_told_how_many_it_takes(flags: list[str], files: Path, prune: Callable) -> None:
    answer = prune("submit", files / "model.pt", "--validation", files / "small.npz", *flags)
    assert answer.exit_code == 1
    assert (answer.body["state"], answer.body["reason"]) == ("FAILED", "TARGET_UNREACHABLE")
    assert "in the set) are needed" in answer.body["message"]
    assert answer.body["report"] is None


def test_the_server_lists_what_it_promises(server: RunningServer) -> None:
    with PruningClient(server.address) as client:
        known = {one.name: one for one in client.list_strategies()}
    assert "max_accuracy_drop" in known["static"].targets
    assert "risk" in known["conditional"].summary
