"""The chapter on robustness: both models on inputs that are made harder, step by step."""

from __future__ import annotations

from collections.abc import Iterator

from pruning_client.html.accuracy import paired_row
from pruning_client.html.facts import MISSING, Chapter, Fact, Figure, Table, words
from pruning_client.html.figures import plots
from pruning_client.reading import Section, interval, interval_text, items, metric_text, number, section, text
from pruning_client.text import printable

_MAX_CURVES = 12
_OCCLUDED = {"area": "of the image hidden", "tokens": "of the tokens hidden", "features": "of the features hidden"}


def robustness_chapter(report: Section) -> Chapter:
    """Returns the occlusion curve, the other curves, and how far pruning could have gone."""
    found = section(report, "robustness")
    notes = tuple(printable(line, 400) for line in items(found, "notes"))
    if not found:
        return Chapter("robustness", "Robustness", notes=("It was not measured.",))
    metric = text(section(report, "accuracy"), "metric") or "metric"
    figures = [*_occlusion(section(found, "occlusion"), metric)]
    for place, curve in enumerate(items(found, "curves")[:_MAX_CURVES]):
        kind = words(text(curve, "kind")) or "curve"
        unit = printable(text(curve, "unit"), 60)
        figures += _figure(f"curve-{place}", kind.capitalize(), metric, unit or "level", items(curve, "levels"), "")
    facts = tuple(_potential(section(found, "prune_potential")))
    if not (figures or facts or notes):
        notes = ("Nothing was measured.",)
    return Chapter("robustness", "Robustness", tuple(figures), facts=facts, notes=notes)


def _occlusion(found: Section, metric: str) -> Iterator[Figure]:
    kind = text(found, "kind")
    unit = f"fraction {_OCCLUDED.get(kind, f'of {words(kind)} hidden' if kind else 'hidden')}"
    areas = (
        f"Mean along the curve: original {metric_text(metric, number(found, 'auc_original'))}, pruned"
        f" {metric_text(metric, number(found, 'auc_pruned'))}, difference"
        f" {metric_text(metric, number(found, 'delta'), signed=True)}, interval {interval_text(metric, interval(found))}"
        f"{f': {verdict}' if (verdict := text(found, 'verdict')) else ''}."
    )
    yield from _figure("occlusion", "Occlusion", metric, unit, items(found, "levels"), areas)


def _figure(anchor: str, title: str, metric: str, unit: str, levels: list[object], more: str) -> Iterator[Figure]:
    points = tuple(_point(level) for level in levels)
    known = tuple(point for point in points if point is not None)
    if not known:
        return
    last = known[-1]
    table = Table(
        "",
        (unit, "original", "pruned", "difference", "interval of the difference"),
        tuple(paired_row(_level(level), metric, level) for level in levels),
    )
    yield Figure(
        anchor,
        title,
        f"{title}: {words(metric)} of both models over {unit}; at {last.level:g}, original"
        f" {metric_text(metric, last.original)}, pruned {metric_text(metric, last.pruned)}. {more}",
        f"{more} Band: the paired interval of the difference, seen from the original.".strip(),
        plots.curve(anchor, metric, unit, known),
        table,
    )


def _level(level: object) -> str:
    found = number(level, "level")
    return MISSING if found is None else f"{found:g}"


def _point(level: object) -> plots.Point | None:
    at, original, pruned = (number(level, key) for key in ("level", "original", "pruned"))
    if at is None or original is None or pruned is None:
        return None
    return plots.Point(at, original, pruned, interval(level))


def _potential(found: Section) -> Iterator[Fact]:
    if not found:
        return
    tried = ", ".join(f"{ratio:.1%}" for ratio in items(found, "ratios") if isinstance(ratio, int | float))
    yield Fact("prune potential: fractions of the parameters removed that were tried", tried or MISSING)
    yield Fact("largest within the margin, on clean data", _ratio(found, "clean"))
    for kind in section(found, "shifted"):
        yield Fact(f"largest within the margin, under {words(kind)}", _ratio(section(found, "shifted"), kind))


def _ratio(parent: Section, name: str) -> str:
    found = number(parent, name)
    return "none of them" if found is None else f"{found:.1%}"
