"""Criteria and patterns through the command line and a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.models import fitted, mlp, table_data
from helpers.running_server import RunningServer
from pruning_client import Granularity, PruningClient
from pruning_server.pruning import criteria


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    inputs, targets = table_data(120)
    torch.jit.script(fitted(mlp(), inputs, targets, epochs=5)).save(str(tmp_path / "model.pt"))
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=targets)
    return tmp_path / "model.pt", tmp_path / "data.npz"


def test_the_server_lists_every_criterion_and_what_it_can_be_asked_for(server: RunningServer) -> None:
    with PruningClient(server.address) as client:
        static = next(one for one in client.list_strategies() if one.name == "static")
    assert Granularity.NM in static.granularities
    assert [one.name for one in static.criteria] == list(criteria.names())
    for one in static.criteria:
        known = criteria.get(one.name)
        assert one.needs == known.needs.value
        assert [granularity.value for granularity in one.granularities] == [g.value for g in known.granularities]


def test_a_pattern_by_a_criterion_on_gradients(files: tuple[Path, Path], prune: Callable, tmp_path: Path) -> None:
    model, data = files
    answer = prune(
        "submit", model, "--validation", data, "--strategy", "static", "--granularity", "2:4", "--criterion", "taylor",
        "--epochs", 1, "-o", tmp_path / "pruned.pt", "--report", tmp_path / "report.json",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["strategy"]["nm_pattern"], report["strategy"]["criterion"]) == ("2:4", "taylor")
    kernels = [one for one in torch.jit.load(str(tmp_path / "pruned.pt")).state_dict().values() if one.dim() == 2]
    assert [kernel.shape[1] for kernel in kernels] == [8, 32]
    for kernel in kernels:
        assert bool(((kernel.unflatten(1, (-1, 4)) != 0).sum(dim=2) <= 2).all())


def test_a_criterion_for_channels_is_refused_for_weights_before_the_upload(
    files: tuple[Path, Path], prune: Callable, server: RunningServer
) -> None:
    model, data = files
    blobs = sorted(server.data_dir.rglob("*"))
    answer = prune(
        "submit", model, "--validation", data, "--strategy", "static", "--sparsity", 0.5, "--criterion", "fpgm"
    )  # fmt: skip
    assert answer.exit_code == 2
    assert "scores whole channels only" in answer.body["message"]
    assert sorted(server.data_dir.rglob("*")) == blobs
