"""`prune inspect` against a real server: real archives, a table, JSON, and answers that say what to give."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from helpers.archives import frozen, scripted, traced
from helpers.models import mlp
from helpers.processes import command_lines, wait_until
from helpers.running_server import RunningServer
from pruning_api.v1 import pruning_job_service_pb2 as api
from pruning_api.v1.pruning_job_service_pb2_grpc import PruningJobServiceStub
from pruning_client import ArtifactKind, PruningClient
from pruning_client.cli.inspect import percent, place, ranges
from pruning_client.cli.main import main


@pytest.mark.parametrize(
    ("content", "shape", "channels"), [(scripted, [1, 1, 8, 8], [8, 16]), (traced, [2, 8], [32]), (frozen, [1, 1, 8, 8], [8, 16])]
)  # fmt: skip
def test_json(
    prune: Callable[..., Any], tmp_path: Path, content: Callable[[], bytes], shape: list[int], channels: list[int]
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content())
    answer = prune("inspect", path)
    assert answer.exit_code == 0, answer.stderr
    assert set(answer.body) == {"model", "layers", "groups", "frozen"}
    assert answer.body["model"]["inputs"] == [{"shape": shape, "dtype": "float32"}]
    assert [group["channels"] for group in answer.body["groups"]] == channels
    assert answer.body["frozen"][-1]["reason"] == "it is an output of the model"
    net = torch.jit.load(io.BytesIO(content()))
    total = sum(parameter.numel() for parameter in net.parameters())
    if total:  # a frozen archive has constants instead
        assert sum(layer["parameters"] for layer in answer.body["layers"]) == total


def test_axes_of_any_length_are_looked_at_twice(prune: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.script(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 1)).eval()).save(str(path))
    answer = prune("inspect", path, "--input", "1x3x16?x16?")
    assert answer.exit_code == 0, answer.stderr
    assert answer.body["model"]["inputs"] == [{"shape": [1, 3, 16, 16], "dtype": "float32"}]
    assert "24 along axis 2 of input 0, 32 along axis 3" in answer.body["model"]["notes"][0]
    assert [group["channels"] for group in answer.body["groups"]] == [8]
    refused = prune("inspect", path, "--input", "1x3x16x16", "--dynamic-axes", "4")
    assert (refused.exit_code, refused.body["reason"]) == (2, "MODEL_INPUT_MISMATCH")


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(
    server: RunningServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, width: int
) -> None:  # fmt: skip
    path = tmp_path / "model.pt"
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    torch.jit.script(torch.nn.TransformerEncoder(layer, 1)).save(str(path))
    monkeypatch.setattr("pruning_client.cli.output._PIPE_WIDTH", width)
    assert main(["inspect", str(path), "--server", server.address]) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= width
    for word in ("Inputs  1x8x16:float32", "layers.0.linear2", "FROZEN, SINCE", "MACs per sample"):
        assert word in out


def test_wrong_inputs_and_wrong_files(prune: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.script(mlp()).save(str(path))
    answer = prune("inspect", path, "--input", "2x7")
    assert (answer.exit_code, answer.body["reason"]) == (2, "MODEL_INPUT_MISMATCH")
    assert "first meets a linear weight 32x8" in answer.body["message"]
    path.write_bytes(b"PK\3\4 but no model")
    answer = prune("inspect", path)
    assert answer.exit_code == 2
    assert answer.body["reason"].startswith("MODEL_")
    answer = prune("inspect", path, "--input", "2x7", "--samples", path)
    assert (answer.exit_code, answer.body["reason"]) == (2, "INVALID_FIELD")


class Endless(torch.nn.Module):
    """Never returns."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = 0
        while bool((x.sum() * 0 == 0).item()):
            count += 1
        return self.linear(x) + count


def test_two_at_once_and_a_call_that_is_cancelled(server: RunningServer, tmp_path: Path) -> None:
    torch.jit.script(Endless()).save(str(tmp_path / "endless.pt"))
    torch.jit.script(mlp(10)).save(str(tmp_path / "model.pt"))
    folder = f"inspect {server.data_dir}"
    with PruningClient(server.address) as client, grpc.insecure_channel(server.address) as channel:
        model = client.upload_artifact(tmp_path / "endless.pt", ArtifactKind.TORCHSCRIPT)
        request = api.InspectModelRequest(model={"artifact_id": model.artifact_id})
        call = PruningJobServiceStub(channel).InspectModel.future(request, timeout=100)
        wait_until(lambda: command_lines(folder), 30.0, "the process of the inspection")
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(client.inspect, tmp_path / "model.pt")
            if server_slots(client) > 1:
                assert other.result(timeout=60).groups[0].channels == 10
            assert command_lines(folder)
            assert call.cancel()
            assert other.result(timeout=60).groups[0].channels == 10
    wait_until(lambda: not command_lines(folder), 10.0, "the end of the process")
    wait_until(lambda: not list(server.data_dir.glob("jobs/inspections/*")), 10.0, "the end of its folder")


def server_slots(client: PruningClient) -> int:
    return next(device.slots for device in client.server_info().devices if device.name == "cpu")


def test_texts_of_the_table() -> None:
    assert ranges((0, 1, 2, 5, 7, 8)) == "0-2 5 7-8"
    assert ranges(()) == ""
    assert place('File "/a/torch/conv.py", line 560, in forward') == "conv.py:560"
    assert place('Serialized   File "code/__torch__/net.py", line 8, in f') == "net.py:8"
    assert place("net.py:7") == "net.py:7"
    assert [percent(share) for share in (1.0, 0.125, 0.000234, 0.0)] == ["100.0%", "12.5%", "0.023%", "0.0%"]
