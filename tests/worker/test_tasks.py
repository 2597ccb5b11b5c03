"""Every task, end to end: what it is judged by, what else is reported, and that nothing depends on luck."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import nn

from helpers import zoo
from helpers.runs import Ran, make_spec, sparsity
from pruning_server.errors import Reason
from pruning_server.jobs.events import RunFailed
from pruning_server.spec.request import (
    ConditionalStrategy,
    Evaluation,
    FineTune,
    Granularity,
    Loss,
    Recovery,
    RiskCondition,
    Robustness,
    StaticStrategy,
    Target,
    TargetKind,
    Task,
)

QUICK = Evaluation(robustness=Robustness.NONE, include_samples=False)
CHANNELS = StaticStrategy(granularity=Granularity.CHANNEL)
# The caller's own marks, so that tests know the rows of the report split.
COUNT = 60
SPLIT = np.repeat(np.array([0, 1, 2], dtype=np.uint8), [20, 10, 30])
REPORT = np.flatnonzero(SPLIT == 2)


class Table(nn.Module):
    """[N, 8] to [N, outputs], through a head of choice."""

    def __init__(self, outputs: int, head: nn.Module | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, outputs), head or nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Maps(nn.Module):
    """[N, 2, 8, 8] to [N, classes, 8, 8], or with the classes last."""

    def __init__(self, classes: int, last: bool = False) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 12, 3, padding=1)
        self.b = nn.Conv2d(12, classes, 1)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(torch.relu(self.a(x)))
        return y.permute(0, 2, 3, 1) if self.last else y


class Words(nn.Module):
    """[N, L] token numbers to [N, L, words]; a word depends on those before it only."""

    def __init__(self, words: int, sees_ahead: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(words, 12)
        self.hidden = nn.Linear(12, 24)
        self.head = nn.Linear(24, words)
        self.sees_ahead = sees_ahead

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.table(input_ids)
        context = x.mean(1, keepdim=True) if self.sees_ahead else x.cumsum(1)
        return self.head(torch.relu(self.hidden(x + 0.1 * context)))


class Masked(nn.Module):
    """Token numbers and their mask, of another type."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = Words(words)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.words(input_ids) * attention_mask.unsqueeze(2).to(torch.float32)


def table(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(COUNT, 8)).astype(np.float32)


def outputs_of(net: nn.Module, *inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(net.eval()(*(torch.from_numpy(one) for one in inputs)).numpy())


def noisy(labels: np.ndarray, classes: int, share: float = 0.2) -> np.ndarray:
    """Labels of which some are others: models are neither perfect nor blind."""
    rng = np.random.default_rng(9)
    return np.where(rng.random(labels.shape) < share, rng.integers(classes, size=labels.shape), labels)


def run(
    prune: Callable[..., Ran], net: nn.Module, arrays: Mapping[str, np.ndarray], *, split: bool = True, **fields: Any
) -> Ran:
    wanted: dict[str, Any] = {
        "strategy": CHANNELS,
        "recovery": Recovery(disabled=True),
        "fine_tune": FineTune(),
        "evaluation": QUICK,
    }
    return prune(zoo.scripted(net), {**arrays, "split": SPLIT} if split else arrays, make_spec(**(wanted | fields)))


def others(ran: Ran) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in ran.report["accuracy"]["others"]}


