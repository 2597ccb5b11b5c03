"""A job that goes on from an earlier one with other data, and a gate that is asked for, through the CLI and a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from helpers.models import ConvNet, fitted, image_data, save_scripted
from helpers.running_server import RunningServer
from pruning_api.v1 import pruning_job_service_pb2, pruning_job_service_pb2_grpc, spec_pb2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained net, its data, and darker data without targets."""
    folder = tmp_path_factory.mktemp("images")
    torch.manual_seed(0)
    net = fitted(ConvNet(), *image_data(300, seed=1), epochs=6)
    save_scripted(net, folder / "model.pt", {})
    inputs, targets = image_data(240, seed=2)
    np.savez(folder / "data.npz", inputs=inputs, targets=targets)
    darker = (image_data(240, seed=3)[0] * 0.5).astype(inputs.dtype)
    np.savez(folder / "darker.npz", inputs=darker)
    return folder


def test_a_job_continues_from_another_on_unlabelled_data(
    files: Path, server: RunningServer, prune: Callable, tmp_path: Path
) -> None:
    first = prune(
        "submit", files / "model.pt", "--validation", files / "data.npz", "--strategy", "static", "--granularity",
        "channel", "--sparsity", 0.3, "--epochs", 1, "-o", tmp_path / "first.pt",
    )  # fmt: skip
    assert first.exit_code == 0, first.body
    second = prune(
        "submit", files / "model.pt", "--validation", files / "darker.npz", "--strategy", "dynamic", "--granularity",
        "channel", "--sparsity", 0.4, "--epochs", 2, "--continue-from", first.body["job"], "--inference-gate",
        "-o", tmp_path / "second.pt",
    )  # fmt: skip
    assert second.exit_code == 0, second.body
    strategy = second.body["report"]["strategy"]
    told = strategy["continued"]
    assert told["job_id"] == first.body["job"]
    lost = first.body["report"]["strategy"]["removed_channels"]
    assert told["removed"] - told["regrown"] == strategy["removed_channels"] - lost
    assert any(one["drifted"] and one["name"].startswith("input.") for one in told["drift"])
    assert second.body["report"]["data"]["task"] == "agreement"
    # Without class numbers nothing says that the outputs are scores.
    assert not strategy["gate"]["applied"]
    assert "class scores" in strategy["gate"]["reason"]
    torch.jit.load(str(tmp_path / "second.pt"))
    _without_a_model(server, first.body["job"])


def _without_a_model(server: RunningServer, job_id: str) -> None:
    """On the wire the model may be left out: it is the earlier job's."""
    with grpc.insecure_channel(server.address) as channel:
        jobs = pruning_job_service_pb2_grpc.PruningJobServiceStub(channel)
        earlier = jobs.GetPruningJob(pruning_job_service_pb2.GetPruningJobRequest(job_id=job_id)).job
        spec = spec_pb2.PruningSpec(validation=earlier.spec.validation, sparsity=0.5)
        spec.dynamic.granularity = spec_pb2.GRANULARITY_CHANNEL
        spec.dynamic.continue_from_job_id = job_id
        request = pruning_job_service_pb2.CreatePruningJobRequest(spec=spec, validate_only=True)
        found = jobs.CreatePruningJob(request).job.spec
    assert found.model.artifact_id == earlier.spec.model.artifact_id
    assert found.dynamic.continue_from_job_id == job_id


def test_a_job_that_is_not_there_is_named(files: Path, prune: Callable) -> None:
    unknown = prune(
        "submit", files / "model.pt", "--validation", files / "data.npz", "--strategy", "dynamic", "--granularity",
        "channel", "--sparsity", 0.4, "--continue-from", "no-such-job",
    )  # fmt: skip
    assert unknown.exit_code != 0
    assert "no job 'no-such-job'" in json.dumps(unknown.body) + unknown.stderr
