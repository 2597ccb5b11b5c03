"""Splits the caller's set into the parts that are fitted, selected, judged and certified on, never the same samples.

Exact in size, stratified, seeded, and grouped: samples that belong together never land in two parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pruning_server.errors import JobFailureError, Reason
from pruning_server.evaluation.strata import Strata, find_strata
from pruning_server.evaluation.units import find_units
from pruning_server.spec.request import SplitFractions, Task

PARTS = ("fit", "select", "report", "calibrate")
# The numbers that stand for the parts in the caller's `split`.
MARKS = {part: mark for mark, part in enumerate(PARTS)}
# A spread needs two values.
_MIN_SAMPLES = {"report": 2}
_SHARE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Splits:
    """Sorted row numbers of each part (int64), and how they came about.

    Attributes:
        source: `caller` where the set brought its own `split`, else `seeded`.
        stratified: whether the parts have about the same shares of every class or quantile.
        units: [N] int64: samples with the same number stay together; statistics resample them whole.
        warnings: what people should know of the split.
    """

    fit: np.ndarray
    select: np.ndarray
    report: np.ndarray
    calibrate: np.ndarray
    source: str
    stratified: bool
    units: np.ndarray
    warnings: tuple[str, ...] = ()

    def sizes(self) -> dict[str, int]:
        """Samples in each part."""
        return {part: len(getattr(self, part)) for part in PARTS}


def split_dataset(
    inputs: Sequence[np.ndarray],
    targets: np.ndarray | None,
    *,
    groups: np.ndarray | None,
    marks: np.ndarray | None,
    fractions: SplitFractions,
    seed: int,
    task: Task,
) -> Splits:
    """Returns the parts of a set; the same arguments always give the same parts.

    Args:
        inputs: arrays [N, ...]; samples whose inputs are equal byte for byte stay together.
        targets: [N, ...] or None.
        groups: [N] integers or strings: samples of one group stay together.
        marks: [N] uint8, the caller's own split (0 fit, 1 select, 2 report, 3 calibrate), which wins over everything.
        fractions: shares of the parts; a part with 0 gets nothing and is not asked for in `marks`.
        seed: of the shuffling.
        task: how to stratify.

    Raises:
        JobFailureError: there are fewer samples, or fewer independent groups of them, than the parts need
            (DATASET_TOO_SMALL), or a part is missing in `marks` (DATASET_SPLIT).
    """
    count = len(inputs[0])
    units = find_units(inputs, groups)
    if marks is not None:
        return _marked(np.asarray(marks), units, fractions)
    shares = _shares(fractions)
    needed = {part: _MIN_SAMPLES.get(part, 1) for part in shares}
    _require_enough(count, units, needed)
    strata = find_strata(targets, task, count)
    rng = np.random.default_rng(seed)
    sizes = _sizes(count, shares, needed)
    assigned = _assign(units, strata.labels, sizes, rng)
    assigned = _fill(assigned, units, needed, rng)
    rows = {part: np.flatnonzero(assigned == MARKS[part]) for part in PARTS}
    warnings = (*strata.warnings, *_grouping_warnings(units, groups))
    return Splits(**rows, source="seeded", stratified=strata.stratified, units=units, warnings=warnings)


def _shares(fractions: SplitFractions) -> dict[str, float]:
    """The parts that are asked for, and their shares, which add up to 1."""
    shares = {part: float(getattr(fractions, part)) for part in PARTS}
    used = {part: share for part, share in shares.items() if share > _SHARE_TOLERANCE}
    total = sum(used.values())
    return {part: share / total for part, share in used.items()}


def _marked(marks: np.ndarray, units: np.ndarray, fractions: SplitFractions) -> Splits:
    rows = {part: np.flatnonzero(marks == mark) for part, mark in MARKS.items()}
    for part in _shares(fractions):
        least = _MIN_SAMPLES.get(part, 1)
        if len(rows[part]) < least:
            raise JobFailureError(
                Reason.DATASET_SPLIT,
                f"the set's own split marks {len(rows[part])} samples as {part} ({MARKS[part]}); at least {least} must"
                f" be, or leave `split` out and the set is split for you",
                metadata={"part": part},
            )
    shared = _units_in_several(rows, units)
    warnings = ()
    if shared:
        warnings = (
            f"{shared} samples of the report part are equal to, or in one group with, samples of another part: the set's"
            " own split lets the report see what was fitted, so the verdict is too good",
        )
    return Splits(**rows, source="caller", stratified=False, units=units, warnings=warnings)


def _units_in_several(rows: dict[str, np.ndarray], units: np.ndarray) -> int:
    others = [units[rows[part]] for part in PARTS if part != "report"]
    return int(np.isin(units[rows["report"]], np.concatenate(others)).sum())


def _require_enough(count: int, units: np.ndarray, needed: dict[str, int]) -> None:
    wanted = sum(needed.values())
    if count < wanted:
        raise JobFailureError(
            Reason.DATASET_TOO_SMALL,
            f"the set has {count} samples; at least {wanted} are needed to split it into {', '.join(needed)}, and"
            " hundreds for a verdict that can tell anything",
            metadata={"samples": str(count), "needed": str(wanted)},
        )
    independent = int(units.max()) + 1
    if independent < len(needed):
        raise JobFailureError(
            Reason.DATASET_TOO_SMALL,
            f"the {count} samples form {independent} groups of duplicates or of your `groups`, which must not be split;"
            f" at least {len(needed)} are needed, one for each of {', '.join(needed)}",
            metadata={"groups": str(independent), "needed": str(len(needed))},
        )


def _sizes(count: int, shares: dict[str, float], needed: dict[str, int]) -> dict[str, int]:
    """Whole numbers nearest to the shares that add up to `count`, none below what the part needs."""
    sizes = _largest_remainder(count, shares)
    while (short := [part for part in sizes if sizes[part] < needed[part]]) != []:
        richest = max(sizes, key=lambda part: sizes[part] - needed[part])
        sizes[richest] -= 1
        sizes[short[0]] += 1
    return sizes


def _largest_remainder(count: int, shares: dict[str, float]) -> dict[str, int]:
    exact = {part: count * share for part, share in shares.items()}
    sizes = {part: int(value + _SHARE_TOLERANCE) for part, value in exact.items()}
    by_remainder = sorted(exact, key=lambda part: sizes[part] - exact[part])
    for part in by_remainder[: count - sum(sizes.values())]:
        sizes[part] += 1
    return sizes


def _assign(units: np.ndarray, strata: np.ndarray, sizes: dict[str, int], rng: np.random.Generator) -> np.ndarray:
    """Returns the mark of each sample: units of several samples first, then single ones into what is left."""
    assigned = np.full(len(units), -1, dtype=np.int64)
    members = np.bincount(units)
    if (members > 1).any():
        _assign_large(assigned, units, strata, sizes, rng)
    single = np.flatnonzero(assigned < 0)
    if len(single):
        taken = {part: int((assigned == MARKS[part]).sum()) for part in sizes}
        left = {part: max(0, size - taken[part]) for part, size in sizes.items()}
        total = sum(left.values())
        rest = _largest_remainder(len(single), {part: space / total for part, space in left.items()})
        _deal(assigned, single, strata, rest, rng)
    return assigned


def _deal(
    assigned: np.ndarray, rows: np.ndarray, strata: np.ndarray, sizes: dict[str, int], rng: np.random.Generator
) -> None:
    """Gives each part exactly its size, evenly over the strata.

    Part by part: the rows that are left lie ordered by stratum, shuffled inside, and every (count / size)-th is taken,
    from a random start. So each stratum gives a part its fair number, rounded up or down.
    """
    for part, size in sorted(sizes.items(), key=lambda item: item[1]):
        shuffled = rows[rng.permutation(len(rows))]
        ordered = shuffled[np.argsort(strata[shuffled], kind="stable")]
        steps = np.arange(len(ordered) + 1, dtype=np.int64) * size + int(rng.integers(max(len(ordered), 1)))
        taken = np.diff(steps // max(len(ordered), 1)) > 0
        assigned[ordered[taken]] = MARKS[part]
        rows = ordered[~taken]


def _assign_large(
    assigned: np.ndarray, units: np.ndarray, strata: np.ndarray, sizes: dict[str, int], rng: np.random.Generator
) -> None:
    """Puts each unit of several samples, the largest first, where sizes and strata are farthest below their share.

    The unit goes where the sum of squared deviations from the wanted counts, of the part and of each stratum in it,
    grows least.
    """
    count, kinds = len(units), int(strata.max()) + 1
    marks = np.array([MARKS[part] for part in sizes])
    shares = np.array([size / count for size in sizes.values()])
    per_stratum = np.bincount(strata, minlength=kinds).astype(np.float64)
    missing_strata = shares[:, None] * per_stratum
    missing = shares * count
    weights = 1.0 / np.maximum(per_stratum, 1.0)
    for rows in _large_units(units, rng):
        kinds_here, counts = np.unique(strata[rows], return_counts=True)
        gain = (missing_strata[:, kinds_here] * (counts * weights[kinds_here])).sum(axis=1) + missing * len(rows) / count
        place = int(gain.argmax())
        assigned[rows] = marks[place]
        missing_strata[place, kinds_here] -= counts
        missing[place] -= len(rows)


def _large_units(units: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of every unit with several samples, the largest first, equal ones in random order."""
    order = np.argsort(units, kind="stable")
    pieces = np.split(order, np.cumsum(np.bincount(units))[:-1])
    large = [piece for piece in pieces if len(piece) > 1]
    shuffled = [large[place] for place in rng.permutation(len(large))]
    return sorted(shuffled, key=len, reverse=True)


def _fill(
    assigned: np.ndarray, units: np.ndarray, needed: dict[str, int], rng: np.random.Generator
) -> np.ndarray:
    """Moves small units into parts that large ones left without what they need."""
    raise NotImplementedError


def _grouping_warnings(units: np.ndarray, groups: np.ndarray | None) -> tuple[str, ...]:
    if groups is not None:
        return ()
    repeated = len(units) - (int(units.max()) + 1)
    if not repeated:
        return ()
    return (f"{repeated} samples are exact duplicates of others; each was kept in one part with its twins",)


__all__ = ["MARKS", "PARTS", "Splits", "Strata", "split_dataset"]
