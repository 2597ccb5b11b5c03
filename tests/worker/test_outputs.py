"""What models return and where their samples stand: the part that is judged, and axes that are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from helpers import zoo
from helpers.runs import Ran, make_spec
from pruning_server.errors import JobFailureError, Reason
from pruning_server.spec.request import (
    Evaluation,
    FineTune,
    Granularity,
    Recovery,
    Robustness,
    StaticStrategy,
)
from pruning_server.worker.calling import Call, find_call
from pruning_server.worker.feeding import Samples
from pruning_server.worker.running import Subject, select_output

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(40, 8)).astype(np.float32)
SERIES = RNG.normal(size=(40, 6, 4)).astype(np.float32)


def samples(arrays: Sequence[np.ndarray]) -> Samples:
    names = tuple(f"inputs_{place}" for place in range(len(arrays)))
    return Samples("validation", tuple(arrays), names, tuple(str(one.dtype) for one in arrays), None, None, None)


def call(net: nn.Module, *arrays: np.ndarray, selector: str = "") -> Call:
    torch.manual_seed(0)
    return find_call(zoo.scripted(net.eval()), samples(arrays), make_spec(output_selector=selector), "cpu")


def refusal(net: nn.Module, *arrays: np.ndarray, selector: str = "") -> JobFailureError:
    with pytest.raises(JobFailureError) as caught:
        call(net, *arrays, selector=selector)
    return caught.value


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, 5)


class Nested(Base):
    """Class numbers, a dict with a dot in its key, and a mask."""

    def forward(self, x: torch.Tensor):
        scores = self.head(self.net(x))
        return scores.argmax(1), {"out.logits": [scores + 1, scores]}, scores > 0


class WithLoss(Base):
    def forward(self, x: torch.Tensor):
        scores = self.head(self.net(x))
        return scores.square().mean(), scores


class Single(Base):
    def forward(self, x: torch.Tensor):
        return {"only": (self.head(self.net(x)),)}


class Numbered(Base):
    def forward(self, x: torch.Tensor):
        scores = self.head(self.net(x))
        return {7: scores, 8: scores + 1}


# --- The part that is judged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "selector"),
    [
        ((torch.zeros(2), {"a": [torch.zeros(1), torch.ones(2)]}), "1.a.1"),
        ({"a.b": {"c": torch.ones(2)}, "a": torch.zeros(1)}, "a.b.c"),
        ({3: torch.ones(2), 4: torch.zeros(2)}, "3"),
        ([torch.zeros(1), [torch.ones(2)]], "1"),
        ((torch.ones(2),), ""),
        ({"x": (None, torch.ones(2))}, ""),
        (torch.ones(2), ""),
    ],
)
def test_a_part_is_named_by_keys_and_positions(output: object, selector: str) -> None:
    assert torch.equal(select_output(output, selector), torch.ones(2))


@pytest.mark.parametrize("selector", ["", "1", "1.logits", "2", "0", "1.out.logits", "1.out.logits.2", "x"])
def test_a_refusal_names_what_there_is(selector: str) -> None:
    failed = refusal(Nested(), TABLE, selector=selector)
    assert failed.reason is Reason.MODEL_OUTPUT_UNSUPPORTED
    assert "'1.out.logits.1' float32 [3, 5]" in failed.message
    # What is offered works.
    assert call(Nested(), TABLE, selector="1.out.logits.1").batch_sizes == (1, 3)


def test_numbers_and_masks_are_no_scores() -> None:
    assert "int64" in refusal(Nested(), TABLE, selector="0").message
    assert "bool" in refusal(Nested(), TABLE, selector="2").message


def test_a_loss_beside_the_scores() -> None:
    assert "'0' float32 [], '1' float32 [3, 5]" in refusal(WithLoss(), TABLE).message
    assert "one number for a whole batch" in refusal(WithLoss(), TABLE, selector="0").message
    assert call(WithLoss(), TABLE, selector="1").rule.selector == "1"


def test_keys_that_are_numbers() -> None:
    assert "'7' float32" in refusal(Numbered(), TABLE).message
    assert call(Numbered(), TABLE, selector="8").rule.selector == "8"


def test_the_only_tensor_needs_no_name() -> None:
    assert call(Single(), TABLE).rule.selector == ""


# --- The samples' axis ------------------------------------------------------------------------------------------------


class Turned(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.net(x)).t()


class Squeezes(Base):
    """[N, 1] to [N], and a single sample to a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.net(x))[:, :1].squeeze()


class SqueezesClasses(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.net(x)).squeeze()


class SequenceFirst(nn.Module):
    """Of the recurrent kind that takes [L, N, 4]; all places, or the last one only."""

    def __init__(self, last: bool, kind: str = "lstm") -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 8) if kind == "lstm" else nn.GRU(4, 8)
        self.head = nn.Linear(8, 3)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.rnn(x)[0]
        return self.head(out[-1] if self.last else out)


