"""What the page shows, computed from a report's JSON: plain values that the template only places.

Nothing here trusts the report: sections may be null, numbers missing, and names hostile (the template escapes them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pruning_client.html.tables import Table, find_tables
from pruning_client.reading import (
    Section,
    interval,
    interval_text,
    items,
    metric_text,
    number,
    section,
    text,
    verdict_sentence,
)
from pruning_client.text import bytes_text, duration_text, printable
from pruning_client.values import Phase

_VERDICTS = ("PASS", "FAIL", "INCONCLUSIVE")
_PHASE_SHARE_FLOOR = 0.002
# Longer lists of objects, such as the history of epochs, are for programs.
_LISTED = 3
# Names that end so are counts, which people read in groups of three digits.
_COUNTS = ("weights", "samples", "bytes")
# A page that lists more layers than anyone reads becomes slow; the JSON has all of them.
MAX_ROWS = 2000


@dataclass(frozen=True)
class IntervalDrawing:
    """Positions in percent of the drawing's width."""

    low: float
    high: float
    delta: float
    margin: float | None
    zero: float


@dataclass(frozen=True)
class Row:
    """A line of a table: a name and its cells."""

    name: str
    cells: tuple[str, ...]
    bar: float = 0.0


@dataclass(frozen=True)
class PageView:
    """Everything on the page, in its order."""

    title: str
    verdict: str
    verdict_class: str
    sentence: str
    metric: str
    accuracy: list[Row]
    interval: IntervalDrawing | None
    interval_label: str
    margin_label: str
    cost: list[Row]
    layers: list[Row]
    layers_left_out: int
    layers_cut: bool
    proof: list[Row]
    frozen: list[Row]
    strategy: list[Row]
    recovery: list[Row]
    candidates: list[Row]
    tables: list[Table]
    data: list[Row]
    warnings: list[str]
    timings: list[Row]
    provenance: list[Row]
    generalization: list[Row] = field(default_factory=list)


def build_view(report: Section) -> PageView:
    """Returns the values of the page for a report."""
    judged, accuracy = section(report, "generalization"), section(report, "accuracy")
    verdict = text(judged, "verdict")
    metric = text(accuracy, "metric") or "metric"
    layers = [_layer(layer) for layer in items(report, "layers")]
    return PageView(
        title=f"Pruning report {printable(_job_id(report), 80)}".strip(),
        verdict=verdict if verdict in _VERDICTS else "NO VERDICT",
        verdict_class=verdict.lower() if verdict in _VERDICTS else "none",
        sentence=verdict_sentence(report).removeprefix(f"{verdict}: "),
        metric=metric,
        accuracy=_accuracy(accuracy, metric),
        interval=_drawing(accuracy, judged),
        interval_label=f"{metric}, pruned minus original: {interval_text(metric, interval(accuracy))}",
        margin_label=f"margin {metric_text(metric, number(judged, 'margin'))}",
        cost=_cost(section(report, "cost")),
        layers=layers[:MAX_ROWS],
        layers_left_out=max(len(layers) - MAX_ROWS, 0),
        layers_cut=any(section(layer, "kept") for layer in items(report, "layers")),
        proof=_proof(section(report, "verify")),
        frozen=[_frozen(finding) for finding in items(report, "frozen")[:MAX_ROWS]],
        strategy=_facts(section(report, "strategy"), leave_out=("notes", "recovery", "details"))
        + _facts(section(report, "strategy", "details"), leave_out=("strategy",)),
        recovery=_facts(section(report, "strategy", "recovery"), leave_out=("history", "select", "rungs")),
        candidates=_candidates(section(report, "strategy", "recovery"), metric),
        tables=find_tables(section(report, "strategy"), _words, _fact),
        data=_facts(section(report, "data"), leave_out=("warnings",)),
        warnings=[
            printable(line)
            for line in (*items(section(report, "data"), "warnings"), *items(section(report, "strategy"), "notes"))
        ],
        timings=_timings(section(report, "timings")),
        provenance=_facts(section(report, "provenance")) + _facts(section(report, "model")),
        generalization=_generalization(judged, metric),
    )


def _job_id(report: Section) -> str:
    return text(section(report, "job"), "job_id") or text(section(report, "provenance"), "job_id")


def _accuracy(accuracy: Section, metric: str) -> list[Row]:
    rows = [
        Row(
            metric,
            (
                metric_text(metric, number(accuracy, "original")),
                metric_text(metric, number(accuracy, "pruned")),
                metric_text(metric, number(accuracy, "delta"), signed=True),
                interval_text(metric, interval(accuracy)),
            ),
        )
    ]
    loss = section(accuracy, "loss")
    if number(loss, "original") is not None:
        name = text(loss, "name") or "loss"
        rows.append(
            Row(
                name if name == "loss" else f"loss ({name})",
                (
                    metric_text("loss", number(loss, "original")),
                    metric_text("loss", number(loss, "pruned")),
                    metric_text("loss", number(loss, "delta"), signed=True),
                    interval_text("loss", interval(loss)),
                ),
            )
        )
    return rows


def _generalization(judged: Section, metric: str) -> list[Row]:
    named = (
        ("gap of the original (training set minus report split)", "gap_original"),
        ("gap of the pruned model", "gap_pruned"),
        ("recovery overfit (gain on fit minus gain on report)", "recovery_overfit"),
        ("smallest loss that these samples could show", "smallest_detectable_loss"),
    )
    return [
        Row(label, (metric_text(metric, number(judged, key), signed=key != "smallest_detectable_loss"),))
        for label, key in named
        if number(judged, key) is not None
    ]


