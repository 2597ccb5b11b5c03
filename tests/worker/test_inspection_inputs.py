"""Inputs that are inferred are taken by the model; where none are, the answer says what is known and what to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.models import ConvNet, mlp
from helpers.resnet import CifarResNet
from pruning_server.errors import InvalidRequestError, Reason
from pruning_server.spec.inspection import TensorSpec
from pruning_server.spec.request import DynamicAxes, ScalarArgument
from pruning_server.worker.feeding import Samples
from pruning_server.worker.inspection_inputs import InputFinder


class Tagger(nn.Module):
    """Token ids below 17, and a mask of the same length."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = nn.Embedding(17, 8)
        self.cell = nn.GRU(8, 6, batch_first=True)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.cell(self.ids(ids) * mask.unsqueeze(-1))[0]


class Rated(nn.Module):
    """Needs a number, and takes more."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 2)

    def forward(
        self, x: torch.Tensor, rate: int, scale: float = 2.0, other: torch.Tensor | None = None
    ) -> torch.Tensor:
        y = self.linear(x) * scale
        if rate != 16:
            raise ValueError("only 16")
        return y if other is None else y + other


class Narrow(nn.Module):
    """Takes images of one size that nobody would guess."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4 * 35 * 11, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x).flatten(1))


class Listed(nn.Module):
    def forward(self, x: list[torch.Tensor]) -> torch.Tensor:
        return x[0]


class Raising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(0) >= 0:
            raise ValueError("out of order")
        return self.linear(x)


def finder(net: nn.Module, **scalars: Any) -> InputFinder:
    arguments = [ScalarArgument(position=int(key[1:]), value=value) for key, value in scalars.items()]
    return InputFinder(torch.jit.script(net.eval()), arguments)


NETS: dict[str, Callable[[], nn.Module]] = {
    "images of 8": ConvNet,
    "images of any size": CifarResNet,
    "table": mlp,
    "tokens and mask": Tagger,
    "signal": lambda: nn.Sequential(nn.Conv1d(2, 3, 5), nn.ReLU()),
    "volume": lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU()),
    "pixels": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 3)),
    "attention": lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
    "half": lambda: mlp().double(),
}


@pytest.mark.parametrize("name", NETS)
def test_inferred_inputs_are_taken(name: str) -> None:
    net = NETS[name]().eval()
    inputs = finder(net).inferred()
    again = finder(net).inferred()
    assert all(torch.equal(one, other) for one, other in zip(inputs, again, strict=True))  # type: ignore[arg-type]
    with torch.no_grad():
        assert net(*inputs) is not None


def test_ids_stay_below_the_rows_of_their_table() -> None:
    ids, _ = finder(Tagger()).inferred()
    assert isinstance(ids, torch.Tensor)
    assert ids.dtype is torch.int64
    assert 0 <= int(ids.min()) <= int(ids.max()) < 17
    given, _ = finder(Tagger()).given([TensorSpec(shape=(40, 50), dtype="int64"), TensorSpec(shape=(40, 50))])
    assert int(given.max()) < 17  # type: ignore[attr-defined]


def test_a_scalar_that_is_needed_is_named_with_its_flag() -> None:
    with pytest.raises(InvalidRequestError, match=r"rate \(int\) with --arg 1=VALUE") as caught:
        finder(Rated()).inferred()
    assert (caught.value.reason, caught.value.violations[0].field) == (Reason.MISSING_FIELD, "arguments")
    inputs = finder(Rated(), _1=16).inferred()
    assert [type(value) for value in inputs] == [torch.Tensor, int]
    assert finder(Rated(), _1=16, _2=3).inferred()[1:] == (16, 3.0)


def test_defaults_between_given_arguments_are_filled_in() -> None:
    inputs = finder(Rated(), _1=16, _2=4.0).given([TensorSpec(shape=(3, 5)), TensorSpec(shape=(3, 2))])
    assert len(inputs) == 4
    assert finder(Rated(), _1=16).given([TensorSpec(shape=(3, 5))])[1:] == (16,)


