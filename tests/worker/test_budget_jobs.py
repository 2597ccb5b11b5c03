"""Whole runs to a max_accuracy_drop: what is accepted is a bound on samples that the judged models had no part in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from helpers import zoo
from helpers.models import fitted, mlp, table_data
from helpers.runs import Ran, make_spec, make_workspace, run_here
from pruning_server.errors import Reason
from pruning_server.evaluation.drop import fewest_samples
from pruning_server.jobs.events import LogWritten, ProgressMade
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import FineTune, Granularity, Recovery, StaticStrategy, Target, TargetKind

RunJob = Callable[..., Ran]


def budget(value: float) -> Target:
    """A target."""
    return Target(kind=TargetKind.MAX_ACCURACY_DROP, value=value)


@pytest.fixture(scope="module", autouse=True)
def one_thread_for_fixtures() -> Iterator[None]:
    """Runs of this module's fixtures add in the same order as those of its tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> torch.jit.ScriptModule:
    """A small net that its inputs are not easy for."""
    return zoo.scripted(fitted(mlp(), *table_data(300), epochs=4))


@pytest.fixture(scope="module")
def table() -> dict[str, np.ndarray]:
    """A validation set with its own split."""
    inputs, targets = table_data(1200, seed=7)
    marks = np.repeat(np.array([0, 1, 2], np.uint8), [800, 150, 250])
    return {"inputs": inputs, "targets": targets, "split": np.random.default_rng(0).permutation(marks)}


@pytest.fixture(scope="module")
def ran(model: torch.jit.ScriptModule, table: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run that finds something, and not everything."""
    return run_here(make_workspace(tmp_path_factory.mktemp("drop") / "run", model, table, make_spec(budget(0.05))))


def same_values(one: Ran, other: Ran) -> bool:
    """Whether the delivered models hold the same numbers; names in the code of archives depend on what else was loaded."""
    ours, theirs = one.pruned.state_dict(), other.pruned.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_most_pruned_rung_within_the_budget_is_taken(ran: Ran) -> None:
    details = ran.report["strategy"]["details"]
    steps = details["steps"]
    accepted = [step for step in steps if step["accepted"]]
    assert accepted, "this data is meant to show a rung that is accepted"
    assert len(accepted) < len(steps) <= details["most_steps"] == 4, "... and one that is not"
    assert all((step["upper"] <= 0.05) == step["accepted"] for step in steps)
    most = max(accepted, key=lambda step: step["target"]["value"])
    assert (details["target"], details["drop"], details["upper"]) == (most["target"], most["drop"], most["upper"])
    assert details["drop"] < details["upper"] <= details["max_drop"] == 0.05
    assert ran.report["strategy"]["achieved_sparsity"] == pytest.approx(details["target"]["value"], abs=0.01)
    rejected = [step["target"]["value"] for step in steps if not step["accepted"]]
    assert min(rejected) > details["target"]["value"]


def test_the_report_tells_what_the_bound_rests_on(ran: Ran) -> None:
    report = ran.report
    details = report["strategy"]["details"]
    assert report["strategy"]["target"] == {"kind": "max_accuracy_drop", "value": 0.05}
    assert (details["samples"], details["folds"], details["method"]) == (950, 4, "tango")
    assert details["error_probability"] == pytest.approx(0.05 / 4)
    assert report["accuracy"]["samples"] == 250
    notes = [message.text for message in ran.messages if isinstance(message, LogWritten)]
    assert sum("at most" in note for note in notes) >= len(details["steps"])
    assert any("950 samples that they had no part in" in note for note in report["strategy"]["notes"])
    bar = [message.progress for message in ran.messages if isinstance(message, ProgressMade)]
    assert [one.fraction for one in bar] == sorted(one.fraction for one in bar)
    assert max(one.fraction for one in bar if one.phase is Phase.PLAN) > 0.3
    assert ran.check().max_relative_error <= 1e-5


def test_nothing_is_decided_on_report(
    ran: Ran, model: torch.jit.ScriptModule, table: dict[str, np.ndarray], prune: RunJob
) -> None:
    poisoned = table["targets"].copy()
    report = table["split"] == 2
    poisoned[report] = (poisoned[report] + 1) % 3
    other = prune(model, {**table, "targets": poisoned}, make_spec(budget(0.05)))
    assert other.report["strategy"]["details"] == ran.report["strategy"]["details"]
    assert same_values(other, ran)


def test_channels_go_too(prune: RunJob) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3))
    inputs, targets = table_data(600, seed=7)
    spec = make_spec(
        budget(0.08), strategy=StaticStrategy(granularity=Granularity.CHANNEL), fine_tune=FineTune(epochs=0)
    )
    ran = prune(zoo.scripted(fitted(net, *table_data(300), epochs=6)), {"inputs": inputs, "targets": targets}, spec)
    report = ran.report
    details = report["strategy"]["details"]
    assert details["target"]["kind"] == "macs_ratio"
    ratio = report["cost"]["pruned"]["macs"] / report["cost"]["original"]["macs"]
    assert ratio <= details["target"]["value"]
    assert report["verify"]["max_relative_error"] <= 1e-4


def test_a_regression_has_a_budget_of_r2(prune: RunJob) -> None:
    inputs, _ = table_data(400, seed=3)
    targets = inputs[:, :2].sum(axis=1, keepdims=True).astype(np.float32)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(torch.from_numpy(inputs)), torch.from_numpy(targets)).backward()
        optimizer.step()
    ran = prune(zoo.scripted(net), {"inputs": inputs, "targets": targets}, make_spec(budget(0.1)))
    details = ran.report["strategy"]["details"]
    assert ran.report["accuracy"]["metric"] == "r2"
    assert details["upper"] <= 0.1
    assert ran.report["accuracy"]["delta"] > -0.1


@pytest.mark.parametrize("drop", [0.02, 0.0])
def test_what_no_model_could_be_promised_is_declined_at_once(
    drop: float, model: torch.jit.ScriptModule, prune: RunJob
) -> None:
    inputs, targets = table_data(120)
    failure = prune(model, {"inputs": inputs, "targets": targets}, make_spec(budget(drop))).failure
    assert failure.reason is Reason.TARGET_UNREACHABLE
    assert failure.phase is Phase.PLAN
    if drop:
        needed = fewest_samples(drop, 0.05 / 4)
        assert failure.metadata == {"needed_samples": str(needed)}
        assert f"{needed} samples in fit and select" in failure.text
    else:
        assert "above 0" in failure.text


def test_what_loses_too_much_is_declined_with_the_nearest_promise(model: torch.jit.ScriptModule, prune: RunJob) -> None:
    inputs, targets = table_data(420, seed=9)
    spec = make_spec(
        budget(0.03),
        strategy=StaticStrategy(criterion="random"),
        recovery=Recovery(disabled=True),
        fine_tune=FineTune(),
    )
    failure = prune(model, {"inputs": inputs, "targets": targets}, spec).failure
    assert failure.reason is Reason.TARGET_UNREACHABLE
    assert float(failure.metadata["nearest"]) > 0.03
    assert f"{float(failure.metadata['nearest']):.4f}" in failure.text
    needed = failure.metadata.get("needed_samples")
    assert (needed is None) == (float(failure.metadata["drop"]) >= 0.03)
    assert needed is None or int(needed) > 315
