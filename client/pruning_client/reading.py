"""Reads a report's JSON without trusting it: sections may be null or missing, numbers may be text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pruning_client.text import printable

Section = Mapping[str, Any]
_PERCENT_METRICS = ("accuracy", "agreement", "f1", "iou", "precision", "recall")


def section(parent: object, *names: str) -> Section:
    """Returns the object at the path `names`; an empty one where there is none."""
    found = parent
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def items(parent: object, name: str) -> list[Any]:
    """Returns the list `name`; an empty one where there is none."""
    found = parent.get(name) if isinstance(parent, Mapping) else None
    return found if isinstance(found, list) else []


def number(parent: object, name: str) -> float | None:
    """Returns the finite number `name`; None where there is none."""
    found = parent.get(name) if isinstance(parent, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


def text(parent: object, name: str) -> str:
    """Returns `name` as printable text on one line; empty where there is none."""
    found = parent.get(name) if isinstance(parent, Mapping) else None
    return "" if found is None or isinstance(found, Mapping | list) else printable(found)


def interval(parent: object) -> tuple[float, float] | None:
    """Returns the two finite ends of `interval`; None where there is none."""
    ends = items(parent, "interval")
    if len(ends) != 2:
        return None
    low, high = (number({"end": end}, "end") for end in ends)
    return None if low is None or high is None else (low, high)


def is_percentage(metric: str) -> bool:
    """Whether the metric is a fraction of 1 that people read in percent."""
    return any(name in metric.lower() for name in _PERCENT_METRICS)


def metric_text(metric: str, value: float | None, *, signed: bool = False) -> str:
    """Returns `97.33 %` for accuracies and `0.1234` for the rest; with a sign for differences."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    return f"{value * 100:{sign}.2f} %" if is_percentage(metric) else f"{value:{sign}.4g}"


def interval_text(metric: str, ends: tuple[float, float] | None) -> str:
    """Returns `[-0.40, +1.20] %`."""
    if ends is None:
        return "-"
    low, high = ends
    if is_percentage(metric):
        return f"[{low * 100:+.2f}, {high * 100:+.2f}] %"
    return f"[{low:+.4g}, {high:+.4g}]"


def verdict_sentence(report: Section) -> str:
    """Returns the verdict and why, on one line."""
    judged = section(report, "generalization")
    verdict, explanation = text(judged, "verdict"), text(judged, "explanation")
    if not explanation:
        metric = text(section(report, "accuracy"), "metric")
        ends = interval_text(metric, interval(section(report, "accuracy")))
        margin = metric_text(metric, number(judged, "margin"))
        explanation = f"interval of the difference {ends}, margin {margin}"
    return f"{verdict}: {explanation}" if verdict else "no verdict"
