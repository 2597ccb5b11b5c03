"""Making inputs harder, step by step, and comparing two models along the way.

One file per perturbation, one line of registration here.
"""

from __future__ import annotations

from pruning_server.evaluation.robustness import (
    blur,
    brightness,
    contrast,
    feature_noise,
    noise,
    occluded_area,
    occluded_features,
    occluded_steps,
    occluded_tokens,
    token_drop,
)
from pruning_server.evaluation.robustness.base import InputKind, Perturbation

PERTURBATIONS: tuple[Perturbation, ...] = (
    occluded_area.OCCLUDED_AREA,
    occluded_tokens.OCCLUDED_TOKENS,
    occluded_steps.OCCLUDED_STEPS,
    occluded_features.OCCLUDED_FEATURES,
    noise.NOISE,
    blur.BLUR,
    brightness.BRIGHTNESS,
    contrast.CONTRAST,
    feature_noise.FEATURE_NOISE,
    token_drop.TOKEN_DROP,
)
OCCLUSION = "occlusion"


def names_for(kinds: frozenset[InputKind]) -> tuple[str, ...]:
    """The names of what can be done to inputs of these kinds, occlusion first."""
    return tuple(dict.fromkeys(one.name for one in PERTURBATIONS if one.kind in kinds))


def find(name: str, kind: InputKind) -> Perturbation | None:
    """The perturbation of that name for inputs of that kind; None: there is none."""
    return next((one for one in PERTURBATIONS if (one.name, one.kind) == (name, kind)), None)
