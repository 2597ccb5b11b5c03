"""What does not fit ends as one failure that names the phase and says what to change."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers import zoo
from helpers.models import fitted, mlp, table_data
from helpers.runs import make_spec, make_workspace, run_here, sparsity, threshold
from pruning_server.errors import Reason
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import Loss, Preprocessing, Recovery, ScalarArgument, Task

INPUTS, TARGETS = table_data(120)


class Embeds(nn.Module):
    """Takes indices."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embedding(x).mean(dim=1)


class TwoInputs(nn.Module):
    """Takes two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.linear(x + y)


class Raises(nn.Module):
    """Raises on some rows only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x > 90).any()):
            raise ValueError("out of range")
        return self.linear(x)


class Several(nn.Module):
    """Returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.linear(x), "hidden": x}


class Labels(nn.Module):
    """Returns class numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).argmax(dim=1)


class Divides(nn.Module):
    """Gives NaN for some rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.where(x > 90, x * float("nan"), x))


class Bare(nn.Module):
    """Has no weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :3]


class VectorLoss(nn.Module):
    """Returns a vector."""

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output.sum(dim=1) - target.float()).square()


class RaisingLoss(nn.Module):
    """Does not fit."""

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.mm(output, target.float()).mean()


def with_value(value: float, name: str = "0.weight") -> torch.jit.ScriptModule:
    """A net with one such weight."""
    net = mlp()
    dict(net.named_parameters())[name].data.view(-1)[2] = value
    return zoo.scripted(net)


def changed(array: np.ndarray, row: int, value: float) -> np.ndarray:
    """A copy with one row replaced."""
    copy = array.copy()
    copy[row] = value
    return copy


def data(**changes: Any) -> dict[str, np.ndarray]:
    """A good dataset, changed; None leaves an array out."""
    arrays = {"inputs": INPUTS, "targets": TARGETS} | changes
    return {name: array for name, array in arrays.items() if array is not None}


ONE_HOT = np.eye(3, dtype=np.float32)[TARGETS]

CASES = {
    "no weights": (lambda: zoo.scripted(Bare()), data(), {}, Reason.NOTHING_PRUNABLE, "weight"),
    "all excluded": (lambda: zoo.scripted(mlp()), data(), {"exclude_layers": ("*",)}, Reason.NOTHING_PRUNABLE, "exclude"),
    "nan weight": (lambda: with_value(float("nan")), data(), {}, Reason.MODEL_NOT_FINITE, "0.weight"),
    "infinite weight": (lambda: with_value(float("inf"), "3.bias"), data(), {}, Reason.MODEL_NOT_FINITE, "3.bias"),
    "frozen nan": (
        lambda: zoo.frozen(nn.Sequential(nn.Linear(8, 3)).apply(lambda m: nn.init.constant_(m.weight, float("nan")) if isinstance(m, nn.Linear) else m)),
        data(), {}, Reason.MODEL_NOT_FINITE, "NaN",
    ),
    "other width": (lambda: zoo.scripted(mlp()), data(inputs=INPUTS[:, :5]), {}, Reason.MODEL_INPUT_MISMATCH, "[120, 5]"),
    "other rank": (lambda: zoo.scripted(mlp()), data(inputs=INPUTS[:, :, None, None]), {}, Reason.MODEL_INPUT_MISMATCH, "mat1"),
    "floats for indices": (lambda: zoo.scripted(Embeds()), data(), {}, Reason.MODEL_INPUT_MISMATCH, "float32"),
    "index too large": (
        lambda: zoo.scripted(Embeds()), data(inputs=np.full((120, 4), 99)), {}, Reason.MODEL_INPUT_MISMATCH, "range",
    ),
    "one input missing": (lambda: zoo.scripted(TwoInputs()), data(), {}, Reason.MODEL_INPUT_MISMATCH, "inputs_1"),
    "one input too many": (
        lambda: zoo.scripted(mlp()), {"inputs_0": INPUTS, "inputs_1": INPUTS, "targets": TARGETS}, {},
        Reason.MODEL_INPUT_MISMATCH, "2 arguments",
    ),
    "argument beyond": (
        lambda: zoo.scripted(mlp()), data(), {"arguments": (ScalarArgument(position=3, value=1),)},
        Reason.MODEL_INPUT_MISMATCH, "position 3",
    ),
    "mean of other length": (
        lambda: zoo.scripted(mlp()), data(), {"preprocessing": Preprocessing(mean=(1.0, 2.0), std=(1.0, 1.0))},
        Reason.INVALID_FIELD, "mean",
    ),
    "raises later": (
        lambda: zoo.scripted(Raises()), data(inputs=changed(INPUTS, 100, 99.0)), {}, Reason.MODEL_RUN_FAILED, "out of range",
    ),
    "nan later": (
        lambda: zoo.scripted(Divides()), data(inputs=changed(INPUTS, 101, 99.0)), {}, Reason.MODEL_NOT_FINITE, "sample 101",
    ),
    "a dict": (lambda: zoo.scripted(Several()), data(), {}, Reason.MODEL_OUTPUT_UNSUPPORTED, "'logits'"),
    "class numbers": (lambda: zoo.scripted(Labels()), data(), {}, Reason.MODEL_OUTPUT_UNSUPPORTED, "int64"),
    "label too large": (
        lambda: zoo.scripted(mlp()), data(targets=changed(TARGETS, 7, 3)), {}, Reason.DATASET_LABEL_OUT_OF_RANGE, "targets[7]",
    ),
    "label negative": (
        lambda: zoo.scripted(mlp()), data(targets=changed(TARGETS, 9, -100)), {}, Reason.DATASET_LABEL_OUT_OF_RANGE, "-100",
    ),
    "two samples": (
        lambda: zoo.scripted(mlp()), data(inputs=INPUTS[:2], targets=TARGETS[:2]), {}, Reason.DATASET_TOO_SMALL, "samples",
    ),
    "targets of another shape": (
        lambda: zoo.scripted(mlp()), data(targets=np.zeros((120, 7), np.float32)), {}, Reason.DATASET_TARGETS, "[N, 7]",
    ),
    "integers like the output": (
        lambda: zoo.scripted(mlp()), data(targets=ONE_HOT.astype(np.int64)), {}, Reason.DATASET_TARGETS, "--task",
    ),
    "no targets to classify": (
        lambda: zoo.scripted(mlp()), data(targets=None), {"task": Task.CLASSIFICATION}, Reason.DATASET_TARGETS, "targets",
    ),
    "mse of labels": (
        lambda: zoo.scripted(mlp()), data(), {"loss": Loss.MSE}, Reason.LOSS_UNSUITABLE, "[N, 3]",
    ),
    "bce of other values": (
        lambda: zoo.scripted(mlp()), data(targets=ONE_HOT * 2), {"loss": Loss.BCE_WITH_LOGITS}, Reason.DATASET_TARGETS, "0 or 1",
    ),
    "task against loss": (
        lambda: zoo.scripted(mlp()), data(), {"task": Task.CLASSIFICATION, "loss": Loss.MSE}, Reason.LOSS_UNSUITABLE, "cross_entropy",
    ),
    "everything pruned": (lambda: zoo.scripted(mlp()), data(), {"target": threshold(1000.0)}, Reason.EVERYTHING_PRUNED, "threshold"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, prune: Callable) -> None:
    model, arrays, fields, reason, word = CASES[name]
    failure = prune(model(), arrays, make_spec(**fields)).failure
    assert failure.reason is reason, failure
    assert word in failure.text, failure
    assert failure.phase in set(Phase)


@pytest.mark.parametrize("loss", [VectorLoss, RaisingLoss])
def test_a_loss_module_that_does_not_fit(loss: type[nn.Module], prune: Callable) -> None:
    failure = prune(zoo.scripted(mlp()), data(), loss_module=torch.jit.script(loss())).failure
    assert failure.reason is Reason.LOSS_UNSUITABLE
    assert "scalar" in failure.text


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (data(inputs=INPUTS.astype(np.float64)), Reason.MODEL_INPUT_MISMATCH),
        (data(inputs=INPUTS[:, :4]), Reason.MODEL_INPUT_MISMATCH),
        (data(targets=None), Reason.DATASET_TARGETS),
        (data(targets=ONE_HOT), Reason.DATASET_TARGETS),
        (data(targets=changed(TARGETS, 3, 77)), Reason.DATASET_LABEL_OUT_OF_RANGE),
    ],
    ids=["type", "shape", "no targets", "other targets", "label"],
)
def test_a_training_set_that_is_not_like_the_validation_set(
    train: dict[str, np.ndarray], reason: Reason, prune: Callable
) -> None:
    failure = prune(zoo.scripted(mlp()), data(), train=train).failure
    assert failure.reason is reason
    assert "training set" in failure.text


