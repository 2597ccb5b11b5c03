"""Occlusion of token sequences: a run of growing length is replaced by the set's most frequent token (see `facts`)."""

from __future__ import annotations

import numpy as np

from pruning_server.evaluation.robustness.base import InputFacts, InputKind, Perturbation, hidden_count, span


def _change(sample: np.ndarray, level: float, facts: InputFacts, rng: np.random.Generator) -> np.ndarray:
    hidden = span(float(rng.random()), hidden_count(level, len(sample)), len(sample))
    changed = sample.copy()
    changed[hidden] = sample.dtype.type(0) if facts.filler is None else facts.filler[hidden]
    return changed


def _realize(level: float, shape: tuple[int, ...], _facts: InputFacts) -> float:
    return hidden_count(level, shape[0]) / shape[0]


OCCLUDED_TOKENS = Perturbation(
    "occlusion",
    InputKind.TOKENS,
    "tokens",
    "fraction of the tokens hidden, in one run",
    (0.0625, 0.125, 0.25, 0.375, 0.5),
    _change,
    _realize,
)
