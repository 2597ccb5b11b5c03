"""How far two outputs are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

_TINY_PART = 1e-3


def relative_error(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Largest difference over all tensors, relative to the largest value of each; infinite where they do not match.

    What is NaN or infinite must be so in both, at the same places.
    """
    if len(got) != len(wanted):
        return float("inf")
    return max((_relative(a, b) for a, b in zip(got, wanted, strict=True)), default=0.0)


def _relative(got: torch.Tensor, wanted: torch.Tensor, smallest_scale: float = 0.0) -> float:
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return float("inf")
    a, b = _plain(got), _plain(wanted)
    finite = torch.isfinite(b)
    if not torch.equal(finite, torch.isfinite(a)) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    difference = float((a - b)[finite].abs().max())
    scale = max(float(b[finite].abs().max()), smallest_scale, torch.finfo(torch.float32).tiny)
    return difference / scale if difference else 0.0


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    dense = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach()
    dense = dense if dense.layout is torch.strided else dense.to_dense()
    return torch.view_as_real(dense.cpu().to(torch.complex128)) if dense.is_complex() else dense.double().cpu()


def value_error(got: object, wanted: object) -> float:
    """`relative_error` of two values of any kind: numbers are compared like tensors, everything else must be equal.

    A part that is tiny beside the others, such as a loss that is 0 but for rounding, is measured against those.
    """
    ours, theirs = _parts(got), _parts(wanted)
    if len(ours) != len(theirs):
        return float("inf")
    smallest_scale = _TINY_PART * largest_value(wanted)
    return max((_part_error(a, b, smallest_scale) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def largest_value(value: object) -> float:
    """The largest finite absolute value of the floating-point tensors in a nest; 0 where there is none."""
    tensors = [_plain(one) for one in tensors_of(value) if one.is_floating_point() or one.is_complex()]
    return max((float(one[one.isfinite()].abs().max()) for one in tensors if bool(one.isfinite().any())), default=0.0)


def tensors_of(value: object) -> list[torch.Tensor]:
    """The tensors in a nest of tuples, lists and dicts."""
    return [part for part in _parts(value) if isinstance(part, torch.Tensor)]


def _part_error(got: object, wanted: object, smallest_scale: float) -> float:
    if isinstance(got, torch.Tensor) and isinstance(wanted, torch.Tensor):
        return _relative(got, wanted, smallest_scale)
    if isinstance(got, float) and isinstance(wanted, float):
        ours, theirs = (torch.tensor(one, dtype=torch.float64) for one in (got, wanted))
        return _relative(ours, theirs, smallest_scale)
    if isinstance(wanted, bool | int | str | None):
        return 0.0 if type(got) is type(wanted) and got == wanted else float("inf")
    # Objects that Python knows no more of than their class.
    return 0.0 if type(got) is type(wanted) else float("inf")


def _parts(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return [part for key, inner in value.items() for part in (key, *_parts(inner))]
    if isinstance(value, tuple | list):
        return [part for inner in value for part in _parts(inner)]
    return [value]
