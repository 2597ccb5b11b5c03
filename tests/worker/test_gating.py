"""Jobs with an inference gate, run by the worker itself on models whose cores are known to be good, or useless."""

from __future__ import annotations

import io
import math
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.runs import Ran, make_spec, make_workspace, run_here
from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph import ir
from pruning_server.graph.gating.core import find_core
from pruning_server.graph.gating.insertion import insert_gate
from pruning_server.graph.proof.pair import Call
from pruning_server.graph.structure import analyse
from pruning_server.jobs.events import LogWritten
from pruning_server.jobs.workspace import PRUNED_FILE
from pruning_server.spec.request import (
    DynamicStrategy,
    Evaluation,
    FineTune,
    Granularity,
    Recovery,
    StaticStrategy,
    Target,
    TargetKind,
)
from pruning_server.worker import pipeline
from pruning_server.worker.check import check_run
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.gating import add_gate
from pruning_server.worker.proof_gate import prove_core

SAMPLES = 1400
INPUTS = 16


class RealClock:
    """This machine's time, since a gate must be faster for real; it runs fast, so that measuring is over soon."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return 3 * time.perf_counter()


def wide_net(width: int, *, useful: int, kind: str = "scripted") -> torch.jit.ScriptModule:
    """An MLP of which `useful` hidden channels, strewn over each layer, do nearly everything; no training needed."""
    generator = torch.Generator().manual_seed(5)
    net = nn.Sequential(nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
    with torch.no_grad():
        for layer in (net[0], net[2], net[4]):
            spread = (2 / min(layer.in_features, useful)) ** 0.5
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * spread)
            layer.bias.zero_()
        for layer in (net[0], net[2]):
            rare = torch.randperm(width, generator=generator)[useful:]
            layer.weight[rare] *= 0.02
        # Every class is as likely as the others.
        net[4].bias.copy_(-net(torch.randn(512, INPUTS, generator=generator)).mean(dim=0))
    net.eval()
    if kind == "traced":
        return torch.jit.trace(net, torch.randn(2, INPUTS))
    script = torch.jit.script(net)
    return torch.jit.freeze(script) if kind == "frozen" else script


def data_for(model: torch.jit.ScriptModule, samples: int = SAMPLES) -> dict[str, np.ndarray]:
    inputs = np.random.default_rng(6).normal(size=(samples, INPUTS)).astype(np.float32)
    with torch.no_grad():
        return {"inputs": inputs, "targets": model(torch.from_numpy(inputs)).argmax(1).numpy()}


def gate_every_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static jobs get a gate too, so that nothing else happens to the model."""

    def gating_of(spec: Any, loaded: Any, observed: Any, folder: Any, story: Any) -> Callable[[Any], Any]:
        return lambda compacted: add_gate(loaded, observed, compacted, spec.evaluation.margin / 2, folder, story)

    monkeypatch.setattr(pipeline, "gating_of", gating_of)


def run(root: Path, model: torch.jit.ScriptModule, data: dict[str, np.ndarray], **changes: Any) -> Ran:
    fields: dict[str, Any] = {
        "strategy": StaticStrategy(granularity=Granularity.CHANNEL),
        "recovery": Recovery(disabled=True),
        "fine_tune": FineTune(),
        "evaluation": Evaluation(latency_batch_size=1),
        "target": Target(kind=TargetKind.MACS_RATIO, value=1.0),
    }
    spec = make_spec(**(fields | changes))
    return run_here(make_workspace(root / "run", model, data, spec), RealClock())


@pytest.mark.parametrize("kind", ["scripted", "traced", "frozen"])
def test_a_gate_skips_work_and_is_proven_in_another_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    gate_every_job(monkeypatch)
    model = wide_net(1280, useful=96, kind=kind)
    data = data_for(model)
    ran = run(tmp_path, model, data)
    report = ran.report
    gate = report["strategy"]["gate"]
    assert gate["applied"], gate["reason"]
    assert gate["skipped_share"] > 0.5
    assert gate["changed_share"] <= 0.02
    assert gate["latency_ratio"] < 1
    assert gate["changed_bound"] <= gate["budget"] == 0.005
    assert gate["proof_core"] <= 1e-4
    assert report["verify"]["max_relative_error"] <= 1e-4
    assert report["verify"]["max_relative_error_randomized"] <= 1e-9
    assert report["accuracy"]["delta"] >= -0.02
    assert check_run(RunFolder(ran.root)).max_relative_error <= 1e-5
    delivered = ran.pruned.eval()
    inputs = torch.from_numpy(data["inputs"])
    delivered.inference_gate_threshold = math.inf
    torch.testing.assert_close(delivered(inputs), model(inputs).detach(), atol=1e-4, rtol=0)
    assert {n: tuple(t.shape) for n, t in delivered.state_dict().items()} == {
        n: tuple(t.shape) for n, t in model.state_dict().items()
    }


