"""Jobs that go on from an earlier one, run by the worker itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.runs import Ran, make_spec, make_workspace, run_here
from pruning_server.errors import Reason
from pruning_server.jobs.workspace import EARLIER_MODEL_FILE
from pruning_server.spec.request import (
    DynamicStrategy,
    FineTune,
    Granularity,
    Recovery,
    StaticStrategy,
    Target,
    TargetKind,
    Task,
)
from pruning_server.worker.archives import ModelArchive
from pruning_server.worker.earlier import read_earlier
from pruning_server.worker.folder import RunFolder

SIZE = 6


class Net(nn.Module):
    """A convolution, normalization, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.hidden, self.head = nn.Linear(12, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean([2, 3])
        return self.head(torch.relu(self.hidden(x)))


def make(kind: str = "scripted") -> torch.jit.ScriptModule:
    torch.manual_seed(1)
    net = Net()
    with torch.no_grad():
        net(torch.randn(64, 1, SIZE, SIZE))
    net.eval()
    if kind == "traced":
        return torch.jit.trace(net, torch.randn(2, 1, SIZE, SIZE))
    return torch.jit.freeze(torch.jit.script(net)) if kind == "frozen" else torch.jit.script(net)


def data(model: torch.jit.ScriptModule, *, seed: int, shift: float = 0.0, labels: bool = True) -> dict[str, np.ndarray]:
    inputs = (np.random.default_rng(seed).normal(size=(160, 1, SIZE, SIZE)) + shift).astype(np.float32)
    with torch.no_grad():
        targets = model(torch.from_numpy(inputs)).argmax(1).numpy()
    return {"inputs": inputs, "targets": targets} if labels else {"inputs": inputs}


def channels(value: float) -> Target:
    return Target(kind=TargetKind.SPARSITY, value=value)


def run(root: Path, model: torch.jit.ScriptModule, arrays: dict[str, np.ndarray], **changes: Any) -> Ran:
    earlier = changes.pop("earlier", None)
    fields: dict[str, Any] = {
        "strategy": DynamicStrategy(granularity=Granularity.CHANNEL),
        "target": channels(0.4),
        "fine_tune": FineTune(epochs=2, learning_rate=1e-3),
    }
    return run_here(make_workspace(root, model, arrays, make_spec(**(fields | changes)), earlier=earlier))


def first_run(root: Path, model: torch.jit.ScriptModule, **changes: Any) -> Ran:
    fields: dict[str, Any] = {"strategy": StaticStrategy(granularity=Granularity.CHANNEL)}
    return run(root, model, data(model, seed=2), **(fields | changes))


@pytest.mark.parametrize("kind", ["scripted", "traced", "frozen"])
def test_a_job_starts_from_what_the_earlier_one_left(tmp_path: Path, kind: str) -> None:
    model = make(kind)
    before = first_run(tmp_path / "before", model)
    after = run(tmp_path / "after", model, data(model, seed=3), earlier=before.root)
    told = after.report["strategy"]["continued"]
    assert told["job_id"] == "earlier"
    lost = before.report["strategy"]["removed_channels"]
    assert told["kept_before"] == 36 - lost
    assert told["kept_before"] + told["regrown"] - told["removed"] == 36 - after.report["strategy"]["removed_channels"]
    assert after.report["strategy"]["details"]["schedule"] == "rigl"
    # Most of what went is still gone: it did not start anew.
    assert told["regrown"] <= lost / 2
    after.check()


def test_the_earlier_model_is_laid_over_the_original(tmp_path: Path) -> None:
    model = make()
    before = first_run(tmp_path / "before", model)
    root = make_workspace(tmp_path / "after", model, data(model, seed=3), make_spec(), earlier=before.root)
    folder = RunFolder(root)
    files = folder.job().earlier
    assert files is not None
    earlier = read_earlier(files, folder, ModelArchive.read(folder.path("in/model.pt"), "cpu"))
    original, pruned = model.state_dict(), before.pruned.state_dict()
    kept = {(one["name"], int(axis)): found for one in before.report["layers"] for axis, found in one["kept"].items()}
    rows, columns = kept["hidden.weight", 0], kept["hidden.weight", 1]
    full = earlier.values["hidden.weight"]
    torch.testing.assert_close(full[rows][:, columns], pruned["hidden.weight"], atol=0, rtol=0)
    gone = sorted(set(range(24)) - set(rows))
    assert gone
    torch.testing.assert_close(full[gone], original["hidden.weight"][gone], atol=0, rtol=0)
    assert bool(earlier.zeros["hidden.weight"][gone].all())
    assert not bool(earlier.zeros["hidden.weight"][rows][:, columns].any())


def test_weights_go_on_from_the_earlier_masks(tmp_path: Path) -> None:
    model = make()
    before = first_run(tmp_path / "before", model, strategy=StaticStrategy(), target=channels(0.5))
    weights = DynamicStrategy(granularity=Granularity.WEIGHT)
    after = run(
        tmp_path / "after", model, data(model, seed=3), strategy=weights, target=channels(0.6), earlier=before.root
    )
    told = after.report["strategy"]["continued"]
    prunable = after.report["strategy"]["prunable_weights"]
    # Channels that lost all of one side went as a whole, with what was left of the other.
    assert 0 < told["kept_before"] <= prunable - before.report["strategy"]["pruned_weights"]
    left = told["kept_before"] + told["regrown"] - told["removed"]
    assert left == prunable - after.report["strategy"]["pruned_weights"]
    assert after.report["strategy"]["achieved_sparsity"] == pytest.approx(0.6, abs=0.01)
    after.check()


def test_unlabelled_data_that_has_moved_is_enough_and_the_drift_is_told(tmp_path: Path) -> None:
    model = make()
    before = first_run(tmp_path / "before", model)
    new = data(model, seed=3, shift=1.0, labels=False)
    after = run(tmp_path / "after", model, new, earlier=before.root)
    assert after.report["data"]["task"] == Task.AGREEMENT
    drift = {one["name"]: one for one in after.report["strategy"]["continued"]["drift"]}
    assert drift["input.inputs.mean"]["drifted"]
    assert drift["input.inputs.mean"]["samples"] == [160, 160]
    assert not drift["input.inputs.spread"]["drifted"]
    assert "target.class" in before.report["data"]["statistics"]
    assert "target.class" not in drift
    assert any("has drifted" in getattr(message, "text", "") for message in after.messages)


def test_data_that_has_not_moved_has_not_drifted(tmp_path: Path) -> None:
    model = make()
    before = first_run(tmp_path / "before", model)
    after = run(tmp_path / "after", model, data(model, seed=4), earlier=before.root)
    assert not any(one["drifted"] for one in after.report["strategy"]["continued"]["drift"])


@pytest.mark.parametrize("value", [0.1, 0.4])
def test_a_target_below_what_is_gone_is_told(tmp_path: Path, value: float) -> None:
    """What was removed stays removed, so that the result is not what the request's number says."""
    model = make()
    before = first_run(tmp_path / "before", model)
    after = run(tmp_path / "after", model, data(model, seed=3), earlier=before.root, target=channels(value))
    strategy = after.report["strategy"]
    assert strategy["removed_channels"] >= before.report["strategy"]["removed_channels"]
    told = [note for note in strategy["notes"] if "continuing never removes less" in note]
    assert len(told) == (value == 0.1)
    assert all(f"{strategy['achieved_sparsity']:.4g} and not 0.1: job earlier" in note for note in told)


def test_a_chain_of_jobs_keeps_to_the_original(tmp_path: Path) -> None:
    model = make()
    ran = first_run(tmp_path / "0", model, target=channels(0.2))
    for number, sparsity in ((1, 0.3), (2, 0.45)):
        ran = run(tmp_path / str(number), model, data(model, seed=number), target=channels(sparsity), earlier=ran.root)
        ran.check()
    removed = ran.report["strategy"]["removed_channels"]
    assert removed / 36 == pytest.approx(0.45, abs=0.05)


def test_layers_that_are_left_alone_now_stay_as_the_earlier_job_left_them(tmp_path: Path) -> None:
    model = make()
    before = first_run(tmp_path / "before", model)
    after = run(tmp_path / "after", model, data(model, seed=3), earlier=before.root, exclude_layers=("head",))
    columns = before.pruned.head.weight.shape[1]
    assert columns < 24
    assert after.pruned.head.weight.shape[1] == columns
    after.check()


def test_without_training_the_controller_goes_on(tmp_path: Path) -> None:
    model = make()
    before = first_run(tmp_path / "before", model, recovery=Recovery(disabled=True), target=channels(0.1))
    strategy = DynamicStrategy(granularity=Granularity.CHANNEL, schedule="controller")
    after = run(
        tmp_path / "after",
        model,
        data(model, seed=3),
        strategy=strategy,
        target=None,
        fine_tune=FineTune(epochs=0),
        earlier=before.root,
    )
    assert after.report["strategy"]["continued"]["regrown"] == 0
    assert after.report["strategy"]["removed_channels"] >= before.report["strategy"]["removed_channels"]


@pytest.mark.parametrize("damage", ["another model", "no json", "another shape"])
def test_a_result_that_does_not_fit_is_refused(tmp_path: Path, damage: str) -> None:
    model = make()
    before = first_run(tmp_path / "before", model)
    root = make_workspace(
        tmp_path / "after",
        model,
        data(model, seed=3),
        make_spec(strategy=DynamicStrategy(granularity=Granularity.CHANNEL)),
        earlier=before.root,
    )
    if damage == "another model":
        torch.jit.script(nn.Linear(3, 2)).save(str(root / EARLIER_MODEL_FILE))
    elif damage == "no json":
        (root / "in" / "earlier.json").write_bytes(b"{}")
    else:
        report = (root / "in" / "earlier.json").read_text().replace('"kept":{"0":[', '"kept":{"0":[0,')
        (root / "in" / "earlier.json").write_text(report)
    failure = run_here(root).failure
    assert failure.reason is Reason.RESULT_REFUSED
    assert "Prune afresh" in failure.text
