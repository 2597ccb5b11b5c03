"""Small modules that hold and use their weights in every way that archives do, for the tests of `graph/`."""

from __future__ import annotations

import io
import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional


def reload(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Through the archive and back, as a caller's file comes."""
    buffer = io.BytesIO(module.save_to_buffer())
    return torch.jit.load(buffer)


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    """Scripts, saves, loads."""
    return reload(torch.jit.script(module))


def traced(module: nn.Module, *example: Tensor) -> torch.jit.ScriptModule:
    """Traces in eval mode, saves, loads."""
    with warnings.catch_warnings():
        # Control flow on shapes is baked in: what archives of traced models are like.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return reload(torch.jit.trace(module.eval(), example, check_trace=False))


def frozen(module: nn.Module) -> torch.jit.ScriptModule:
    """Scripts in eval mode, freezes, saves, loads."""
    return reload(torch.jit.freeze(torch.jit.script(module.eval())))


class Functional(nn.Module):
    """Weights as a plain attribute, a buffer, in a list, a dict and a tuple; used through views."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.randn(6, 4)
        self.register_buffer("buffer", torch.randn(6, 5))
        self.listed = [torch.randn(5, 6), torch.randn(5)]
        self.named = {"a.b": torch.randn(3, 5), "shift": torch.randn(3)}
        self.pair = (torch.randn(3, 2), torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(x, self.plain)
        x = x @ self.buffer
        x = functional.linear(x, self.listed[0].t().contiguous().t().view(5, 6)[:, :5], self.listed[1])
        x = functional.linear(x, self.named["a.b"], self.named["shift"])
        return x.matmul(self.pair[0]) + self.pair[1]


class Views(nn.Module):
    """Parameters used through t(), permute, reshape, chunk, slices, select, expand, a cast and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed = nn.Parameter(torch.randn(8, 8))
        self.permuted = nn.Parameter(torch.randn(2, 8, 8))
        self.chunked = nn.Parameter(torch.randn(16, 8))
        self.sliced = nn.Parameter(torch.randn(10, 8))
        self.flat = nn.Parameter(torch.randn(64))
        self.scaled = nn.Parameter(torch.randn(8, 8))
        self.cast = nn.Parameter(torch.randn(8, 8))
        self.stacked = nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(x, self.transposed.t())
        x = x @ self.permuted.permute(1, 0, 2)[:, 0]
        first, second = self.chunked.chunk(2)
        x = functional.linear(functional.linear(x, first), second)
        x = functional.linear(x, self.sliced[1:9])
        x = torch.mm(x, self.flat.reshape(8, 8))
        x = functional.linear(x, self.scaled * (1.0 / math.sqrt(8)))
        x = functional.linear(x, self.cast.to(x.dtype))
        for i in range(3):
            x = x @ self.stacked[i]
        return x


class Products(nn.Module):
    """addmm, matmul from the left, bmm, baddbmm, einsum, mv, bilinear."""

    def __init__(self) -> None:
        super().__init__()
        self.addmm = nn.Parameter(torch.randn(4, 4))
        self.addend = nn.Parameter(torch.randn(4))
        self.left = nn.Parameter(torch.randn(4, 4))
        self.bmm = nn.Parameter(torch.randn(1, 4, 4))
        self.baddbmm = nn.Parameter(torch.randn(1, 4, 4))
        self.einsum = nn.Parameter(torch.randn(4, 4))
        self.mv = nn.Parameter(torch.randn(4))
        self.bilinear = nn.Bilinear(4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addmm(self.addend, x, self.addmm)
        x = (self.left @ x.t()).t()
        x = torch.bmm(x.unsqueeze(0), self.bmm)
        x = torch.baddbmm(x, x, self.baddbmm).squeeze(0)
        x = torch.einsum("bi,io->bo", x, self.einsum)
        x = self.bilinear(x, x)
        return torch.mv(x, self.mv)


class Convolutions(nn.Module):
    """One to three dimensions, grouped, depthwise, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(2, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.three = nn.Conv3d(1, 2, 3, padding=1)
        self.up1 = nn.ConvTranspose1d(2, 2, 2)
        self.up3 = nn.ConvTranspose3d(2, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.up1(x))
        x = self.up(self.deep(self.two(x.unsqueeze(-1).expand(-1, -1, -1, 4))))
        return self.up3(self.three(x.unsqueeze(1)))


class Text(nn.Module):
    """Embeddings, tied output, LSTM, GRU cell, attention, norms, position table."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.bag = nn.EmbeddingBag(11, 8, mode="sum")
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.lstm = nn.LSTM(8, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.cell = nn.GRUCell(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.output = nn.Linear(8, 11)
        self.output.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.positions
        x, _ = self.lstm(x)
        x, _ = self.attention(x, x, x, need_weights=False)
        x = self.norm(x)
        last = self.cell(x[:, -1], self.bag(tokens))
        return self.output(last)


class Switch(nn.Module):
    """A weight in a branch that an ordinary run does not reach, a weight in another method, one that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Linear(4, 4)
        self.rare = nn.Linear(4, 4)
        self.auxiliary = nn.Linear(4, 2)
        self.exported = nn.Linear(4, 3)
        self.idle = nn.Parameter(torch.randn(3, 3))
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor, rare: bool = False) -> Tensor:
        if rare:
            x = self.rare(x)
        for layer in self.layers:
            x = layer(x)
        if self.training:
            return self.auxiliary(x)
        return self.main(x)

    @torch.jit.export
    def features(self, x: Tensor) -> Tensor:
        return self.exported(x)


class Looped(nn.Module):
    """Weights collected in a list and applied in a loop of unknown length."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 4))
        self.second = nn.Parameter(torch.randn(4, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, steps: int) -> Tensor:
        weights: list[Tensor] = []
        for i in range(steps):
            weights.append(self.first if i % 2 == 0 else self.second)  # noqa: PERF401 - the append is the point
        for weight in weights:
            x = functional.linear(x, weight) + self.bias
        return x


class Stateful(nn.Module):
    """A recurrent net that keeps its state in a buffer, in place, counts its calls, and remembers inputs in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(3, 4)
        self.recurrent = nn.Parameter(torch.randn(4, 4) / 4)
        self.register_buffer("hidden", torch.zeros(1, 4))
        self.calls = 0
        self.replaced = torch.zeros(1, 4)
        self.seen = [torch.zeros(1)]

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = torch.tanh(self.input(x) + self.hidden @ self.recurrent)
        self.hidden.copy_(hidden)
        self.replaced = self.replaced + hidden
        self.seen.append(x.sum())
        return hidden + self.replaced

    @torch.jit.export
    def reset(self) -> None:
        self.hidden.zero_()


class Frozenish(nn.Module):
    """Parameters that must be left alone, each for another reason."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.Linear(4, 4)
        self.logdet = nn.Parameter(torch.randn(4, 4))
        self.exponential = nn.Parameter(torch.randn(4, 4))
        self.written = nn.Parameter(torch.randn(4, 4))
        self.added = nn.Parameter(torch.randn(4, 4))
        self.divisor = nn.Parameter(torch.rand(4) + 1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(x, self.logdet) + torch.slogdet(self.logdet)[1]
        x = functional.linear(x, self.exponential.exp())
        with torch.no_grad():
            self.written.mul_(0.5)
        x = functional.linear(x, self.written)
        x = x + self.added
        return self.kept(x / self.divisor)


class Residual(nn.Module):
    """Convolutions with batch norm, dropout and a skip: [N, 3, 8, 8] in, [N, 5] out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(x)))
        return self.linear(self.dropout(x.mean((2, 3))))
