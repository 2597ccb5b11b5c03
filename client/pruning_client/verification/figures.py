"""The pictures of the verification's page: effects with their intervals, and a difference over ratio and dropout."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from pruning_client.html.figures.canvas import MARK, Ink, can_draw, draw, pad
from pruning_client.reading import is_percentage

_LOOKS = (("o-", Ink.PRUNED), ("s--", Ink.ORIGINAL), ("^:", Ink.TEXT), ("D-.", Ink.GOOD))
_ROW_HEIGHT = 30.0


@dataclass(frozen=True)
class Span:
    """A difference with its interval, at a place of an axis."""

    place: float
    delta: float
    low: float
    high: float


def effects(anchor: str, metric: str, named: tuple[tuple[str, Span], ...], margin: float) -> str:
    """Effects one below the other, the margin beside zero; empty where they cannot be drawn."""
    spans = [span for _, span in named]
    if not spans or not can_draw((margin, *(value for one in spans for value in (one.delta, one.low, one.high)))):
        return ""

    def paint(axes: Axes) -> None:
        for row, span in enumerate(reversed(spans)):
            colour = Ink.BAD if span.high < 0 else Ink.PRUNED
            axes.plot((span.low, span.high), (row, row), color=colour, linewidth=2.2, gid=f"{MARK}-{row}")
            axes.plot((span.delta,), (row,), "o", color=colour, markersize=6)
        axes.axvline(0, color=Ink.SOFT, linewidth=1.2)
        axes.axvline(-margin, color=Ink.BAD, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(named)), [name for name, _ in reversed(named)])
        axes.set_ylim(-0.6, len(named) - 0.4)
        axes.set_xlim(pad((0.0, -margin, *(value for one in spans for value in (one.low, one.high)))))
        axes.set_xlabel(f"change of {metric}")
        axes.xaxis.set_major_formatter(_differences(metric))
        axes.locator_params(axis="x", nbins=5)

    return draw(anchor, 60 + _ROW_HEIGHT * len(named), paint)


def over_ratios(anchor: str, metric: str, across: str, named: tuple[tuple[str, tuple[Span, ...]], ...]) -> str:
    """The difference to the original over the ratio, a line for each dropout rate; empty where it cannot be drawn."""
    shown = [(name, spans) for name, spans in named if spans][: len(_LOOKS)]
    numbers = [value for _, spans in shown for one in spans for value in (one.place, one.delta, one.low, one.high)]
    if not shown or not can_draw(numbers):
        return ""
    places = sorted({one.place for _, spans in shown for one in spans})
    # Beside each other, so that whiskers at one ratio do not cover each other.
    step = 0.04 * ((places[-1] - places[0]) or 1.0) / len(places)

    def paint(axes: Axes) -> None:
        for number, (name, spans) in enumerate(shown):
            style, colour = _LOOKS[number]
            moved = [one.place + step * (number - (len(shown) - 1) / 2) for one in spans]
            axes.plot(moved, [one.delta for one in spans], style, color=colour, markersize=5, label=name,
                      gid=f"{MARK}-{number}")  # fmt: skip
            axes.vlines(moved, [one.low for one in spans], [one.high for one in spans], color=colour, linewidth=1.4)
        axes.axhline(0, color=Ink.SOFT, linewidth=1.2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.set_ylim(pad((0.0, *(value for _, spans in shown for one in spans for value in (one.low, one.high)))))
        axes.set_xlabel(across)
        axes.set_ylabel(f"{metric}, pruned minus original")
        axes.yaxis.set_major_formatter(_differences(metric))
        axes.legend(loc="best")

    return draw(anchor, 250, paint)


def _differences(metric: str) -> FuncFormatter:
    if is_percentage(metric):
        return FuncFormatter(lambda value, _: f"{100 * value:+.3g} %")
    return FuncFormatter(lambda value, _: f"{value:+.3g}")
