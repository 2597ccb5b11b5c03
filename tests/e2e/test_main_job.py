"""The main job, end to end: a file goes in through the CLI, and comes back pruned, fine-tuned and judged."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers.models import ConvNet, fitted, image_data, mlp, save_scripted, save_traced, table_data
from pruning_client import JobState, PruningClient, Sparsity, Static, Submission

REPORT_KEYS = [
    "schema_version", "job", "model", "data", "strategy", "cost", "accuracy", "generalization", "robustness", "verify",
    "layers", "frozen", "timings", "provenance",
]  # fmt: skip
PHASES = {"LOAD", "OBSERVE", "BASELINE", "PLAN", "PRUNE", "RECOVER", "VERIFY", "EVALUATE", "EXPORT"}


@pytest.fixture(scope="module")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained convolutional net, scripted and traced, and its data."""
    folder = tmp_path_factory.mktemp("images")
    torch.manual_seed(0)
    net = fitted(ConvNet(), *image_data(300, seed=1), epochs=8)
    save_scripted(net, folder / "scripted.pt", {"labels.txt": "low\nmid\nhigh", "config/é.bin": "ä"})
    save_traced(net, torch.zeros(2, 1, 8, 8), folder / "traced.pt")
    inputs, targets = image_data(300, seed=2)
    np.savez(folder / "data.npz", inputs=inputs, targets=targets)
    inputs, targets = image_data(100, seed=1)
    np.savez(folder / "train.npz", inputs=inputs, targets=targets)
    return folder


def zeros_by_name(path: Path, names: list[str]) -> dict[str, int]:
    """Zeros in each named tensor of an archive."""
    tensors = torch.jit.load(str(path)).state_dict()
    return {name: int((tensors[name] == 0).sum()) for name in names}