def test_a_gate_on_a_shrunk_model_keeps_the_channels_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate_every_job(monkeypatch)
    model = wide_net(2048, useful=96)
    spec_target = Target(kind=TargetKind.MACS_RATIO, value=0.6)
    ran = run(tmp_path, model, data_for(model), target=spec_target)
    gate = ran.report["strategy"]["gate"]
    assert gate["applied"], gate["reason"]
    kept = {(one["name"], axis): found for one in ran.report["layers"] for axis, found in one["kept"].items()}
    rows = kept["2.weight", "0"]
    assert len(set(rows)) == len(rows) < 2048
    assert rows != sorted(rows)
    torch.testing.assert_close(
        ran.pruned.state_dict()["2.weight"], model.state_dict()["2.weight"][rows][:, kept["2.weight", "1"]]
    )
    assert ran.report["cost"]["pruned"]["macs"] == gate["whole_macs"]
    ran.check()


def test_masks_move_with_the_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate_every_job(monkeypatch)
    model = wide_net(1280, useful=96)
    half = Target(kind=TargetKind.SPARSITY, value=0.5)
    ran = run(tmp_path, model, data_for(model), strategy=StaticStrategy(), target=half)
    assert ran.report["strategy"]["gate"]["applied"], ran.report["strategy"]["gate"]["reason"]
    zeros = sum(int((tensor == 0).sum()) for tensor in ran.pruned.state_dict().values() if tensor.dim() > 1)
    assert zeros >= ran.report["strategy"]["pruned_weights"]
    ran.check()


def narrow(kind: str) -> tuple[torch.jit.ScriptModule, dict[str, np.ndarray], dict[str, Any]]:
    if kind == "small":
        model = wide_net(24, useful=24)
        return model, data_for(model), {}
    model = wide_net(256, useful=64)
    data = data_for(model, 200 if kind == "few samples" else 700)
    if kind == "regression":
        with torch.no_grad():
            data["targets"] = model(torch.from_numpy(data["inputs"])).numpy()
    return model, data, {}


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("small", "not be faster"),
        ("few samples", r"150 samples, and 460 are needed"),
        ("regression", "class scores"),
    ],
)
def test_a_gate_that_would_not_help_is_left_out_and_the_report_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, why: str
) -> None:
    gate_every_job(monkeypatch)
    model, data, changes = narrow(kind)
    ran = run(tmp_path, model, data, **changes)
    gate = ran.report["strategy"]["gate"]
    assert not gate["applied"]
    assert gate["latency_ratio"] is None
    assert pytest.approx(0.005) == gate["budget"]
    assert re.search(why, gate["reason"])
    assert not hasattr(ran.pruned, "inference_gate_threshold")
    notes = [message.text for message in ran.messages if isinstance(message, LogWritten)]
    assert any(note.startswith("No inference gate: ") for note in notes)
    ran.check()


def test_jobs_that_ask_for_no_gate_have_none(tmp_path: Path) -> None:
    model = wide_net(64, useful=16)
    ran = run(tmp_path, model, data_for(model, 200))
    assert ran.report["strategy"]["gate"] is None


def test_a_dynamic_job_gets_the_gate_that_it_asks_for(tmp_path: Path) -> None:
    model = wide_net(1024, useful=96)
    ran = run(
        tmp_path,
        model,
        data_for(model),
        strategy=DynamicStrategy(granularity=Granularity.CHANNEL, inference_gate=True),
        recovery=Recovery(),
        fine_tune=FineTune(epochs=2, learning_rate=1e-4),
        target=Target(kind=TargetKind.MACS_RATIO, value=0.9),
    )
    assert ran.report["strategy"]["gate"] is not None
    ran.check()


def test_a_file_whose_core_computes_something_else_does_not_pass_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate_every_job(monkeypatch)
    ran = run(tmp_path, model := wide_net(1280, useful=96), data_for(model))
    path = ran.root / PRUNED_FILE
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            # The first of them is the core's.
            archive.writestr(name, content.replace(b"torch.relu", b"torch.tanh", 1))
    with pytest.raises(JobFailureError) as caught:
        check_run(RunFolder(ran.root))
    assert caught.value.reason is Reason.VERIFICATION_FAILED


def test_a_core_that_is_not_the_model_without_the_other_channels_is_found_out() -> None:
    module = torch.jit.load(io.BytesIO(wide_net(64, useful=32).save_to_buffer())).eval()
    inputs = torch.randn(3, INPUTS, generator=torch.Generator().manual_seed(7))
    structure = analyse(ir.duplicate(module), {"forward": [(inputs[:2],), (inputs,)]}, batch_size=2)
    core, other = (find_core(structure, range(len(structure.groups)), share) for share in (0.25, 0.5))
    insert_gate(module, structure, core, 0.0, [0])
    calls = [Call("forward", (inputs,))]
    assert prove_core(lambda: ir.duplicate(module), structure.cut(core), calls, seed=0) <= 1e-4
    with pytest.raises(JobFailureError, match="core of the gated archive differs"):
        prove_core(lambda: ir.duplicate(module), structure.cut(other), calls, seed=0)
