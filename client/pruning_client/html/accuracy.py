"""The chapters on accuracy: before and after, classes, confidences."""

from __future__ import annotations

from collections.abc import Sequence

from pruning_client.html.facts import MISSING, Chapter, Fact, Figure, Table, words
from pruning_client.html.figures import plots
from pruning_client.reading import (
    Section,
    interval,
    interval_text,
    items,
    metric_text,
    number,
    section,
    text,
)
from pruning_client.text import printable

_CLASSES_DRAWN = 20
MAX_CLASSES = 2000
_LONG = 24
_HEADINGS = ("", "original", "pruned", "difference", "interval of the difference")


def accuracy_chapter(report: Section) -> Chapter:
    """Returns every metric of both models, the main one as pictures."""
    accuracy, judged = section(report, "accuracy"), section(report, "generalization")
    metric = text(accuracy, "metric") or "metric"
    rows = [paired_row(words(metric), metric, accuracy)]
    loss = section(accuracy, "loss")
    if number(loss, "original") is not None:
        name = text(loss, "name") or "loss"
        rows.append(paired_row(words(name) if name == "loss" else f"loss ({words(name)})", "loss", loss))
    for other in items(accuracy, "others"):
        name = text(other, "name")
        worse = (
            "" if not isinstance(other, dict) or other.get("larger_is_better") is not False else " (smaller is better)"
        )
        rows.append(paired_row(f"{words(name)}{worse}", name, other))
    return Chapter(
        "accuracy",
        "Before and after, on the report split",
        figures=tuple(_comparison(accuracy, judged, metric)),
        tables=(Table("", _HEADINGS, tuple(rows)),),
        facts=_rests_on(accuracy, judged, metric),
    )


def paired_row(label: str, metric: str, values: object) -> tuple[str, ...]:
    """Returns a line of both models' number: name, original, pruned, difference, interval."""
    return (
        label,
        metric_text(metric, number(values, "original")),
        metric_text(metric, number(values, "pruned")),
        metric_text(metric, number(values, "delta"), signed=True),
        interval_text(metric, interval(values)),
    )


def _comparison(accuracy: Section, judged: Section, metric: str) -> list[Figure]:
    original, pruned, delta = (number(accuracy, key) for key in ("original", "pruned", "delta"))
    ends, margin, figures = interval(accuracy), number(judged, "margin"), []
    limit = f"margin {metric_text(metric, margin)}"
    if original is not None and pruned is not None:
        whisker = "Whisker: where the pruned model's value may lie, as the paired interval of the difference says. "
        figures.append(
            Figure(
                "accuracy-bars",
                f"{words(metric).capitalize()} of both models",
                f"{words(metric)}: original {metric_text(metric, original)}, pruned {metric_text(metric, pruned)}",
                f"{whisker if ends else ''}{'' if margin is None else f'Dashed: the original less the {limit}.'}",
                plots.accuracy_bars("accuracy-bars", metric, original, pruned, ends, margin),
            )
        )
    if delta is not None and ends is not None:
        label = f"{words(metric)}, pruned minus original: {metric_text(metric, delta, signed=True)}, interval {interval_text(metric, ends)}"
        figures.append(
            Figure(
                "accuracy-delta",
                "The difference against the margin",
                f"{label}, {limit}",
                f"{words(metric)}, pruned minus original: {interval_text(metric, ends)}. Dashed: {limit}; left of it the"
                " loss is too large.",
                plots.delta_against_margin("accuracy-delta", metric, delta, ends, margin),
            )
        )
    return figures


def _rests_on(accuracy: Section, judged: Section, metric: str) -> tuple[Fact, ...]:
    test = section(judged, "non_inferiority")
    p_value, alpha = number(test, "p_value"), number(test, "alpha")
    shown = "shown" if test.get("is_shown") is True else "not shown"
    found = (
        ("in the report's words", text(judged, "explanation")),
        ("samples", text(accuracy, "samples")),
        ("independent units among them", text(accuracy, "units")),
        ("interval", " ".join((_level(accuracy), words(text(accuracy, "interval_method")))).strip()),
        ("McNemar's exact test, p", _p_text(number(accuracy, "mcnemar_p"))),
        (
            "the loss is smaller than the margin",
            f"{shown}: p {_p_text(p_value) or 'none'}{'' if alpha is None else f', against {alpha:g}'}"
            f" ({words(text(test, 'method'))})"
            if test
            else "",
        ),
        ("smallest loss that these samples could show", _known(metric, number(judged, "smallest_detectable_loss"))),
    )
    return tuple(Fact(name, value) for name, value in found if value)


