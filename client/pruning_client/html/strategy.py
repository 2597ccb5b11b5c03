"""The chapters on the request: what was asked, and what the strategy did and tried on the way."""

from __future__ import annotations

from collections.abc import Sequence

from pruning_client.html.facts import Chapter, Fact, Figure, fact_text, facts_of, words
from pruning_client.html.figures import plots
from pruning_client.html.tables import find_tables
from pruning_client.reading import Section, items, metric_text, number, section, text
from pruning_client.text import printable

_TOLD_ELSEWHERE = ("notes", "recovery", "details", "gate", "continued", "criterion_choice")
_IN_TABLES = ("steps", "features", "comparisons", "merged", "trials", "drift")
_MAX_STEPS = 400


def request_chapter(report: Section) -> Chapter:
    """Returns what was asked and what came of it, in the service's own notes."""
    strategy = section(report, "strategy")
    notes = tuple(printable(line) for line in items(strategy, "notes"))
    return Chapter("request", "Request", facts=facts_of(strategy, leave_out=_TOLD_ELSEWHERE), lines=notes)


def strategy_chapter(report: Section) -> Chapter:
    """Returns the strategy's account of itself, as figures, tables and facts."""
    strategy = section(report, "strategy")
    tables = find_tables(strategy, words, fact_text)
    facts = (
        *facts_of(section(strategy, "details"), leave_out=("strategy", *_IN_TABLES)),
        *_prefixed("choice", section(strategy, "criterion_choice")),
        *_prefixed("gate", section(strategy, "gate")),
        *_prefixed("continued", section(strategy, "continued")),
    )
    return Chapter("strategy", "How it was pruned", (*_steps(report), *_certificate(report)), tuple(tables), facts)


def _prefixed(prefix: str, values: Section) -> tuple[Fact, ...]:
    return tuple(Fact(f"{prefix}: {fact.name}", fact.value) for fact in facts_of(values, leave_out=_IN_TABLES))


def _steps(report: Section) -> list[Figure]:
    """How far a schedule had pruned when, and what the model was worth then."""
    steps = items(section(report, "strategy", "details"), "steps")[:_MAX_STEPS]
    metric = text(section(report, "accuracy"), "metric") or "metric"
    kept = [one for one in steps if isinstance(one, dict) and one.get("action") != "rollback"]
    across, numbered = "gradient steps", kept
    if len({number(one, "step") for one in kept}) < len(kept):
        # A controller may take many steps between two gradient steps.
        across, numbered = "steps in turn", [one | {"step": place} for place, one in enumerate(kept, 1)]
    sparsity, judged = _line(numbered, "step", "sparsity"), _line(numbered, "step", "select_metric")
    figures = []
    if len(sparsity) > 1:
        figures.append(
            Figure(
                "steps-sparsity",
                "How far it was pruned",
                f"Fraction that is off, over {across}; at the end {sparsity[-1][1]:.1%}",
                "Without what was rolled back.",
                plots.lines("steps-sparsity", across, "fraction off", (("fraction off", sparsity),)),
            )
        )
    if len(judged) > 1:
        figures.append(
            Figure(
                "steps-metric",
                "What it was worth then",
                f"{metric} on select over {across}; at the end {metric_text(metric, judged[-1][1])}",
                "On the select split, without what was rolled back.",
                plots.lines("steps-metric", across, metric, ((f"{metric} on select", judged),)),
            )
        )
    return figures


def _certificate(report: Section) -> list[Figure]:
    """What the candidates of a certificate lost, and what is certified of them."""
    details = section(report, "strategy", "details")
    limit = number(details, "max_loss")
    candidates = items(details, "candidates")
    loss, bound = _line(candidates, "sparsity", "loss"), _line(candidates, "sparsity", "bound")
    if limit is None or len(loss) < 2:
        return []
    metric = text(details, "metric") or "metric"
    return [
        Figure(
            "certificate",
            "What is certified",
            f"Loss of the candidates and its bound over the fraction removed; allowed {metric_text(metric, limit)}",
            f"On the calibrate split, for every candidate that was tested. Dashed: {metric_text(metric, limit)}, what is"
            " allowed.",
            plots.lines(
                "certificate", "fraction removed", f"loss of {metric}", (("loss", loss), ("its bound", bound)), limit
            ),
        )
    ]


def _line(values: Sequence[object], across: str, up: str) -> plots.Line:
    points = ((number(one, across), number(one, up)) for one in values)
    return tuple(sorted((x, y) for x, y in points if x is not None and y is not None))
