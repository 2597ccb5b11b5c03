"""`out/expected.npz`: sample inputs, the final model's outputs in memory, and the masks, for a check in a fresh process.

Arrays of the container: `tensor_N` (half precision widened to float32, which is exact), `removed_N` (a mask, one bit per
element), and `meta`, JSON that says what they are.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from pruning_server.spec.base import Value, from_json, to_json
from pruning_server.worker.running import all_tensors


class StoredTensor(Value, frozen=True, kw_only=True):
    """A tensor in the container: its array's name, and its dtype as torch names it."""

    array: str
    dtype: str


class StoredRun(Value, frozen=True, kw_only=True):
    """One call: positional arguments, and every tensor of the output, flattened from tuples and dicts."""

    arguments: tuple[StoredTensor | bool | int | float | str, ...]
    outputs: tuple[StoredTensor, ...]


class StoredMask(Value, frozen=True, kw_only=True):
    """Which elements of a weight must be 0."""

    weight: str
    array: str
    shape: tuple[int, ...]


class Meta(Value, frozen=True, kw_only=True):
    """What the arrays are. `seed`: set before each call."""

    seed: int
    runs: tuple[StoredRun, ...]
    masks: tuple[StoredMask, ...]


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


def pack(runs: Sequence[tuple[tuple[object, ...], object]], removed: Mapping[str, torch.Tensor], seed: int) -> bytes:
    """The container's bytes for runs (arguments, output) and masks (True where removed)."""
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
    meta = Meta(seed=seed, runs=stored_runs, masks=tuple(masks))
    arrays["meta"] = np.frombuffer(to_json(meta), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpack(path: Path) -> Expected:
    """Reads what `pack` wrote."""
    with np.load(path, allow_pickle=False) as container:
        arrays = {name: container[name] for name in container.files}
    return Expected(from_json(arrays.pop("meta").tobytes(), Meta), arrays)


def relative_error(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Largest difference over all tensors, relative to the largest value of each; infinite where they do not match.

    What is NaN or infinite must be so in both, at the same places.
    """
    if len(got) != len(wanted):
        return float("inf")
    return max((_relative(a, b) for a, b in zip(got, wanted, strict=True)), default=0.0)


def _relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return float("inf")
    a, b = got.detach().double().cpu(), wanted.detach().double().cpu()
    finite = torch.isfinite(b)
    if not torch.equal(finite, torch.isfinite(a)) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    difference = float((a - b)[finite].abs().max())
    return difference / max(float(b[finite].abs().max()), torch.finfo(torch.float32).tiny) if difference else 0.0


def _stored_argument(argument: object, store: object) -> StoredTensor | bool | int | float | str:
    if isinstance(argument, torch.Tensor):
        return store(argument)  # type: ignore[operator, no-any-return]
    if isinstance(argument, bool | int | float | str):
        return argument
    raise TypeError(f"cannot store an argument of type {type(argument).__name__}")
