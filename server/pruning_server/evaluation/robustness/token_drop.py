"""Dropped tokens: random ones are replaced as by occlusion, so that every other keeps its place and its label."""

from __future__ import annotations

import numpy as np

from pruning_server.evaluation.robustness.base import InputFacts, InputKind, Perturbation, hidden_count


def _change(sample: np.ndarray, level: float, facts: InputFacts, rng: np.random.Generator) -> np.ndarray:
    hidden = rng.permutation(len(sample))[: hidden_count(level, len(sample))]
    changed = sample.copy()
    changed[hidden] = sample.dtype.type(0) if facts.filler is None else facts.filler[hidden]
    return changed


def _realize(level: float, shape: tuple[int, ...], _facts: InputFacts) -> float:
    return hidden_count(level, shape[0]) / shape[0]


TOKEN_DROP = Perturbation(
    "token_drop",
    InputKind.TOKENS,
    "tokens",
    "fraction of the tokens dropped, at random",
    (0.1, 0.2, 0.3, 0.5),
    _change,
    _realize,
)