def answers(ran: Ran, *inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both models' outputs on the report split, by torch alone."""
    rows = [torch.from_numpy(one[REPORT]) for one in inputs]
    original = torch.jit.load(str(ran.root / "in" / "model.pt")).eval()
    with torch.no_grad():
        return original(*rows).numpy(), ran.pruned(*rows).numpy()


def check(ran: Ran, name: str, wanted: Callable[[np.ndarray], float], pair: tuple[np.ndarray, np.ndarray]) -> None:
    """The report's numbers are those of the reference, and the interval holds the difference."""
    found = others(ran)[name]
    assert found["original"] == pytest.approx(wanted(pair[0]), abs=1e-5)
    assert found["pruned"] == pytest.approx(wanted(pair[1]), abs=1e-5)
    assert found["delta"] == pytest.approx(found["pruned"] - found["original"], abs=1e-9)
    low, high = found["interval"]
    assert low <= found["delta"] <= high


# --- Classification ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["one logit", "one probability", "two logits", "softmax", "log-softmax"])
def test_yes_or_no(head: str, prune: Callable[..., Ran]) -> None:
    torch.manual_seed(1)
    single = head.startswith("one")
    heads = {"one probability": nn.Sigmoid(), "softmax": nn.Softmax(1), "log-softmax": nn.LogSoftmax(1)}
    net, x = Table(1 if single else 2, heads.get(head)), table()
    scores = outputs_of(net.net[:3], x)
    threshold = np.median(scores[:, 0])
    net.net[2].bias.data[0] -= float(threshold)
    scores = outputs_of(net.net[:3], x)
    right = scores[:, 0] > 0 if single else scores[:, 1] > scores[:, 0]
    y = noisy(right.astype(np.int64), 2)
    ran = run(prune, net, {"inputs": x, "targets": y})
    report = ran.report
    assert (report["data"]["task"], report["accuracy"]["metric"]) == ("classification", "accuracy")
    assert report["data"]["loss"] == ("bce_with_logits" if single else "cross_entropy")
    assert report["accuracy"]["original"] == pytest.approx(np.mean(y[REPORT] == right[REPORT]))
    assert report["accuracy"]["loss"]["original"] < 1.5

    def chosen(values: np.ndarray) -> np.ndarray:
        cut = 0.5 if head == "one probability" else 0.0
        return values[:, 0] > cut if single else values.argmax(axis=1)

    pair = answers(ran, x)
    check(ran, "macro_f1", lambda values: reference.f1_score(y[REPORT], chosen(values), average="macro"), pair)
    check(ran, "f1", lambda values: reference.f1_score(y[REPORT], chosen(values), zero_division=np.nan), pair)


def test_one_of_many_classes(prune: Callable[..., Ran]) -> None:
    torch.manual_seed(2)
    net, x = Table(12), table()
    y = noisy(outputs_of(net, x).argmax(axis=1), 12)
    ran = run(prune, net, {"inputs": x, "targets": y})
    pair = answers(ran, x)
    check(ran, "top_5_accuracy", lambda v: reference.top_k_accuracy_score(y[REPORT], v, k=5, labels=range(12)), pair)
    check(ran, "macro_f1", lambda v: reference.f1_score(y[REPORT], v.argmax(axis=1), average="macro"), pair)
    assert "class number" in ran.report["data"]["task_reason"]


def test_several_labels(prune: Callable[..., Ran]) -> None:
    torch.manual_seed(3)
    net, x = Table(4), table()
    y = noisy((outputs_of(net, x) > 0).astype(np.int64), 2)
    ran = run(prune, net, {"inputs": x, "targets": y}, task=Task.MULTILABEL)
    report, pair = ran.report, answers(ran, x)
    assert report["accuracy"]["metric"] == "exact_match"
    assert report["accuracy"]["pruned"] == pytest.approx(reference.accuracy_score(y[REPORT], pair[1] > 0))
    check(ran, "macro_f1", lambda v: reference.f1_score(y[REPORT], v > 0, average="macro", zero_division=np.nan), pair)
    check(ran, "micro_f1", lambda v: reference.f1_score(y[REPORT], v > 0, average="micro"), pair)
    check(ran, "label_accuracy", lambda v: float(np.mean((v > 0) == y[REPORT])), pair)


def test_numbers(prune: Callable[..., Ran]) -> None:
    torch.manual_seed(4)
    net, x = Table(3), table()
    y = outputs_of(net, x) + np.random.default_rng(0).normal(scale=0.1, size=(COUNT, 3)).astype(np.float32)
    ran = run(prune, net, {"inputs": x, "targets": y})
    report, pair = ran.report, answers(ran, x)
    assert (report["data"]["task"], report["accuracy"]["metric"]) == ("regression", "r2")
    wanted = reference.r2_score(y[REPORT], pair[1], multioutput="variance_weighted")
    assert report["accuracy"]["pruned"] == pytest.approx(wanted, abs=1e-4)
    check(ran, "rmse", lambda v: reference.root_mean_squared_error(y[REPORT].ravel(), v.ravel()), pair)
    check(ran, "mae", lambda v: reference.mean_absolute_error(y[REPORT], v), pair)
    assert others(ran)["rmse"]["larger_is_better"] is False


# --- Pixels and tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["first", "last", "bytes", "column"])
def test_a_class_for_each_pixel(way: str, prune: Callable[..., Ran]) -> None:
    torch.manual_seed(5)
    net = Maps(3, last=way == "last")
    x = np.random.default_rng(1).normal(size=(COUNT, 2, 8, 8)).astype(np.float32)
    axis = 3 if way == "last" else 1
    y = noisy(outputs_of(net, x).argmax(axis=axis), 3)
    ignored = 255 if way == "bytes" else -100
    y[:, 0, :5] = ignored
    stored = y.astype(np.uint8) if way == "bytes" else y[:, None] if way == "column" else y.astype(np.int32)
    ran = run(prune, net, {"inputs": x, "targets": stored})
    report, pair = ran.report, answers(ran, x)
    assert (report["data"]["task"], report["data"]["loss"]) == ("segmentation", "cross_entropy")
    assert report["accuracy"]["metric"] == "element_accuracy"
    truth = y[REPORT]
    counted = truth != ignored

    def pixels(values: np.ndarray) -> np.ndarray:
        return values.argmax(axis=axis)[counted]

    per_sample = [np.mean((v.argmax(axis - 1) == t)[c]) for v, t, c in zip(pair[1], truth, counted, strict=True)]
    assert report["accuracy"]["pruned"] == pytest.approx(np.mean(per_sample), abs=1e-6)
    check(ran, "mean_iou", lambda v: reference.jaccard_score(truth[counted], pixels(v), average="macro"), pair)
    check(ran, "pixel_accuracy", lambda v: reference.accuracy_score(truth[counted], pixels(v)), pair)
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(np.moveaxis(pair[1], axis, 1).copy()), torch.from_numpy(np.where(counted, truth, -100)).long()
    )
    # As many pixels count in every sample, so that both means are the same.
    assert report["accuracy"]["loss"]["pruned"] == pytest.approx(float(loss), rel=1e-4)


