"""The squared magnitude; for single weights the same order as l1, for groups of weights their energy."""

from __future__ import annotations

import torch

from pruning_server.pruning.criteria.base import Criterion
from pruning_server.pruning.criteria.magnitude import widened


def squared(weight: torch.Tensor, _: int) -> torch.Tensor:
    """The squares, by element."""
    # In float64 the squares of the smallest float32 values do not vanish, so the order stays that of the magnitudes.
    return widened(weight).double().square()


CRITERION = Criterion(
    name="l2",
    summary="the weight's squared magnitude: for single weights the same choice as l1",
    source="Hanson, Pratt 1988, Comparing biases for minimal network construction, NIPS 1",
    formula="w^2; of a channel the sum over its weights / the layer's mean",
    score=squared,
)
