"""Whole jobs that prune while they train: every schedule at every granularity that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from torch import nn

from helpers import zoo
from helpers.models import ConvNet, fitted, image_data, mlp, table_data
from helpers.runs import Ran, make_spec
from pruning_server.errors import Reason
from pruning_server.jobs.events import LogWritten, ProgressMade
from pruning_server.pruning import schedules
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import (
    ChannelConstraints,
    DynamicStrategy,
    Evaluation,
    FineTune,
    Granularity,
    NmPattern,
    PruningSpec,
    Scope,
    StaticStrategy,
    Target,
    TargetKind,
)

# Two for the schedule, two for recovery.
EPOCHS = FineTune(epochs=4, learning_rate=1e-3)
WIDE = Evaluation(margin=0.5)
TARGETS = {
    Granularity.WEIGHT: Target(kind=TargetKind.SPARSITY, value=0.6),
    Granularity.CHANNEL: Target(kind=TargetKind.MACS_RATIO, value=0.5),
    Granularity.HEAD: Target(kind=TargetKind.SPARSITY, value=0.5),
    Granularity.NM: None,
}
CASES = [(name, one) for name in schedules.names() for one in TARGETS if one in schedules.get(name).granularities]


class Attention(nn.Module):
    """Four heads over six steps of eight features: [N, 6, 8] in, [N, 3] logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16)
        self.out = nn.Linear(16, 8)
        self.last = nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.query(x).view(-1, 6, 4, 4).transpose(1, 2)
        k = self.key(x).view(-1, 6, 4, 4).transpose(1, 2)
        v = self.value(x).view(-1, 6, 4, 4).transpose(1, 2)
        mixed = torch.softmax(q @ k.transpose(-2, -1) / 2.0, -1) @ v
        return self.last(torch.relu(x + self.out(mixed.transpose(1, 2).reshape(-1, 6, 16))).flatten(1))


