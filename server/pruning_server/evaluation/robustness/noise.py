"""Noise on images: Gaussian, on every value of its own.

Source: Hendrycks and Dietterich, 2019, arXiv 1903.12261, as are blur, brightness and contrast.
"""

from __future__ import annotations

import numpy as np

from pruning_server.evaluation.robustness.base import InputFacts, InputKind, Perturbation


def _change(sample: np.ndarray, level: float, facts: InputFacts, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(sample + level * (facts.high - facts.low) * rng.standard_normal(sample.shape))


NOISE = Perturbation(
    "noise",
    InputKind.IMAGE,
    "values",
    "standard deviation, as a fraction of the range of values",
    (0.05, 0.1, 0.2),
    _change,
)
