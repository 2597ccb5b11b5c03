"""Rows of the validation set that may be fitted on, as recovery takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pruning_server.recovery.ports import Batch
from pruning_server.worker.judging import Judging, Reference


@dataclass(frozen=True)
class FitRows:
    """Fills `recovery.ports.FitData`; `rows` are positions in the set, `reference` the original's outputs for all of it."""

    judging: Judging
    reference: Reference
    rows: np.ndarray

    @property
    def samples(self) -> int:
        """How many."""
        return len(self.rows)

    def batch(self, rows: Sequence[int]) -> Batch:
        """The samples at these positions, in [0, samples)."""
        chosen = self.rows[list(rows)]
        reference = self.reference.tensor(chosen)
        return Batch(self.judging.feed.inputs(chosen), self.judging.target(chosen, reference), reference)
