"""Which of the weights found a request may prune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pruning_server.graph.values import FrozenUse, Weight, WeightSurvey
from pruning_server.pruning.values import ScoredInput


@dataclass(frozen=True)
class Selection:
    """The weights that may be pruned, and the report's list of what may not."""

    weights: tuple[Weight, ...]
    frozen: tuple[FrozenUse, ...]

    def inputs(self, module: torch.jit.ScriptModule) -> tuple[ScoredInput, ...]:
        """The weights with their tensors in `module`."""
        raise NotImplementedError


def select(
    survey: WeightSurvey, *, include_biases: bool, include_norms: bool, exclude_layers: Sequence[str]
) -> Selection:
    """Kernels, and biases and norms only where asked, less what the shell wildcards in `exclude_layers` name.

    Raises:
        JobFailureError: NOTHING_PRUNABLE, saying why.
    """
    raise NotImplementedError
