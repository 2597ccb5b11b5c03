"""Models that crash or never end, at a real server with its sandbox: each has its own failure, and the next job succeeds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from torch import nn

from helpers import sandboxing
from helpers.models import mlp, save_scripted, table_data
from helpers.processes import command_lines, wait_until
from helpers.running_server import RunningServer
from pruning_client.cli.main import main


class Dividing(nn.Module):
    """Divides the least integer by -1: SIGFPE."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = int((x.sum() * 0 + 1).item())
        return self.linear(x) + (-9223372036854775807 - one) // -one


class Endless(nn.Module):
    """Never returns."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = 0
        while bool((x.sum() * 0 == 0).item()):
            count += 1
        return self.linear(x) + count


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    sandboxing.needs_sandbox()
    flags = ("--max-attempts", "1", "--cpu-slots", "1", "--observe-timeout", "5")
    with RunningServer(tmp_path_factory.mktemp("server") / "data", *flags) as running:
        yield running


def submitted(
    server: RunningServer, folder: Path, net: nn.Module, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, Any]]:
    """`prune submit ... --json` of a job with this model; returns the exit code and the answer."""
    model, data = folder / "model.pt", folder / "data.npz"
    save_scripted(net, model)
    inputs, targets = table_data(60)
    np.savez(data, inputs=inputs, targets=targets)
    capsys.readouterr()
    code = main(
        ["submit", str(model), "--validation", str(data), "--strategy", "static", "--sparsity", "0.5", "--no-recovery",
         "--device", "cpu", "--json", "--server", server.address]
    )  # fmt: skip
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_costs_its_own_job_and_nothing_else(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for net, reason, words in (
        (Dividing(), "WORKER_SIGNAL", "SIGFPE"),
        (Endless(), "DEADLINE_EXCEEDED", "--observe-timeout"),
    ):
        code, answer = submitted(server, tmp_path, net, capsys)
        assert (code, answer["state"], answer["reason"]) == (1, "FAILED", reason)
        assert words in answer["message"]
        wait_until(lambda: command_lines(f"{server.data_dir}/jobs") == {}, 10.0, "the end of every worker")
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    code, answer = submitted(server, tmp_path, mlp(), capsys)
    assert (code, answer["state"]) == (0, "SUCCEEDED")
    assert [path for path in (server.data_dir / "jobs").rglob("*") if path.is_file()] == []