def test_yes_or_no_for_each_pixel(prune: Callable[..., Ran]) -> None:
    torch.manual_seed(6)
    net = Maps(1)
    x = np.random.default_rng(1).normal(size=(COUNT, 2, 8, 8)).astype(np.float32)
    net.b.bias.data -= float(np.median(outputs_of(net, x)))
    y = noisy((outputs_of(net, x)[:, 0] > 0).astype(np.int64), 2).astype(np.uint8)
    y[:, :, 0] = 255
    ran = run(prune, net, {"inputs": x, "targets": y}, task=Task.SEGMENTATION)
    pair, truth = answers(ran, x), y[REPORT]
    counted = truth != 255
    assert ran.report["data"]["loss"] == "bce_with_logits"
    check(
        ran, "mean_iou",
        lambda v: reference.jaccard_score(truth[counted], (v[:, 0] > 0)[counted], average="macro"), pair,
    )  # fmt: skip


def test_a_class_for_each_token_but_padding(prune: Callable[..., Ran]) -> None:
    torch.manual_seed(7)
    net, rng = Words(6, sees_ahead=True), np.random.default_rng(2)
    ids = rng.integers(6, size=(COUNT, 7))
    y = noisy(outputs_of(net, ids).argmax(axis=2), 6)
    y[np.arange(7) >= rng.integers(2, 8, size=COUNT)[:, None]] = -100
    ran = run(prune, net, {"inputs": ids, "targets": y})
    pair, truth = answers(ran, ids), y[REPORT]
    counted = truth != -100
    assert ran.report["data"]["task"] == "sequence_labelling"
    check(ran, "token_accuracy", lambda v: reference.accuracy_score(truth[counted], v.argmax(2)[counted]), pair)
    check(ran, "macro_f1", lambda v: reference.f1_score(truth[counted], v.argmax(2)[counted], average="macro"), pair)