def _drawing(accuracy: Section, judged: Section) -> IntervalDrawing | None:
    ends, delta, margin = interval(accuracy), number(accuracy, "delta"), number(judged, "margin")
    if ends is None or delta is None:
        return None
    points = [*ends, delta, 0.0, *([] if margin is None else [-margin])]
    low, high = min(points), max(points)
    width = (high - low) or 1.0
    low, width = low - 0.08 * width, 1.16 * width

    def place(value: float) -> float:
        return round(100 * (value - low) / width, 3)

    return IntervalDrawing(
        low=place(min(ends)),
        high=place(max(ends)),
        delta=place(delta),
        margin=None if margin is None else place(-margin),
        zero=place(0.0),
    )


def _cost(cost: Section) -> list[Row]:
    before, after = section(cost, "original"), section(cost, "pruned")
    rows: list[Row] = []
    shown: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("parameters", "parameters", _count),
        ("nonzero parameters", "nonzero_parameters", _count),
        ("MACs per sample", "macs", _count),
        ("file", "bytes", bytes_text),
    )
    for label, key, show in shown:
        rows.append(_before_after(label, number(before, key), number(after, key), show))
    latency = section(after, "latency_seconds")
    details = ", ".join(f"{key} {text(latency, key)}" for key in ("batch", "device", "threads") if text(latency, key))
    for key in ("p50", "p95"):
        label = f"latency {key} ({printable(details, 100)})" if details else f"latency {key}"
        old, new = (number(section(model, "latency_seconds"), key) for model in (before, after))
        rows.append(_before_after(label, old, new, duration_text))
    return [row for row in rows if any(cell != "-" for cell in row.cells)]


def _before_after(label: str, before: float | None, after: float | None, show: Callable[[float], str]) -> Row:
    def cell(value: float | None) -> str:
        return "-" if value is None else show(value)

    ratio = f"x{after / before:.3f}" if before and after is not None else "-"
    return Row(label, (cell(before), cell(after), ratio), bar=_percent(after / before if before and after else 0.0))


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _layer(layer: object) -> Row:
    sparsity = number(layer, "sparsity")
    before, after = _shape(items(layer, "shape_before")), _shape(items(layer, "shape_after"))
    shape = before if before == after or not after else f"{before} to {after}"
    return Row(
        printable(text(layer, "name"), 200),
        (printable(text(layer, "kind"), 80), shape, "-" if sparsity is None else f"{sparsity:.1%}"),
        bar=_percent(sparsity or 0.0),
    )


def _shape(sizes: list[object]) -> str:
    return "x".join(printable(size, 20) for size in sizes[:10])


def _proof(verify: Section) -> list[Row]:
    errors = (
        ("largest relative error", "max_relative_error", "dtype"),
        ("with random weights", "max_relative_error_randomized", "dtype_randomized"),
        ("in the model's own precision", "half_precision_difference", ""),
    )
    rows = []
    for label, key, dtype in errors:
        value, kind = number(verify, key), printable(text(verify, dtype), 80)
        if value is not None:
            rows.append(Row(f"{label}, {kind}" if kind else label, (f"{value:.2g}",)))
    shown = {name: value for name, value in verify.items() if name in ("batch_sizes", "methods", "train_mode", "notes")}
    return rows + _facts(shown)


def _frozen(finding: object) -> Row:
    layers = ", ".join(printable(layer, 200) for layer in items(finding, "layers"))
    return Row(
        printable(text(finding, "op"), 200),
        (printable(text(finding, "source"), 400), printable(text(finding, "reason"), 1000), layers),
    )


def _candidates(recovery: Section, metric: str) -> list[Row]:
    return [
        Row(
            _words(text(tried, "name")),
            (
                metric_text("loss", number(tried, "loss")),
                metric_text(metric, number(tried, "metric")),
                "kept" if isinstance(tried, dict) and tried.get("kept") is True else "",
            ),
        )
        for tried in items(recovery, "select")[:MAX_ROWS]
    ]


def _timings(timings: Section) -> list[Row]:
    order = {str(phase): index for index, phase in enumerate(Phase)}
    seconds = {name: number(timings, name) for name in sorted(timings, key=lambda name: order.get(name, len(order)))}
    known = {name: value for name, value in seconds.items() if value is not None and value >= 0}
    longest = max(known.values(), default=0.0) or 1.0
    return [
        Row(printable(name, 80), (duration_text(value),), bar=_percent(max(value / longest, _PHASE_SHARE_FLOOR)))
        for name, value in known.items()
    ]


def _facts(values: Section, leave_out: tuple[str, ...] = ()) -> list[Row]:
    """Every value that is set, as text, in the report's order."""
    return [
        Row(_words(name), (_fact(value, name),))
        for name, value in values.items()
        if name not in leave_out and value not in (None, "", [], {})
    ]


def _fact(value: object, name: str = "") -> str:
    if isinstance(value, dict):
        if set(value) == {"kind", "value"}:  # a target
            return f"{_fact(value['kind'])} {_fact(value['value'])}"
        return ", ".join(f"{_words(key)} {_fact(inner, key)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, list):
        if name == "shape":
            return f"of each sample {_shape(value)}" if value else "one number per sample"
        if len(value) > _LISTED and any(isinstance(inner, dict | list) for inner in value):
            return f"{len(value)} entries in the JSON report"
        return ", ".join(_fact(inner) for inner in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return _count(value) if isinstance(value, int) and name.endswith(_COUNTS) else printable(value, 400)


def _words(name: object) -> str:
    return printable(name, 80).replace("_", " ")


def _percent(fraction: float) -> float:
    return round(100 * min(max(fraction, 0.0), 1.0), 3)
