"""Blur of images: a Gaussian over the plane, every channel alone, weights renormalized at the border.

Source: Hendrycks and Dietterich, 2019, arXiv 1903.12261.
"""

from __future__ import annotations

import functools

import numpy as np

from pruning_server.evaluation.robustness.base import InputFacts, InputKind, Perturbation


@functools.lru_cache(maxsize=16)
def _kernel(length: int, sigma: float) -> np.ndarray:
    """[length, length]: row i mixes all places into place i; rows add up to 1."""
    places = np.arange(length)
    weights = np.exp(-0.5 * np.square((places[:, None] - places[None, :]) / sigma))
    kernel = np.asarray(weights / weights.sum(axis=1, keepdims=True))
    kernel.setflags(write=False)
    return kernel


def _change(sample: np.ndarray, level: float, facts: InputFacts, _rng: np.random.Generator) -> np.ndarray:
    height, width = facts.plane(sample.shape)
    sigma = level * min(height, width)
    down, across = _kernel(height, sigma), _kernel(width, sigma)
    planes = sample if facts.axis is None else np.moveaxis(sample, facts.axis, 0)
    blurred = down @ planes @ across.T
    return blurred if facts.axis is None else np.moveaxis(blurred, 0, facts.axis)


BLUR = Perturbation(
    "blur",
    InputKind.IMAGE,
    "plane",
    "standard deviation, as a fraction of the shorter side",
    (0.02, 0.04, 0.08),
    _change,
)
