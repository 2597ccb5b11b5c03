"""What the page shows, computed from a report's JSON: plain values that the template only places.

Nothing here trusts the report: sections may be null, numbers missing, and names hostile (the template escapes them).
"""

from __future__ import annotations

from dataclasses import dataclass

from pruning_client.html.accuracy import accuracy_chapter, calibration_chapter, classes_chapter
from pruning_client.html.churn import churn_chapter
from pruning_client.html.costs import cost_chapter, frozen_chapter, layers_chapter
from pruning_client.html.facts import Chapter, Fact, Segment, Table, facts_of, percent
from pruning_client.html.headline import VERDICTS, Saving, concerns_of, savings_of, sentence_of
from pruning_client.html.recovery import generalization_chapter, recovery_chapter
from pruning_client.html.robustness import robustness_chapter
from pruning_client.html.strategy import request_chapter, strategy_chapter
from pruning_client.reading import Section, number, section, text
from pruning_client.text import duration_text, printable
from pruning_client.values import Phase

_PHASE_SHARE_FLOOR = 0.002


@dataclass(frozen=True)
class PageView:
    """Everything on the page, in its order."""

    title: str
    job: str
    verdict: str
    verdict_class: str
    sentence: str
    savings: tuple[Saving, ...]
    concerns: tuple[str, ...]
    chapters: tuple[Chapter, ...]
    heading: str = "Pruning report"


def build_view(report: Section) -> PageView:
    """Returns the values of the page for a report."""
    verdict = text(section(report, "generalization"), "verdict")
    job = printable(text(section(report, "job"), "job_id") or text(section(report, "provenance"), "job_id"), 80)
    chapters = (
        accuracy_chapter(report),
        classes_chapter(report),
        churn_chapter(report),
        calibration_chapter(report),
        robustness_chapter(report),
        generalization_chapter(report),
        cost_chapter(report),
        layers_chapter(report),
        frozen_chapter(report),
        _proof(report),
        request_chapter(report),
        strategy_chapter(report),
        recovery_chapter(report),
        Chapter("data", "Data", facts=facts_of(section(report, "data"), leave_out=("warnings", "statistics"))),
        Chapter("timings", "Time per phase", tables=_timings(section(report, "timings"))),
        Chapter(
            "provenance",
            "Provenance",
            facts=(*facts_of(section(report, "provenance")), *facts_of(section(report, "model")), *_schema(report)),
        ),
    )
    return PageView(
        title=f"Pruning report {job}".strip(),
        job=job,
        verdict=verdict if verdict in VERDICTS else "NO VERDICT",
        verdict_class=verdict.lower() if verdict in VERDICTS else "none",
        sentence=sentence_of(report),
        savings=savings_of(report),
        concerns=concerns_of(report),
        chapters=(*(chapter for chapter in chapters if chapter.has_content), *_absent(chapters)),
    )


def _absent(chapters: tuple[Chapter, ...]) -> tuple[Chapter, ...]:
    """What the report does not have, and why, in one place instead of many empty ones."""
    facts = tuple(
        Fact(chapter.short, " ".join(chapter.notes))
        for chapter in chapters
        if chapter.notes and not chapter.has_content
    )
    return (Chapter("absent", "Not in this report", facts=facts),) if facts else ()


def _proof(report: Section) -> Chapter:
    verify = section(report, "verify")
    if not verify:
        return Chapter("proof", "Proof", notes=("None is needed: only values were changed, and nothing was cut.",))
    errors = (
        ("largest relative error", "max_relative_error", "dtype"),
        ("with random weights", "max_relative_error_randomized", "dtype_randomized"),
        ("in the model's own precision", "half_precision_difference", ""),
    )
    facts = []
    for label, key, dtype in errors:
        value, kind = number(verify, key), printable(text(verify, dtype), 80)
        if value is not None:
            facts.append(Fact(f"{label}, {kind}" if kind else label, f"{value:.2g}"))
    shown = {name: value for name, value in verify.items() if name in ("batch_sizes", "methods", "train_mode", "notes")}
    title = "Proof: pruned model against the original with the removed channels switched off"
    return Chapter("proof", title, facts=(*facts, *facts_of(shown)))


def _schema(report: Section) -> tuple[Fact, ...]:
    version = text(report, "schema_version")
    return (Fact("schema of the report", printable(version, 40)),) if version else ()


def _timings(timings: Section) -> tuple[Table, ...]:
    order = {str(phase): index for index, phase in enumerate(Phase)}
    seconds = {name: number(timings, name) for name in sorted(timings, key=lambda name: order.get(name, len(order)))}
    known = {name: value for name, value in seconds.items() if value is not None and value >= 0}
    longest = max(known.values(), default=0.0) or 1.0
    lines = tuple((printable(name, 80), duration_text(value)) for name, value in known.items())
    bars = tuple((Segment("kept", percent(max(value / longest, _PHASE_SHARE_FLOOR))),) for value in known.values())
    return (Table("", ("phase", "time"), lines, bars=bars),) if lines else ()
