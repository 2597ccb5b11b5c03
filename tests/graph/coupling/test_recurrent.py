"""Recurrent layers: hidden units go with their gates, in all layers and directions; the smaller net is built anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from helpers import rebuilding, zoo
from helpers.rebuilding import assert_rebuilt, coupled, free

SEQUENCE = torch.rand(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([2, 4, 3])
KINDS = [nn.LSTM, nn.GRU, nn.RNN, partial(nn.RNN, nonlinearity="relu")]
NAMES = ["lstm", "gru", "rnn_tanh", "rnn_relu"]
GATES = [4, 3, 1, 1]


class Layers(nn.Module):
    """A linear layer, recurrent layers of `hidden` units over `given` features, and a linear layer."""

    def __init__(self, kind: Callable[..., nn.Module], given: int, hidden: int, **options: object) -> None:
        super().__init__()
        directions = 2 if options.get("bidirectional") else 1
        self.first = nn.Linear(6, given)
        self.rnn = kind(given, hidden, **options)
        self.last = nn.Linear(directions * int(options.get("proj_size", hidden)), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rnn(self.first(x))[0])


OPTIONS = [
    {},
    {"num_layers": 2, "batch_first": True},
    {"bidirectional": True, "bias": False},
    {"num_layers": 3, "bidirectional": True, "batch_first": True},
]


@pytest.mark.parametrize("scripted", [False, True], ids=["traced", "scripted"])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "layers", "both ways without bias", "all"])
@pytest.mark.parametrize(("kind", "gates"), list(zip(KINDS, GATES, strict=True)), ids=NAMES)
def test_hidden_units(kind: Callable[..., nn.Module], gates: int, options: dict[str, object], scripted: bool) -> None:
    if scripted and isinstance(kind, partial) and len(options) > 2:
        pytest.skip("one scripted net of this size per kind of layer is enough")
    assert_rebuilt(
        lambda hidden: Layers(kind, 5, hidden, **options),
        4,
        [SEQUENCE],
        ("rnn.weight_hh_l0", 0),
        size=4,
        share=gates,
        scripted=scripted,
        removed=1 if "bias" in options else 2,  # a unit that its activation does not switch off
    )


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_input_features(kind: Callable[..., nn.Module]) -> None:
    assert_rebuilt(
        lambda given: Layers(kind, given, 4, num_layers=2, bidirectional=True),
        5,
        [SEQUENCE],
        ("rnn.weight_ih_l0_reverse", 1),
        size=5,
        share=1,
    )


@pytest.mark.parametrize("batch_first", [False, True])
def test_projected_units(batch_first: bool) -> None:
    options = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}

    def hidden(units: int) -> nn.Module:
        return Layers(nn.LSTM, 5, units, proj_size=3, **options)

    def projected(width: int) -> nn.Module:
        return Layers(nn.LSTM, 5, 5, proj_size=width, **options)

    assert_rebuilt(hidden, 5, [SEQUENCE], ("rnn.weight_hr_l1", 1), size=5, share=1)
    assert_rebuilt(projected, 3, [SEQUENCE], ("rnn.weight_hr_l0_reverse", 0), size=3, share=1)


class Packed(nn.Module):
    """Sequences of several lengths, out of order."""

    def __init__(self, kind: Callable[..., nn.Module], given: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(6, given)
        self.rnn = kind(given, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.last = nn.Linear(2 * hidden, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.first(x), lengths, batch_first=True, enforce_sorted=False)
        padded, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=4)
        return self.last(padded)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)], ids=["lstm", "gru"])
def test_packed_sequences(kind: Callable[..., nn.Module], gates: int) -> None:
    inputs = [SEQUENCE, LENGTHS]
    assert_rebuilt(lambda h: Packed(kind, 5, h), 4, inputs, ("rnn.weight_ih_l1", 0), size=4, share=gates)
    assert_rebuilt(lambda given: Packed(kind, given, 4), 5, inputs, ("first.weight", 0), size=5, share=1)


class States(nn.Module):
    """Learned initial states; the final states of the last layer are used as well."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, hidden, num_layers=2)
        self.start = nn.Parameter(torch.zeros(2, 1, hidden))
        self.cell = nn.Linear(6, hidden)
        self.last = nn.Linear(2 * hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = self.start.expand(2, x.size(1), self.start.size(2)).contiguous()
        cell = self.cell(x[0]).unsqueeze(0).repeat(2, 1, 1)
        _, (shown, hidden) = self.rnn(x, (start, cell))
        return self.last(torch.cat([shown[-1], hidden[-1]], 1))


@pytest.mark.parametrize("scripted", [False, True], ids=["traced", "scripted"])
def test_initial_and_final_states(scripted: bool) -> None:
    assert_rebuilt(States, 4, [SEQUENCE], ("cell.weight", 0), size=4, share=1, scripted=scripted)


class Cells(nn.Module):
    """A cell called in a loop over time."""

    def __init__(self, kind: type[nn.Module], hidden: int, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.start = nn.Linear(6, hidden)
        self.cell = kind(5, hidden, bias=bias)
        self.last = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        shown = self.start(x[0])
        for i in range(x.size(0)):
            shown = self.cell(self.first(x[i]), shown)
        return self.last(shown)


class LongCells(Cells):
    """The same with two states."""

    def forward(self, x: Tensor) -> Tensor:
        shown = self.start(x[0])
        hidden = shown.tanh()
        for i in range(x.size(0)):
            shown, hidden = self.cell(self.first(x[i]), (shown, hidden))
        return self.last(shown)


@pytest.mark.parametrize("scripted", [False, True], ids=["traced", "scripted"])
@pytest.mark.parametrize(
    ("kind", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)], ids=["lstm", "gru", "rnn"]
)
@pytest.mark.parametrize("bias", [False, True])
def test_cells(kind: type[nn.Module], gates: int, bias: bool, scripted: bool) -> None:
    net = LongCells if kind is nn.LSTMCell else Cells
    assert_rebuilt(
        lambda hidden: net(kind, hidden, bias),
        4,
        [SEQUENCE],
        ("cell.weight_ih", 0),
        size=4,
        share=gates,
        scripted=scripted,
    )


class GivenStates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return self.last(self.rnn(x, state)[0])


class ReturnedStates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[1]


def test_states_of_the_caller_stay() -> None:
    given = rebuilding.archived(GivenStates(), [SEQUENCE, torch.rand(1, 4, 4).double()], scripted=True)
    coupling = coupled(given, [SEQUENCE, torch.rand(1, 4, 4).double()])
    assert free(coupling) == set()
    assert any("gru" in one.op and "rnn.weight_hh_l0" in one.layers for one in coupling.frozen)
    returned = rebuilding.archived(ReturnedStates(), [SEQUENCE], scripted=False)
    assert free(coupled(returned, [SEQUENCE])) == set()


class Computed(nn.Module):
    """The recurrent weights depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.given = nn.Linear(6, 5)
        self.rows = nn.Linear(6, 4)
        self.again = nn.Parameter(torch.zeros(4, 4))
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        taken = self.rows(x[0, :1]).t() @ x[0, :1, :5]
        state = torch.zeros(x.size(1), 4, dtype=x.dtype)
        return self.last(torch.rnn_tanh_cell(self.given(x[0]), state, taken, self.again))


def test_computed_weights_stay() -> None:
    coupling = coupled(rebuilding.archived(Computed(), [SEQUENCE], scripted=True), [SEQUENCE])
    assert free(coupling) == set()
    assert any("computed" in one.reason for one in coupling.frozen)


def test_lists_of_weights_are_aliases() -> None:
    net = Layers(nn.LSTM, 5, 4)
    groups = coupled(zoo.scripted(net.double().eval()), [SEQUENCE]).groups
    aliases = {member.tensor: member.aliases for group in groups for member in group.members}
    assert aliases["rnn.weight_hh_l0"] == ("rnn._flat_weights.1",)
