"""Brightness of images: every value is moved by the same amount, up or down by the sample's own draw.

Source: Hendrycks and Dietterich, 2019, arXiv 1903.12261.
"""

from __future__ import annotations

import numpy as np

from pruning_server.evaluation.robustness.base import InputFacts, InputKind, Perturbation


def _change(sample: np.ndarray, level: float, facts: InputFacts, rng: np.random.Generator) -> np.ndarray:
    sign = 1.0 if rng.random() < 0.5 else -1.0
    return np.asarray(sample + sign * level * (facts.high - facts.low))


BRIGHTNESS = Perturbation(
    "brightness",
    InputKind.IMAGE,
    "values",
    "shift up or down, as a fraction of the range of values",
    (0.15, 0.3),
    _change,
)
