"""p-values of "removing the channel costs at least the margin", corrected for how many are tested.

Holm 1979, Scand. J. Statist. 6:65-70 (whatever the tests' dependence); Benjamini, Hochberg 1995, JRSS B 57:289-300.
Corrected values are compared with a level as if there had been one test.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pruning_server.pruning.features.base import CorrectedFeature
from pruning_server.spec.request import MultipleTestingCorrection


def _correct(raw: Sequence[float], correction: MultipleTestingCorrection) -> list[float]:
    # What could not be tested has rejected nothing.
    values = np.nan_to_num(np.asarray(raw, dtype=np.float64), nan=1.0)
    if not len(values):
        return []
    order = np.argsort(values, kind="stable")
    count, rank = len(values), np.arange(len(values))
    if correction is MultipleTestingCorrection.HOLM:
        stepped = np.maximum.accumulate(values[order] * (count - rank))
    else:
        stepped = np.minimum.accumulate((values[order] * count / (rank + 1))[::-1])[::-1]
    corrected = np.empty(count)
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]


FEATURE = CorrectedFeature("p_harm", _correct)
