"""Every criterion on every kind of model, with the caller's real data; and whole jobs by some of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from msgspec import structs
from torch import nn

from helpers import zoo
from helpers.evidence import planning_of
from helpers.models import ConvNet, fitted, image_data
from helpers.runs import make_spec
from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.modules import find_weights, get_tensor
from pruning_server.pruning import criteria
from pruning_server.pruning.criteria.base import Needs
from pruning_server.pruning.values import PruningPlan, StructuralPlan
from pruning_server.spec.request import (
    ChannelConstraints,
    FineTune,
    Granularity,
    NmPattern,
    Recovery,
    StaticStrategy,
    Target,
    TargetKind,
)
from pruning_server.worker.planning import Planning, make_plan

SCORING = [name for name in criteria.names() if criteria.get(name).needs is not Needs.TRIALS]
FOR_WEIGHTS = [name for name in SCORING if Granularity.WEIGHT in criteria.get(name).granularities]
HALF = Target(kind=TargetKind.SPARSITY, value=0.5)
RNG = np.random.default_rng(0)
ROWS = 64


class Convolutions(nn.Module):
    """Normalized, residual, depthwise, grouped and transposed convolutions: [N, 3, 8, 8] in, [N, 4] out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.back = nn.Conv2d(12, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 12, 1)
        self.parts = nn.Conv2d(12, 12, 1, groups=3)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.back(torch.relu(self.inner(x)))
        x = torch.relu(self.point(torch.relu(self.deep(x))))
        x = torch.relu(self.up(torch.relu(self.parts(x))))
        return self.head(x.mean((2, 3)))


