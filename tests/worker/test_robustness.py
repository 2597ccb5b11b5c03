"""Harder inputs in real runs: every kind of input, and models that are not easy to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.models import ConvNet, fitted, image_data, mlp, table_data
from helpers.runs import Ran, make_spec, make_workspace, run_here, sparsity
from pruning_server.jobs.events import ProgressMade
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import Evaluation, FineTune, Layout, Preprocessing, Recovery, Robustness

QUICK = {"recovery": Recovery(disabled=True), "fine_tune": FineTune()}


def run(
    root: Path,
    module: nn.Module | torch.jit.ScriptModule,
    data: dict[str, np.ndarray],
    share: float = 0.5,
    **changes: Any,
) -> Ran:
    archive = module if isinstance(module, torch.jit.ScriptModule) else torch.jit.script(module.eval())
    spec = make_spec(sparsity(share), **(QUICK | changes))
    return run_here(make_workspace(root, archive, data, spec))


def robustness(ran: Ran) -> dict[str, Any]:
    found = ran.report["robustness"]
    assert found is not None
    return found


def check_curve(curve: dict[str, Any]) -> None:
    levels = [point["level"] for point in curve["levels"]]
    assert levels[0] == 0
    assert levels == sorted(set(levels))
    for point in curve["levels"]:
        assert point["delta"] == pytest.approx(point["pruned"] - point["original"], abs=1e-12)
        low, high = point["interval"]
        assert low <= point["delta"] + 1e-12
        assert point["delta"] <= high + 1e-12
    widths = np.diff(levels)
    for which in ("original", "pruned"):
        heights = np.array([point[which] for point in curve["levels"]])
        area = float((widths * (heights[1:] + heights[:-1]) / 2).sum() / levels[-1])
        assert curve[f"auc_{which}"] == pytest.approx(area, abs=1e-6)
    assert curve["interval"][0] <= curve["delta"] + 1e-12 <= curve["interval"][1] + 2e-12


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A small net on images."""
    inputs, targets = image_data(160)
    torch.manual_seed(3)
    net = fitted(ConvNet(), inputs, targets, epochs=4)
    return run(tmp_path_factory.mktemp("images") / "run", net, {"inputs": inputs, "targets": targets}, 0.8)


def test_images_get_every_curve(images: Ran) -> None:
    found = robustness(images)
    assert [curve["kind"] for curve in found["curves"]] == ["noise", "blur", "brightness", "contrast"]
    assert found["occlusion"]["kind"] == "area"
    for curve in (found["occlusion"], *found["curves"]):
        check_curve(curve)
    assert found["inputs"] == [{"name": "inputs", "kind": "image", "reason": None}]
    assert found["notes"] == []
    # The report split is small enough to be run whole, so that the unchanged inputs are those of the verdict.
    accuracy = images.report["accuracy"]
    assert found["samples"] == accuracy["samples"]
    clean = found["occlusion"]["levels"][0]
    assert (clean["original"], clean["pruned"]) == (accuracy["original"], accuracy["pruned"])
    assert found["passes"] == 1 + found["occlusion"]["positions"] * 5 + 3 + 3 + 2 + 2


def test_samples_are_told_so_that_jobs_can_be_compared(images: Ran) -> None:
    occlusion = robustness(images)["occlusion"]
    values = occlusion["sample_values"]
    assert len({len(column) for column in values.values()}) == 1
    assert values["rows"] == sorted(set(values["rows"]))
    assert np.mean(values["auc_pruned"]) - np.mean(values["auc_original"]) == pytest.approx(
        occlusion["delta"], abs=1e-5
    )
    assert np.mean(values["clean_pruned"]) == pytest.approx(occlusion["levels"][0]["pruned"], abs=1e-5)


