"""Shapes that an input may have, guessed from the weights that it meets first. Nothing is run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pruning_server.graph.entries import FirstUse
from pruning_server.spec.inspection import TensorSpec

MAX_ATTEMPTS = 24
# Image sizes that nets are trained for, the likeliest first.
SPATIAL_SIZES = {
    1: (64, 256, 512, 1024, 16000, 16),
    2: (224, 32, 28, 64, 96, 128, 256, 299, 48, 16, 8),
    3: (32, 64, 16, 96),
}
SEQUENCE = 8


@dataclass(frozen=True)
class Argument:
    """One argument of forward, and what is known of it.

    Attributes:
        type_name: as TorchScript writes it.
        uses: the weights that it meets first.
        scalar: what the request gives for it, as forward takes it; None where it gives nothing.
    """

    position: int
    name: str
    type_name: str
    has_default: bool
    uses: tuple[FirstUse, ...]
    scalar: object | None

    @property
    def is_tensor(self) -> bool:
        """Whether it takes one tensor."""
        return self.type_name in ("Tensor", "Optional[Tensor]")

    @property
    def rows(self) -> int | None:
        """Integers must stay below this number; None where they index nothing that is known."""
        return min((use.channels[0] for use in self.uses if use.op == "embedding"), default=None)

    def describe(self) -> str:
        """For messages."""
        if not self.uses:
            return f"{self.name} ({self.type_name})"
        use = self.uses[0]
        shape, count = "x".join(map(str, use.weight)), " or ".join(map(str, use.channels))
        says = {
            "conv": f"[N, {count}, {', '.join('HWD'[: use.spatial_axes])}]"
            if use.spatial_axes > 1
            else f"[N, {count}, L]",
            "linear": f"[..., {count}]",
            "recurrent": f"[..., {count}]",
            "embedding": f"integers below {count}",
        }[use.op]
        return f"{self.name} (first meets a {use.op} weight {shape}: {says})"


def candidates_of(
    argument: Argument, others: Sequence[Argument], floating: torch.dtype, *, sequences: bool
) -> list[TensorSpec]:
    """Shapes to try for an argument, the likeliest first."""
    dtype = str(floating).removeprefix("torch.")
    found: list[tuple[tuple[int, ...], str]] = []
    for use in argument.uses[:2]:
        found += _suggested(use, dtype, sequences=sequences or use.op == "recurrent")
    if not found and any(use.op == "embedding" for other in others for use in other.uses):
        found = [((1, SEQUENCE), "int64"), ((1, SEQUENCE), dtype), ((1, SEQUENCE), "bool")]
    if not found:
        found = [((1, 3, 32, 32), dtype), ((1, 16), dtype), ((1,), dtype), ((1, SEQUENCE), "int64")]
    return [TensorSpec(shape=shape, dtype=name) for shape, name in dict.fromkeys(found)]


def _suggested(use: FirstUse, dtype: str, *, sequences: bool) -> Iterator[tuple[tuple[int, ...], str]]:
    if use.op == "embedding":
        yield from (((1, length), "int64") for length in (SEQUENCE, 16, 32))
        yield (SEQUENCE,), "int64"
    elif use.op == "conv":
        for size in SPATIAL_SIZES.get(use.spatial_axes, ()):
            yield (1, use.channels[0], *(size,) * use.spatial_axes), dtype
        # Some nets add the axis of the only channel themselves.
        for size in SPATIAL_SIZES.get(use.spatial_axes, ()) if use.channels == (1,) else ():
            yield (1, *(size,) * use.spatial_axes), dtype
    else:
        for channels in use.channels:
            shapes: list[tuple[int, ...]] = [(1, channels), (1, SEQUENCE, channels)]
            yield from ((shape, dtype) for shape in (reversed(shapes) if sequences else shapes))
            # Pixels that are flattened on the way.
            side = round(channels**0.5)
            if side > 1 and side * side == channels:
                yield (1, 1, side, side), dtype


def combinations(candidates: Sequence[Sequence[TensorSpec]]) -> Iterator[tuple[TensorSpec, ...]]:
    """At most `MAX_ATTEMPTS` choices of one per argument, the likeliest first."""
    places = list(itertools.islice(itertools.product(*(range(len(one)) for one in candidates)), 4096))
    places.sort(key=lambda chosen: (sum(chosen), chosen))
    for chosen in places[:MAX_ATTEMPTS]:
        yield tuple(one[place] for one, place in zip(candidates, chosen, strict=True))
