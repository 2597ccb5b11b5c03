"""How far two outputs are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


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
    a, b = _plain(got), _plain(wanted)
    finite = torch.isfinite(b)
    if not torch.equal(finite, torch.isfinite(a)) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    difference = float((a - b)[finite].abs().max())
    return difference / max(float(b[finite].abs().max()), torch.finfo(torch.float32).tiny) if difference else 0.0


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    dense = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach()
    dense = dense if dense.layout is torch.strided else dense.to_dense()
    return torch.view_as_real(dense.cpu().to(torch.complex128)) if dense.is_complex() else dense.double().cpu()


def value_error(got: object, wanted: object) -> float:
    """`relative_error` of two values of any kind: numbers are compared like tensors, everything else must be equal."""
    ours, theirs = _parts(got), _parts(wanted)
    if len(ours) != len(theirs):
        return float("inf")
    return max((_part_error(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def tensors_of(value: object) -> list[torch.Tensor]:
    """The tensors in a nest of tuples, lists and dicts."""
    return [part for part in _parts(value) if isinstance(part, torch.Tensor)]


def _part_error(got: object, wanted: object) -> float:
    if isinstance(got, torch.Tensor) and isinstance(wanted, torch.Tensor):
        return _relative(got, wanted)
    if isinstance(got, float) and isinstance(wanted, float):
        return _relative(torch.tensor(got, dtype=torch.float64), torch.tensor(wanted, dtype=torch.float64))
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