def perplexity(values: np.ndarray, truth: np.ndarray) -> float:
    scores, wanted = torch.from_numpy(values.reshape(-1, values.shape[-1])), torch.from_numpy(truth.reshape(-1))
    return float(torch.nn.functional.cross_entropy(scores, wanted).exp())


@pytest.mark.parametrize("targets", ["none", "the tokens", "the next tokens"])
def test_the_next_token(targets: str, prune: Callable[..., Ran]) -> None:
    torch.manual_seed(8)
    net, rng = Words(6), np.random.default_rng(3)
    ids = rng.integers(6, size=(COUNT, 7))
    following = np.concatenate([ids[:, 1:], np.full((COUNT, 1), -100)], axis=1)
    arrays = {"inputs": ids} | {"the tokens": {"targets": ids}, "the next tokens": {"targets": following}}.get(
        targets, {}
    )
    ran = run(prune, net, arrays, task=Task.LANGUAGE_MODELLING if targets == "none" else None)
    pair = answers(ran, ids)
    assert ran.report["data"]["task"] == "language_modelling"
    check(ran, "perplexity", lambda v: perplexity(v, following[REPORT]), pair)
    wanted = np.mean(pair[1][:, :-1].argmax(axis=2) == ids[REPORT][:, 1:])
    assert ran.report["accuracy"]["pruned"] == pytest.approx(wanted, abs=1e-6)
    assert others(ran)["perplexity"]["larger_is_better"] is False


@pytest.mark.parametrize("dtype", [np.int64, np.float32, bool])
def test_padding_is_left_out_where_forward_takes_a_mask(dtype: type, prune: Callable[..., Ran]) -> None:
    torch.manual_seed(9)
    net, rng = Masked(6), np.random.default_rng(4)
    ids, mask = rng.integers(6, size=(COUNT, 7)), np.arange(7) < rng.integers(3, 8, size=COUNT)[:, None]
    arrays = {"inputs_0": ids, "inputs_1": mask.astype(dtype)}
    ran = run(prune, net, arrays, task=Task.LANGUAGE_MODELLING)
    following = np.concatenate([np.where(mask, ids, -100)[:, 1:], np.full((COUNT, 1), -100)], axis=1)
    pair = answers(ran, ids, mask.astype(dtype))
    check(ran, "perplexity", lambda v: perplexity(v, following[REPORT]), pair)


def test_one_next_token_for_each_sample(prune: Callable[..., Ran]) -> None:
    torch.manual_seed(10)
    net, x = Table(12), table()
    y = noisy(outputs_of(net, x).argmax(axis=1), 12)
    ran = run(prune, net, {"inputs": x, "targets": y}, task=Task.LANGUAGE_MODELLING)
    assert ran.report["accuracy"]["metric"] == "accuracy"
    check(ran, "perplexity", lambda v: perplexity(v, y[REPORT]), answers(ran, x))


def test_a_model_that_sees_ahead_is_not_judged_by_what_it_sees(prune: Callable[..., Ran]) -> None:
    torch.manual_seed(11)
    ids = np.random.default_rng(5).integers(6, size=(COUNT, 7))
    failure = run(prune, Words(6, sees_ahead=True), {"inputs": ids}, task=Task.LANGUAGE_MODELLING).failure
    assert failure.reason is Reason.DATASET_TARGETS
    assert "tokens after it" in failure.text


