"""Sensitivity and measured latency in whole jobs, and what they ask of the data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import zoo
from helpers.evidence import evidence_of, planning_of
from helpers.runs import make_spec, make_workspace, run_process
from pruning_server.errors import Reason
from pruning_server.jobs.workspace import REPORT_FILE
from pruning_server.spec.request import (
    ChannelConstraints,
    FineTune,
    Granularity,
    Recovery,
    Scope,
    StaticStrategy,
    Target,
    TargetKind,
)
from pruning_server.worker.latency import latency_meter

RNG = np.random.default_rng(0)
IMAGES = {"inputs": RNG.normal(size=(120, 3, 8, 8)).astype(np.float32), "targets": np.arange(120) % 4}
WIDE = 384


class Block(nn.Module):
    """Two convolutions around which the stream is carried."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(12, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum."""
        return torch.relu(x + self.two(torch.relu(self.one(x))))


def residual_net() -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), Block(), Block(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(12, 4)
    )
    return zoo.scripted(net.eval())


def strategy(scope: Scope = Scope.GLOBAL, **channels: int) -> StaticStrategy:
    return StaticStrategy(granularity=Granularity.CHANNEL, scope=scope, channels=ChannelConstraints(**channels))


def target(kind: TargetKind, value: float) -> Target:
    return Target(kind=kind, value=value)


# --- Sensitivity ------------------------------------------------------------------------------------------------------


def test_a_job_by_sensitivity_meets_its_target_and_is_the_same_twice(prune: Callable) -> None:
    fields = {
        "strategy": strategy(Scope.SENSITIVITY),
        "target": target(TargetKind.MACS_RATIO, 0.6),
        "fine_tune": FineTune(epochs=0),
    }
    one, other = (prune(residual_net(), IMAGES, **fields) for _ in range(2))
    one.check()
    cost = one.report["cost"]
    assert cost["pruned"]["macs"] <= 0.6 * cost["original"]["macs"]
    assert any("sensitivity was measured in" in note for note in one.report["strategy"]["notes"])
    weights = [dict(ran.pruned.state_dict().items()) for ran in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_divergence_is_none_for_the_original_and_grows_with_what_goes(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, residual_net(), IMAGES, strategy=strategy())
    assert evidence.divergence({}) == pytest.approx(0, abs=1e-9)
    few, many = (evidence.divergence({1: tuple(range(count))}) for count in (2, 14))
    assert 0 < few < many
    kernel = "1.two.weight"
    same = evidence._tensor(kernel).detach().clone()
    assert evidence.divergence({}, updates={kernel: torch.zeros_like(same)}) > 0
    assert torch.equal(evidence._tensor(kernel), same)
    assert evidence.divergence({1: (0,)}, samples=4) != evidence.divergence({1: (0,)})


# --- Latency ----------------------------------------------------------------------------------------------------------


def wide_net() -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    layers = [nn.Linear(32, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU()]
    return zoo.scripted(nn.Sequential(*layers, nn.Linear(WIDE, 4)).eval())


ROWS = {"inputs": RNG.normal(size=(120, 32)).astype(np.float32), "targets": np.arange(120) % 4}


class WallClock:
    """The real time."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds."""
        return time.monotonic()


def test_the_meter_measures_the_shrunk_model(tmp_path: Path) -> None:
    planning = planning_of(tmp_path, wide_net(), ROWS, strategy=strategy())
    planning.story.clock = WallClock()
    meter = latency_meter(planning.folder.job(), planning.loaded, planning.observed, planning.folder, planning.story)
    everything_but_a_few = {0: tuple(range(WIDE - 8)), 1: tuple(range(WIDE - 8)), 2: tuple(range(WIDE - 8))}
    # A hundredth of the work; the margin is for a busy machine.
    assert meter(everything_but_a_few) < 0.7


def test_a_latency_ratio_is_reached_as_measured(tmp_path: Path) -> None:
    spec = make_spec(target(TargetKind.LATENCY_RATIO, 0.6), strategy=strategy(), recovery=Recovery(disabled=True))
    root = make_workspace(tmp_path / "run", wide_net(), ROWS, spec)
    code, messages, errors = run_process("run", root)
    assert code == 0, (messages[-1:], errors)
    report = json.loads((root / REPORT_FILE).read_bytes())
    assert any("latency_ratio was measured" in note for note in report["strategy"]["notes"])
    cost = report["cost"]
    assert cost["pruned"]["macs"] < 0.9 * cost["original"]["macs"]
    ratio = cost["pruned"]["latency_seconds"]["p50"] / cost["original"]["latency_seconds"]["p50"]
    # Measured anew; on a busy machine two measurements may differ.
    assert ratio < 0.85


def test_where_the_clock_sees_no_difference_it_is_refused(prune: Callable) -> None:
    """Here every run takes one tick."""
    failure = prune(residual_net(), IMAGES, strategy=strategy(), target=target(TargetKind.LATENCY_RATIO, 0.5)).failure
    assert failure.reason is Reason.TARGET_UNREACHABLE
    assert "no removal made it measurably faster" in failure.text


# --- Single weights ---------------------------------------------------------------------------------------------------


def test_a_parameter_ratio_of_single_weights_is_the_report_s(prune: Callable) -> None:
    ran = prune(
        residual_net(), IMAGES, strategy=StaticStrategy(), target=target(TargetKind.PARAMETER_RATIO, 0.3),
        fine_tune=FineTune(epochs=1, learning_rate=1e-3),
    )  # fmt: skip
    cost = ran.report["cost"]
    ratio = cost["pruned"]["nonzero_parameters"] / cost["original"]["nonzero_parameters"]
    assert 0.29 < ratio <= 0.3