def _level(accuracy: Section) -> str:
    level = number(accuracy, "confidence_level")
    return "" if level is None else f"{level:.0%}"


def _known(metric: str, value: float | None) -> str:
    return "" if value is None else metric_text(metric, value)


def _p_text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if value >= 1e-4 else "below 0.0001"


def classes_chapter(report: Section) -> Chapter:
    """Returns what every class lost or won, those that lost most first."""
    accuracy = section(report, "accuracy")
    found = [one for one in items(accuracy, "classes") if isinstance(one, dict)]
    # As the service sorts them; a report from elsewhere may not be.
    found.sort(key=lambda one: number(one, "delta") or 0.0)
    note = text(accuracy, "classes_note")
    if not found:
        return Chapter("classes", "Classes", notes=(note or "The task has none.",))
    drawn = tuple(_whisker(one) for one in found if number(one, "delta") is not None and interval(one))[:_CLASSES_DRAWN]
    table = Table(
        "",
        ("class", "samples", "original", "pruned", "difference", "interval", "p"),
        tuple(_class_row(one) for one in found[:MAX_CLASSES]),
        max(len(found) - MAX_CLASSES, 0),
        is_long=len(found) > _LONG,
    )
    which = "" if len(drawn) == len(found) else f"The {len(drawn)} of {len(found)} classes that lost most. "
    worst = ", ".join(f"{row.name} {100 * row.delta:+.1f} points" for row in drawn[:3])
    figure = Figure(
        "class-deltas",
        "What every class lost or won",
        f"Accuracy by class, pruned minus original: {worst}",
        f"{which}Lines: intervals of the difference; red: more than chance explains, after correction for many classes, as the p-values are.",
        plots.whiskers("class-deltas", "accuracy", drawn),
    )
    return Chapter("classes", "Classes", figures=(figure,), tables=(table,), notes=(note,) if note else ())


def _whisker(one: Section) -> plots.Whisker:
    low, high = sorted(interval(one) or (0.0, 0.0))
    samples = number(one, "samples")
    name = f"class {printable(text(one, 'label'), 40)}" + ("" if samples is None else f" (n={samples:.0f})")
    return plots.Whisker(name, number(one, "delta") or 0.0, low, high, is_marked=one.get("is_significant") is True)


def _class_row(one: Section) -> tuple[str, ...]:
    name, *numbers = paired_row(printable(text(one, "label"), 80), "accuracy", one)
    significant = ", significant" if one.get("is_significant") is True else ""
    return name, text(one, "samples"), *numbers, f"{_p_text(number(one, 'p_corrected')) or MISSING}{significant}"


def calibration_chapter(report: Section) -> Chapter:
    """Returns whether confidences are as high as the share that is right."""
    found = section(report, "accuracy", "calibration")
    if not found:
        note = "The model's outputs are no class scores, or there are no targets."
        return Chapter("calibration", "Confidence", notes=(note,))
    named = (
        ("expected calibration error", "accuracy", "ece"),
        ("negative log-likelihood", "loss", "nll"),
        ("Brier score", "loss", "brier"),
    )
    rows = tuple(paired_row(name, metric, section(found, key)) for name, metric, key in named)
    bins = {name: items(section(found, "reliability"), name) for name in ("original", "pruned")}
    first, second = (_line(bins[name]) for name in ("original", "pruned"))
    figure = Figure(
        "reliability",
        "How sure, and how right",
        "Share that is right over mean confidence, for both models, against the diagonal",
        "Each mark stands for equally many predictions. On the dotted diagonal a model is right as often as it says;"
        " below it, it is too sure of itself.",
        plots.reliability("reliability", first, second),
        Table(
            "",
            ("model", "confidence", "share that is right", "predictions"),
            tuple((name, *_bin(one)) for name, found in bins.items() for one in found),
        ),
    )
    drawn = (figure,) if first or second else ()
    return Chapter("calibration", "Confidence", drawn, (Table("", _HEADINGS, rows),))


def _line(bins: Sequence[object]) -> plots.Line:
    points = ((number(one, "confidence"), number(one, "accuracy")) for one in bins)
    return tuple((x, y) for x, y in points if x is not None and y is not None)


def _bin(one: object) -> tuple[str, ...]:
    return (
        metric_text("accuracy", number(one, "confidence")),
        metric_text("accuracy", number(one, "accuracy")),
        text(one, "predictions"),
    )
