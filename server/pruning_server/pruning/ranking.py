"""Choice by exact count, and the order that it goes by."""

from __future__ import annotations

import torch


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Marks exactly `count` elements with the lowest scores; of equal scores the first in order go first.

    Args:
        scores: 1-D, float32 or float64, finite and not negative.
        count: in [0, number of scores].

    Returns:
        A bool tensor of the same length with exactly `count` True, the same on every machine.

    Raises:
        ValueError: the count is out of range or a score is negative or not finite.
    """
    if not 0 <= count <= scores.numel():
        raise ValueError(f"cannot choose {count} of {scores.numel()}")
    marked = torch.zeros(scores.numel(), dtype=torch.bool)
    marked[ascending(scores)[:count]] = True
    return marked


def ascending(scores: torch.Tensor) -> torch.Tensor:
    """The positions from the lowest score to the highest; equal scores stay in order.

    Args:
        scores: 1-D, float32 or float64, finite and not negative.

    Raises:
        ValueError: a score is negative or not finite.
    """
    if not bool(torch.isfinite(scores).all()) or bool((scores < 0).any()):
        raise ValueError("scores must be finite and not negative")
    # The bits of floats that are not negative are ordered as the floats are, and integers sort several times faster.
    # Adding 0 turns -0 into 0.
    bits = (scores.cpu() + 0.0).view(torch.int64 if scores.dtype == torch.float64 else torch.int32)
    return torch.argsort(bits, stable=True)
