"""Cross-fitting: every sample judges models that it had no part in, so that all of them may be judged on.

Source: Chernozhukov et al., 2018, arXiv:1608.00060 (cross-fitting).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_FOLDS, MAX_FOLDS = 2, 4
# Few samples need most of them to be fitted on, and are quick; many do not, and are slow.
FOLD_SAMPLES = 4000


@dataclass(frozen=True)
class Fold:
    """Sorted rows [n] int64: what a model is fitted on and selected by, and what judges it (`held`)."""

    fit: np.ndarray
    select: np.ndarray
    held: np.ndarray


def fold_count(samples: int) -> int:
    """How many folds so many samples are dealt to."""
    return int(np.clip(FOLD_SAMPLES // max(1, samples), MIN_FOLDS, MAX_FOLDS))


def cross_fit(fit: np.ndarray, select: np.ndarray, units: np.ndarray, seed: int) -> tuple[Fold, ...]:
    """Deals the rows of fit and select to folds, whole units each; together the folds hold every row once.

    What is left beside a fold is split into fit and select as the whole is.

    Args:
        fit: [n] rows.
        select: [m] rows.
        units: [N] the unit of each row of the set.
        seed: of the order.

    Returns:
        No fold where there are fewer than 4 units: too few for every part to have one.
    """
    rows = np.sort(np.concatenate([fit, select]))
    numbers, places = np.unique(units[rows], return_inverse=True)
    places = places.reshape(-1)
    if len(numbers) < 2 * MIN_FOLDS:
        return ()
    order = np.random.default_rng(seed).permutation(len(numbers))
    count = min(fold_count(len(rows)), len(numbers) // 2)
    share = len(select) / len(rows)
    folds = []
    for held in np.array_split(order, count):
        others = order[~np.isin(order, held)]
        chosen = others[: min(len(others) - 1, max(1, round(share * len(others))))]
        in_held, in_select = np.isin(places, held), np.isin(places, chosen)
        folds.append(Fold(fit=rows[~in_held & ~in_select], select=rows[in_select], held=rows[in_held]))
    return tuple(folds)
