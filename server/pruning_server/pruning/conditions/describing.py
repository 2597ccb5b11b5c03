"""What the report says of a condition: the ranges of its features, and how often each comparison holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning_server.spec.report_strategy import ComparisonCount, ConditionalDetails, FeatureRange

_SAMPLED = 1 << 16
_MAX_TEXTS = 20


@dataclass(frozen=True)
class Sketch:
    """Some values of a feature: the smallest, the largest, how many are not known, and up to 65,536 of them, evenly."""

    smallest: float
    largest: float
    unknown: int
    sample: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor) -> Sketch:
        """Of a tensor of any shape."""
        flat = values.reshape(-1)
        known = flat[~torch.isnan(flat)]
        unknown = flat.numel() - known.numel()
        if not known.numel():
            return cls(math.inf, -math.inf, unknown, known)
        step = max(1, known.numel() // _SAMPLED)
        return cls(float(known.min()), float(known.max()), unknown, known[::step].clone())


def range_of(name: str, sketches: Sequence[Sketch]) -> FeatureRange:
    """Smallest, median and largest known value; of very many values the median is of every k-th."""
    unknown = sum(one.unknown for one in sketches)
    sample = torch.cat([one.sample for one in sketches])
    if not sample.numel():
        return FeatureRange(name=name, min=None, median=None, max=None, unknown=unknown)
    return FeatureRange(
        name=name,
        min=min(one.smallest for one in sketches),
        median=float(sample.median()),
        max=max(one.largest for one in sketches),
        unknown=unknown,
    )


def texts_of(name: str, texts: Iterable[str]) -> FeatureRange:
    """The different texts, sorted."""
    different = tuple(sorted(set(texts)))
    return FeatureRange(name=name, min=None, median=None, max=None, unknown=0, texts=different[:_MAX_TEXTS])


def ranges_note(details: ConditionalDetails, what: str) -> str:
    """For a job in which nothing qualifies: what the features are here, so that the condition can be adapted."""
    parts = []
    for one in details.features:
        if one.texts:
            parts.append(f"{one.name} is one of {', '.join(one.texts)}")
        elif one.min is None or one.median is None or one.max is None:
            parts.append(f"{one.name} has no value here")
        else:
            parts.append(f"{one.name} goes from {one.min:.4g} to {one.max:.4g}, median {one.median:.4g}")
    return f"no {what} meets the condition {details.condition}: nothing was removed; {'; '.join(parts)}"


def count_of(text: str, counts: Mapping[str, int]) -> ComparisonCount:
    """Of one comparison: for how many candidates it holds, fails, and is not known."""
    return ComparisonCount(
        text=text, holds=counts.get("holds", 0), fails=counts.get("fails", 0), unknown=counts.get("unknown", 0)
    )
