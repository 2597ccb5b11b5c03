"""Where an inference gate may close, and how much time that saves.

The threshold is found by fixed-sequence testing: samples are taken from the widest margin of the core's scores down, and
the search stops at the first that would lift the upper bound of the share that is skipped and answered differently above
the budget. The bound is exact (Clopper & Pearson 1934, Biometrika 26:404-413). Answers are compared with those of the whole
model, which no label is needed for, and the accuracy cannot drop by more than answers change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.9
MIN_ROUNDS = 3
_BISECTIONS = 60


@dataclass(frozen=True)
class GatePoint:
    """A gate that closes at a margin of `threshold` or more.

    Attributes:
        skipped_share: of the samples, in [0, 1].
        changed: how many samples are skipped and answered differently.
        changed_bound: upper bound of their share.
    """

    threshold: float
    skipped_share: float
    changed: int
    changed_bound: float


def find_gate_point(margins: np.ndarray, changed: np.ndarray, budget: float) -> GatePoint | None:
    """The gate that skips most within the budget; None where it could skip nothing.

    Args:
        margins: [n] differences of the core's two largest scores.
        changed: [n] bool: the core's answer is another than the whole model's.
        budget: the largest share of samples, in (0, 1), that may be skipped and answered differently.
    """
    # An infinite margin closes every gate; one that is no number closes none.
    usable = np.flatnonzero(~np.isnan(margins))
    order = usable[np.argsort(-margins[usable], kind="stable")]
    errors = np.cumsum(changed[order])
    # Only as many steps as there are errors: the bound changes with nothing else.
    allowed = -1
    while allowed + 1 <= len(margins) and upper_share(allowed + 1, len(margins), CONFIDENCE) <= budget:
        allowed += 1
    skipped = int(np.searchsorted(errors, allowed, side="right"))
    if allowed < 0 or skipped == 0:
        return None
    # Samples of one margin are skipped together or not at all.
    while 0 < skipped < len(order) and margins[order[skipped - 1]] == margins[order[skipped]]:
        skipped -= 1
    if skipped == 0 or not math.isfinite(margins[order[skipped - 1]]):
        return None
    wrong = int(errors[skipped - 1])
    threshold = float(margins[order[skipped - 1]])
    return GatePoint(threshold, skipped / len(margins), wrong, upper_share(wrong, len(margins), CONFIDENCE))


def upper_share(events: int, samples: int, confidence: float) -> float:
    """The largest share in [0, 1] under which `events` or fewer of `samples` have a probability of 1 - `confidence`."""
    if events >= samples:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _at_most(events, samples, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def samples_needed(budget: float) -> int:
    """The fewest samples with which a gate without any changed answer is within the budget."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-budget))


def _at_most(events: int, samples: int, share: float) -> float:
    """P(X <= events) of a binomial variable; `share` in (0, 1)."""
    logs = [
        math.lgamma(samples + 1)
        - math.lgamma(one + 1)
        - math.lgamma(samples - one + 1)
        + one * math.log(share)
        + (samples - one) * math.log1p(-share)
        for one in range(events + 1)
    ]
    return math.fsum(math.exp(log) for log in logs)


def mean_seconds(
    models: Sequence[Callable[[int], object]],
    samples: int,
    *,
    clock: Callable[[], float],
    synchronize: Callable[[], None],
    max_seconds: float,
    rounds: int = 9,
) -> tuple[float, ...]:
    """Mean time per sample of each model, all of them on every sample in turn, so that the machine's mood meets all alike.

    Of the rounds each sample's quickest counts: what else a machine does only ever adds to a call of a millisecond.

    Args:
        models: each takes a sample's number, in [0, samples).
        samples: how many there are.
        clock: monotonic seconds.
        synchronize: waits until the device has finished.
        max_seconds: about the time that this may take; at least `MIN_ROUNDS` are made unless one alone takes as long,
            after one to warm up.
        rounds: at most so many.
    """
    seconds = np.full((rounds, len(models), samples), np.nan)
    end = clock() + max_seconds
    for number in range(-1, rounds):
        for sample in range(samples):
            for turn in range(len(models)):
                which = (turn + number) % len(models)
                synchronize()
                start = clock()
                models[which](sample)
                synchronize()
                if number >= 0:
                    seconds[number, which, sample] = clock() - start
        late = clock() - end
        if number >= 0 and late > (0 if number + 1 >= MIN_ROUNDS else max_seconds):
            break
    quickest = np.nanmin(seconds[: number + 1], axis=0)
    return tuple(float(one) for one in quickest.mean(axis=1))