def test_the_potential_of_one_job_is_about_its_own_ratio(images: Ran) -> None:
    report = images.report
    potential = report["robustness"]["prune_potential"]
    parameters = report["cost"]
    gone = 1 - parameters["pruned"]["nonzero_parameters"] / parameters["original"]["nonzero_parameters"]
    assert potential["ratios"] == [pytest.approx(gone, abs=1e-12)]
    curves = {"occlusion": report["robustness"]["occlusion"]} | {c["kind"]: c for c in report["robustness"]["curves"]}
    assert {name: value is not None for name, value in potential["shifted"].items()} == {
        name: curve["verdict"] == "PASS" for name, curve in curves.items()
    }
    assert (potential["clean"] is not None) == (report["generalization"]["verdict"] == "PASS")


def test_progress_moves_while_inputs_are_made_harder(images: Ran) -> None:
    told = [
        message.progress.fraction
        for message in images.messages
        if isinstance(message, ProgressMade) and message.progress.phase is Phase.EVALUATE
    ]
    assert told == sorted(told)
    assert len(set(told)) > 3


def test_the_same_job_says_the_same_again(images: Ran, tmp_path: Path) -> None:
    inputs, targets = image_data(160)
    torch.manual_seed(3)
    net = fitted(ConvNet(), inputs, targets, epochs=4)
    again = run(tmp_path / "run", net, {"inputs": inputs, "targets": targets}, 0.8)
    assert robustness(again) == robustness(images)


def test_a_model_that_nothing_was_taken_from_differs_nowhere(tmp_path: Path) -> None:
    inputs, targets = table_data()
    found = robustness(run(tmp_path / "run", mlp(), {"inputs": inputs, "targets": targets}, 0.0))
    for curve in (found["occlusion"], *found["curves"]):
        assert curve["delta"] == 0
        assert curve["verdict"] == "PASS"
        assert all(point["delta"] == 0 for point in curve["levels"])
    assert set(found["prune_potential"]["shifted"].values()) == {0.0}


