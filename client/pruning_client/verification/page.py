"""The verification as one self-contained page, in the looks of a report's; needs the extra `[report]`."""

from __future__ import annotations

from pruning_client.html.facts import MISSING, Chapter, Fact, Figure, Table, words
from pruning_client.html.figures import plots
from pruning_client.html.page import render_view
from pruning_client.html.view import PageView
from pruning_client.reading import Section, interval, interval_text, items, metric_text, number, section, text
from pruning_client.text import printable
from pruning_client.verification import figures

_NAMES = {
    "parameters": "removing more parameters",
    "dropout": "lowering dropout",
    "interaction": "both at once, beyond their sum",
    "overall": "all pruned models against the original",
}
_MAX_CURVES = 24


def render_verification(found: Section) -> str:
    """Returns the page of what `summary.summarize` told; nothing in it is trusted."""
    lead, _, rest = text(found, "conclusion").partition(": ")
    return render_view(
        PageView(
            title="Is generalization lost to lowered dropout, or to the parameters removed?",
            job="is generalization lost to lowered dropout, or to the parameters removed?",
            verdict=lead or "Cannot be told",
            verdict_class=_tone(lead),
            sentence=rest,
            savings=(),
            concerns=tuple(printable(note, 600) for note in items(found, "notes")),
            chapters=(_effects(found), _tables(found), _curves(found), _potential(found), _jobs(found)),
            heading="Verification of generalization",
        )
    )


def _tone(lead: str) -> str:
    if lead.startswith(("Neither", "No loss")):
        return "pass"
    return "fail" if lead.startswith(("Both", "Generalization is lost", "The parameters")) else "inconclusive"


def _effects(found: Section) -> Chapter:
    metric, margin = text(found, "metric"), number(found, "margin") or 0.0
    lines, spans = [], []
    for which, label in (("occlusion", "under occlusion"), ("clean", "on unchanged inputs")):
        for name, words_of in _NAMES.items():
            effect = section(found, "effects", which, name)
            delta, ends = number(effect, "delta"), interval(effect)
            if delta is None or ends is None:
                continue
            lines.append((f"{words_of}, {label}", *_difference(metric, effect), text(effect, "reading")))
            if name in ("parameters", "dropout"):
                short = f"{'parameters' if name == 'parameters' else 'dropout'},\n{label.removeprefix('on ')}"
                spans.append((short, figures.Span(0.0, delta, *ends)))
    table = Table("", ("effect", f"change of {words(metric)}", "interval", "reading"), tuple(lines))
    drawn = Figure(
        "effects",
        "What costs generalization",
        "; ".join(f"{line[0]}: {line[1]}, interval {line[2]}" for line in lines) or "nothing to compare",
        "Below zero: a loss. The dashed line is the margin. Paired over the same samples; a mean over the other axis.",
        figures.effects("effects", words(metric), tuple(spans), margin),
    )
    facts = (
        Fact("samples of the report split", f"{number(found, 'samples') or 0:.0f}"),
        Fact("margin", metric_text(metric, number(found, "margin"))),
        Fact("confidence level", f"{number(found, 'confidence_level') or 0:g}"),
    )
    return Chapter("answer", "Effects", (drawn,), tables=(table,), facts=facts)


def _difference(metric: str, found: object) -> tuple[str, str]:
    return metric_text(metric, number(found, "delta"), signed=True), interval_text(metric, interval(found))


def _tables(found: Section) -> Chapter:
    parts = (("occlusion", "Area under the occlusion curve"), ("clean", "Unchanged inputs"))
    return Chapter(
        "table",
        "Ratio by dropout",
        figures=tuple(_over_ratios(found, which, title) for which, title in parts),
        tables=tuple(_two_way(found, which, title) for which, title in parts),
    )


def _two_way(found: Section, which: str, title: str) -> Table:
    metric = text(found, "metric")
    rates = [
        rate for rate in items(found, "dropout") if any(_number_is(c, "dropout", rate) for c in items(found, "cells"))
    ]
    target = words(text(found, "target")) or "ratio"

    def cell(ratio: object, rate: object) -> str:
        for one in items(found, "cells"):
            if _number_is(one, "ratio", ratio) and _number_is(one, "dropout", rate):
                if number(section(one, which), "delta") is None:
                    return text(one, "state") or MISSING
                return " ".join(_difference(metric, section(one, which)))
        return MISSING

    return Table(
        f"{title}: {words(metric)}, pruned minus original",
        (target, *(f"dropout {rate:g}" for rate in rates if isinstance(rate, int | float))),
        tuple((f"{ratio}", *(cell(ratio, rate) for rate in rates)) for ratio in items(found, "ratios")),
    )


