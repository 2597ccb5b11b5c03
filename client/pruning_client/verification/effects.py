"""What lowering dropout costs, what removing parameters costs: paired contrasts on the same samples.

Every job of a grid has the same model and data, so that the same samples are in every report. A contrast is a weighted
sum of a sample's values over the cells; its interval is Student's t over samples (or groups of them), with one sample
more that loses and one that gains as much as any did (1, where hardly any did), so that few do not look like none.
Source of the two samples: Bonett and Price, 2012, Journal of Educational and Behavioral Statistics 37:479-488.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pruning_client.verification.grid import Cell

# With fewer samples that differ, nobody knows how large a difference may be.
FEWEST_CHANGES = 5


@dataclass(frozen=True)
class Effect:
    """A difference with its interval; negative: it costs. `samples`: that it rests on."""

    delta: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True)
class Values:
    """[n] values of the same samples in every cell, and the number of the group that each sample belongs to."""

    by_cell: Mapping[Cell, np.ndarray]
    original: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class Effects:
    """What was found for one kind of value.

    Attributes:
        overall: all pruned models against the original.
        parameters: the most pruned against the least pruned, mean over the dropout rates; where one ratio was tried,
            against the original. None: nothing to compare.
        dropout: the lowest rate against the highest, mean over the ratios. None: there is one rate only.
        interaction: how much more the lower rate costs where most is pruned.
    """

    overall: Effect | None
    parameters: Effect | None
    dropout: Effect | None
    interaction: Effect | None


def find_effects(values: Values, order: Sequence[float], confidence_level: float) -> Effects:
    """Returns the main effects of a grid.

    Args:
        values: of the cells that ended well.
        order: ratios, from the least to the most pruned.
        confidence_level: of the intervals, in (0.5, 1).
    """
    cells = values.by_cell
    ratios = [ratio for ratio in order if any(cell.ratio == ratio for cell in cells)]
    rates = sorted({cell.dropout for cell in cells})
    if not cells:
        return Effects(None, None, None, None)

    def mean_of(contrasts: list[np.ndarray]) -> Effect | None:
        return paired_effect(np.mean(contrasts, axis=0), values.units, confidence_level) if contrasts else None

    against = [value - values.original for value in cells.values()]
    more, less = ratios[-1], ratios[0]
    parameters = (
        _differences(cells, [(Cell(more, rate), Cell(less, rate)) for rate in rates]) if more != less else against
    )
    pairs = [(Cell(ratio, rates[0]), Cell(ratio, rates[-1])) for ratio in ratios]
    dropout = _differences(cells, pairs) if len(rates) > 1 else []
    ends = _differences(cells, [pairs[-1], pairs[0]]) if len(rates) > 1 and more != less else []
    return Effects(
        overall=mean_of(against),
        parameters=mean_of(parameters),
        dropout=mean_of(dropout),
        interaction=mean_of([ends[0] - ends[1]]) if len(ends) == 2 else None,
    )


def _differences(cells: Mapping[Cell, np.ndarray], pairs: Sequence[tuple[Cell, Cell]]) -> list[np.ndarray]:
    """First minus second, of the pairs whose jobs both ended well."""
    return [cells[first] - cells[second] for first, second in pairs if first in cells and second in cells]


def paired_effect(contrast: np.ndarray, units: np.ndarray, confidence_level: float) -> Effect | None:
    """The mean of a contrast [n] over samples, with its interval; None for fewer than two independent units."""
    numbers = np.unique(units, return_inverse=True)[1].reshape(-1)
    sums, sizes = np.bincount(numbers, weights=contrast), np.bincount(numbers).astype(np.float64)
    count, samples = len(sums), len(contrast)
    if count < 2:
        return None
    mean = float(sums.sum() / samples)
    # Two units more, of the usual size: one that loses and one that gains as much as any sample did.
    usual = samples / count
    changed = int(np.count_nonzero(contrast))
    most = float(np.abs(contrast).max()) if changed >= FEWEST_CHANGES else 1.0
    deviations = np.concatenate([sums - mean * sizes, [usual * (most - mean), usual * (-most - mean)]])
    error = math.sqrt((count + 2) / (count + 1) * float(np.square(deviations).sum())) / (samples + 2 * usual)
    half = _t_quantile(0.5 + confidence_level / 2, count + 1) * error
    return Effect(mean, mean - half, mean + half, samples)


def _t_quantile(probability: float, degrees: int) -> float:
    """Of Student's t, from the normal one by Cornish and Fisher's expansion: to 1 % from five degrees on."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / float(degrees) ** power for power, term in enumerate(terms))
