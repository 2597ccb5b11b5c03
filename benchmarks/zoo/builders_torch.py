"""The architectures that torch itself has: transformers, attention, recurrent layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from zoo.entries import BOTH, SCRIPT, TRACE, Entry, Form, Inputs, Source, floats, tokens, uniform

# The hidden layer is four times as wide as the model, as in the paper and in torch's defaults.
_WIDTH, _HEADS, _HIDDEN = 64, 4, 256


class Recurrent(nn.Module):
    """A recurrent layer of torch between an embedding and a classifier."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(97, 32)
        self.layer = layer
        self.norm = nn.Dropout(0.1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the last step."""
        y, _ = self.layer(self.embedding(x))
        return self.head(self.norm(y[:, -1]))


class SpeechNet(nn.Module):
    """Convolutions over a spectrogram, a bidirectional GRU, a classifier per step (as in Deep Speech 2, arXiv 1512.02595)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, (11, 5), (2, 2), (5, 2)),
            nn.BatchNorm2d(16),
            nn.Hardtanh(0.0, 20.0),
            nn.Conv2d(16, 16, (11, 5), (1, 2), (5, 2)),
            nn.BatchNorm2d(16),
            nn.Hardtanh(0.0, 20.0),
        )
        self.recurrent = nn.GRU(16 * 8, 32, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 29)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, time, 32] in, [N, time / 2, 29] out."""
        x = self.convolutions(x)
        y, _ = self.recurrent(x.transpose(1, 2).flatten(2))
        return self.head(y)


class Attending(nn.Module):
    """Torch's attention between two linear layers."""

    def __init__(self, *, weights: bool) -> None:
        super().__init__()
        self.first = nn.Linear(16, _WIDTH)
        self.attention = nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=True)
        self.last = nn.Linear(_WIDTH, 5)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        """[N, length, 16] in, [N, length, 5] out."""
        x = self.first(x)
        y, _ = self.attention(x, x, x, need_weights=self.weights)
        return self.last(y)


class TwoSequences(nn.Module):
    """nn.Transformer with projections in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Linear(16, _WIDTH), nn.Linear(16, _WIDTH)
        self.transformer = nn.Transformer(_WIDTH, _HEADS, 2, 2, _HIDDEN, batch_first=True)
        self.last = nn.Linear(_WIDTH, 5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Two sequences [N, length, 16] in, [N, length, 5] out."""
        return self.last(self.transformer(self.source(source), self.target(target)))


class Policy(nn.Module):
    """An actor with a recurrent cell over time, as reinforcement learning libraries write it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(24, 64), nn.ELU(), nn.Linear(64, 32), nn.ELU())
        self.cell = nn.LSTMCell(32, 32)
        self.actor = nn.Sequential(nn.Linear(32, 32), nn.ELU(), nn.Linear(32, 6))

    def forward(self, x: Tensor) -> Tensor:
        """[N, steps, 24] in, [N, 6] out."""
        hidden = x.new_zeros(x.size(0), 32)
        state = x.new_zeros(x.size(0), 32)
        for step in range(x.size(1)):
            hidden, state = self.cell(self.encoder(x[:, step]), (hidden, state))
        return self.actor(hidden)


def entries() -> tuple[Entry, ...]:
    """All of them."""
    text = tokens(12)
    return (
        _entry("lstm", "LSTM", lambda: Recurrent(nn.LSTM(32, 64, batch_first=True), 64), text),
        _entry(
            "lstm-2-layers-both-ways",
            "LSTM",
            lambda: Recurrent(nn.LSTM(32, 48, 2, batch_first=True, bidirectional=True, dropout=0.1), 96),
            text,
        ),
        _entry("lstm-projected", "LSTM", lambda: Recurrent(nn.LSTM(32, 64, batch_first=True, proj_size=24), 24), text),
        _entry("gru", "GRU", lambda: Recurrent(nn.GRU(32, 64, 2, batch_first=True), 64), text),
        _entry("rnn-tanh", "GRU", lambda: Recurrent(nn.RNN(32, 64, batch_first=True), 64), text),
        _entry("speech-gru", "audio", SpeechNet, floats(1, 40, 32)),
        _entry("lstm-cell-policy", "policies", Policy, floats(4, 24)),
        _entry("attention", "attention", lambda: Attending(weights=False), floats(10, 16), TRACE),
        _entry("attention-scripted", "attention", lambda: Attending(weights=False), floats(10, 16), SCRIPT),
        _entry("attention-fused", "attention", lambda: _fused(Attending(weights=False)), floats(10, 16), TRACE),
        _entry("attention-with-weights", "attention", lambda: Attending(weights=True), floats(10, 16), TRACE),
        _entry("transformer-encoder", "attention", _encoder, floats(10, _WIDTH)),
        _entry("transformer-encoder-fused", "attention", lambda: _fused(_encoder()), floats(10, _WIDTH), TRACE),
        _entry("transformer-encoder-norm-first", "attention", _norm_first, floats(10, _WIDTH)),
        _entry("transformer", "attention", TwoSequences, _two),
        _entry("transformer-decoder", "attention", _Decoder, _memory, TRACE),
    )


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(_WIDTH, _HEADS, _HIDDEN, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        made: Tensor = self.decoder(x, memory)
        return made


def _encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(_WIDTH, _HEADS, _HIDDEN, batch_first=True), 2)


def _fused(module: nn.Module) -> nn.Module:
    """Without gradients torch takes its fused ops, which is what a trace then holds."""
    return module.requires_grad_(False)


def _norm_first() -> nn.Module:
    layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, _HIDDEN, batch_first=True, norm_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _two(batch: int) -> Inputs:
    return uniform(batch, 10, 16), uniform(batch, 7, 16, seed=1)


def _memory(batch: int) -> Inputs:
    return uniform(batch, 7, _WIDTH), uniform(batch, 10, _WIDTH, seed=1)


def _entry(
    name: str,
    family: str,
    build: Callable[[], nn.Module],
    inputs: Callable[[int], Inputs],
    forms: tuple[Form, ...] = BOTH,
) -> Entry:
    return Entry(name, family, Source.TORCH, build, inputs, forms)