# --- The original is the truth ----------------------------------------------------------------------------------------


def cosine_neighbours(values: np.ndarray, count: int) -> list[set[int]]:
    units = values / np.linalg.norm(values, axis=1, keepdims=True)
    likeness = units @ units.T
    np.fill_diagonal(likeness, -np.inf)
    return [set(row[:count].tolist()) for row in np.argsort(-likeness, axis=1)]


@pytest.mark.parametrize("labelled", [False, True])
def test_embeddings_find_the_same_neighbours(labelled: bool, prune: Callable[..., Ran]) -> None:
    torch.manual_seed(12)
    net, x = Table(6), table()
    labels = np.arange(COUNT) % 4
    ran = run(prune, net, {"inputs": x} | ({"targets": labels} if labelled else {}), task=Task.EMBEDDING)
    report, pair = ran.report, answers(ran, x)
    assert (report["accuracy"]["metric"], report["accuracy"]["original"]) == ("cosine_similarity", 1.0)
    before, after = (cosine_neighbours(values.astype(np.float64), 10) for values in pair)
    wanted = np.mean([len(a & b) / 10 for a, b in zip(before, after, strict=True)])
    assert others(ran)["neighbour_overlap_at_10"]["pruned"] == pytest.approx(wanted, abs=0.01)
    assert others(ran)["neighbour_overlap_at_10"]["original"] == 1.0
    recall = others(ran)["recall_at_10"]
    if labelled:
        shown = labels[REPORT]
        hits = [np.mean([any(shown[j] == shown[i] for j in near) for i, near in enumerate(n)]) for n in (before, after)]
        assert (recall["original"], recall["pruned"]) == (pytest.approx(hits[0]), pytest.approx(hits[1], abs=0.01))
    else:
        assert recall["original"] == 1.0


def test_without_labels_the_divergence_from_the_original_is_told(prune: Callable[..., Ran]) -> None:
    torch.manual_seed(13)
    net, x = Table(5), table()
    ran = run(prune, net, {"inputs": x})
    pair = answers(ran, x)
    original, pruned = (torch.from_numpy(values).double().log_softmax(1) for values in pair)
    wanted = torch.nn.functional.kl_div(pruned, original, reduction="batchmean", log_target=True)
    found = others(ran)["kl_divergence"]
    assert (found["original"], found["pruned"]) == (0.0, pytest.approx(float(wanted), rel=1e-3))
    assert ran.report["data"]["task_reason"] == "The validation set has no targets."
    rmse = float(np.sqrt(np.mean((pair[1] - pair[0]) ** 2)))
    assert others(ran)["rmse_to_original"]["pruned"] == pytest.approx(rmse, rel=1e-4)


# --- All of them ------------------------------------------------------------------------------------------------------


Case = tuple[nn.Module, dict[str, np.ndarray], dict[str, Any]]


def cases() -> dict[str, Case]:
    """One job of each task: net, arrays, what else is asked for."""
    torch.manual_seed(14)
    rng = np.random.default_rng(6)
    x, images = table(), rng.normal(size=(COUNT, 2, 8, 8)).astype(np.float32)
    ids = rng.integers(6, size=(COUNT, 7))
    several = rng.integers(2, size=(COUNT, 4))
    return {
        "classification": (Table(3), {"inputs": x, "targets": rng.integers(3, size=COUNT)}, {}),
        "yes or no": (Table(1), {"inputs": x, "targets": rng.integers(2, size=COUNT)}, {}),
        "multilabel": (Table(4), {"inputs": x, "targets": several}, {"task": Task.MULTILABEL}),
        "regression": (Table(2), {"inputs": x, "targets": rng.normal(size=(COUNT, 2))}, {}),
        "segmentation": (Maps(3), {"inputs": images, "targets": rng.integers(3, size=(COUNT, 8, 8))}, {}),
        "binary segmentation": (
            Maps(1), {"inputs": images, "targets": rng.integers(2, size=(COUNT, 8, 8))}, {"loss": Loss.BCE_WITH_LOGITS},
        ),
        "sequence labelling": (Words(6), {"inputs": ids, "targets": rng.integers(6, size=(COUNT, 7))}, {}),
        "language modelling": (Words(6), {"inputs": ids}, {"task": Task.LANGUAGE_MODELLING}),
        "embedding": (Table(6), {"inputs": x}, {"task": Task.EMBEDDING}),
        "agreement": (Table(5), {"inputs": x}, {}),
        "agreement on choices": (Table(5), {"inputs": x}, {"loss": Loss.BCE_WITH_LOGITS}),
    }  # fmt: skip