@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_sparsity_is_exact_and_the_report_is_whole(
    kind: str, image_files: Path, prune: Callable, tmp_path: Path
) -> None:
    out, report_path = tmp_path / "pruned.pt", tmp_path / "report.json"
    answer = prune(
        "submit", image_files / f"{kind}.pt", "--validation", image_files / "data.npz", "--train",
        image_files / "train.npz", "--strategy", "static", "--sparsity", 0.7, "-o", out, "--report", report_path,
    )  # fmt: skip
    assert (answer.exit_code, answer.body["state"]) == (0, "SUCCEEDED"), answer.body
    report = json.loads(report_path.read_text())
    assert answer.body["report"] == report
    assert sorted(report) == sorted(REPORT_KEYS)
    assert set(report["timings"]) >= PHASES

    prunable = sum(int(np.prod(layer["shape_before"])) for layer in report["layers"])
    counts = zeros_by_name(out, [layer["name"] for layer in report["layers"]])
    expected = round(0.7 * prunable)
    assert sum(counts.values()) == expected == report["strategy"]["pruned_weights"]
    for layer in report["layers"]:
        assert counts[layer["name"]] == round(layer["sparsity"] * np.prod(layer["shape_before"]))
    assert not any("bias" in name or name.startswith("bn") for name in counts)

    assert report["verify"] is None
    assert report["data"]["splits"] == {"fit": 180, "select": 45, "report": 75} | {
        k: v for k, v in report["data"]["splits"].items() if k == "calibrate"
    }
    accuracy = report["accuracy"]
    assert accuracy["samples"] == 75
    assert accuracy["delta"] == pytest.approx(accuracy["pruned"] - accuracy["original"], abs=1e-12)
    assert accuracy["interval"][0] <= accuracy["delta"] <= accuracy["interval"][1]
    assert 0 <= accuracy["mcnemar_p"] <= 1
    low, high, margin = *accuracy["interval"], report["generalization"]["margin"]
    verdict = "PASS" if low > -margin else "FAIL" if high < -margin else "INCONCLUSIVE"
    assert report["generalization"]["verdict"] == verdict
    assert report["generalization"]["gap_pruned"] is not None
    original, pruned = report["cost"]["original"], report["cost"]["pruned"]
    assert original["parameters"] == pruned["parameters"]
    assert original["nonzero_parameters"] - pruned["nonzero_parameters"] == expected
    assert pruned["bytes"] == out.stat().st_size < original["bytes"] == (image_files / f"{kind}.pt").stat().st_size
    # Convolutions 8*9*64 + 16*72*16 and the linear layer 256*3; a bias costs no MAC.
    assert original["macs"] == 8 * 9 * 64 + 16 * 72 * 16 + 256 * 3
    assert 0 < original["latency_seconds"]["p50"] <= original["latency_seconds"]["p95"]
    assert report["model"]["pruned_sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()


def test_the_pruned_archive_is_a_drop_in_replacement(image_files: Path, prune: Callable, tmp_path: Path) -> None:
    out = tmp_path / "pruned.pt"
    answer = prune(
        "submit", image_files / "scripted.pt", "--validation", image_files / "data.npz", "--strategy", "static",
        "--sparsity", 0.5, "-o", out, "--epochs", 1,
    )  # fmt: skip
    assert answer.exit_code == 0, answer.body
    files = {"labels.txt": "", "config/é.bin": ""}
    before = torch.jit.load(str(image_files / "scripted.pt"))
    after = torch.jit.load(io.BytesIO(out.read_bytes()), _extra_files=files)
    assert files == {"labels.txt": b"low\nmid\nhigh", "config/é.bin": "ä".encode()}
    assert [(n, t.shape, t.dtype) for n, t in before.state_dict().items()] == [
        (n, t.shape, t.dtype) for n, t in after.state_dict().items()
    ]
    assert before.training == after.training
    assert after(torch.zeros(5, 1, 8, 8)).shape == (5, 3)
    assert after.train()(torch.zeros(5, 1, 8, 8)).requires_grad
    with zipfile.ZipFile(out) as archive:
        assert any(entry.compress_type == zipfile.ZIP_DEFLATED for entry in archive.infolist())


def test_threshold_zeroes_exactly_the_small_weights(prune: Callable, tmp_path: Path) -> None:
    inputs, targets = table_data()
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=targets)
    net = fitted(mlp(), inputs, targets, epochs=5)
    threshold = float(net[0].weight.detach().abs().median())
    save_traced(net, torch.zeros(2, 8), tmp_path / "model.pt")
    answer = prune(
        "submit", tmp_path / "model.pt", "--validation", tmp_path / "data.npz", "--strategy", "static", "--threshold",
        threshold, "--no-recovery", "-o", tmp_path / "pruned.pt",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.body
    pruned = torch.jit.load(str(tmp_path / "pruned.pt"))
    kept = {layer["name"]: layer["kept"] for layer in answer.body["report"]["layers"]}
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            if name.endswith("weight"):
                tensor.masked_fill_(tensor.abs() < threshold, 0.0)
                assert torch.equal(pruned.state_dict()[name], only(tensor, kept[name])), name
        # Units that lost every weight went as a whole; what they passed on is in the next bias.
        first = net.state_dict()["0.weight"]
        alive = set(kept["0.weight"].get("0", range(len(first))))
        assert not first[[unit for unit in range(len(first)) if unit not in alive]].any()
        x = torch.from_numpy(inputs).float()
        torch.testing.assert_close(pruned(x), net.eval()(x), rtol=0, atol=1e-5)


def only(tensor: torch.Tensor, kept: dict[str, list[int]]) -> torch.Tensor:
    """What stays of a tensor, by axis."""
    for axis, places in kept.items():
        tensor = tensor.index_select(int(axis), torch.tensor(places))
    return tensor


def test_the_same_seed_gives_the_same_bytes(image_files: Path, prune: Callable, tmp_path: Path) -> None:
    hashes = set()
    for run in range(2):
        out = tmp_path / f"{run}.pt"
        answer = prune(
            "submit", image_files / "scripted.pt", "--validation", image_files / "data.npz", "--strategy", "static",
            "--sparsity", 0.6, "--seed", 7, "--epochs", 2, "-o", out,
        )  # fmt: skip
        assert answer.exit_code == 0, answer.body
        hashes.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(hashes) == 1


class Huber(nn.Module):
    """A caller's own loss."""

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns a scalar."""
        return nn.functional.huber_loss(output, target)


@pytest.mark.parametrize("loss", ["mse", "l1", "bce_with_logits", "module"])
def test_other_losses(loss: str, prune: Callable, tmp_path: Path) -> None:
    inputs, targets = table_data()
    floats = np.eye(3, dtype=np.float32)[targets]
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=floats)
    save_scripted(fitted(mlp(), inputs, targets, epochs=5), tmp_path / "model.pt")
    save_scripted(Huber(), tmp_path / "loss.pt")
    answer = prune(
        "submit", tmp_path / "model.pt", "--validation", tmp_path / "data.npz", "--strategy", "static", "--sparsity",
        0.5, "--loss", tmp_path / "loss.pt" if loss == "module" else loss, "--epochs", 2,
        *(["--task", "regression"] if loss == "module" else []),
    )  # fmt: skip
    assert (answer.exit_code, answer.body["state"]) == (0, "SUCCEEDED"), answer.body


def test_without_targets_agreement_with_the_original_is_judged(prune: Callable, tmp_path: Path) -> None:
    inputs, targets = table_data()
    np.savez(tmp_path / "data.npz", inputs=inputs)
    save_scripted(fitted(mlp(), inputs, targets, epochs=5), tmp_path / "model.pt")
    answer = prune(
        "submit", tmp_path / "model.pt", "--validation", tmp_path / "data.npz", "--strategy", "static", "--sparsity", 0.3
    )  # fmt: skip
    assert answer.exit_code == 0, answer.body
    assert answer.body["report"]["accuracy"]["original"] == 1.0


class TwoOutputs(nn.Module):
    """Returns features and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns both by name."""
        return {"input": x, "logits": self.body(x)}


def test_a_named_part_of_the_output_is_judged(server, tmp_path: Path) -> None:
    inputs, targets = table_data()
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=targets)
    save_scripted(TwoOutputs(), tmp_path / "model.pt")
    submission = Submission(
        tmp_path / "model.pt", tmp_path / "data.npz", Static(), Sparsity(0.3), output_selector="logits", epochs=1
    )
    with PruningClient(server.address) as client:
        job = client.wait(client.submit(submission).job_id)
        assert job.state is JobState.SUCCEEDED, job.failure
        assert client.report(job)["accuracy"]["samples"] == 60


def test_a_missed_verdict_fails_the_job_and_keeps_the_model(prune: Callable, tmp_path: Path) -> None:
    inputs, targets = table_data()
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=targets)
    save_scripted(fitted(mlp(), inputs, targets), tmp_path / "model.pt")
    answer = prune(
        "submit", tmp_path / "model.pt", "--validation", tmp_path / "data.npz", "--strategy", "static", "--sparsity",
        0.97, "--no-recovery", "--require-verdict", "PASS", "-o", tmp_path / "pruned.pt",
    )  # fmt: skip
    assert (answer.exit_code, answer.body["state"]) == (1, "FAILED"), answer.body
    assert answer.body["reason"] == "VERDICT_NOT_REACHED"
    assert prune("fetch", answer.body["job"], "-o", tmp_path / "again.pt").exit_code == 0
    assert torch.jit.load(str(tmp_path / "again.pt"))(torch.zeros(1, 8)).shape == (1, 3)
