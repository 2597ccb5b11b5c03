"""`out/expected.npz`: sample inputs, the final model's outputs in memory, the masks and the cut, for a fresh process.

Arrays of the container: `tensor_N` (half precision widened to float32, which is exact), `removed_N` (a mask, one bit per
element), `places_N` (coordinates along an axis), and `meta`, JSON that says what they are.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from pruning_server.graph.proof.difference import relative_error
from pruning_server.graph.surgery.cut import AxisCut, Cut
from pruning_server.spec.base import Value, from_json, to_json
from pruning_server.worker.running import all_tensors

__all__ = [
    "Expected",
    "Meta",
    "StoredCall",
    "StoredCut",
    "StoredMask",
    "StoredRun",
    "StoredTensor",
    "pack",
    "relative_error",
    "unpack",
]


class StoredTensor(Value, frozen=True, kw_only=True):
    """A tensor in the container: its array's name, and its dtype as torch names it."""

    array: str
    dtype: str


class StoredRun(Value, frozen=True, kw_only=True):
    """One call: positional arguments, and every tensor of the output, flattened from tuples and dicts."""

    arguments: tuple[StoredTensor | bool | int | float | str, ...]
    outputs: tuple[StoredTensor, ...]


class StoredCall(Value, frozen=True, kw_only=True):
    """A call of a method other than forward, for the proof."""

    method: str
    arguments: tuple[StoredTensor | bool | int | float | str, ...]


class StoredMask(Value, frozen=True, kw_only=True):
    """Which elements of a weight must be 0."""

    weight: str
    array: str
    shape: tuple[int, ...]


class StoredCut(Value, frozen=True, kw_only=True):
    """What was removed along one axis of a tensor; `kept` and `zeroed` name arrays of coordinates."""

    tensor: str
    aliases: tuple[str, ...]
    axis: int
    size: int
    kept: str
    zeroed: str


class Meta(Value, frozen=True, kw_only=True):
    """What the arrays are. `seed`: set before each call. `core`: what a gate's core does without; none without a gate."""

    seed: int
    runs: tuple[StoredRun, ...]
    masks: tuple[StoredMask, ...]
    cut: tuple[StoredCut, ...] = ()
    calls: tuple[StoredCall, ...] = ()
    core: tuple[StoredCut, ...] = ()


class Expected:
    """The container's content."""

    def __init__(self, meta: Meta, arrays: Mapping[str, np.ndarray]) -> None:
        self.meta = meta
        self._arrays = arrays

    def tensor(self, stored: StoredTensor, device: str) -> torch.Tensor:
        """A stored tensor in its own dtype."""
        return torch.from_numpy(self._arrays[stored.array]).to(device).to(getattr(torch, stored.dtype))

    def removed(self, mask: StoredMask) -> torch.Tensor:
        """[shape], bool: True where the weight must be 0."""
        bits = np.unpackbits(self._arrays[mask.array], count=int(np.prod(mask.shape, dtype=np.int64)))
        return torch.from_numpy(bits.astype(bool).reshape(mask.shape))

    def arguments(self, run: StoredRun | StoredCall, device: str) -> tuple[object, ...]:
        """A run's positional arguments."""
        return tuple(self.tensor(one, device) if isinstance(one, StoredTensor) else one for one in run.arguments)

    @property
    def cut(self) -> Cut:
        """What was removed; empty where only values changed."""
        return self._cut(self.meta.cut)

    @property
    def core(self) -> Cut:
        """What the core of a gated model does without; empty where it has no gate."""
        return self._cut(self.meta.core)

    def _cut(self, stored: Sequence[StoredCut]) -> Cut:
        return tuple(
            AxisCut(
                tensor=one.tensor,
                aliases=one.aliases,
                axis=one.axis,
                size=one.size,
                kept=tuple(self._arrays[one.kept].tolist()),
                zeroed=tuple(self._arrays[one.zeroed].tolist()),
            )
            for one in stored
        )


def pack(
    runs: Sequence[tuple[tuple[object, ...], object]],
    removed: Mapping[str, torch.Tensor],
    seed: int,
    cut: Cut = (),
    calls: Sequence[tuple[str, tuple[object, ...]]] = (),
    core: Cut = (),
) -> bytes:
    """The container's bytes for runs (arguments, output), masks (True where removed), cuts, and calls of methods."""
    arrays: dict[str, np.ndarray] = {}

    def store(tensor: torch.Tensor) -> StoredTensor:
        name = f"tensor_{len(arrays)}"
        plain = tensor.detach().cpu()
        arrays[name] = (plain.float() if plain.dtype in {torch.float16, torch.bfloat16} else plain).numpy()
        return StoredTensor(array=name, dtype=str(tensor.dtype).removeprefix("torch."))

    stored_runs = tuple(
        StoredRun(
            arguments=tuple(_stored_argument(argument, store) for argument in arguments),
            outputs=tuple(store(tensor) for tensor in all_tensors(output)),
        )
        for arguments, output in runs
    )
    masks = []
    for weight, mask in removed.items():
        name = f"removed_{len(arrays)}"
        arrays[name] = np.packbits(mask.detach().cpu().numpy().reshape(-1))
        masks.append(StoredMask(weight=weight, array=name, shape=tuple(mask.shape)))

    def store_places(places: Sequence[int]) -> str:
        name = f"places_{len(arrays)}"
        arrays[name] = np.asarray(places, dtype=np.int64)
        return name

    def store_cut(cut: Cut) -> tuple[StoredCut, ...]:
        return tuple(
            StoredCut(
                tensor=one.tensor,
                aliases=one.aliases,
                axis=one.axis,
                size=one.size,
                kept=store_places(one.kept),
                zeroed=store_places(one.zeroed),
            )
            for one in cut
        )

    stored_calls = tuple(
        StoredCall(method=method, arguments=tuple(_stored_argument(argument, store) for argument in arguments))
        for method, arguments in calls
    )
    meta = Meta(
        seed=seed,
        runs=stored_runs,
        masks=tuple(masks),
        cut=store_cut(cut),
        calls=stored_calls,
        core=store_cut(core),
    )
    arrays["meta"] = np.frombuffer(to_json(meta), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpack(path: Path) -> Expected:
    """Reads what `pack` wrote."""
    with np.load(path, allow_pickle=False) as container:
        arrays = {name: container[name] for name in container.files}
    return Expected(from_json(arrays.pop("meta").tobytes(), Meta), arrays)


def _stored_argument(argument: object, store: object) -> StoredTensor | bool | int | float | str:
    if isinstance(argument, torch.Tensor):
        return store(argument)  # type: ignore[operator, no-any-return]
    if isinstance(argument, bool | int | float | str):
        return argument
    raise TypeError(f"cannot store an argument of type {type(argument).__name__}")
