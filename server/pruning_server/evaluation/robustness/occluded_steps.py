"""Occlusion of float sequences: a run of growing length of steps is replaced by each feature's mean over the set."""

from __future__ import annotations

import numpy as np

from pruning_server.evaluation.robustness.base import InputFacts, InputKind, Perturbation, hidden_count, span


def _change(sample: np.ndarray, level: float, facts: InputFacts, rng: np.random.Generator) -> np.ndarray:
    axis = facts.axis or 0
    length = sample.shape[axis]
    hidden = span(float(rng.random()), hidden_count(level, length), length)
    index = (hidden, slice(None)) if axis == 0 else (slice(None), hidden)
    changed = sample.copy()
    changed[index] = np.broadcast_to(0.0 if facts.mean is None else facts.mean, sample.shape)[index]
    return changed


def _realize(level: float, shape: tuple[int, ...], facts: InputFacts) -> float:
    length = shape[facts.axis or 0]
    return hidden_count(level, length) / length


OCCLUDED_STEPS = Perturbation(
    "occlusion",
    InputKind.STEPS,
    "steps",
    "fraction of the steps hidden, in one run",
    (0.0625, 0.125, 0.25, 0.375, 0.5),
    _change,
    _realize,
)
