"""What both models cost, and what became of each layer."""

from __future__ import annotations

from collections.abc import Callable

from pruning_client.html.facts import (
    MISSING,
    Chapter,
    Figure,
    Segment,
    Table,
    count_text,
    percent,
    shape_text,
)
from pruning_client.html.figures import plots
from pruning_client.reading import Section, items, number, section, text
from pruning_client.text import bytes_text, duration_text, printable

# A page that lists more layers than anyone reads becomes slow; the JSON has all of them.
MAX_ROWS = 2000
_LONG = 24


def cost_chapter(report: Section) -> Chapter:
    """Returns both models' cost, with the latencies as a picture."""
    before, after = section(report, "cost", "original"), section(report, "cost", "pruned")
    kinds: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("parameters", "parameters", count_text),
        ("nonzero parameters", "nonzero_parameters", count_text),
        ("MACs per sample", "macs", count_text),
        ("file", "bytes", bytes_text),
    )
    rows = [(label, number(before, key), number(after, key), show) for label, key, show in kinds]
    details = _latency_details(report)
    for key in ("p50", "p95"):
        old, new = (number(section(model, "latency_seconds"), key) for model in (before, after))
        rows.append((f"latency {key} ({details})" if details else f"latency {key}", old, new, duration_text))
    known = [row for row in rows if row[1] is not None or row[2] is not None]
    table = Table(
        "",
        ("", "original", "pruned", "ratio"),
        tuple(_before_after(*row) for row in known),
        bars=tuple((Segment("kept", percent(new / old if old and new else 0.0)),) for _, old, new, _ in known),
    )
    latency = _latency(report, details)
    notes = () if known else ("The report has no costs.",)
    return Chapter("cost", "Cost", figures=(latency,) if latency else (), tables=(table,) if known else (), notes=notes)


def _before_after(
    label: str, before: float | None, after: float | None, show: Callable[[float], str]
) -> tuple[str, ...]:
    def cell(value: float | None) -> str:
        return MISSING if value is None else show(value)

    return label, cell(before), cell(after), f"x{after / before:.3f}" if before and after is not None else MISSING


def _latency_details(report: Section) -> str:
    latency = section(report, "cost", "pruned", "latency_seconds")
    found = (f"{key} {text(latency, key)}" for key in ("batch", "device", "threads") if text(latency, key))
    return printable(", ".join(found), 100)


def _latency(report: Section, details: str) -> Figure | None:
    rows = []
    for name in ("original", "pruned"):
        measured = section(report, "cost", name, "latency_seconds")
        p50, p95 = number(measured, "p50"), number(measured, "p95")
        if p50 is None or p95 is None:
            return None
        rows.append((name, 1e3 * p50, 1e3 * p95))
    words = "; ".join(f"{name}: median {low:.3g} ms, 95th percentile {high:.3g} ms" for name, low, high in rows)
    runs = text(section(report, "cost", "pruned", "latency_seconds"), "runs")
    measured_as = ", ".join(part for part in (details, f"{runs} runs" if runs else "") if part)
    return Figure(
        "latency",
        "Latency",
        words,
        f"Per batch, from the median (dot) to the 95th percentile (line){f': {measured_as}' if measured_as else ''}.",
        plots.spans("latency", "milliseconds per batch", tuple(rows)),
    )


def layers_chapter(report: Section) -> Chapter:
    """Returns every layer: how much of it is kept, removed or frozen."""
    found = [layer for layer in items(report, "layers") if isinstance(layer, dict)]
    if not found:
        return Chapter("layers", "Layers", notes=("The report lists no layers.",))
    frozen = {text({"name": name}, "name") for one in items(report, "frozen") for name in items(one, "layers")}
    shown = found[:MAX_ROWS]
    fixed = [_is_frozen(layer, frozen) for layer in shown]
    table = Table(
        "",
        ("layer", "kind", "shape", "removed"),
        tuple(_layer(layer, is_frozen) for layer, is_frozen in zip(shown, fixed, strict=True)),
        len(found) - len(shown),
        tuple(_segments(layer, is_frozen) for layer, is_frozen in zip(shown, fixed, strict=True)),
        is_long=len(shown) > _LONG,
    )
    cut = any(section(layer, "kept") for layer in found)
    return Chapter(
        "layers",
        "Layers",
        tables=(table,),
        notes=("Which channels every layer kept is in the JSON report, under layers, kept.",) if cut else (),
        legend=(("kept", "kept"), ("removed", "removed"), ("frozen", "left alone, see below")),
    )


def _is_frozen(layer: Section, frozen: set[str]) -> bool:
    """Whether a finding names the tensor, or the module that holds it."""
    name = text(layer, "name")
    return name in frozen or name.rpartition(".")[0] in frozen


def _layer(layer: Section, is_frozen: bool) -> tuple[str, ...]:
    sparsity = number(layer, "sparsity")
    before, after = shape_text(items(layer, "shape_before")), shape_text(items(layer, "shape_after"))
    removed = MISSING if sparsity is None else f"{sparsity:.1%}"
    return (
        printable(text(layer, "name"), 200),
        printable(text(layer, "kind"), 80),
        before if before == after or not after else f"{before} to {after}",
        f"{removed}, left alone" if is_frozen and not sparsity else removed,
    )


def _segments(layer: Section, is_frozen: bool) -> tuple[Segment, ...]:
    removed = percent(number(layer, "sparsity") or 0.0)
    kept = Segment("frozen" if is_frozen and not removed else "kept", round(100 - removed, 3))
    return (kept, Segment("removed", removed)) if removed else (kept,)


def frozen_chapter(report: Section) -> Chapter:
    """Returns what could not be pruned, and why."""
    found = items(report, "frozen")
    lines = tuple(
        (
            printable(text(one, "op"), 200),
            printable(text(one, "source"), 400),
            printable(text(one, "reason"), 1000),
            ", ".join(printable(layer, 200) for layer in items(one, "layers")),
        )
        for one in found[:MAX_ROWS]
    )
    table = Table(
        "", ("operation", "where", "why", "layers"), lines, len(found) - len(lines), is_long=len(lines) > _LONG
    )
    return Chapter("frozen", "Left alone", tables=(table,) if lines else ())
