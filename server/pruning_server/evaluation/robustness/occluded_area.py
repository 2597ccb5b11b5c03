"""Occlusion of images: a patch of growing area at a random place, filled with the mean of the set.

Source: Liu and Liu, 2019, Computer Engineering 45(10):234-238; patches as in Zeiler and Fergus, 2014, arXiv 1311.2901.
"""

from __future__ import annotations

import math

import numpy as np

from pruning_server.evaluation.robustness.base import InputFacts, InputKind, Perturbation, hidden_count, span


def _sides(level: float, shape: tuple[int, ...], facts: InputFacts) -> tuple[int, int]:
    """A patch as wide for its height as the image: square where that is."""
    height, width = facts.plane(shape)
    return hidden_count(math.sqrt(level), height), hidden_count(math.sqrt(level), width)


def _change(sample: np.ndarray, level: float, facts: InputFacts, rng: np.random.Generator) -> np.ndarray:
    (height, width), sides = facts.plane(sample.shape), _sides(level, sample.shape, facts)
    down, right = rng.random(2)
    hidden = facts.window(span(float(down), sides[0], height), span(float(right), sides[1], width))
    changed = sample.copy()
    changed[hidden] = np.broadcast_to(0.0 if facts.mean is None else facts.mean, sample.shape)[hidden]
    return changed


def _realize(level: float, shape: tuple[int, ...], facts: InputFacts) -> float:
    (height, width), sides = facts.plane(shape), _sides(level, shape, facts)
    return sides[0] * sides[1] / (height * width)


OCCLUDED_AREA = Perturbation(
    "occlusion",
    InputKind.IMAGE,
    "area",
    "fraction of the area hidden",
    (0.0625, 0.125, 0.25, 0.375, 0.5),
    _change,
    _realize,
)
