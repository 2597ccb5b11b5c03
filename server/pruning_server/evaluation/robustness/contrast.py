"""Contrast of images: values are drawn towards the mean of their image.

Source: Hendrycks and Dietterich, 2019, arXiv 1903.12261.
"""

from __future__ import annotations

import numpy as np

from pruning_server.evaluation.robustness.base import InputFacts, InputKind, Perturbation


def _change(sample: np.ndarray, level: float, _facts: InputFacts, _rng: np.random.Generator) -> np.ndarray:
    mean = sample.mean()
    return np.asarray(mean + (sample - mean) * (1.0 - min(level, 1.0)))


CONTRAST = Perturbation(
    "contrast",
    InputKind.IMAGE,
    "values",
    "fraction of the contrast taken away",
    (0.4, 0.7),
    _change,
)
