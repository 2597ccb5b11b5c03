"""The first weights that inputs meet: through views, branches and loops, in scripted and traced code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruning_server.graph.entries import FirstUse, attends, find_first_uses


class Several(nn.Module):
    """One input for each kind of weight, and one that meets none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 8, 3, groups=2)
        self.up = nn.ConvTranspose1d(5, 7, 2)
        self.ids = nn.Embedding(11, 4)
        self.linear = nn.Linear(13, 2)
        self.cell = nn.LSTM(3, 2)

    def forward(
        self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor, e: torch.Tensor, f: torch.Tensor
    ) -> torch.Tensor:
        image = self.conv((a - 0.5) / 0.2).sum() + self.up(b).sum()
        words = self.linear(torch.flatten(d, 1)).sum() + self.ids(c).sum()
        return image + words + self.cell(e)[0].sum() + f.sum()


INPUTS = (
    torch.zeros(1, 6, 5, 5), torch.zeros(1, 5, 4), torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 13),
    torch.zeros(4, 1, 3), torch.zeros(2),
)  # fmt: skip
EXPECTED = (
    (FirstUse("conv", (8, 3, 3, 3), (6,), 2),),
    (FirstUse("conv", (5, 7, 2), (5,), 1),),
    (FirstUse("embedding", (11, 4), (11,)),),
    (FirstUse("linear", (2, 13), (13,)),),
    (FirstUse("recurrent", (8, 3), (3, 2)),),
    (),
)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("traced", [False, True])
def test_each_kind(traced: bool) -> None:
    module = torch.jit.trace(Several().eval(), INPUTS) if traced else torch.jit.script(Several().eval())
    assert find_first_uses(module) == EXPECTED


class Winding(nn.Module):
    """The input reaches its weight through a branch, a loop and a list; a second weight lies behind the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(9, 5)
        self.second = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, flip: bool = False) -> torch.Tensor:
        if flip:
            x = x.flip(0)
        for _ in range(3):
            x = x + 1
        parts = [x, x * 2]
        return self.second(self.first(parts[0]))


def test_through_control_flow_and_no_further_than_the_first() -> None:
    assert find_first_uses(torch.jit.script(Winding())) == ((FirstUse("linear", (5, 9), (9,)),), ())


def test_attention_is_seen() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16).eval()
    assert attends(torch.jit.script(layer))
    assert not attends(torch.jit.script(Winding()))
