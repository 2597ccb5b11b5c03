"""One JSON object out of the reports of a grid: the two-way table, the effects, the prune potential and the conclusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pruning_client.reading import Section, interval, interval_text, items, metric_text, number, section, text
from pruning_client.verification.conclusion import conclude, read
from pruning_client.verification.effects import Effect, Effects, Values, find_effects
from pruning_client.verification.grid import Cell, Ran, has_dropout

SCHEMA_VERSION = "1.0"
# Of the report, where it does not say.
_CONFIDENCE_LEVEL, _MARGIN = 0.95, 0.01


def summarize(ran: Sequence[Ran], *, target: str, ratios: Sequence[float], rates: Sequence[float]) -> dict[str, Any]:
    """Returns the object; everything in it can be told from the reports alone.

    Args:
        ran: cells, as many as were run.
        target: the name of what the ratios are, e.g. `sparsity`.
        ratios: that were asked for, from the least to the most pruned.
        rates: of dropout, that were asked for.
    """
    reports = [one.report for one in ran if one.report is not None]
    first: Section = reports[0] if reports else {}
    metric = text(section(first, "accuracy"), "metric") or "metric"
    margin = number(section(first, "generalization"), "margin") or _MARGIN
    confidence = number(section(first, "accuracy"), "confidence_level") or _CONFIDENCE_LEVEL
    occluded, clean = (_values(ran, which) for which in ("auc", "clean"))
    effects = find_effects(occluded, ratios, confidence)
    against = len({cell.ratio for cell in occluded.by_cell}) == 1
    layers = number(section(first, "strategy", "recovery", "dropout"), "layers")
    return {
        "schema_version": SCHEMA_VERSION,
        "metric": metric,
        "margin": margin,
        "confidence_level": confidence,
        "samples": len(occluded.original),
        "target": target,
        "ratios": list(ratios),
        "dropout": list(rates),
        "dropout_layers": None if layers is None else int(layers),
        "conclusion": conclude(effects, metric, margin, is_against_original=against),
        "effects": {
            "occlusion": _told(effects, margin),
            "clean": _told(find_effects(clean, ratios, confidence), margin),
        },
        "cells": [_cell(one) for one in ran],
        "prune_potential": _potential(reports, margin),
        "notes": _notes(ran, occluded, effects, metric),
    }


def _values(ran: Sequence[Ran], which: str) -> Values:
    """The samples that every report has, in the same order."""
    found: dict[Cell, dict[int, tuple[float, ...]]] = {}
    units: dict[int, int] = {}
    for one in ran:
        told = section(one.report, "robustness", "occlusion", "sample_values")
        columns = [items(told, name) for name in ("rows", "units", f"{which}_original", f"{which}_pruned")]
        if columns[0] and len({len(column) for column in columns}) == 1:
            found[one.cell] = {row: (original, pruned) for row, _, original, pruned in zip(*columns, strict=True)}
            units |= dict(zip(columns[0], columns[1], strict=True))
    shared = sorted(set.intersection(*(set(rows) for rows in found.values()))) if found else []
    if not shared:
        return Values({}, np.zeros(0), np.zeros(0))
    any_cell = next(iter(found.values()))
    return Values(
        by_cell={cell: np.array([rows[row][1] for row in shared], np.float64) for cell, rows in found.items()},
        original=np.array([any_cell[row][0] for row in shared], np.float64),
        units=np.array([units[row] for row in shared]),
    )


def _told(effects: Effects, margin: float) -> dict[str, Any]:
    return {name: _effect(effect, margin) for name, effect in vars(effects).items()}


def _effect(effect: Effect | None, margin: float) -> dict[str, Any] | None:
    if effect is None:
        return None
    told = asdict(effect)
    low, high = told.pop("low"), told.pop("high")
    return told | {"interval": [low, high], "reading": read(effect, margin).value}


def _cell(one: Ran) -> dict[str, Any]:
    report: Section = one.report or {}
    accuracy, occlusion = section(report, "accuracy"), section(report, "robustness", "occlusion")
    failure, recovery = one.job.failure, section(report, "strategy", "recovery")
    return {
        "ratio": one.cell.ratio,
        "dropout": one.cell.dropout,
        "job": one.job.job_id,
        "state": str(one.job.state),
        "reason": None if failure is None else failure.reason,
        "message": None if failure is None else failure.message,
        "removed": _removed(report),
        "clean": _compared(accuracy, "original", "pruned")
        | {"verdict": text(section(report, "generalization"), "verdict") or None},
        "occlusion": _compared(occlusion, "auc_original", "auc_pruned")
        | {"verdict": text(occlusion, "verdict") or None, "levels": items(occlusion, "levels")},
        "recovery": text(recovery, "kept") or None,
        "gradient_steps": _steps(recovery),
    }


def _compared(found: Section, original: str, pruned: str) -> dict[str, Any]:
    ends = interval(found)
    return {
        "original": number(found, original),
        "pruned": number(found, pruned),
        "delta": number(found, "delta"),
        "interval": None if ends is None else list(ends),
    }


def _removed(report: Section) -> float | None:
    """The fraction of the parameters that is gone."""
    ratios = items(section(report, "robustness", "prune_potential"), "ratios")
    return float(ratios[0]) if ratios and isinstance(ratios[0], int | float) else None


def _steps(recovery: Section) -> int | None:
    """Gradient steps behind what was kept; None where the report does not say."""
    kept = [rung for rung in items(recovery, "rungs") if isinstance(rung, dict) and rung.get("kept") is True]
    steps = number(kept[-1], "gradient_steps") if kept else None
    return None if steps is None else int(steps)


def _potential(reports: Sequence[Section], margin: float) -> dict[str, Any]:
    """The largest fraction of parameters whose removal stays within the margin, over the grid.

    `shown`: the verdict is PASS; `estimated`: the difference itself is within, as in the paper, which has no intervals.
    """
    shown: dict[str, float | None] = {}
    estimated: dict[str, float | None] = {}
    for report in reports:
        removed = _removed(report)
        occlusion, curves = section(report, "robustness", "occlusion"), items(section(report, "robustness"), "curves")
        judged = {"clean": (section(report, "accuracy"), text(section(report, "generalization"), "verdict"))}
        judged |= {"occlusion": (occlusion, text(occlusion, "verdict"))} if occlusion else {}
        judged |= {text(curve, "kind"): (section(curve), text(curve, "verdict")) for curve in curves}
        for name, (found, verdict) in judged.items():
            delta = number(found, "delta")
            _raise(shown, name, removed if verdict == "PASS" else None)
            _raise(estimated, name, removed if delta is not None and delta > -margin else None)
    return {"margin": margin, "shown": shown, "estimated": estimated}


def _raise(found: dict[str, float | None], name: str, value: float | None) -> None:
    before = found.get(name)
    found[name] = before if value is None else max(value, before or 0.0)


def _notes(ran: Sequence[Ran], values: Values, effects: Effects, metric: str) -> list[str]:
    notes = []
    ended = [one for one in ran if one.report is not None]
    if len(ended) < len(ran):
        notes.append(f"{len(ran) - len(ended)} of {len(ran)} jobs left no report; the table has gaps where they were.")
    if len(values.by_cell) < len(ended):
        missing = len(ended) - len(values.by_cell)
        notes.append(
            f"{missing} reports have no occlusion curve, since no input was recognised; the table says no more."
        )
    if any(not has_dropout(one.report) for one in ended):
        notes.append(
            "The model has no dropout whose rate could be set, so that the axis of dropout rates is empty: each ratio ran"
            " once. None was inserted, as that would be another model."
        )
    else:
        idle = [one for one in ended if _steps(section(one.report, "strategy", "recovery")) == 0]
        if idle:
            notes.append(
                f"In {len(idle)} of {len(ended)} jobs the model that was best on the select split had no gradient step"
                " behind it, so that dropout could play no part there."
            )
    both = effects.interaction
    if both is not None and not both.low <= 0 <= both.high:
        change = f"{metric_text(metric, both.delta, signed=True)} {interval_text(metric, (both.low, both.high))}"
        notes.append(
            "What dropout does depends on the ratio, so that its mean effect is not the whole story: under occlusion, lowering"
            f" it changed {metric} by {change} more where most was pruned than where least was."
        )
    notes.append(
        "Each cell is one run of one seed. The intervals are about the samples; what another seed would have given is not"
        " in them."
    )
    return notes