def test_tables_and_bytes_in_pixel_space(tmp_path: Path) -> None:
    inputs, targets = table_data()
    table = robustness(run(tmp_path / "table", mlp(), {"inputs": inputs, "targets": targets}))
    assert (table["occlusion"]["kind"], [c["kind"] for c in table["curves"]]) == ("features", ["feature_noise"])
    pictures, labels = image_data(80)
    stored = np.clip(pictures * 40 + 120, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    preprocessing = Preprocessing(scale=1 / 40, mean=(3.0,), layout=Layout.NHWC)
    spread = run(tmp_path / "bytes", ConvNet(), {"inputs": stored, "targets": labels}, preprocessing=preprocessing)
    assert robustness(spread)["inputs"] == [{"name": "inputs", "kind": "image", "reason": None}]


class Reader(nn.Module):
    """Tokens [N, T] and a mask [N, T] in, logits [N, 3] out; a recurrent state that stays between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.cell = nn.GRU(6, 8, batch_first=True)
        self.linear = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        self.calls += 1
        seen = self.embedding(tokens) * mask.unsqueeze(2)
        return self.linear(self.cell(seen)[0][:, -1]) + 0.001 * self.calls


def test_tokens_are_masked_and_a_mask_is_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 11, (120, 12))
    data = {"inputs_0": tokens, "inputs_1": np.ones((120, 12), np.int64), "targets": rng.integers(0, 3, 120)}
    found = robustness(run(tmp_path / "run", Reader(), data))
    assert [one["kind"] for one in found["inputs"]] == ["tokens", None]
    assert found["inputs"][1]["reason"]
    assert (found["occlusion"]["kind"], [c["kind"] for c in found["curves"]]) == ("tokens", ["token_drop"])


class OneByOne(nn.Module):
    """Takes one float sequence [1, T, F] at a time, and adds noise of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        return self.linear(x.view(1, 20) + 0.1 * torch.randn(1, 20))


def test_a_random_model_of_one_batch_size_and_no_labels(tmp_path: Path) -> None:
    inputs = np.random.default_rng(1).normal(size=(80, 10, 2)).astype(np.float32)
    found = robustness(run(tmp_path / "run", OneByOne(), {"inputs": inputs}))
    assert (found["occlusion"]["kind"], found["curves"]) == ("steps", [])
    # Without labels the original is the truth, on harder inputs too.
    assert all(point["original"] == 1.0 for point in found["occlusion"]["levels"])


class Picky(nn.Module):
    """Refuses values above what it has seen, as some do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        assert float(x.abs().max()) < 4.5, "out of range"
        return self.linear(x)


def test_a_model_that_does_not_take_harder_inputs_still_gets_its_report(tmp_path: Path) -> None:
    inputs, targets = table_data()
    found = robustness(run(tmp_path / "run", Picky(), {"inputs": np.clip(inputs, -4, 4), "targets": targets}))
    assert found["occlusion"] is not None
    assert found["curves"] == []
    assert "feature_noise" in found["notes"][0]
    assert "out of range" in found["notes"][0]


class Volume(nn.Module):
    """[N, 2, 3, 4, 5] in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(120, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        return self.linear(x.flatten(1))


def test_unknown_inputs_are_left_alone_and_the_reason_is_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = {"inputs": rng.normal(size=(60, 2, 3, 4, 5)).astype(np.float32), "targets": rng.integers(0, 3, 60)}
    found = robustness(run(tmp_path / "run", Volume(), data))
    assert found["occlusion"] is None
    assert found["curves"] == []
    assert found["prune_potential"] is None
    assert "2x3x4x5" in found["inputs"][0]["reason"]


def test_single_samples_can_be_kept_out(tmp_path: Path) -> None:
    inputs, targets = table_data()
    asked = Evaluation(robustness=Robustness.OCCLUSION, include_samples=False)
    ran = run(tmp_path / "run", mlp(), {"inputs": inputs, "targets": targets}, evaluation=asked)
    assert robustness(ran)["occlusion"]["sample_values"] is None


@pytest.mark.parametrize("asked", [Robustness.NONE, Robustness.OCCLUSION])
def test_less_can_be_asked_for(tmp_path: Path, asked: Robustness) -> None:
    inputs, targets = table_data()
    ran = run(tmp_path / "run", mlp(), {"inputs": inputs, "targets": targets}, evaluation=Evaluation(robustness=asked))
    found = ran.report["robustness"]
    if asked is Robustness.NONE:
        assert found is None
    else:
        assert found["curves"] == []
        assert found["occlusion"]["positions"] == 5


@pytest.mark.parametrize("way", ["scripted", "traced"])
def test_a_dropout_rate_that_is_asked_for(tmp_path: Path, way: str) -> None:
    inputs, targets = table_data()
    net = fitted(mlp(), inputs, targets, epochs=2)
    archive = torch.jit.script(net) if way == "scripted" else torch.jit.trace(net, torch.from_numpy(inputs[:2]))
    losses = {}
    for rate in (None, 0.0, 0.9):
        ran = run(
            tmp_path / f"{rate}", archive, {"inputs": inputs, "targets": targets}, recovery=Recovery(),
            fine_tune=FineTune(epochs=1, learning_rate=1e-3, dropout=rate),
            evaluation=Evaluation(robustness=Robustness.NONE),
        )  # fmt: skip
        recovery = ran.report["strategy"]["recovery"]
        assert recovery["dropout"] == {"asked": rate, "layers": 1, "unset": 0}
        losses[rate] = recovery["history"][0]["train_loss"]
        # The model that comes back has its own rate again.
        assert "0.10000000000000001" in str(ran.pruned.inlined_graph)
    assert losses[0.9] > 1.05 * losses[0.0]


def test_a_rate_for_a_model_without_dropout_changes_nothing_and_says_so(tmp_path: Path) -> None:
    inputs, targets = table_data()
    ran = run(
        tmp_path / "run", nn.Sequential(nn.Linear(8, 3)), {"inputs": inputs, "targets": targets}, recovery=Recovery(),
        fine_tune=FineTune(epochs=1, learning_rate=1e-3, dropout=0.5),
        evaluation=Evaluation(robustness=Robustness.NONE),
    )  # fmt: skip
    strategy = ran.report["strategy"]
    assert strategy["recovery"]["dropout"]["layers"] == 0
    assert any("no dropout" in note for note in strategy["notes"])
