"""The report of whole jobs: identical models differ in nothing, and a class that was broken is found first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from helpers.models import fitted, mlp, table_data
from helpers.runs import threshold
from pruning_server.spec.request import Evaluation, Recovery, Task, Verdict

NOTHING = threshold(1e-30)


def deltas(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every `delta` of a report's section, with where it stands."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "delta":
                yield path, value
            else:
                yield from deltas(value, f"{path}.{key}")
    elif isinstance(part, list):
        for place, value in enumerate(part):
            yield from deltas(value, f"{path}[{place}]")


def elements(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One label for each of 8 tokens."""
    return (labels[:, None] + (inputs > 0)) % 3


class Tokens(nn.Module):
    """[N, 8] in, [N, 3, 8] scores of every token out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).view(-1, 3, 8)


class Trimmed(nn.Module):
    """The first `width` outputs of a net, without an axis of length 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = mlp()
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)[:, : self.width].squeeze(1)


@pytest.mark.parametrize(
    "task",
    [
        Task.CLASSIFICATION, Task.MULTILABEL, Task.REGRESSION, Task.SEQUENCE_LABELLING, Task.EMBEDDING, Task.AGREEMENT,
        "binary", "grouped",
    ],
    ids=str,
)  # fmt: skip
def test_identical_models_differ_in_nothing(task: Task | str, prune: Callable) -> None:
    inputs, labels = table_data()
    data: dict[str, np.ndarray] = {"inputs": inputs, "targets": labels}
    net: nn.Module = Trimmed(1) if task == "binary" else Tokens() if task is Task.SEQUENCE_LABELLING else mlp()
    if task == "binary":
        data["targets"] = (labels == 0).astype(np.int64)
    elif task is Task.MULTILABEL:
        data["targets"] = (inputs[:, :3] > 0).astype(np.float32)
    elif task is Task.REGRESSION:
        data["targets"] = inputs[:, :3]
    elif task is Task.SEQUENCE_LABELLING:
        data["targets"] = elements(inputs, labels)
    elif task == "grouped":
        data["groups"] = np.arange(len(inputs)) // 3
    if task in {Task.EMBEDDING, Task.AGREEMENT}:
        del data["targets"]
    ran = prune(
        torch.jit.script(net.eval()), data, target=NOTHING, recovery=Recovery(disabled=True),
        task=task if isinstance(task, Task) else None, evaluation=Evaluation(required_verdict=Verdict.PASS),
    )  # fmt: skip
    report = ran.report
    found = dict(deltas({key: report[key] for key in ("accuracy", "generalization", "robustness")}))
    assert set(found.values()) <= {0.0, None}, {where: value for where, value in found.items() if value}
    general, accuracy = report["generalization"], report["accuracy"]
    assert general["verdict"] == "PASS"
    assert general["non_inferiority"]["p_value"] is None
    assert accuracy["mcnemar_p"] in {None, 1.0}
    assert all(row["p_corrected"] == 1 and not row["is_significant"] for row in accuracy["classes"])
    assert accuracy["churn"]["samples"] == []
    assert accuracy["churn"]["agreement"] in {None, 1.0}
    has_classes = task not in {Task.REGRESSION, Task.EMBEDDING}
    assert bool(accuracy["classes"]) == has_classes
    assert (accuracy["calibration"] is not None) == (has_classes and task is not Task.AGREEMENT)


class Rescaled(nn.Module):
    """A classifier of digits whose scores for one digit come from weights that are a hundred times smaller."""

    def __init__(self, small: int) -> None:
        super().__init__()
        self.first = nn.Linear(64, 24)
        self.last = nn.Linear(24, 10)
        self.register_buffer("scale", torch.ones(10))
        self.small = small

    def shrink(self) -> Rescaled:
        """Moves the factor from the weights to the scale; what is computed stays."""
        with torch.no_grad():
            self.last.weight[self.small] /= 100
            self.last.bias[self.small] /= 100
            self.scale[self.small] = 100
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x))) * self.scale


def test_a_class_that_a_threshold_broke_is_first(prune: Callable) -> None:
    broken = 6
    torch.manual_seed(0)
    inputs, targets = load_digits(return_X_y=True)
    inputs = (inputs / 16).astype(np.float32)
    net = fitted(Rescaled(broken), inputs[:600], targets[:600], epochs=12).shrink()
    largest = float(net.last.weight[broken].detach().abs().max())
    ran = prune(
        torch.jit.script(net), {"inputs": inputs[600:], "targets": targets[600:]},
        target=threshold(1.01 * largest), recovery=Recovery(disabled=True), exclude_layers=("first",),
    )  # fmt: skip
    report = ran.report
    first, *others = report["accuracy"]["classes"]
    assert (first["label"], first["is_significant"]) == (broken, True)
    assert first["interval"][1] < -0.3
    assert not any(row["is_significant"] and row["delta"] < 0 for row in others)
    churn, accuracy = report["accuracy"]["churn"], report["accuracy"]
    assert len(churn["right_to_wrong"]) == accuracy["right_to_wrong"] > 10
    lost = targets[600:][churn["right_to_wrong"]]
    assert (lost == broken).mean() > 0.9
    assert {row["row"] for row in churn["samples"]} <= set(churn["right_to_wrong"] + churn["wrong_to_right"])
    assert report["generalization"]["verdict"] == "FAIL"
    assert report["generalization"]["verdict_sentence"].startswith("FAIL: accuracy changed by -")
