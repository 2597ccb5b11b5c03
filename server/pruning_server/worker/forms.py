"""How stored arrays become what a model takes: dtype, scale, normalization, layout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.spec.request import Layout, Preprocessing

IMAGE_SCALE = 1 / 255
MAX_TRIED_FORMS = 32
# Tried in this order; a frozen archive does not tell the type in which it computes.
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class InputForm:
    """How one stored array is fed: cast to `dtype`, and if that is floating-point (x * scale - mean) / std per channel."""

    dtype: torch.dtype
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels_last: bool = False
    bfloat16_bits: bool = False

    def tensor(self, rows: np.ndarray, device: str) -> torch.Tensor:
        """The rows [N, ...] as stored, as a tensor of the form's dtype on the device."""
        values = torch.from_numpy(_native(rows)).to(device) if not self.bfloat16_bits else _bfloat16(rows).to(device)
        if self.channels_last and values.ndim == 4:
            values = values.permute(0, 3, 1, 2).contiguous()
        if not self.dtype.is_floating_point:
            return values.to(self.dtype)
        values = values if values.dtype == torch.float64 and self.dtype == torch.float64 else values.float()
        values = values * self.scale if self.scale != 1.0 else values
        if self.mean:
            values = values - _per_channel(self.mean, values)
        if self.std:
            values = values / _per_channel(self.std, values)
        return values.to(self.dtype)

    @property
    def description(self) -> str:
        """For the report, e.g. `float32, x * 0.00392157`."""
        name = str(self.dtype).removeprefix("torch.")
        if not self.dtype.is_floating_point:
            return name
        steps = [name]
        if self.scale != 1.0:
            steps.append(f"x * {self.scale:.6g}")
        if self.mean or self.std:
            steps.append("mean and std per channel")
        return ", ".join(steps)


def candidate_forms(
    arrays: Sequence[np.ndarray], dtypes: Sequence[str], preprocessing: Preprocessing, model_dtype: torch.dtype
) -> list[tuple[InputForm, ...]]:
    """Every way in which the arrays could be meant, the likeliest first.

    Floating-point arrays stay floating-point. Of integers it is not known whether a model takes them as numbers or as
    indices, so both are offered: bytes as images first, wider integers as indices first.

    Raises:
        JobFailureError: mean or std has another number of channels than every input (INVALID_FIELD).
    """
    per_input = [
        _forms_of(array, dtype, preprocessing, model_dtype) for array, dtype in zip(arrays, dtypes, strict=True)
    ]
    _check_channels(arrays, preprocessing)
    combinations = list(itertools.islice(itertools.product(*map(range, map(len, per_input))), 4096))
    combinations.sort(key=lambda places: (sum(places), places))
    return [
        tuple(forms[place] for forms, place in zip(per_input, places, strict=True))
        for places in combinations[:MAX_TRIED_FORMS]
    ]


def _forms_of(
    array: np.ndarray, dtype_name: str, preprocessing: Preprocessing, model_dtype: torch.dtype
) -> list[InputForm]:
    nhwc = preprocessing.layout is Layout.NHWC and array.ndim == 4
    fits = _channels_fit(array, preprocessing)
    mean, std = (preprocessing.mean, preprocessing.std) if fits else ((), ())
    is_bytes, is_bfloat16 = array.dtype == np.uint8, dtype_name == "bfloat16"
    scale = preprocessing.scale if preprocessing.scale is not None else (IMAGE_SCALE if is_bytes else 1.0)
    floats = [
        InputForm(dtype, scale=scale, mean=mean, std=std, channels_last=nhwc, bfloat16_bits=is_bfloat16)
        for dtype in dict.fromkeys((model_dtype, *FLOATS))
    ]
    if array.dtype.kind == "f" or is_bfloat16:
        return floats
    stored = torch.from_numpy(_native(array[:0])).dtype
    indices = [InputForm(dtype=dtype, channels_last=nhwc) for dtype in dict.fromkeys((stored, torch.int64))]
    asked_for = preprocessing.scale is not None or bool(mean) or bool(std)
    return [*floats, *indices] if is_bytes or asked_for else [*indices, *floats]


def _channels_fit(array: np.ndarray, preprocessing: Preprocessing) -> bool:
    lengths = {len(values) for values in (preprocessing.mean, preprocessing.std) if values}
    if array.ndim < 2:
        return lengths <= {1}
    axis = -1 if preprocessing.layout is Layout.NHWC and array.ndim == 4 else 1
    return lengths <= {1, array.shape[axis]}


def _check_channels(arrays: Sequence[np.ndarray], preprocessing: Preprocessing) -> None:
    if any(_channels_fit(array, preprocessing) for array in arrays):
        return
    shapes = ", ".join(str(list(array.shape)) for array in arrays)
    text = (
        f"preprocessing.mean and .std have {max(len(preprocessing.mean), len(preprocessing.std))} entries, which fits "
        f"no input ({shapes}). Give one entry per channel, or one for all; channels are axis 1, or the last of nhwc."
    )
    raise JobFailureError(Reason.INVALID_FIELD, text)


def _per_channel(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    tensor = torch.tensor(values, dtype=like.dtype, device=like.device)
    return tensor.reshape(1, -1, *(1,) * (like.ndim - 2)) if like.ndim >= 2 else tensor


def _bfloat16(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, dtype="<u2").view(np.int16)).view(torch.bfloat16)


def _native(rows: np.ndarray) -> np.ndarray:
    """Contiguous, writable and in native byte order, as torch wants it."""
    return np.array(rows, dtype=rows.dtype.newbyteorder("="), order="C")