class Inverts(nn.Module):
    """Divides by what pruning removes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.small = nn.Linear(8, 1, bias=False)
        nn.init.constant_(self.small.weight, 1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.small(x)
        return self.linear(x) * (scale / scale)


def test_a_pruned_model_that_gives_nan_says_to_prune_less(prune: Callable) -> None:
    failure = prune(zoo.scripted(Inverts()), data(), target=sparsity(0.3)).failure
    assert (failure.reason, failure.phase) == (Reason.MODEL_NOT_FINITE, Phase.EVALUATE)
    assert "less should be pruned" in failure.text


def test_a_failure_leaves_no_result(prune: Callable) -> None:
    ran = prune(zoo.scripted(mlp()), data(targets=changed(TARGETS, 0, 50)))
    assert ran.failure.phase is Phase.OBSERVE
    assert list((ran.root / "out").iterdir()) == []


def test_an_archive_that_torch_does_not_load(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "run", zoo.scripted(mlp()), data(), make_spec())
    content = (root / "in" / "model.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("archive/extra/readme.txt", "not a model")
    for broken in (content[: len(content) // 2], (tmp_path / "other.zip").read_bytes()):
        (root / "in" / "model.pt").write_bytes(broken)
        failure = run_here(root).failure
        assert failure.reason is Reason.MODEL_NOT_LOADABLE
        assert failure.phase is Phase.LOAD


def test_infinities_in_a_buffer_are_no_weights(prune: Callable) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3)
            self.register_buffer("mask", torch.tensor([0.0, 0.0, float("-inf")]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.linear(x) + self.mask, dim=1)

    ran = prune(zoo.scripted(Masked()), data(targets=TARGETS % 2), target=sparsity(0.3))
    assert ran.report["data"]["task"] == "classification"
    assert any("probabilities" in note for note in ran.report["strategy"]["notes"])


def test_a_threshold_below_every_weight_is_no_error(prune: Callable) -> None:
    ran = prune(
        zoo.scripted(fitted(mlp(), INPUTS, TARGETS, epochs=2)), data(), target=threshold(1e-9),
        recovery=Recovery(disabled=True),
    )  # fmt: skip
    assert ran.report["strategy"]["pruned_weights"] == 0
    assert any("threshold" in note for note in ran.report["strategy"]["notes"])