class SamplesFirst(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.rnn(x)[0]
        return self.head(out[:, -1] if self.last else out)


class ReturnsSequencesFirst(SamplesFirst):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0]).transpose(0, 1)


class OfTheBatch(Base):
    """Normalizes with what the batch gives, always."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.net(x)
        return self.head(h - 0.1 * h.mean(0, keepdim=True))


@pytest.mark.parametrize("count", [3, 5])
def test_classes_first_are_refused_even_where_there_are_as_many_as_samples_tried(count: int) -> None:
    net = Turned()
    net.head = nn.Linear(16, count)
    failed = refusal(net, TABLE)
    assert failed.reason is Reason.MODEL_OUTPUT_UNSUPPORTED
    assert "samples stand on axis 1" in failed.message
    assert "output.transpose(0, 1)" in failed.message


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("length", [3, 6])
def test_models_that_take_sequences_first_are_refused(last: bool, kind: str, length: int) -> None:
    failed = refusal(SequenceFirst(last, kind), SERIES[:, :length].copy())
    assert failed.reason is Reason.MODEL_INPUT_MISMATCH
    assert "batch_first" in failed.message


def test_outputs_with_sequences_first_are_refused() -> None:
    assert "samples stand on axis 1" in refusal(ReturnsSequencesFirst(last=False), SERIES).message


@pytest.mark.parametrize("last", [False, True])
def test_models_that_take_samples_first_are_not(last: bool) -> None:
    assert call(SamplesFirst(last), SERIES).rule.exact_batch is None


def test_what_depends_on_the_batch_is_run_alone() -> None:
    found = call(OfTheBatch(), TABLE)
    assert found.rule.exact_batch == 1
    assert "other samples" in found.notes[-1]


@pytest.mark.parametrize("net", [Squeezes(), SqueezesClasses()])
def test_a_squeezed_axis_is_put_back(net: nn.Module) -> None:
    found = call(net, TABLE)
    assert (found.rule.exact_batch, found.rule.squeezes_single) == (None, True)
    subject = Subject.of(zoo.scripted(net), found.rule)
    shapes = {tuple(subject.output(found.feed.inputs([0] * size)).shape) for size in (1, 1)}
    several = tuple(subject.output(found.feed.inputs([0, 1])).shape)
    assert shapes == {(1, *several[1:])}
    # One sample is left over in the last batch.
    together = torch.cat([output for _, output in subject.outputs(found.feed, range(5), 2)])
    assert together.shape == (5, *several[1:])


# --- Jobs -------------------------------------------------------------------------------------------------------------


class Bag(nn.Module):
    """Token numbers, a mask of another type, and a table: ranks 2, 2 and 2, or 3 for the series."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.net = nn.Linear(8, 16)
        self.series = nn.Linear(4, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, series: torch.Tensor):
        m = mask.unsqueeze(-1).to(torch.float32)
        words = (torch.relu(self.net(self.table(ids))) * m).sum(1) / m.sum(1).clamp_min(1.0)
        scores = self.head(words + torch.relu(self.series(series)).mean(1))
        return {"logits": scores, "chosen": scores.argmax(1), "sure": scores > 0}


JOB = {
    "strategy": StaticStrategy(granularity=Granularity.CHANNEL),
    "recovery": Recovery(disabled=True),
    "fine_tune": FineTune(),
    "evaluation": Evaluation(robustness=Robustness.NONE, include_samples=False),
}


@pytest.mark.parametrize(
    ("net", "selector"), [(WithLoss(), "1"), (Single(), ""), (Squeezes(), ""), (Numbered(), "7")], ids=str
)
def test_channels_go_from_models_that_return_more_than_scores(
    net: nn.Module, selector: str, prune: Callable[..., Ran]
) -> None:
    targets = RNG.integers(2 if isinstance(net, Squeezes) else 5, size=40)
    ran = prune(zoo.scripted(net), {"inputs": TABLE, "targets": targets}, make_spec(output_selector=selector, **JOB))
    assert ran.report["strategy"]["removed_channels"] > 0
    ran.check()


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, bool])
def test_inputs_of_several_ranks_and_types(dtype: type, prune: Callable[..., Ran]) -> None:
    torch.manual_seed(0)
    ids = RNG.integers(11, size=(40, 5))
    arrays = {
        "inputs_0": ids.astype(np.int32),
        "inputs_1": (ids > 2).astype(dtype),
        "inputs_2": SERIES.astype(np.float64),
        "targets": RNG.integers(4, size=40).astype(np.uint8),
    }
    ran = prune(zoo.scripted(Bag()), arrays, make_spec(output_selector="logits", **JOB))
    assert ran.report["strategy"]["removed_channels"] > 0
    assert [one["name"] for one in ran.report["data"]["inputs"]] == ["inputs_0", "inputs_1", "inputs_2"]
    ran.check()
