"""Normalization re-estimation: running statistics of the pruned model, measured on fit without labels or gradients.

Exact where a pass moves each statistic by a fixed share toward the batch's, as batch normalization does: that share is
found by running one batch twice, and what the batches gave is averaged, whatever the momentum.

Source: Li, Wu, Su and Wang, 2020, arXiv 2007.02491 (EagleEye: adaptive batch normalization).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from pruning_server.recovery.ports import FitData, Student
from pruning_server.recovery.schedule import batches

# Averaged; further batches change little.
PASSES = 16
# Where a statistic moves in another way, so many passes make it forget: 0.9, the usual share, to this power is left.
FORGETTING_PASSES = 60
SMALLEST_SHARE = 1e-3
ROUNDING = 1e-3


def reestimate(student: Student, data: FitData, batch_size: int, seed: int) -> bool:
    """Replaces what the student's running statistics were by those of its present weights.

    Returns:
        Whether anything changed; a model without running statistics is left after one pass.
    """
    torch.manual_seed(seed)
    before = [tensor.detach().clone() for tensor in student.statistics]
    if not before:
        return False
    rows = _passes(data.samples, batch_size, student.exact_batch, np.random.default_rng(seed))
    first = next(rows, None)
    if first is None:
        return False
    student.train()
    with torch.no_grad():
        _run(student, data, first)
        moving = [place for place, (old, new) in enumerate(_pairs(before, student)) if not torch.equal(old, new)]
        if not moving:
            student.eval()
            return False
        shares = _shares(student, data, first, moving, before)
        if shares is None:
            for _, chosen in zip(range(FORGETTING_PASSES), rows, strict=False):
                _run(student, data, chosen)
        else:
            chosen_rows = [first, *(one for _, one in zip(range(PASSES - 1), rows, strict=False))]
            _average(student, data, chosen_rows, moving, shares)
    student.eval()
    return any(not torch.equal(old, new) for old, new in _pairs(before, student))


def _passes(
    samples: int, batch_size: int, exact_batch: int | None, generator: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    """Rows of one pass after the other, epoch after epoch; none where not even one batch can be made."""
    while True:
        found = False
        for step in batches(samples, batch_size, exact_batch, generator):
            for rows in step:
                found = True
                yield rows
        if not found:
            return


def _run(student: Student, data: FitData, rows: Sequence[int]) -> None:
    with student.keeping_state():
        student.forward(data.batch(rows).inputs)


def _pairs(values: Sequence[torch.Tensor], student: Student) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The values beside the statistics as they are now; a model may have put others in their places."""
    return zip(values, student.statistics, strict=True)


def _start(student: Student, places: Sequence[int], value: float) -> None:
    """Sets moving statistics to a value, and counters of batches to none."""
    held = student.statistics
    for place in places:
        held[place].fill_(value if held[place].is_floating_point() else 0)


def _shares(
    student: Student, data: FitData, rows: Sequence[int], moving: Sequence[int], before: Sequence[torch.Tensor]
) -> dict[int, float] | None:
    """By which share a pass moves each statistic toward the batch's; None where any moves in another way.

    Statistics are left as they were `before` everything.
    """
    probed = []
    for start in (0.0, 1.0):
        _start(student, moving, start)
        torch.manual_seed(0)
        _run(student, data, rows)
        probed.append([tensor.detach().clone() for tensor in student.statistics])
    for value, tensor in _pairs(before, student):
        tensor.copy_(value)
    shares: dict[int, float] = {}
    for place in moving:
        zero, one = (values[place] for values in probed)
        if not zero.is_floating_point():
            continue
        left = (one - zero).double()
        shares[place] = share = min(1.0, 1.0 - float(left.mean()))
        steady = bool(((left - left.mean()).abs() <= ROUNDING * (1 + zero.double().abs())).all())
        if not steady or not share >= SMALLEST_SHARE:
            return None
    return shares


def _average(
    student: Student,
    data: FitData,
    chosen: Sequence[Sequence[int]],
    moving: Sequence[int],
    shares: Mapping[int, float],
) -> None:
    """Leaves the mean of what the batches gave; statistics that do not move stay."""
    counters = [tensor.detach().clone() for tensor in student.statistics]
    sums = {place: torch.zeros_like(student.statistics[place], dtype=torch.float64) for place in shares}
    for rows in chosen:
        _start(student, moving, 0.0)
        _run(student, data, rows)
        for place, share in shares.items():
            sums[place] += student.statistics[place].double() / share
    for place, (value, tensor) in enumerate(_pairs(counters, student)):
        tensor.copy_(sums[place] / len(chosen) if place in sums else value)
