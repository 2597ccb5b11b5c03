"""The chapters on overfitting and on what recovery did."""

from __future__ import annotations

from collections.abc import Sequence

from pruning_client.html.facts import MISSING, Chapter, Fact, Figure, Table, facts_of, words
from pruning_client.html.figures import plots
from pruning_client.reading import Section, interval, interval_text, items, metric_text, number, section, text
from pruning_client.text import duration_text

_MAX_EPOCHS = 2000
_LONG = 24
_MAX_RUNGS = 24
# Times as large, at most, for two curves to share an axis.
_COMPARABLE = 5.0


def generalization_chapter(report: Section) -> Chapter:
    """Returns how much better the models do on what they were fitted to, and the losses while they were."""
    judged, metric = section(report, "generalization"), text(section(report, "accuracy"), "metric") or "metric"
    named = (
        ("gap of the original (training set minus report split)", "gap_original", ""),
        ("gap of the pruned model", "gap_pruned", ""),
        ("change of the gap", "gap_change", "gap_change_interval"),
        ("recovery overfit (gain on fit minus gain on report)", "recovery_overfit", "recovery_overfit_interval"),
    )
    facts = [
        Fact(label, _with_interval(judged, metric, key, ends))
        for label, key, ends in named
        if number(judged, key) is not None
    ]
    gap = text(judged, "gap_note")
    if number(judged, "gap_original") is None:
        facts.append(Fact("generalization gap", gap or "not measured: no training set was sent"))
    elif gap:
        facts.append(Fact("on the gap", gap))
    if number(judged, "recovery_overfit") is None:
        facts.append(Fact("recovery overfit", "none: nothing was fitted"))
    return Chapter("generalization", "Generalization", tuple(_curves(report)), facts=tuple(facts))


def _with_interval(judged: Section, metric: str, key: str, ends: str) -> str:
    found = interval({"interval": items(judged, ends)})
    value = metric_text(metric, number(judged, key), signed=True)
    return f"{value}, interval {interval_text(metric, found)}" if found else value


def _curves(report: Section) -> list[Figure]:
    epochs = items(section(report, "generalization"), "curves")
    if not epochs:  # before 1.1
        history = items(section(report, "strategy", "recovery"), "history")
        epochs = [one | {"fit_loss": one.get("train_loss")} for one in history if isinstance(one, dict)]
    epochs = epochs[:_MAX_EPOCHS]
    fit, select = _line(epochs, "fit_loss"), _line(epochs, "select_loss")
    if max(len(fit), len(select)) < 2:
        return []
    learnt = "Where it falls and the loss on select rises, the model learns by heart."
    what = (
        f"Fit: as it was minimized, with dropout and distillation, so look at its course, not at its height. {learnt}"
    )
    if _are_comparable(fit, select):
        named = ("fit", fit), ("select", select)
        return [_losses("losses", "Loss while it was fine-tuned", "loss", named, what, _epochs(report, epochs))]
    return [
        _losses(
            "losses", "Loss on fit while it was fine-tuned", "loss", (("fit", fit),), what, _epochs(report, epochs)
        ),
        _losses("losses-select", "Loss on select", "loss", (("select", select),), "At the end of every epoch.", None),
    ]


def _are_comparable(fit: plots.Line, select: plots.Line) -> bool:
    """Whether one axis can show both; distillation may make one of them many times the other."""
    largest = [max(abs(point[1]) for point in line) for line in (fit, select) if line]
    return max(largest) <= _COMPARABLE * min(largest)


def _losses(
    anchor: str, title: str, quantity: str, named: tuple[tuple[str, plots.Line], ...], caption: str, table: Table | None
) -> Figure:
    label = "; ".join(f"{name}: from {line[0][1]:.4g} to {line[-1][1]:.4g}" for name, line in named if line)
    return Figure(anchor, title, f"{title}: {label}", caption, plots.lines(anchor, "epoch", quantity, named), table)


def _epochs(report: Section, epochs: Sequence[object]) -> Table:
    metric = text(section(report, "accuracy"), "metric") or "metric"
    lines = tuple(
        (
            text(one, "epoch") or MISSING,
            metric_text("loss", number(one, "fit_loss")),
            metric_text("loss", number(one, "select_loss")),
            metric_text(metric, number(one, "select_metric")),
        )
        for one in epochs
    )
    headings = ("epoch", "loss on fit", "loss on select", f"{words(metric)} on select")
    return Table("", headings, lines, is_long=len(epochs) > _LONG)


def _line(epochs: Sequence[object], name: str) -> plots.Line:
    points = ((number(one, "epoch"), number(one, name)) for one in epochs)
    return tuple((x, y) for x, y in points if x is not None and y is not None)


def recovery_chapter(report: Section) -> Chapter:
    """Returns the rungs of the ladder with what each gained and cost, or what was chosen among."""
    recovery = section(report, "strategy", "recovery")
    metric = text(section(report, "accuracy"), "metric") or "metric"
    rungs = [one for one in items(recovery, "rungs") if isinstance(one, dict)][:_MAX_RUNGS]
    bars = tuple(
        plots.Bar(words(text(one, "name")), gain, _cost(one, metric), is_marked=one.get("kept") is True)
        for one in rungs
        if (gain := _gain(one)) is not None
    )
    figures: tuple[Figure, ...] = ()
    if bars:
        label = ", ".join(f"{bar.name} {bar.note}" for bar in bars)
        figures = (
            Figure(
                "rungs",
                "What each rung gained on select",
                f"Gain of {words(metric)} on select: {label}",
                "In the order in which they were tried. Blue: kept; grey: tried and dropped.",
                plots.bars("rungs", f"gain of {words(metric)}", bars),
            ),
        )
    return Chapter(
        "recovery",
        "Recovery",
        figures,
        (_rungs(rungs, metric),) if rungs else _candidates(recovery, metric),
        facts_of(recovery, leave_out=("history", "select", "rungs")),
    )


def _gain(rung: Section) -> float | None:
    before, after = number(rung, "metric_before"), number(rung, "metric")
    return number(rung, "gain") if before is None or after is None else after - before


def _cost(rung: Section, metric: str) -> str:
    seconds = number(rung, "seconds")
    gain = metric_text(metric, _gain(rung), signed=True)
    return gain if seconds is None else f"{gain}, {duration_text(seconds)}"


def _rungs(rungs: Sequence[Section], metric: str) -> Table:
    def change(one: Section, name: str, key: str) -> str:
        return f"{metric_text(name, number(one, f'{key}_before'))} → {metric_text(name, number(one, key))}"

    lines = tuple(
        (
            words(text(one, "name")),
            change(one, "loss", "loss"),
            change(one, metric, "metric"),
            text(one, "gradient_steps") or MISSING,
            MISSING if (seconds := number(one, "seconds")) is None else duration_text(seconds),
            "kept" if one.get("kept") is True else "",
        )
        for one in rungs
    )
    return Table("", ("rung", "loss", words(metric), "steps", "time", ""), lines)


def _candidates(recovery: Section, metric: str) -> tuple[Table, ...]:
    lines = tuple(
        (
            words(text(tried, "name")),
            metric_text("loss", number(tried, "loss")),
            metric_text(metric, number(tried, "metric")),
            "kept" if isinstance(tried, dict) and tried.get("kept") is True else "",
        )
        for tried in items(recovery, "select")[:_MAX_RUNGS]
    )
    headings = ("", "loss", words(metric), "")
    return (Table("What was tried, on the select split", headings, lines),) if lines else ()
