"""Channels removed by a real server, with samples for a second method, from the SDK."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from helpers.running_server import RunningServer
from pruning_client import Granularity, JobState, PruningClient, Sparsity, Static, Submission


class TwoWays(torch.nn.Module):
    """`compare` shares the first layer with forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 16)
        self.last = torch.nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))

    @torch.jit.export
    def compare(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.last((self.first(x) - self.first(y)).view(-1, 16))


def test_channels_go_from_all_methods(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.jit.script(TwoWays().eval()).save(str(tmp_path / "model.pt"))
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 60, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=one)
    np.savez(tmp_path / "pairs.npz", inputs_0=one, inputs_1=other)
    submission = Submission(
        model=tmp_path / "model.pt",
        validation=tmp_path / "data.npz",
        strategy=Static(granularity=Granularity.CHANNEL),
        target=Sparsity(0.5),
        method_samples={"compare": tmp_path / "pairs.npz"},
        epochs=1,
    )
    with RunningServer(tmp_path / "server") as server, PruningClient(server.address) as client:
        job = client.wait(client.submit(submission).job_id)
        assert job.state is JobState.SUCCEEDED, job
        client.download_artifact(job.result.model_artifact_id, tmp_path / "pruned.pt")
        client.download_artifact(job.result.report_artifact_id, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"forward", "compare"} <= set(report["verify"]["methods"])
    pruned = torch.jit.load(str(tmp_path / "pruned.pt"))
    assert pruned.first.weight.shape == (8, 6)
    x, y = torch.from_numpy(one), torch.from_numpy(other)
    assert pruned.compare(x, y).shape == (60, 3)
    assert torch.isfinite(pruned.compare(x, y)).all()
