"""Random nets over sequences, of recurrent layers, attention, gates and products: removed equals masked."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from helpers import cutting, shrinking, zoo


class Recurrent(nn.Module):
    """An LSTM or GRU both ways, or a simple one of two layers."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        kinds = [nn.LSTM, nn.GRU, nn.RNN]
        both = number % 2 == 0
        self.rnn = kinds[number % 3](width, 2 * number, 1 if both else 2, batch_first=True, bidirectional=both)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Attention(nn.Module):
    """Heads of 4 that share keys and values in pairs, with a learned scale per place in a head, and a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, 2 * heads * 4)
        self.kv = nn.Linear(width, 2 * heads * 4)
        self.scale = nn.Parameter(torch.zeros(4))
        self.out = nn.Linear(2 * heads * 4, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, -1, 4).transpose(1, 2) * self.scale
        k, v = self.kv(x).view(n, t, 2, -1, 4).permute(2, 0, 3, 1, 4).unbind(0)
        first, second = q[..., :2], q[..., 2:]
        q = torch.cat([-second, first], -1)
        y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return x + self.out(y.transpose(1, 2).reshape(n, t, -1))


class Products(nn.Module):
    """An einsum behind a gate."""

    def __init__(self, width: int, made: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 2 * made)
        self.weight = nn.Parameter(torch.zeros(made, made))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...i,ij->...j", functional.glu(self.gate(x), -1), self.weight)


class Sorted(nn.Module):
    """Rows picked per channel, and per sample."""

    def __init__(self, width: int, made: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, made)

    def forward(self, x: Tensor) -> Tensor:
        y = x.gather(1, x.argsort(1)) + x.index_select(1, torch.tensor([2, 0, 1, 3]))
        return self.out(y.index_add(1, torch.tensor([1]), x[:, :1]))


class Net(nn.Module):
    """[N, 4, 5] in, [N, 3] out."""

    def __init__(self, plan: list[tuple[str, int]]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(5, 6)]
        width = 6
        for kind, number in plan:
            layer, width = self._layer(kind, width, number)
            layers.append(layer)
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, 3)

    @staticmethod
    def _layer(kind: str, width: int, number: int) -> tuple[nn.Module, int]:
        if kind == "recurrent":
            return Recurrent(width, number), 2 * number * (2 if number % 2 == 0 else 1)
        if kind == "attention":
            return Attention(width, number), width
        if kind == "encoder":
            hidden = nn.Sequential(nn.Linear(width, 3 * number), nn.GELU(), nn.Linear(3 * number, width))
            return nn.Sequential(nn.LayerNorm(width), hidden), width
        return (Products if kind == "products" else Sorted)(width, number + 2), number + 2

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


KINDS = ["recurrent", "attention", "encoder", "products", "sorted"]
PLANS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(2, 4)), min_size=1, max_size=3)


@settings(max_examples=20, deadline=None)
@given(plan=PLANS, scripted=st.booleans(), seed=st.integers(0, 99))
def test_masked_equals_shrunk(plan: list[tuple[str, int]], scripted: bool, seed: int) -> None:
    net = Net(plan)
    cutting.randomize(net, seed=len(plan))
    x = torch.rand(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    archive = zoo.scripted(net.eval()) if scripted else zoo.traced(net, x)
    structure, _ = shrinking.assert_shrinks(archive, {"forward": [(x,), (x[:2],)]}, {"forward": [(x,)]}, seed=seed)
    assert {member.tensor for group in structure.groups for member in group.members}
