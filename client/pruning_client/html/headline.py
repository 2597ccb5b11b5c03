"""What stands above the fold: the verdict in one sentence, what was saved, and what to worry about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pruning_client.html.facts import count_text, words
from pruning_client.reading import (
    Section,
    interval,
    is_percentage,
    items,
    metric_text,
    number,
    section,
    text,
    verdict_sentence,
)
from pruning_client.text import bytes_text, duration_text, printable

MINUS = "\N{MINUS SIGN}"
VERDICTS = ("PASS", "FAIL", "INCONCLUSIVE")
_NAMED_CLASSES = 3
# A model that takes longer than this fraction of the original's time is no faster to speak of.
_SAME_LATENCY = 0.98
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Saving:
    """One cost: its change in percent, and both values."""

    name: str
    change: str
    before: str
    after: str
    is_better: bool


_Cost = tuple[str, float | None, float | None, Callable[[float], str]]


def sentence_of(report: Section) -> str:
    """Returns the change, its interval, and how it stands to the margin, in one sentence."""
    accuracy, judged = section(report, "accuracy"), section(report, "generalization")
    metric, ends, verdict = text(accuracy, "metric"), interval(accuracy), text(judged, "verdict")
    original, pruned, delta, margin = (
        number(place, key)
        for place, key in ((accuracy, "original"), (accuracy, "pruned"), (accuracy, "delta"), (judged, "margin"))
    )
    if verdict not in VERDICTS or ends is None or None in (original, pruned, delta, margin) or not metric:
        return verdict_sentence(report).removeprefix(f"{verdict}: ")
    level = number(accuracy, "confidence_level")
    points = " points" if is_percentage(metric) else ""
    limit = _difference(metric, margin, sign="") + points
    # The rule says PASS below the margin only where no output differs.
    are_identical = margin is not None and min(ends) <= -margin
    conclusion = {
        "PASS": "both models give the same outputs"
        if are_identical
        else f"a loss of the margin, {limit}, is ruled out",
        "FAIL": f"the loss is larger than the margin, {limit}",
        "INCONCLUSIVE": f"whether the loss stays within the margin, {limit}, cannot be told",
    }[verdict]
    return (
        f"{words(metric).capitalize()} went from {metric_text(metric, original)} to {metric_text(metric, pruned)}"
        f" ({_difference(metric, delta)}{points}, {f'{level:.0%} ' if level else ''}interval"
        f" {_difference(metric, min(ends))} to {_difference(metric, max(ends))}): {conclusion}."
    )


def _difference(metric: str, value: float | None, sign: str = "+") -> str:
    if value is None:
        return "-"
    return (f"{value * 100:{sign}.2f}" if is_percentage(metric) else f"{value:{sign}.4g}").replace("-", MINUS)


def savings_of(report: Section) -> tuple[Saving, ...]:
    """Returns what became cheaper, or did not; costs that are not known are left out."""
    before, after = section(report, "cost", "original"), section(report, "cost", "pruned")
    kinds: list[_Cost] = [
        ("MACs per sample", number(before, "macs"), number(after, "macs"), short_count),
        *_parameters(before, after),
        ("file", number(before, "bytes"), number(after, "bytes"), bytes_text),
        (
            "latency, median",
            number(section(before, "latency_seconds"), "p50"),
            number(section(after, "latency_seconds"), "p50"),
            duration_text,
        ),
    ]
    return tuple(
        Saving(name, f"{100 * (new / old - 1):+.1f} %".replace("-", MINUS), show(old), show(new), is_better=new < old)
        for name, old, new, show in kinds
        if old and new is not None
    )


def _parameters(before: Section, after: Section) -> list[_Cost]:
    old, new = number(before, "parameters"), number(after, "parameters")
    if old is not None and old == new:  # only zeros were made
        return [
            (
                "nonzero parameters",
                number(before, "nonzero_parameters"),
                number(after, "nonzero_parameters"),
                short_count,
            )
        ]
    return [("parameters", old, new, short_count)]


def short_count(value: float) -> str:
    """`1330432` -> `1.33 M`."""
    for size, unit in _STEPS:
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return count_text(value)


def concerns_of(report: Section) -> tuple[str, ...]:
    """Returns what to worry about, gravest first."""
    found = [
        *_judged(report),
        *_classes(section(report, "accuracy")),
        *_calibration(section(report, "accuracy", "calibration")),
        *_robustness(report),
        *_latency(report),
        *(printable(line) for line in items(section(report, "data"), "warnings")),
    ]
    return tuple(dict.fromkeys(line for line in found if line))


def _judged(report: Section) -> Iterator[str]:
    accuracy, judged = section(report, "accuracy"), section(report, "generalization")
    verdict, needed = text(judged, "verdict"), number(judged, "needed_samples")
    if verdict == "FAIL":
        yield "The loss is larger than the margin: prune less, recover longer, or accept a larger margin."
    if verdict == "INCONCLUSIVE" and needed is None:
        yield "These samples do not settle it: send more of them, or prune less."
    if verdict != "FAIL" and needed is not None:
        held = number(accuracy, "samples")
        yield (
            f"About {count_text(needed)} samples in the report split would reliably show a loss of the margin"
            f"{'' if held is None else f'; there are {count_text(held)}'}."
        )
    yield text(judged, "overfit_warning")
    gate = section(report, "strategy", "gate")
    if gate.get("applied") is False:
        yield f"There is no gate in the model: {text(gate, 'reason')}"


def _classes(accuracy: Section) -> Iterator[str]:
    lost = [
        one
        for one in items(accuracy, "classes")
        if isinstance(one, dict) and one.get("is_significant") is True and (number(one, "delta") or 0.0) < 0
    ]
    for one in lost[:_NAMED_CLASSES]:
        yield (
            f"Class {text(one, 'label')} lost {_difference('accuracy', -(number(one, 'delta') or 0.0), '')} points, more"
            " than chance explains."
        )
    if len(lost) > _NAMED_CLASSES:
        yield f"So did {len(lost) - _NAMED_CLASSES} more classes."


def _calibration(calibration: Section) -> Iterator[str]:
    ends, delta = interval(section(calibration, "ece")), number(section(calibration, "ece"), "delta")
    if ends is not None and min(ends) > 0 and delta is not None:
        yield f"Confidences are less reliable than the original's: calibration error {100 * delta:+.1f} points."


def _robustness(report: Section) -> Iterator[str]:
    occlusion, metric = section(report, "robustness", "occlusion"), text(section(report, "accuracy"), "metric")
    margin = number(section(report, "generalization"), "margin")
    ends, delta = interval(occlusion), number(occlusion, "delta")
    points = " points" if is_percentage(metric) else ""
    if ends is not None and max(ends) < 0 and delta is not None:
        yield f"Under occlusion the pruned model loses more than the original: {_difference(metric, delta)}{points} on average."
    for one in items(section(report, "robustness"), "curves"):
        levels = [(number(level, "level"), interval(level)) for level in items(one, "levels")]
        worse = [level for level, ends in levels if ends is not None and margin is not None and max(ends) < -margin]
        if worse and worse[0] is not None:
            yield (
                f"Under {words(text(one, 'kind'))} the loss is larger than the margin, from {worse[0]:g}"
                f" ({text(one, 'unit')}) on."
            )


def _latency(report: Section) -> Iterator[str]:
    old, new = (number(section(report, "cost", model, "latency_seconds"), "p50") for model in ("original", "pruned"))
    if old and new is not None and new > _SAME_LATENCY * old:
        yield f"Not measurably faster: the median latency is x{new / old:.2f} of the original's."