NAMES = tuple(cases())
HARDER = Evaluation(include_samples=False)
# One of each kind of input and metric; the others are judged by the same code.
COMPARED_UNDER_HARDER_INPUTS = {"segmentation", "language modelling", "multilabel"}


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_pruned_by_its_gradients_and_recovered(name: str, prune: Callable[..., Ran]) -> None:
    net, arrays, fields = cases()[name]
    ran = run(
        prune, net, arrays, recovery=Recovery(), fine_tune=FineTune(epochs=1, learning_rate=1e-3),
        evaluation=HARDER if name in COMPARED_UNDER_HARDER_INPUTS else QUICK, strategy=StaticStrategy(granularity=Granularity.CHANNEL, criterion="taylor"), **fields,
    )  # fmt: skip
    report = ran.report
    assert report["strategy"]["removed_channels"] > 0
    assert {rung["name"] for rung in report["strategy"]["recovery"]["rungs"]} >= {"nothing", "fine_tuning"}
    assert all(np.isfinite(one["loss"]) for one in report["strategy"]["recovery"]["rungs"])
    for one in report["accuracy"]["others"]:
        assert np.isfinite([one["delta"], *one["interval"]]).all(), one
    assert report["data"]["task_reason"]
    ran.check()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_loses_nothing_passes_with_every_difference_zero(name: str, prune: Callable[..., Ran]) -> None:
    net, arrays, fields = cases()[name]
    ran = run(prune, net, arrays, strategy=StaticStrategy(), target=sparsity(0.0), **fields)
    report = ran.report
    assert report["accuracy"]["delta"] == 0.0
    assert report["generalization"]["verdict"] == "PASS"
    for one in report["accuracy"]["others"]:
        assert one["delta"] == 0.0
        assert one["interval"][0] <= 0.0 <= one["interval"][1]


# --- Promises ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["segmentation", "sequence labelling", "embedding"])
def test_a_budget_of_accuracy_is_kept_or_refused_in_words(name: str, prune: Callable[..., Ran]) -> None:
    net, arrays, fields = cases()[name]
    budget = Target(kind=TargetKind.MAX_ACCURACY_DROP, value=0.4)
    fields = fields | {"target": budget, "strategy": StaticStrategy(), "split": False}
    ran = run(prune, net, arrays, **fields)
    if isinstance(ran.last, RunFailed):
        assert ran.failure.reason is Reason.TARGET_UNREACHABLE
    else:
        assert ran.report["strategy"]["achieved_sparsity"] > 0


@pytest.mark.parametrize("name", ["segmentation", "multilabel", "regression"])
def test_a_risk_is_certified_or_refused_in_words(name: str, prune: Callable[..., Ran]) -> None:
    net, arrays, fields = cases()[name]
    risk = ConditionalStrategy(risk=RiskCondition(max_loss=0.6, error_probability=0.2))
    ran = run(prune, net, arrays, **fields | {"target": None, "strategy": risk, "split": False})
    if isinstance(ran.last, RunFailed):
        assert ran.failure.reason is Reason.TARGET_UNREACHABLE
        assert ("has no bounds" in ran.failure.text) == (name == "regression")
    else:
        assert ran.report["strategy"]["details"]["loss"] <= 0.6
