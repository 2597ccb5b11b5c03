"""Numbers in messages: short, and such that they work when they are sent back."""

from __future__ import annotations

import math


def round_down(value: float, digits: int = 4) -> float:
    """Rounded to significant digits so that it is never larger than the value; 0 for what is not above 0."""
    if value <= 0 or not math.isfinite(value):
        return 0.0
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(value)))
    rounded = math.floor(value * scale) / scale
    return rounded if rounded <= value else math.nextafter(value, 0.0)


def round_up(value: float, digits: int = 4) -> float:
    """Rounded to significant digits so that it is never smaller than the value; 0 for what is not above 0."""
    if value <= 0 or not math.isfinite(value):
        return 0.0
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(value)))
    rounded = math.ceil(value * scale) / scale
    return rounded if rounded >= value else math.nextafter(value, math.inf)