def _number_is(parent: object, name: str, value: object) -> bool:
    found = number(parent, name)
    return found is not None and found == value


def _over_ratios(found: Section, which: str, title: str) -> Figure:
    metric, target = text(found, "metric"), words(text(found, "target")) or "ratio"
    by_rate: dict[float, list[figures.Span]] = {}
    for one in items(found, "cells"):
        ratio, rate, delta = number(one, "ratio"), number(one, "dropout"), number(section(one, which), "delta")
        ends = interval(section(one, which))
        if ratio is not None and rate is not None and delta is not None and ends is not None:
            by_rate.setdefault(rate, []).append(figures.Span(ratio, delta, *ends))
    named = tuple(
        (f"dropout {rate:g}", tuple(sorted(spans, key=lambda span: span.place)))
        for rate, spans in sorted(by_rate.items())
    )
    return Figure(
        f"grid-{which}",
        title,
        f"{title}: {words(metric)}, pruned minus original, over {target}; the table beside it has the numbers.",
        "Whiskers: paired intervals of each model against the original.",
        figures.over_ratios(f"grid-{which}", words(metric), target, named),
    )


def _curves(found: Section) -> Chapter:
    metric = text(found, "metric")
    drawn = []
    for place, one in enumerate(items(found, "cells")[:_MAX_CURVES]):
        levels = [_point(level) for level in items(section(one, "occlusion"), "levels")]
        points = tuple(point for point in levels if point is not None)
        title = f"{words(text(found, 'target'))} {number(one, 'ratio') or 0:g}, dropout {number(one, 'dropout') or 0:g}"
        svg = plots.curve(f"occlusion-{place}", metric, "fraction hidden", points) if points else ""
        if svg:
            label = f"{title}: {words(metric)} of both models over the fraction hidden"
            drawn.append(Figure(f"occlusion-{place}", title, label, "", svg))
    notes = () if drawn else ("No occlusion curve was measured.",)
    return Chapter("curves", "Occlusion curves", tuple(drawn), notes=notes)


def _point(level: object) -> plots.Point | None:
    at, original, pruned = (number(level, key) for key in ("level", "original", "pruned"))
    if at is None or original is None or pruned is None:
        return None
    return plots.Point(at, original, pruned, interval(level))


def _potential(found: Section) -> Chapter:
    told = section(found, "prune_potential")
    shown, estimated = section(told, "shown"), section(told, "estimated")
    lines = tuple((words(kind), _ratio(shown, kind), _ratio(estimated, kind)) for kind in shown)
    return Chapter(
        "potential",
        "Prune potential",
        tables=(Table("", ("inputs", "shown", "estimated"), lines),),
        lines=(
            "The largest fraction of the parameters whose removal stays within the margin, of those that were tried.",
            "Shown: the interval rules out a loss of the margin. Estimated: the difference alone is within it.",
        ),
    )


def _ratio(parent: Section, name: str) -> str:
    found = number(parent, name)
    return "none" if found is None else f"{found:.3g}"


def _jobs(found: Section) -> Chapter:
    headings = (
        words(text(found, "target")) or "ratio",
        "dropout",
        "job",
        "state",
        "parameters gone",
        "verdict",
        "kept",
    )
    lines = tuple(
        (
            f"{number(one, 'ratio') or 0:g}",
            f"{number(one, 'dropout') or 0:g}",
            text(one, "job"),
            " ".join(filter(None, (text(one, "state"), text(one, "reason")))),
            _ratio(one, "removed") if isinstance(one, dict) else MISSING,
            text(section(one, "clean"), "verdict") or MISSING,
            words(text(one, "recovery")) or MISSING,
        )
        for one in items(found, "cells")
    )
    return Chapter("jobs", "Jobs", tables=(Table("", headings, lines),))
