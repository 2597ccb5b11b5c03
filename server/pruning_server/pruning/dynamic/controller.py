"""How far to go next: on while it goes well, back and half as far where it does not."""

from __future__ import annotations

import math

FIRST_STEP = 0.125
SMALLEST_STEP = 1 / 64
"""Of the way to the target, or of everything where there is none."""

MAX_ATTEMPTS = 24


class Controller:
    """Proposes how far to prune, in shares of the way to the target, and hears whether that was within the budget.

    The accepted share never falls; after a step that was not accepted the next one starts from the same place and is half
    as long. A step that was accepted is not lengthened again.
    """

    def __init__(self) -> None:
        self._step = FIRST_STEP
        self._attempts = 0
        self.accepted = 0.0

    @property
    def progress(self) -> float:
        """How near the end is, in [0, 1]; never falls."""
        return self._progress(self.accepted, self._step, self._attempts)

    @property
    def next_progress(self) -> float:
        """What it will be at least after the next step, however that goes."""
        accepted = self._progress(self.propose(), self._step, self._attempts + 1)
        rejected = self._progress(self.accepted, self._step / 2, self._attempts + 1)
        return min(accepted, rejected)

    @staticmethod
    def _progress(accepted: float, step: float, attempts: int) -> float:
        """The nearest of the three ends: the target, a step too small, too many attempts."""
        halvings = math.log2(FIRST_STEP / step) / (math.log2(FIRST_STEP / SMALLEST_STEP) + 1)
        return min(1.0, max(accepted, halvings, attempts / MAX_ATTEMPTS))

    @property
    def is_over(self) -> bool:
        """Whether the target is reached, or no step is left that is worth trying."""
        return self.accepted >= 1.0 or self._step < SMALLEST_STEP or self._attempts >= MAX_ATTEMPTS

    def propose(self) -> float:
        """The next share to try, in (accepted, 1]."""
        return min(1.0, self.accepted + self._step)

    def accept(self) -> None:
        """What was proposed is where to go on from."""
        self.accepted = self.propose()
        self._attempts += 1

    def reject(self) -> None:
        """What was proposed was too much."""
        self._step /= 2
        self._attempts += 1