@pytest.mark.parametrize(
    ("net", "scalars", "given", "words"),
    [
        (Narrow, {}, None, ["cannot be inferred", "x (first meets a conv weight 4x3x3x3: [N, 3, H, W])", "--input"]),
        (Raising, {}, None, ["out of order"]),
        (Raising, {}, [(1, 5)], ["given 1x5:float32", "out of order", "--input"]),
        (Narrow, {}, [(1, 3, 9, 9)], ["given 1x3x9x9:float32", "shapes cannot be multiplied"]),
        (Tagger, {}, [(1, 8)], ["nothing is given for mask", "integers below 17"]),
        (mlp, {}, [(1, 8), (1, 8)], ["takes 1 more", "2 are given"]),
        (Rated, {"_7": 1}, None, ["position 7", "rate (int)"]),
        (Listed, {}, None, ["x (List[Tensor])", "only tensors and scalars"]),
    ],
)
def test_a_refusal_says_what_is_known_and_what_to_give(
    net: Callable[[], nn.Module], scalars: dict[str, int], given: list[tuple[int, ...]] | None, words: list[str]
) -> None:
    def ask() -> object:
        found = finder(net(), **scalars)
        return found.inferred() if given is None else found.given([TensorSpec(shape=shape) for shape in given])

    with pytest.raises(InvalidRequestError) as caught:
        ask()
    for word in words:
        assert word in caught.value.message
    assert caught.value.violations
    # A status cuts what is longer.
    assert len(caught.value.message) < 1200


def test_examples_are_used_only_where_the_model_takes_them() -> None:
    found = finder(mlp())
    inputs = found.examples([TensorSpec(shape=(5, 8))])
    assert inputs is not None
    assert inputs[0].shape == (5, 8)  # type: ignore[attr-defined]
    assert found.examples([TensorSpec(shape=(5, 9))]) is None
    assert found.examples([TensorSpec(shape=(5, 8)), 3]) is None


def samples(array: np.ndarray) -> Samples:
    return Samples("samples", (array,), ("inputs",), (str(array.dtype),), None, None, None)


def test_samples_are_fed_in_the_form_that_the_model_takes() -> None:
    inputs = finder(ConvNet()).from_samples(samples(np.full((5, 1, 8, 8), 255, np.uint8)))
    assert [(tuple(one.shape), one.dtype) for one in inputs] == [((2, 1, 8, 8), torch.float32)]  # type: ignore[attr-defined]
    assert float(inputs[0].max()) == pytest.approx(1.0, abs=1e-6)  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequestError, match="fed with the dataset") as caught:
        finder(ConvNet()).from_samples(samples(np.zeros((5, 9), np.float32)))
    assert caught.value.violations[0].field == "samples"


def test_scalars_beside_samples_may_leave_no_hole() -> None:
    rows = samples(np.zeros((5, 5), np.float32))
    assert finder(Rated(), _1=16).from_samples(rows)[1:] == (16,)
    with pytest.raises(InvalidRequestError, match="positions run from 0 to 1") as caught:
        finder(Rated(), _2=2.0).from_samples(rows)
    assert caught.value.violations[0].field == "arguments"


def test_the_state_of_the_model_stays_as_it_was() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            return self.linear(x) + self.seen

    module = torch.jit.script(Counting())
    InputFinder(module, ()).inferred()
    assert float(module.seen) == 0.0  # type: ignore[arg-type]


def test_inputs_at_a_second_size_are_those_that_the_model_takes() -> None:
    found = finder(CifarResNet())
    inputs = found.given([TensorSpec(shape=(2, 3, 16, 16))])
    sized, notes = found.resized(inputs, [DynamicAxes(input=0, axes=(2, 3))])
    assert [tuple(one.shape) for one in sized[0]] == [(2, 3, 24, 32)]
    assert "24 along axis 2 of input 0, 32 along axis 3" in notes[0]
    assert found.resized(inputs, []) == ([], ())


def test_axes_that_belong_together_change_together() -> None:
    found = finder(Tagger())
    inputs = found.given([TensorSpec(shape=(2, 5), dtype="int64"), TensorSpec(shape=(2, 5))])
    sized, _ = found.resized(inputs, [DynamicAxes(input=0, axes=(1,)), DynamicAxes(input=1, axes=(1,))])
    assert [tuple(one.shape) for one in sized[0]] == [(2, 13), (2, 13)]


@pytest.mark.parametrize(("position", "axis"), [(0, 4), (1, 1)])
def test_an_axis_that_is_not_there_is_refused(position: int, axis: int) -> None:
    found = finder(CifarResNet())
    inputs = found.given([TensorSpec(shape=(1, 3, 16, 16))])
    with pytest.raises(InvalidRequestError, match=f"there is no axis {axis} of input {position}") as caught:
        found.resized(inputs, [DynamicAxes(input=position, axes=(axis,))])
    assert [violation.field for violation in caught.value.violations] == ["dynamic_axes"]