def sequences(samples: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Which third of the features is largest on average."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(samples, 6, 8)).astype(np.float32)
    return inputs, inputs[..., :6].reshape(samples, -1, 3).mean(axis=1).argmax(axis=1).astype(np.int64)


@pytest.fixture(scope="module")
def images() -> tuple[nn.Module, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    inputs, targets = image_data(120)
    return fitted(ConvNet(), inputs, targets, epochs=8), {"inputs": inputs, "targets": targets}


@pytest.fixture(scope="module")
def attending() -> tuple[nn.Module, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    inputs, targets = sequences()
    return fitted(Attention(), inputs, targets, epochs=8), {"inputs": inputs, "targets": targets}


def dynamic(schedule: str, granularity: Granularity, **fields: Any) -> DynamicStrategy:
    pattern = NmPattern(n=2, m=4) if granularity is Granularity.NM else None
    return DynamicStrategy(schedule=schedule, granularity=granularity, nm_pattern=pattern, **fields)


def without_target(schedule: str, granularity: Granularity, **fields: Any) -> PruningSpec:
    """A request that says nothing of how far."""
    return structs.replace(make_spec(strategy=dynamic(schedule, granularity), **fields), target=None)


def notes(ran: Ran) -> list[str]:
    return [message.text for message in ran.messages if isinstance(message, LogWritten)]


@pytest.mark.parametrize(("schedule", "granularity"), CASES)
def test_the_target_is_met_and_what_is_delivered_is_proven(
    schedule: str, granularity: Granularity, prune: Callable[..., Ran], request: pytest.FixtureRequest
) -> None:
    net, data = request.getfixturevalue("attending" if granularity is Granularity.HEAD else "images")
    # A pattern says itself how far; `make_spec` would give a sparsity in place of no target.
    spec = structs.replace(
        make_spec(strategy=dynamic(schedule, granularity), fine_tune=EPOCHS, evaluation=WIDE),
        target=TARGETS[granularity],
    )
    ran = prune(zoo.scripted(net), data, spec)
    report = ran.report
    ran.check()
    told, cost = report["strategy"], report["cost"]
    details = told["details"]
    assert (told["name"], told["granularity"], details["schedule"]) == ("dynamic", granularity.value, schedule)
    if granularity is Granularity.WEIGHT:
        assert told["pruned_weights"] == round(0.6 * told["prunable_weights"])
        assert report["verify"] is None
    elif granularity is Granularity.NM:
        kernel = ran.pruned.conv2.weight
        assert bool(((kernel.movedim(1, -1).reshape(-1, 4) == 0).sum(dim=1) >= 2).all())
    else:
        if granularity is Granularity.CHANNEL:
            assert cost["pruned"]["macs"] <= 0.5 * cost["original"]["macs"]
        else:
            assert told["removed_channels"] == told["removable_channels"] / 2
        assert report["verify"]["max_relative_error"] <= 1e-4
        assert report["verify"]["max_relative_error_randomized"] <= 1e-9
    # Recovery starts where the schedule ended: masked, or shrunk, it is the same model.
    start = next(rung for rung in told["recovery"]["select"] if rung["name"] == "nothing")
    last = details["steps"][-1]
    assert start["metric"] == pytest.approx(last["select_metric"], abs=0.02)
    assert start["loss"] == pytest.approx(last["select_loss"], rel=1e-3, abs=1e-4)
    assert details["epochs"] + told["recovery"]["epochs"] == 4
    assert any(text.startswith(f"Schedule {schedule}: ") for text in notes(ran))


@pytest.mark.parametrize("schedule", [one for one in schedules.names() if schedules.get(one).timing])
def test_the_report_follows_the_schedule(schedule: str, prune: Callable[..., Ran], images: Any) -> None:
    net, data = images
    ran = prune(
        zoo.scripted(net), data, strategy=dynamic(schedule, Granularity.WEIGHT), fine_tune=EPOCHS,
        target=TARGETS[Granularity.WEIGHT],
    )  # fmt: skip
    details = ran.report["strategy"]["details"]
    sparsity = [step["sparsity"] for step in details["steps"]]
    assert sparsity == sorted(sparsity)
    assert sparsity[-1] == pytest.approx(0.6, abs=1e-3)
    assert details["epochs"] == 2
    assert details["learning_rate"] == 1e-3
    judged = [step for step in details["steps"] if step["action"] in {"epoch", "reselect"}]
    assert len(judged) == 2
    assert all(step["select_metric"] is not None for step in judged)
    moved = {step["came_back"] > 0 for step in details["steps"]}
    assert moved == ({True, False} if schedule == "rigl" else {False})
    told = [m.progress for m in ran.messages if isinstance(m, ProgressMade) and m.progress.phase is Phase.PLAN]
    assert {one.epoch for one in told if one.epochs == 2} >= {1, 2}
    fractions = [one.fraction for one in told]
    assert fractions == sorted(fractions)
    # The bar moves between the ends of epochs, too.
    assert len({one.fraction for one in told if one.epoch == 1}) >= 2


@pytest.mark.parametrize("way", ["traced", "frozen"])
@pytest.mark.parametrize("granularity", [Granularity.WEIGHT, Granularity.CHANNEL])
def test_traced_and_frozen_archives_are_trained_while_they_are_pruned(
    way: str, granularity: Granularity, prune: Callable[..., Ran], images: Any
) -> None:
    net, data = images
    model = zoo.traced(net, torch.zeros(2, 1, 8, 8)) if way == "traced" else zoo.frozen(net)
    ran = prune(
        model, data, strategy=dynamic("rigl", granularity), target=TARGETS[granularity], fine_tune=EPOCHS
    )  # fmt: skip
    ran.check()
    told = ran.report["strategy"]
    start = next(rung for rung in told["recovery"]["select"] if rung["name"] == "nothing")
    assert start["loss"] == pytest.approx(told["details"]["steps"][-1]["select_loss"], rel=1e-3, abs=1e-4)
    assert told["details"]["gradient_steps"] > 0


@pytest.mark.parametrize("granularity", [Granularity.WEIGHT, Granularity.CHANNEL])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_pruned_in_a_wider_copy(
    dtype: torch.dtype, granularity: Granularity, prune: Callable[..., Ran]
) -> None:
    inputs, targets = table_data(160)
    net = fitted(mlp(16), inputs, targets).to(dtype)
    target = Target(kind=TargetKind.SPARSITY, value=0.5)
    ran = prune(
        zoo.scripted(net), {"inputs": inputs, "targets": targets}, strategy=dynamic("cubic", granularity), target=target,
        fine_tune=EPOCHS,
    )  # fmt: skip
    ran.check()
    assert ran.report["strategy"]["achieved_sparsity"] == 0.5
    assert all(tensor.dtype == dtype for tensor in ran.pruned.state_dict().values())


def test_a_seed_gives_the_same_model_again(prune: Callable[..., Ran], images: Any) -> None:
    net, data = images
    found = [
        prune(
            zoo.scripted(net), data, strategy=dynamic("rigl", Granularity.CHANNEL), fine_tune=FineTune(epochs=2, learning_rate=1e-3),
            target=TARGETS[Granularity.CHANNEL], seed=seed,
        ).report["model"]["pruned_sha256"]
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert found[0] == found[1]
    assert found[0] != found[2]


# --- The controller ---------------------------------------------------------------------------------------------------


def test_it_rolls_back_what_costs_too_much_and_goes_on_in_half_steps(prune: Callable[..., Ran]) -> None:
    inputs, targets = table_data(200)
    net, data = fitted(mlp(16), inputs, targets), {"inputs": inputs, "targets": targets}
    spec = without_target(
        "controller", Granularity.CHANNEL, fine_tune=FineTune(epochs=0), evaluation=Evaluation(margin=0.05)
    )
    ran = prune(zoo.scripted(net), data, spec)
    told = ran.report["strategy"]
    ran.check()
    details = told["details"]
    actions = [step["action"] for step in details["steps"]]
    assert "rollback" in actions
    assert "accept" in actions
    kept = 0.0
    for step in details["steps"]:
        good = step["select_metric"] >= details["original_metric"] - details["budget"] - 1e-6
        assert good == (step["action"] == "accept")
        assert step["sparsity"] > kept
        assert (step["came_back"] > 0) == (step["action"] == "rollback")
        kept = step["sparsity"] if good else kept
    assert told["achieved_sparsity"] == kept > 0
    assert told["target"] == {}
    # What was rolled back left nothing behind: recovery starts from the last state that was accepted.
    accepted = [step for step in details["steps"] if step["action"] == "accept"][-1]
    start = next(rung for rung in told["recovery"]["select"] if rung["name"] == "nothing")
    assert start["loss"] == pytest.approx(accepted["select_loss"], rel=1e-3, abs=1e-5)
    lines = [text for text in notes(ran) if text.startswith("Schedule controller: ")]
    assert len(lines) == len(actions)
    assert any("back to" in text for text in lines)


def test_at_the_target_the_whole_way_at_once_is_tried_and_the_better_one_stays(
    prune: Callable[..., Ran], images: Any
) -> None:
    net, data = images
    ran = prune(
        zoo.scripted(net), data, evaluation=Evaluation(margin=0.99), fine_tune=FineTune(epochs=0),
        strategy=dynamic("controller", Granularity.CHANNEL, scope=Scope.SENSITIVITY), target=TARGETS[Granularity.CHANNEL],
    )  # fmt: skip
    ran.check()
    told = ran.report["strategy"]
    *steps, last = told["details"]["steps"]
    stays = last["action"] == "at_once"
    lines = [text for text in notes(ran) if "the whole way at once" in text]
    assert [("and stays" in text) for text in lines] == [stays]
    best = min(steps[-1]["select_loss"], last["select_loss"]) if stays else last["select_loss"]
    start = next(rung for rung in told["recovery"]["select"] if rung["name"] == "nothing")
    # Whichever stayed is what recovery starts from.
    assert start["loss"] == pytest.approx(last["select_loss"], rel=1e-3, abs=1e-5)
    assert start["loss"] <= best * (1 + 1e-3) + 1e-5


def test_a_target_beyond_the_budget_fails_with_the_nearest_that_is_not(prune: Callable[..., Ran], images: Any) -> None:
    net, data = images
    fields = {"fine_tune": FineTune(epochs=0), "evaluation": Evaluation(margin=0.05)}
    strategy = dynamic("controller", Granularity.WEIGHT)
    far = Target(kind=TargetKind.SPARSITY, value=0.97)
    failure = prune(zoo.scripted(net), data, strategy=strategy, target=far, **fields).failure
    assert failure.reason is Reason.TARGET_UNREACHABLE
    nearest = float(failure.metadata["nearest"])
    assert 0 < nearest < 0.97
    assert f"{nearest:g}" in failure.text
    near = Target(kind=TargetKind.SPARSITY, value=nearest / 2)
    ran = prune(zoo.scripted(net), data, strategy=strategy, target=near, **fields)
    assert ran.report["strategy"]["achieved_sparsity"] == pytest.approx(nearest / 2, abs=1e-3)


def test_where_no_step_is_within_the_budget_nothing_is_delivered(prune: Callable[..., Ran]) -> None:
    class Balanced(nn.Module):
        """Without any of its two units a half of the answers is wrong."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            with torch.no_grad():
                self.first.weight.copy_(torch.eye(2))
                self.second.weight.copy_(torch.eye(2) * 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(120, 2)).astype(np.float32)
    spec = without_target("controller", Granularity.CHANNEL, fine_tune=FineTune(epochs=0))
    ran = prune(zoo.scripted(Balanced().eval()), {"inputs": inputs, "targets": inputs.argmax(axis=1)}, spec)
    assert ran.failure.reason is Reason.TARGET_UNREACHABLE
    assert "no step" in ran.failure.text


# --- What is refused, and what the other settings do ------------------------------------------------------------------


def test_a_model_without_gradients_is_refused_with_a_reason(prune: Callable[..., Ran]) -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return self.second(torch.relu(self.first(x)))

    inputs, targets = table_data(120)
    ran = prune(
        zoo.scripted(Rounded().eval()), {"inputs": inputs, "targets": targets}, fine_tune=EPOCHS,
        strategy=dynamic("cubic", Granularity.WEIGHT), target=TARGETS[Granularity.WEIGHT],
    )  # fmt: skip
    assert ran.failure.reason is Reason.NOTHING_PRUNABLE
    assert "static" in ran.failure.text


def test_floors_multiples_and_excluded_layers_hold(prune: Callable[..., Ran], images: Any) -> None:
    net, data = images
    ran = prune(
        zoo.scripted(net), data, fine_tune=EPOCHS, exclude_layers=("conv1",),
        strategy=dynamic("cubic", Granularity.CHANNEL, channels=ChannelConstraints(min_channels=6, multiple=3)),
        target=Target(kind=TargetKind.MACS_RATIO, value=0.7),
    )  # fmt: skip
    assert tuple(ran.pruned.conv1.weight.shape) == (8, 1, 3, 3)
    kept = ran.pruned.conv2.weight.shape[0]
    assert kept % 3 == 0
    assert kept >= 6


@pytest.mark.parametrize("criterion", ["taylor", "random", "auto"])
def test_other_criteria_score_the_model_as_it_is_then(criterion: str, prune: Callable[..., Ran], images: Any) -> None:
    net, data = images
    ran = prune(
        zoo.scripted(net), data, strategy=dynamic("cubic", Granularity.CHANNEL, criterion=criterion),
        fine_tune=FineTune(epochs=2, learning_rate=1e-3), target=TARGETS[Granularity.CHANNEL],
    )  # fmt: skip
    report = ran.report
    ran.check()
    assert report["cost"]["pruned"]["macs"] <= 0.5 * report["cost"]["original"]["macs"]
    assert (report["strategy"]["criterion_choice"] is not None) == (criterion == "auto")


def test_one_epoch_belongs_to_the_schedule(prune: Callable[..., Ran], images: Any) -> None:
    net, data = images
    ran = prune(
        zoo.scripted(net), data, strategy=dynamic("soft", Granularity.CHANNEL), fine_tune=FineTune(epochs=1, learning_rate=1e-3),
        target=TARGETS[Granularity.CHANNEL],
    )  # fmt: skip
    told = ran.report["strategy"]
    assert told["details"]["epochs"] == 1
    assert told["recovery"]["epochs"] == 0
    assert StaticStrategy().criterion == told["criterion"]