class Words(nn.Module):
    """An embedding tied to the output, attention heads and an LSTM: [N, 6] tokens in, [N, 9] out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 8)
        self.qkv = nn.Linear(8, 3 * 4 * 2)
        self.mix = nn.Linear(8, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.back = nn.Linear(6, 8)
        self.output = nn.Linear(8, 9, bias=False)
        self.output.weight = self.words.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        q, k, v = self.qkv(x).view(x.size(0), x.size(1), 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.softmax(q @ k.transpose(-2, -1), -1) @ v
        x = self.mix(mixed.transpose(1, 2).flatten(2))
        x, _ = self.lstm(x)
        return self.output(self.back(torch.relu(x[:, -1])))


@cache
def model(kind: str) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    net = (Words() if kind == "words" else Convolutions()).eval()
    if kind == "half":
        net = net.to(torch.bfloat16)
    return zoo.frozen(net) if kind == "frozen" else zoo.scripted(net)


def data(kind: str) -> dict[str, np.ndarray]:
    words = kind == "words"
    inputs = RNG.integers(0, 9, size=(ROWS, 6)) if words else RNG.normal(size=(ROWS, 3, 8, 8)).astype(np.float32)
    return {"inputs": inputs, "targets": RNG.integers(0, 4, size=ROWS)}


@pytest.fixture(scope="module")
def planning(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, Granularity], Planning]:
    """What planning sees of a kind of model; observed once, as criteria leave it as it is."""

    @cache
    def observed(kind: str, granularity: Granularity) -> Planning:
        pattern = NmPattern(n=2, m=4) if granularity is Granularity.NM else None
        strategy = StaticStrategy(granularity=granularity, nm_pattern=pattern, channels=ChannelConstraints(multiple=1))
        folder = tmp_path_factory.mktemp("planning") / "run"
        return planning_of(folder, model(kind), data(kind), strategy=strategy, target=HALF)

    def planned(kind: str, name: str, granularity: Granularity) -> Planning:
        context = observed(kind, granularity)
        strategy = structs.replace(context.spec.strategy, criterion=name)
        return replace(context, spec=structs.replace(context.spec, strategy=strategy))

    return planned


@pytest.mark.parametrize("name", [*SCORING, "auto"])
@pytest.mark.parametrize("kind", ["scripted", "frozen", "half", "words"])
def test_channels_of_every_kind_of_model(kind: str, name: str, planning: Callable) -> None:
    context = planning(kind, name, Granularity.CHANNEL)
    if name == "bn_scale" and kind in {"frozen", "words"}:
        with pytest.raises(JobFailureError, match="normalization") as refused:
            make_plan(context)
        assert refused.value.reason is Reason.NOTHING_PRUNABLE
        return
    made = make_plan(context)
    assert isinstance(made, StructuralPlan)
    assert made.removed_channels == round(0.5 * made.removable_channels)
    groups = context.observed.channels.groups if context.observed.channels else ()
    frozen = {use.layers for use in made.frozen}
    for number, group in enumerate(groups):
        layers = tuple(dict.fromkeys(member.tensor for member in group.members))
        assert (number in made.removable) != (layers in frozen)
    wholly = name != "bn_scale" and kind != "words"
    if wholly:
        assert len(made.removable) == len(groups)
    assert (made.choice is not None) == (name == "auto")


@pytest.mark.parametrize("name", SCORING)
def test_heads(name: str, planning: Callable) -> None:
    context = planning("words", name, Granularity.HEAD)
    if name == "bn_scale":
        with pytest.raises(JobFailureError, match="bn_scale"):
            make_plan(context)
        return
    made = make_plan(context)
    assert isinstance(made, StructuralPlan)
    assert made.removed_channels == 2


@pytest.mark.parametrize("name", FOR_WEIGHTS)
@pytest.mark.parametrize("kind", ["scripted", "frozen", "words"])
def test_single_weights_of_every_kind_of_model(kind: str, name: str, planning: Callable) -> None:
    context = planning(kind, name, Granularity.WEIGHT)
    made = make_plan(context)
    assert isinstance(made, PruningPlan)
    assert made.removed_weights == round(0.5 * made.prunable_weights)
    assert {*made.masks} | {name for use in made.frozen for name in use.layers} == {
        weight.name for weight in context.observed.selection.weights
    }


# --- Patterns ---------------------------------------------------------------------------------------------------------


def test_a_pattern_goes_along_the_input_axis_of_every_kind_of_kernel(planning: Callable) -> None:
    context = planning("scripted", "l1", Granularity.NM)
    made = make_plan(context)
    assert isinstance(made, PruningPlan)
    axes = {"inner.weight": 1, "back.weight": 1, "point.weight": 1, "parts.weight": 1, "up.weight": 0, "head.weight": 1}
    assert set(made.masks) == set(axes)
    for name, axis in axes.items():
        kernel = get_tensor(context.loaded.subject, name).detach().abs().movedim(axis, -1)
        gone = made.masks[name].removed.movedim(axis, -1)
        whole = kernel.shape[-1] // 4 * 4
        blocks, marked = kernel[..., :whole].unflatten(-1, (-1, 4)), gone[..., :whole].unflatten(-1, (-1, 4))
        assert bool((marked.sum(dim=-1) == 2).all())
        assert not gone[..., whole:].any()
        largest_gone = blocks.masked_fill(~marked, 0).amax(dim=-1)
        assert bool((blocks.masked_fill(marked, torch.inf).amin(dim=-1) >= largest_gone).all())
    reasons = {name: use.reason for use in made.frozen for name in use.layers}
    assert set(reasons) == {"stem.weight", "deep.weight"}
    assert "(3) than the 4" in reasons["stem.weight"]
    assert any("head.weight (2)" in note for note in made.notes)


def test_a_pattern_of_recurrent_and_tied_weights(planning: Callable) -> None:
    made = make_plan(planning("words", "l1", Granularity.NM))
    assert isinstance(made, PruningPlan)
    # The table is looked up, and it is the kernel of the output.
    assert {"words.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "qkv.weight"} <= set(made.masks)
    assert made.masks["lstm.weight_ih_l0"].sparsity == 0.5


@pytest.mark.parametrize("name", [*FOR_WEIGHTS, "auto"])
def test_a_pattern_by_every_criterion(name: str, planning: Callable) -> None:
    made = make_plan(planning("frozen", name, Granularity.NM))
    assert isinstance(made, PruningPlan)
    for mask in made.masks.values():
        assert 0 < mask.removed_count <= mask.numel // 2


def test_a_pattern_that_fits_no_kernel_is_refused_with_the_reasons(prune: Callable) -> None:
    strategy = StaticStrategy(granularity=Granularity.NM, nm_pattern=NmPattern(n=2, m=64))
    spec = structs.replace(make_spec(strategy=strategy), target=None)
    failure = prune(model("scripted"), data("scripted"), spec).failure
    assert failure.reason is Reason.NOTHING_PRUNABLE
    assert "fewer weights (8) than the 64" in failure.text


# --- Whole jobs -------------------------------------------------------------------------------------------------------


@cache
def trained() -> tuple[torch.jit.ScriptModule, tuple[np.ndarray, np.ndarray]]:
    samples = image_data(200)
    torch.manual_seed(0)
    return zoo.scripted(fitted(ConvNet(), *samples, epochs=4)), samples


@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        ("taylor", Granularity.CHANNEL), ("fpgm", Granularity.CHANNEL), ("apoz", Granularity.CHANNEL),
        ("auto", Granularity.CHANNEL), ("taylor", Granularity.WEIGHT), ("auto", Granularity.WEIGHT),
    ],
)  # fmt: skip
def test_a_job_by_the_criterion(name: str, granularity: Granularity, prune: Callable) -> None:
    net, (inputs, targets) = trained()
    strategy = StaticStrategy(criterion=name, granularity=granularity)
    ran = prune(
        net, {"inputs": inputs, "targets": targets}, strategy=strategy, target=HALF,
        fine_tune=FineTune(epochs=1, learning_rate=1e-3),
    )  # fmt: skip
    report = ran.report["strategy"]
    assert report["criterion"] == name
    assert report["achieved_sparsity"] == pytest.approx(0.5, abs=0.02)
    if name == "auto":
        choice = report["criterion_choice"]
        assert choice["chosen"] in criteria.candidates(granularity)
        tried = [one["criterion"] for one in choice["trials"]]
        assert sorted((*tried, *choice["without_plan"])) == sorted(criteria.candidates(granularity))
        best = max(one["metric"] for one in choice["trials"])
        assert next(one["metric"] for one in choice["trials"] if one["criterion"] == choice["chosen"]) == best
        assert any(note.startswith(f"criterion auto chose {choice['chosen']}") for note in report["notes"])
    else:
        assert report["criterion_choice"] is None


def test_a_job_for_channels_by_a_criterion_that_says_nothing_of_some_lists_them_as_frozen(prune: Callable) -> None:
    strategy = StaticStrategy(criterion="bn_scale", granularity=Granularity.CHANNEL)
    ran = prune(
        model("scripted"), data("scripted"), strategy=strategy, target=HALF, recovery=Recovery(disabled=True)
    )  # fmt: skip
    frozen = [use for use in ran.report["frozen"] if "bn_scale" in use["reason"]]
    assert any("inner.weight" in use["layers"] for use in frozen)


@pytest.mark.parametrize("way", ["scripted", "frozen"])
def test_a_job_by_a_pattern_holds_it_through_recovery(way: str, prune: Callable) -> None:
    samples = image_data(200)
    torch.manual_seed(0)
    net = getattr(zoo, way)(fitted(ConvNet(), *samples, epochs=4))
    strategy = StaticStrategy(granularity=Granularity.NM, nm_pattern=NmPattern(n=2, m=4))
    spec = make_spec(strategy=strategy, fine_tune=FineTune(epochs=2, learning_rate=1e-2))
    ran = prune(net, {"inputs": samples[0], "targets": samples[1]}, structs.replace(spec, target=None))
    report = ran.report
    assert (report["strategy"]["granularity"], report["strategy"]["nm_pattern"]) == ("n:m", "2:4")
    assert report["strategy"]["achieved_sparsity"] == pytest.approx(0.5, abs=1e-9)
    kernels = [layer for layer in report["layers"] if layer["sparsity"] > 0]
    assert [layer["sparsity"] for layer in kernels] == pytest.approx([0.5, 0.5], abs=0.01)
    assert [tuple(layer["shape_before"]) for layer in kernels] == [(16, 8, 3, 3), (3, 256)]
    assert any("(1) than the 4" in use["reason"] for use in report["frozen"])
    if way == "scripted":
        for weight in find_weights(ran.pruned).weights:
            if weight.shape in {(16, 8, 3, 3), (3, 256)}:
                blocks = get_tensor(ran.pruned, weight.name).movedim(1, -1).unflatten(-1, (-1, 4))
                assert bool(((blocks != 0).sum(dim=-1) <= 2).all())
