"""Bad input gets a reason that says what to change; the server serves on."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers.models import mlp, save_scripted, table_data

REFUSED = 2
FAILED = 1


class NoForward(nn.Module):
    """Exports a method, but not forward."""

    @torch.jit.export
    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Returns its input."""
        return x


class NothingToPrune(nn.Module):
    """Has no weights at all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns three columns."""
        return x[:, :3]


class TwoInputs(nn.Module):
    """Takes two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        return self.linear(x + y)


class TakesIndices(nn.Module):
    """Takes integers only."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        return self.embedding(x).mean(dim=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A good model."""
    return save_scripted(mlp(), tmp_path / "model.pt")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A good dataset."""
    inputs, targets = table_data()
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=targets)
    return tmp_path / "data.npz"


def refuse(answer, codes: set[int], reasons: set[str], *words: str) -> None:
    """The call was turned down with one of the reasons, and the message has each of the words."""
    assert answer.exit_code in codes, answer.body
    assert answer.body["reason"] in reasons, answer.body
    for word in words:
        assert word.lower() in answer.body["message"].lower(), answer.body
    if answer.exit_code == REFUSED:
        assert answer.body["job"] is None
        assert answer.body["state"] is None


def bad_models() -> dict[str, tuple[Callable[[Path], object], set[str]]]:
    """Name -> (writes the file, accepted reasons)."""

    def truncated(path: Path) -> None:
        save_scripted(mlp(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def flipped(path: Path) -> None:
        save_scripted(mlp(), path)
        with zipfile.ZipFile(path) as archive:
            entry = max(archive.infolist(), key=lambda e: e.file_size)
        content = bytearray(path.read_bytes())
        content[entry.header_offset + 200] ^= 1
        path.write_bytes(content)

    def plain_zip(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")

    def infinite(path: Path) -> None:
        net = mlp()
        net[0].weight.data[0, 0] = float("nan")
        save_scripted(net, path)

    return {
        "text": (lambda p: p.write_text("this is not a model"), {"MODEL_NOT_A_ZIP"}),
        "empty": (lambda p: p.write_bytes(b""), {"MODEL_NOT_A_ZIP", "MODEL_TRUNCATED", "INVALID_FIELD"}),
        "truncated": (truncated, {"MODEL_TRUNCATED"}),
        "bit flip": (flipped, {"MODEL_CORRUPT"}),
        "plain zip": (plain_zip, {"MODEL_NOT_TORCHSCRIPT"}),
        "checkpoint": (lambda p: torch.save(mlp().state_dict(), p), {"MODEL_IS_CHECKPOINT"}),
        "whole module": (lambda p: torch.save(mlp(), p), {"MODEL_IS_CHECKPOINT"}),
        "old checkpoint": (
            lambda p: torch.save(mlp().state_dict(), p, _use_new_zipfile_serialization=False),
            {"MODEL_IS_CHECKPOINT", "MODEL_NOT_A_ZIP"},
        ),
        "no forward": (lambda p: save_scripted(NoForward(), p), {"MODEL_NO_FORWARD"}),
        "nothing prunable": (lambda p: save_scripted(NothingToPrune(), p), {"NOTHING_PRUNABLE"}),
        "non-finite": (infinite, {"MODEL_NOT_FINITE"}),
        "two inputs": (lambda p: save_scripted(TwoInputs(), p), {"MODEL_INPUT_MISMATCH"}),
        "other shape": (
            lambda p: save_scripted(nn.Sequential(nn.Linear(9, 3)), p),
            {"MODEL_INPUT_MISMATCH"},
        ),
        "other type": (lambda p: save_scripted(TakesIndices(), p), {"MODEL_INPUT_MISMATCH"}),
    }


@pytest.mark.parametrize("name", bad_models())
def test_bad_models(name: str, data: Path, prune: Callable, tmp_path: Path) -> None:
    write, reasons = bad_models()[name]
    write(tmp_path / "bad.pt")
    answer = prune(
        "submit", tmp_path / "bad.pt", "--validation", data, "--strategy", "static", "--sparsity", 0.5, "--timeout", 60
    )  # fmt: skip
    refuse(answer, {REFUSED, FAILED}, reasons)


def bad_datasets() -> dict[str, tuple[dict[str, np.ndarray], set[str]]]:
    """Name -> (arrays, accepted reasons)."""
    inputs, targets = table_data()
    nan = inputs.copy()
    nan[17, 3] = np.nan
    outside = targets.copy()
    outside[5] = 3
    negative = targets.copy()
    negative[5] = -1
    return {
        "other shape": ({"inputs": inputs[:, :5], "targets": targets}, {"MODEL_INPUT_MISMATCH"}),
        "other rank": ({"inputs": inputs[:, :, None, None], "targets": targets}, {"MODEL_INPUT_MISMATCH"}),
        "too many inputs": (
            {"inputs_0": inputs, "inputs_1": inputs, "targets": targets},
            {"MODEL_INPUT_MISMATCH"},
        ),
        "lengths differ": ({"inputs": inputs, "targets": targets[:-1]}, {"DATASET_LENGTHS_DIFFER"}),
        "nan": ({"inputs": nan, "targets": targets}, {"DATASET_NOT_FINITE"}),
        "label too large": ({"inputs": inputs, "targets": outside}, {"DATASET_LABEL_OUT_OF_RANGE"}),
        "label negative": ({"inputs": inputs, "targets": negative}, {"DATASET_LABEL_OUT_OF_RANGE"}),
        "empty": ({"inputs": inputs[:0], "targets": targets[:0]}, {"DATASET_EMPTY"}),
        "two samples": ({"inputs": inputs[:2], "targets": targets[:2]}, {"DATASET_TOO_SMALL"}),
        "no inputs": ({"x": inputs, "y": targets}, {"DATASET_KEYS"}),
        "objects": ({"inputs": np.array([{}] * 4), "targets": targets[:4]}, {"DATASET_DTYPE", "DATASET_UNREADABLE"}),
        "targets of another shape": (
            {"inputs": inputs, "targets": np.zeros((len(inputs), 7), dtype=np.float32)},
            {"LOSS_UNSUITABLE", "DATASET_TARGETS"},
        ),
    }


@pytest.mark.parametrize("name", bad_datasets())
def test_bad_datasets(name: str, model: Path, prune: Callable, tmp_path: Path) -> None:
    arrays, reasons = bad_datasets()[name]
    np.savez(tmp_path / "bad.npz", **arrays)
    answer = prune("submit", model, "--validation", tmp_path / "bad.npz", "--strategy", "static", "--sparsity", 0.5)
    refuse(answer, {REFUSED, FAILED}, reasons)


def test_a_dataset_that_is_none(model: Path, prune: Callable, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and then nothing")
    answer = prune("submit", model, "--validation", tmp_path / "bad.npz", "--strategy", "static", "--sparsity", 0.5)
    refuse(answer, {REFUSED}, {"DATASET_UNREADABLE"})


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--sparsity", "0.5", "--threshold", "0.1"], "threshold"),
        (["--threshold", "0"], "threshold"),
        (["--threshold", "-1"], "threshold"),
        (["--threshold", "nan"], "threshold"),
        (["--sparsity", "1"], "sparsity"),
        (["--sparsity", "-0.1"], "sparsity"),
        (["--sparsity", "1.5"], "sparsity"),
        (["--sparsity", "0.5", "--device", "tpu"], "device"),
        (["--sparsity", "0.5", "--device", "cuda:99"], "device"),
        (["--sparsity", "0.5", "--margin", "0"], "margin"),
        (["--sparsity", "0.5", "--criterion", "astrology"], "criterion"),
        (["--sparsity", "0.5", "--epochs", "-1"], "epochs"),
        (["--sparsity", "0.5", "--loss", "hope"], "loss"),
        ([], "target"),
    ],
)
def test_bad_flags(flags: list[str], word: str, model: Path, data: Path, prune: Callable) -> None:
    answer = prune("submit", model, "--validation", data, "--strategy", "static", *flags)
    assert answer.exit_code == REFUSED
    assert word in (answer.body.get("message", "") + answer.stderr).lower()


@pytest.mark.parametrize("flags", [["--output", "{}/no/such/folder/out.pt"], ["--report", "{}"]])
def test_an_output_path_that_cannot_be_written_stops_before_the_upload(
    flags: list[str], model: Path, data: Path, prune: Callable, server, tmp_path: Path
) -> None:
    blobs = sorted(server.data_dir.rglob("*"))
    name, path = flags
    answer = prune(
        "submit", model, "--validation", data, "--strategy", "static", "--sparsity", 0.5,
        "-o" if name == "--output" else name, path.format(tmp_path),
    )  # fmt: skip
    assert answer.exit_code == REFUSED
    assert sorted(server.data_dir.rglob("*")) == blobs


def test_a_threshold_that_zeroes_everything(model: Path, data: Path, prune: Callable) -> None:
    answer = prune("submit", model, "--validation", data, "--strategy", "static", "--threshold", 1000)
    refuse(answer, {FAILED}, {"EVERYTHING_PRUNED"}, "threshold")


def test_what_is_not_implemented_says_its_name(model: Path, data: Path, prune: Callable) -> None:
    flags = ("--granularity", "channel", "--threshold", 0.5)
    answer = prune("submit", model, "--validation", data, "--strategy", "static", *flags)
    refuse(answer, {REFUSED}, {"NOT_IMPLEMENTED"}, "threshold")


@pytest.mark.parametrize("flag", ["--macs-ratio", "--latency-ratio"])
def test_zeros_are_no_way_to_speed(flag: str, model: Path, data: Path, prune: Callable) -> None:
    answer = prune("submit", model, "--validation", data, "--strategy", "static", flag, 0.5)
    refuse(answer, {REFUSED}, {"INVALID_FIELD"}, "granularity", "channel", "sparsity")


def test_the_server_serves_on_and_nothing_hangs(model: Path, data: Path, prune: Callable) -> None:
    assert prune("submit", model, "--validation", data, "--strategy", "static", "--sparsity", 0.5).exit_code == 0
    states = {job["state"] for job in prune("jobs").body["jobs"]}
    assert states <= {"SUCCEEDED", "FAILED"}


def test_a_model_that_prints_and_loops_is_stopped_by_its_deadline(data: Path, prune: Callable, tmp_path: Path) -> None:
    class Endless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            i = 0
            while bool(x.shape[0] > 0):
                i += 1
                print("still here")
            return self.linear(x)

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Endless()), buffer)
    (tmp_path / "endless.pt").write_bytes(buffer.getvalue())
    answer = prune(
        "submit", tmp_path / "endless.pt", "--validation", data, "--strategy", "static", "--sparsity", 0.5,
        "--timeout", 5,
    )  # fmt: skip
    refuse(answer, {FAILED}, {"DEADLINE_EXCEEDED"})
