"""Noise on the features of a table: Gaussian, in units of each feature's spread over the set."""

from __future__ import annotations

import numpy as np

from pruning_server.evaluation.robustness.base import InputFacts, InputKind, Perturbation


def _change(sample: np.ndarray, level: float, facts: InputFacts, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(sample + level * (1.0 if facts.std is None else facts.std) * rng.standard_normal(sample.shape))


FEATURE_NOISE = Perturbation(
    "feature_noise",
    InputKind.TABLE,
    "features",
    "standard deviation, in those of each feature",
    (0.1, 0.25, 0.5, 1.0),
    _change,
)
