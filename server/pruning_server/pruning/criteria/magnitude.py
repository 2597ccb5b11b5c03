"""What criteria on magnitudes share."""

from __future__ import annotations

import torch


def widened(weight: torch.Tensor) -> torch.Tensor:
    """The weight in a type in which magnitudes of its own type stay apart: float64 for float64, else float32."""
    return weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
