"""Occlusion of tables: a growing number of random features is replaced by their means over the set."""

from __future__ import annotations

import numpy as np

from pruning_server.evaluation.robustness.base import InputFacts, InputKind, Perturbation, hidden_count


def _change(sample: np.ndarray, level: float, facts: InputFacts, rng: np.random.Generator) -> np.ndarray:
    hidden = rng.permutation(len(sample))[: hidden_count(level, len(sample))]
    changed = sample.copy()
    changed[hidden] = np.broadcast_to(0.0 if facts.mean is None else facts.mean, sample.shape)[hidden]
    return changed


def _realize(level: float, shape: tuple[int, ...], _facts: InputFacts) -> float:
    return hidden_count(level, shape[0]) / shape[0]


OCCLUDED_FEATURES = Perturbation(
    "occlusion",
    InputKind.TABLE,
    "features",
    "fraction of the features hidden",
    (0.0625, 0.125, 0.25, 0.375, 0.5),
    _change,
    _realize,
)
