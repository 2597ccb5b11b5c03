"""Splits the caller's set into the parts that are fitted, selected, judged and certified on, never the same samples.

Exact in size, stratified, seeded, and grouped: samples that belong together never land in two parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pruning_server.errors import JobFailureError, Reason
from pruning_server.evaluation.assignment import SHARE_TOLERANCE, assign, share_out
from pruning_server.evaluation.strata import find_strata, warn_of_one_label
from pruning_server.evaluation.units import find_units
from pruning_server.spec.request import SplitFractions, Task

PARTS = ("fit", "select", "report", "calibrate")
# The numbers that stand for the parts in the caller's `split`.
MARKS = {part: mark for mark, part in enumerate(PARTS)}
# A spread needs two values.
_MIN_SAMPLES = {"report": 2}


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
    units = find_units(inputs, groups)
    if marks is not None:
        splits = _marked(np.asarray(marks), units, fractions)
    else:
        splits = _dealt(units, targets, fractions, seed, task, grouped=groups is not None)
    return replace(splits, warnings=(*splits.warnings, *warn_of_one_label(targets, task, splits.report)))


def _dealt(
    units: np.ndarray, targets: np.ndarray | None, fractions: SplitFractions, seed: int, task: Task, *, grouped: bool
) -> Splits:
    count = len(units)
    shares = _shares(fractions)
    warnings = () if grouped else _duplicate_warnings(units, len(shares))
    if not grouped and _unit_count(units) < len(shares):
        units = np.arange(count, dtype=np.int64)
    needed = {part: _MIN_SAMPLES.get(part, 1) for part in shares}
    _require_enough(count, units, needed)
    strata = find_strata(targets, task, count)
    sizes = share_out(count, list(shares.values()), list(needed.values()))
    places = assign(units, strata.labels, sizes, list(needed.values()), np.random.default_rng(seed))
    rows = {part: np.zeros(0, dtype=np.int64) for part in PARTS}
    rows |= {part: np.flatnonzero(places == place) for place, part in enumerate(shares)}
    return Splits(
        **rows,
        source="seeded",
        stratified=strata.stratified,
        units=units,
        warnings=(*strata.warnings, *warnings),
    )


def _shares(fractions: SplitFractions) -> dict[str, float]:
    """The parts that are asked for, and their shares, which add up to 1."""
    shares = {part: float(getattr(fractions, part)) for part in PARTS}
    used = {part: share for part, share in shares.items() if share > SHARE_TOLERANCE}
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
    warning = (
        f"{shared} samples of the report part are equal to, or in one group with, samples of another part: the set's own"
        " split lets the report see what was fitted, so the verdict is too good"
    )
    warnings = (warning,) if shared else ()
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
    independent = _unit_count(units)
    if independent < len(needed):
        raise JobFailureError(
            Reason.DATASET_TOO_SMALL,
            f"the {count} samples form {independent} groups by `groups` (and by being equal), which must not be split;"
            f" at least {len(needed)} are needed, one for each of {', '.join(needed)}",
            metadata={"groups": str(independent), "needed": str(len(needed))},
        )


def _unit_count(units: np.ndarray) -> int:
    return int(units.max()) + 1


def _duplicate_warnings(units: np.ndarray, parts: int) -> tuple[str, ...]:
    distinct = _unit_count(units)
    repeated = len(units) - distinct
    if distinct < parts:
        warning = (
            f"the set holds only {distinct} distinct inputs, too few to keep equal ones in one part; so the report sees"
            " inputs that were fitted, and the verdict is too good"
        )
        return (warning,)
    if repeated:
        return (f"{repeated} samples are exact duplicates of others; each was kept in one part with its twins",)
    return ()
