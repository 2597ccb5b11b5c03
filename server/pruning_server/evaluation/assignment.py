"""Deals samples to parts: exact in size, even over strata, and never a unit to two parts.

Parts are numbered by their place in `sizes`; the public face is `splits`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHARE_TOLERANCE = 1e-9


def share_out(count: int, shares: Sequence[float], least: Sequence[int]) -> list[int]:
    """Returns whole numbers nearest to `count * shares` that add up to `count`, none below what is needed at least.

    Args:
        count: at least the sum of `least`.
        shares: at least 0 each, adding up to 1.
        least: of each part.
    """
    sizes = _largest_remainder(count, np.asarray(shares, dtype=np.float64))
    while (short := np.flatnonzero(sizes < least)).size:
        sizes[int((sizes - least).argmax())] -= 1
        sizes[short[0]] += 1
    return [int(size) for size in sizes]


def assign(
    units: np.ndarray, strata: np.ndarray, sizes: Sequence[int], least: Sequence[int], rng: np.random.Generator
) -> np.ndarray:
    """Returns the place of each sample's part, [N] int64; exact where no unit has several samples.

    Args:
        units: [N] int64, numbered from 0; at least as many units as parts.
        strata: [N] int64, numbered from 0.
        sizes: of the parts, adding up to N.
        least: samples that each part needs; their sum is at most N.
        rng: where ties and order come from.
    """
    places = np.full(len(units), -1, dtype=np.int64)
    large = _large_units(units, rng)
    _place_large(places, large, strata, sizes)
    single = np.flatnonzero(places < 0)
    if len(single):
        taken = np.bincount(places[places >= 0], minlength=len(sizes))
        left = np.maximum(np.asarray(sizes) - taken, 0)
        _deal(places, single, strata, _largest_remainder(len(single), left / left.sum()), rng)
    return _fill(places, units, np.asarray(least))


def _largest_remainder(count: int, shares: np.ndarray) -> np.ndarray:
    exact = count * shares
    sizes = np.floor(exact + SHARE_TOLERANCE).astype(np.int64)
    by_remainder = np.argsort(sizes - exact, kind="stable")
    sizes[by_remainder[: count - int(sizes.sum())]] += 1
    return sizes


def _deal(
    places: np.ndarray, rows: np.ndarray, strata: np.ndarray, sizes: np.ndarray, rng: np.random.Generator
) -> None:
    """Gives each part exactly its size, evenly over the strata.

    How many of each stratum a part gets depends on how large the strata are and on nothing else of the labels; which rows
    those are is drawn without them. So one label that changes moves a few rows, not the whole split.
    """
    drawn = rows[rng.permutation(len(rows))]
    ordered = drawn[np.argsort(strata[drawn], kind="stable")]
    _, counts = np.unique(strata[ordered], return_counts=True)
    ends = np.cumsum(counts)
    taken = np.zeros_like(counts)
    for place in np.argsort(sizes, kind="stable"):
        numbers = _fair_numbers(counts - taken, int(sizes[place]), rng)
        for start, number in zip(ends - counts + taken, numbers, strict=True):
            places[ordered[start : start + number]] = place
        taken += numbers


def _fair_numbers(left: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """How many of each stratum a part of `size` gets: its share of what is left, rounded up or down, `size` in all.

    The strata lie behind one another, and the part takes at equal steps from a random start.
    """
    count = int(left.sum())
    if not count:
        return np.zeros_like(left)
    start = int(rng.integers(count))
    before = (np.concatenate([[0], np.cumsum(left)]) * size + start) // count
    return np.asarray(np.diff(before))


def _large_units(units: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of every unit with several samples, the largest first, equal ones in random order."""
    large = [rows for rows in _rows_by_unit(units) if len(rows) > 1]
    shuffled = [large[place] for place in rng.permutation(len(large))]
    return sorted(shuffled, key=len, reverse=True)


def _rows_by_unit(units: np.ndarray) -> list[np.ndarray]:
    return np.split(np.argsort(units, kind="stable"), np.cumsum(np.bincount(units))[:-1])


def _place_large(places: np.ndarray, large: list[np.ndarray], strata: np.ndarray, sizes: Sequence[int]) -> None:
    """Puts each unit where it brings sizes and strata closest to what is wanted.

    Closest: the sum over the part and over its strata of the squared deviation from the wanted number, each relative
    to the whole set's number, grows least.
    """
    count = len(places)
    per_stratum = np.bincount(strata).astype(np.float64)
    shares = np.asarray(sizes, dtype=np.float64) / count
    missing = shares * count
    missing_strata = shares[:, None] * per_stratum
    for rows in large:
        kinds, numbers = np.unique(strata[rows], return_counts=True)
        gain = missing_strata[:, kinds] @ (numbers / per_stratum[kinds]) + missing * (len(rows) / count)
        place = int(gain.argmax())
        places[rows] = place
        missing_strata[place, kinds] -= numbers
        missing[place] -= len(rows)


def _fill(places: np.ndarray, units: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Moves small units into parts that large ones left without what they need."""
    rows_by_unit = _rows_by_unit(units)
    while (short := np.flatnonzero(np.bincount(places, minlength=len(least)) < least)).size:
        counts = np.bincount(places, minlength=len(least))
        movable = [rows for rows in rows_by_unit if counts[places[rows[0]]] - len(rows) >= least[places[rows[0]]]]
        if not movable:
            return _spread(rows_by_unit, least, len(places))
        # From the part with most to spare; the smallest unit disturbs least.
        chosen = min(movable, key=lambda rows: (len(rows), -int((counts - least)[places[rows[0]]])))
        places[chosen] = short[0]
    return places


def _spread(rows_by_unit: list[np.ndarray], least: np.ndarray, count: int) -> np.ndarray:
    """The last resort with a handful of units: the largest to the part that needs most, one to each other, the rest to 0."""
    places = np.zeros(count, dtype=np.int64)
    by_size = sorted(rows_by_unit, key=len, reverse=True)
    for rows, place in zip(by_size, np.argsort(-least, kind="stable"), strict=False):
        places[rows] = place
    return places
