"""The short table at the end of a job, from its report."""

from __future__ import annotations

from typing import Any

from pruning_client.cli.output import Output
from pruning_client.reading import (
    interval,
    interval_text,
    metric_text,
    number,
    section,
    text,
    verdict_sentence,
)
from pruning_client.text import bytes_text, duration_text


def print_summary(output: Output, report: dict[str, Any]) -> None:
    """Prints before and after, and the verdict."""
    output.table(["", "original", "pruned", "change"], _rows(report))
    output.line(f"Verdict  {verdict_sentence(report)}")


def _rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    accuracy = section(report, "accuracy")
    metric = text(accuracy, "metric") or "metric"
    samples = number(accuracy, "samples")
    before, after = section(report, "cost", "original"), section(report, "cost", "pruned")
    delta = metric_text(metric, number(accuracy, "delta"), signed=True)
    rows = [
        (
            f"{metric}{'' if samples is None else f' ({samples:.0f} samples)'}",
            metric_text(metric, number(accuracy, "original")),
            metric_text(metric, number(accuracy, "pruned")),
            f"{delta} in {interval_text(metric, interval(accuracy))}",
        )
    ]
    rows += _removed(section(report, "strategy"), before, after)
    sizes = (number(before, "bytes"), number(after, "bytes"))
    rows.append(("file", _size(sizes[0]), _size(sizes[1]), _ratio(*sizes)))
    macs = (number(before, "macs"), number(after, "macs"))
    if macs[0] is not None:
        rows.append(("MACs per sample", _count(macs[0]), _count(macs[1]), _ratio(*macs)))
    times = tuple(number(section(model, "latency_seconds"), "p50") for model in (before, after))
    rows.append((_latency_name(after), _time(times[0]), _time(times[1]), _ratio(*times)))
    return rows


def _removed(strategy: Any, before: Any, after: Any) -> list[tuple[str, str, str, str]]:
    sparsity, channels = number(strategy, "achieved_sparsity"), number(strategy, "removable_channels")
    nonzero = (number(before, "nonzero_parameters"), number(after, "nonzero_parameters"))
    if channels is None:
        return [("nonzero weights", _count(nonzero[0]), _count(nonzero[1]), _percent("sparsity", sparsity))]
    # Where channels go, sparsity is their fraction, not that of the weights.
    left = channels - (number(strategy, "removed_channels") or 0)
    unit = "removable heads" if text(strategy, "granularity") == "head" else "removable channels"
    return [
        (unit, _count(channels), _count(left), _percent("sparsity", sparsity)),
        ("nonzero weights", _count(nonzero[0]), _count(nonzero[1]), _ratio(*nonzero)),
    ]


def _latency_name(cost: Any) -> str:
    latency = section(cost, "latency_seconds")
    batch, device = number(latency, "batch"), text(latency, "device")
    details = [f"batch {batch:.0f}" if batch is not None else "", device]
    return f"latency p50 ({', '.join(d for d in details if d)})" if any(details) else "latency p50"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _size(value: float | None) -> str:
    return "-" if value is None else bytes_text(value)


def _time(value: float | None) -> str:
    return "-" if value is None else duration_text(value)


def _percent(name: str, value: float | None) -> str:
    return "" if value is None else f"{name} {value:.2%}"


def _ratio(before: float | None, after: float | None) -> str:
    return "" if not before or after is None else f"x{after / before:.2f}"
