"""The magnitude of the weight."""

from __future__ import annotations

import torch

from pruning_server.pruning.criteria.base import Criterion
from pruning_server.pruning.criteria.magnitude import widened


def _score(weight: torch.Tensor, _: int) -> torch.Tensor:
    return widened(weight).abs()


CRITERION = Criterion(
    name="l1",
    summary="the weight's magnitude: small weights go first",
    source="Han, Pool, Tran, Dally 2015, arXiv:1506.02626; for channels Li et al. 2017, arXiv:1608.08710",
    formula="|w|; of a channel the sum over its weights / the layer's mean",
    score=_score,
)
