"""What reconstruction can do about a model: its kernels, where the chain of each ends, and what the original gives there."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from pruning_server.graph.capture import LinearCall
from pruning_server.graph.chains import Link, LinkKind, Visitor
from pruning_server.recovery.linear_ops import channel_rows

MIN_POSITIONS, MAX_POSITIONS, POSITIONS_PER_FEATURE = 4096, 32768, 8
# Beyond these a layer is only scaled and shifted: the normal equations would not fit, or take hours.
MAX_FEATURES = 8192
MAX_DESIGN_VALUES = 8e7
# Of all layers together.
MAX_TARGET_VALUES = 2e8

NO_DESIGN = "a transposed convolution without a bias cannot be refitted"


class Method(enum.StrEnum):
    """How a layer is brought back."""

    REFIT = "reconstruction"
    AFFINE = "affine"  # per channel, so that mean and deviation are the original's


class Follower(Protocol):
    """Runs a model and reports its linear ops and their chains."""

    def __call__(self, inputs: Sequence[object], visitor: Visitor) -> object:
        """One run in evaluation mode, without gradients."""
        ...


@dataclass(frozen=True)
class Pair:
    """The original and the pruned model side by side.

    Attributes:
        original: runs the one, `pruned` the other.
        samples: how many there are to fit on.
        exact_batch: the only batch size that they take, or None.
        inputs: arguments of both for these rows, in [0, samples).
        tensor: a stored tensor of the pruned model by name.
        kept_outputs: by kernel and axis, what is left of it, where something is missing.
        removed: by kernel, what is pruned of its single weights.
        changeable: names of the stored tensors that may change.
    """

    original: Follower
    pruned: Follower
    samples: int
    exact_batch: int | None
    inputs: Callable[[Sequence[int]], tuple[Sequence[object], Sequence[object]]]
    tensor: Callable[[str], torch.Tensor]
    kept_outputs: Mapping[tuple[str, int], Sequence[int]]
    removed: Mapping[str, torch.Tensor]
    changeable: Collection[str]


@dataclass(frozen=True)
class Reconstructed:
    """How many kernels were refitted, how many only scaled and shifted, and what was left alone, with the reason."""

    refitted: int
    scaled: int
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Layer:
    """What is done about one kernel.

    Attributes:
        method: how.
        links: how many links its chain has after the op itself, up to where it is matched.
        rectified: whether a ReLU follows there.
        bias: name of what takes up a constant: a bias, or the running mean of a normalization.
        negated: whether that is subtracted.
        features: of one row of the design matrix.
        positions: rows of a run of the surveyed samples.
        overwritten: whether a later op writes over the op's input, as in `x += f(x)`.
    """

    method: Method
    links: int
    rectified: bool
    bias: str | None
    negated: bool
    features: int
    positions: int
    overwritten: bool


@dataclass(frozen=True)
class Work:
    """What can be done; `skipped` says of the other kernels why not."""

    layers: Mapping[str, Layer]
    skipped: Mapping[str, str]


@dataclass
class Survey:
    """Which kernels there are and where their chains end."""

    calls: dict[str, LinearCall] = field(default_factory=dict)
    chains: dict[str, list[Link]] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    largest: float = 0.0

    def linear(self, call: LinearCall, link: Link) -> None:
        """See `Visitor`."""
        self.calls[call.weight] = call
        self.versions[call.weight] = call.inputs._version
        self.chains.setdefault(call.weight, []).append(link)
        self.largest = max(self.largest, 4.0 * (call.inputs.numel() + call.output.numel()))

    def follow(self, link: Link, value: torch.Tensor) -> None:
        """See `Visitor`."""
        del value
        self.chains[link.weight].append(link)

    def other_use(self, weight: str) -> None:
        """See `Visitor`."""
        self.uses[weight] = self.uses.get(weight, 0) + 1

    def work(self, pair: Pair, method: Method) -> Work:
        """What can be done; `skipped` says of the rest why not."""
        layers: dict[str, Layer] = {}
        skipped: dict[str, str] = {}
        for name, call in self.calls.items():
            if name not in pair.changeable:
                continue
            if self.uses.get(name, 0) != 1:
                skipped[name] = "it is used more than once"
                continue
            layer = self._layer(pair, method, call)
            if layer.method is Method.AFFINE and layer.bias is None:
                skipped[name] = "there is no bias that could take up a shift" if call.has_design else NO_DESIGN
            else:
                layers[name] = layer
        return Work(layers, skipped)

    def _layer(self, pair: Pair, method: Method, call: LinearCall) -> Layer:
        features = call.kernel.numel() // call.kernel.shape[call.out_axis]
        affine = method is Method.AFFINE or not call.has_design or features > MAX_FEATURES
        bias = call.bias if self._free(pair, call.bias) else None
        overwritten = call.inputs._version != self.versions[call.weight]
        plain = Layer(Method.AFFINE, 0, False, bias, False, features, call.positions(), overwritten)
        if affine:
            return plain
        head, *rest = self.chains[call.weight]
        links, rectified, last, mean = 0, False, head, None
        for link in rest:
            if link.before is not last or last.uses != 1:
                break
            if link.kind is LinkKind.RECTIFIER:
                rectified = True
                break
            links, last, mean = links + 1, link, link.mean
        taken = bias if bias is not None or not self._free(pair, mean) else mean
        return replace(plain, method=Method.REFIT, links=links, rectified=rectified, bias=taken, negated=taken != bias)

    def _free(self, pair: Pair, name: str | None) -> bool:
        """Whether a bias or running mean may change and belongs to this layer alone."""
        return name is not None and name in pair.changeable and self.uses.get(name, 0) == 1


class Sampler:
    """Takes the original's values at chosen positions, where each chain is matched.

    `runs`: over how many runs, each with a sampler of its own, a layer's positions are spread.
    """

    def __init__(self, layers: Mapping[str, Layer], seed: int, runs: int = 1) -> None:
        self.layers = layers
        self.positions: dict[str, torch.Tensor] = {}
        self.targets: dict[str, torch.Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)
        self._followed: dict[str, int] = {}
        self._runs = runs
        self._left = MAX_TARGET_VALUES / runs

    def linear(self, call: LinearCall, link: Link) -> None:
        """See `Visitor`."""
        layer = self.layers.get(call.weight)
        if layer is None:
            return
        wanted = min(MAX_POSITIONS, max(MIN_POSITIONS, POSITIONS_PER_FEATURE * layer.features))
        wanted = min(wanted, int(MAX_DESIGN_VALUES / max(1, layer.features * call.groups)))
        wanted = min(wanted, int(self._left / call.kernel.shape[call.out_axis] / 4))
        wanted = -(-wanted // self._runs)
        count = call.positions()
        chosen = torch.randperm(count, generator=self._generator)[: max(1, wanted)]
        self.positions[call.weight] = chosen.sort().values.to(call.output.device)
        self._take(link, call.output)

    def follow(self, link: Link, value: torch.Tensor) -> None:
        """See `Visitor`."""
        if link.weight in self.layers and link.kind is not LinkKind.RECTIFIER:
            self._followed[link.weight] = self._followed.get(link.weight, 0) + 1
            self._take(link, value)

    def other_use(self, weight: str) -> None:
        """See `Visitor`."""

    def _take(self, link: Link, value: torch.Tensor) -> None:
        if self._followed.get(link.weight, 0) == self.layers[link.weight].links:
            target = channel_rows(value, link.channel_axis, self.positions[link.weight]).float()
            self.targets[link.weight] = target
            self._left -= target.numel()
