"""The pictures of the page, each from its numbers; `""` where there is nothing that can be drawn.

All are cached by what they show, since they are pure.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pruning_client.html.figures.canvas import MARK, Ink, can_draw, draw, pad
from pruning_client.reading import is_percentage

_CACHED = 128
_ROW_HEIGHT = 21.0
_LABEL_CHARACTERS = 26
# A band that says "here", not a surface.
_TINT = 0.14


@dataclass(frozen=True)
class Whisker:
    """A named delta with its interval; `is_marked`: stands out."""

    name: str
    delta: float
    low: float
    high: float
    is_marked: bool = False


@dataclass(frozen=True)
class Point:
    """Both models at one level of a curve; the interval is of pruned - original, None where there is none."""

    level: float
    original: float
    pruned: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Bar:
    """A named length; `is_marked`: stands out. `note` stands beside it."""

    name: str
    value: float
    note: str = ""
    is_marked: bool = False


Line = tuple[tuple[float, float], ...]
"""Points (x, y) that are joined."""


@functools.lru_cache(_CACHED)
def accuracy_bars(
    anchor: str, metric: str, original: float, pruned: float, interval: tuple[float, float] | None, margin: float | None
) -> str:
    """Both models' metric; the whisker is the paired interval of the difference, seen from the original's value."""
    ends = tuple(original + end for end in interval) if interval else ()
    floor = None if margin is None else original - margin
    if not can_draw((original, pruned, *ends, *(() if floor is None else (floor,)))):
        return ""

    def paint(axes: Axes) -> None:
        values = (pruned, original)
        bars = axes.barh((0, 1), values, height=0.56, color=(Ink.PRUNED, Ink.ORIGINAL))
        for bar in bars:
            bar.set_gid(MARK)
        if ends:
            axes.plot(ends, (0, 0), color=Ink.TEXT, linewidth=1.6, marker="|", markersize=11, gid=MARK)
        if floor is not None:
            axes.axvline(floor, color=Ink.BAD, linewidth=1.4, linestyle=(0, (4, 3)))
        axes.set_yticks((0, 1), ("pruned", "original"))
        low, high = pad((0.0, *values, *ends), 0.04)
        axes.set_xlim(low if min(values) < 0 else 0.0, high)
        axes.set_ylim(-0.5, 1.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(_shown(metric))
        _metric_axis(axes, "x", metric)

    return draw(anchor, 130, paint)


@functools.lru_cache(_CACHED)
def delta_against_margin(
    anchor: str, metric: str, delta: float, interval: tuple[float, float], margin: float | None
) -> str:
    """The interval of the difference on a line, against no difference and against the margin."""
    limit = () if margin is None else (-margin,)
    if not can_draw((delta, *interval, *limit)):
        return ""

    def paint(axes: Axes) -> None:
        low, high = pad((delta, *interval, 0.0, *limit), 0.16)
        axes.set_xlim(low, high)
        if margin is not None:
            axes.axvspan(low, -margin, color=Ink.BAD, alpha=_TINT, linewidth=0)
            axes.axvspan(-margin, high, color=Ink.GOOD, alpha=_TINT, linewidth=0)
            axes.axvline(-margin, color=Ink.BAD, linewidth=1.4, linestyle=(0, (4, 3)))
        axes.axvline(0, color=Ink.SOFT, linewidth=1.2)
        axes.plot(sorted(interval), (0, 0), color=Ink.PRUNED, linewidth=7, solid_capstyle="round", gid=MARK)
        axes.plot((delta,), (0,), "o", color=Ink.PAGE, markeredgecolor=Ink.PRUNED, markeredgewidth=2.5, markersize=10,
                  gid=f"{MARK}-2")  # fmt: skip
        axes.set_yticks(())
        axes.set_ylim(-1, 1)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{_shown(metric)}, pruned minus original{_unit(metric)}")
        _metric_axis(axes, "x", metric, is_difference=True)

    return draw(anchor, 130, paint)


@functools.lru_cache(_CACHED)
def whiskers(anchor: str, metric: str, rows: tuple[Whisker, ...]) -> str:
    """Deltas with intervals, one below the other."""
    if not rows or not can_draw(value for row in rows for value in (row.delta, row.low, row.high)):
        return ""

    def paint(axes: Axes) -> None:
        for place, row in enumerate(reversed(rows)):
            colour = Ink.BAD if row.is_marked else Ink.PRUNED
            axes.plot((row.low, row.high), (place, place), color=colour, linewidth=2.2, gid=f"{MARK}-{place}")
            axes.plot((row.delta,), (place,), "o", color=colour, markersize=6)
        axes.axvline(0, color=Ink.SOFT, linewidth=1.2)
        _name_rows(axes, [row.name for row in rows])
        axes.set_xlim(pad((0.0, *(value for row in rows for value in (row.delta, row.low, row.high)))))
        axes.set_xlabel(f"{_shown(metric)}, pruned minus original{_unit(metric)}")
        _metric_axis(axes, "x", metric, is_difference=True)

    return draw(anchor, 60 + _ROW_HEIGHT * len(rows), paint)


@functools.lru_cache(_CACHED)
def curve(anchor: str, metric: str, unit: str, points: tuple[Point, ...]) -> str:
    """Both models along growing levels; the band is the paired interval, seen from the original's value."""
    numbers = [value for point in points for value in (point.level, point.original, point.pruned)]
    ends = [point.original + end for point in points if point.interval for end in point.interval]
    if not points or not can_draw((*numbers, *ends)):
        return ""

    def paint(axes: Axes) -> None:
        banded = [point for point in points if point.interval]
        levels = [point.level for point in banded]
        lows, highs = ([point.original + end(point.interval or (0.0, 0.0)) for point in banded] for end in (min, max))
        axes.fill_between(levels, lows, highs, color=Ink.PRUNED, alpha=2 * _TINT, linewidth=0)
        every = [point.level for point in points]
        both = {"original": [one.original for one in points], "pruned": [one.pruned for one in points]}
        for name, values in both.items():
            _plot(axes, every, values, name)
        axes.set_xlim(pad(every, 0.04))
        values = [*both["original"], *both["pruned"]]
        axes.set_ylim(_within(metric, pad((*lows, *highs, *values)), max(values)))
        axes.set_xlabel("\n".join(textwrap.wrap(_shown(unit, 88), 46)))
        axes.set_ylabel(_shown(metric))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _metric_axis(axes, "y", metric)
        _legend(axes)

    return draw(anchor, 230, paint)


@functools.lru_cache(_CACHED)
def reliability(anchor: str, original: Line, pruned: Line) -> str:
    """Share that is right over mean confidence, both in [0, 1]; on the diagonal a model knows how sure it may be."""
    if not (original or pruned) or not can_draw(value for point in (*original, *pruned) for value in point):
        return ""

    def paint(axes: Axes) -> None:
        axes.plot((0, 1), (0, 1), color=Ink.SOFT, linewidth=1.2, linestyle=(0, (2, 3)))
        for name, line in (("original", original), ("pruned", pruned)):
            _plot(axes, [point[0] for point in line], [point[1] for point in line], name)
        low = max(0.0, min(0.9, min(value for point in (*original, *pruned) for value in point) - 0.03))
        axes.set_xlim(low, 1.0)
        axes.set_ylim(low, 1.0)
        axes.set_xlabel("confidence of the prediction")
        axes.set_ylabel("share that is right")
        for which in ("x", "y"):
            _metric_axis(axes, which, "accuracy")
        _legend(axes)

    return draw(anchor, 280, paint)


@functools.lru_cache(_CACHED)
def lines(anchor: str, across: str, up: str, named: tuple[tuple[str, Line], ...], limit: float | None = None) -> str:
    """Up to two curves of one quantity, the first in the original's colour, the second in the pruned model's.

    `limit`: what they should not rise above.
    """
    drawn = [(name, line) for name, line in named if line]
    limits = () if limit is None else (limit,)
    if not drawn or not can_draw((*limits, *(value for _, line in drawn for point in line for value in point))):
        return ""

    def paint(axes: Axes) -> None:
        looks = (("o-", Ink.ORIGINAL), ("s--", Ink.PRUNED))
        for place, (name, line) in enumerate(drawn[:2]):
            style, colour = looks[place]
            xs, ys = [point[0] for point in line], [point[1] for point in line]
            axes.plot(xs, ys, style, color=colour, markersize=4.5, label=name, gid=f"{MARK}-{place}")
        axes.set_xlim(pad((point[0] for _, line in drawn for point in line), 0.04))
        axes.set_ylim(pad((*limits, *(point[1] for _, line in drawn for point in line))))
        if limit is not None:
            axes.axhline(limit, color=Ink.BAD, linewidth=1.4, linestyle=(0, (4, 3)))
        whole = all(point[0] == int(point[0]) for _, line in drawn for point in line)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
        axes.set_xlabel(across)
        axes.set_ylabel(_shown(up))
        _metric_axis(axes, "y", up)
        _legend(axes)

    return draw(anchor, 230, paint)


@functools.lru_cache(_CACHED)
def bars(anchor: str, quantity: str, rows: tuple[Bar, ...]) -> str:
    """Named lengths from zero, each with a note at its end."""
    if not rows or not can_draw(row.value for row in rows):
        return ""

    def paint(axes: Axes) -> None:
        for place, row in enumerate(reversed(rows)):
            colour = Ink.PRUNED if row.is_marked else Ink.ORIGINAL
            (bar,) = axes.barh(place, row.value, height=0.6, color=colour)
            bar.set_gid(f"{MARK}-{place}")
            axes.annotate(
                _shown(row.note), (max(row.value, 0.0), place), xytext=(5, 0), textcoords="offset points", va="center",
                color=Ink.TEXT, fontsize=10.5, annotation_clip=False,
            )  # fmt: skip
        axes.axvline(0, color=Ink.SOFT, linewidth=1.2)
        _name_rows(axes, [row.name for row in rows])
        low, high = min(0.0, *(row.value for row in rows)), max(0.0, *(row.value for row in rows))
        span = (high - low) or 1.0
        # Room for the notes.
        axes.set_xlim(low - 0.05 * span, high + 0.45 * span)
        axes.set_xlabel(f"{_shown(quantity, 48)}{_unit(quantity)}")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        _metric_axis(axes, "x", quantity, is_difference=True, bins=4)

    return draw(anchor, 60 + 1.25 * _ROW_HEIGHT * len(rows), paint)


@functools.lru_cache(_CACHED)
def spans(anchor: str, quantity: str, rows: tuple[tuple[str, float, float], ...]) -> str:
    """The original's range and the pruned model's, from a typical value to a bad one, on one axis from zero."""
    if not rows or not can_draw(value for _, *pair in rows for value in pair):
        return ""

    def paint(axes: Axes) -> None:
        colours = (Ink.ORIGINAL, Ink.PRUNED)
        for place, (_, low, high) in enumerate(reversed(rows)):
            colour = colours[(len(rows) - 1 - place) % 2]
            axes.plot((low, high), (place, place), color=colour, linewidth=7, solid_capstyle="round", alpha=0.45)
            axes.plot((low,), (place,), "o", color=colour, markersize=10, gid=f"{MARK}-{place}")
            axes.plot((high,), (place,), "|", color=colour, markersize=14, markeredgewidth=2.5)
        _name_rows(axes, [name for name, *_ in rows])
        axes.set_xlim(0.0, max(high for _, _, high in rows) * 1.1 or 1.0)
        axes.set_xlabel(quantity)
        axes.xaxis.set_major_locator(MaxNLocator(5))

    return draw(anchor, 130, paint)


def _plot(axes: Axes, xs: Sequence[float], ys: Sequence[float], model: str) -> None:
    """A model's curve; its look tells the models apart without colours, too."""
    style, colour = ("o-", Ink.ORIGINAL) if model == "original" else ("s--", Ink.PRUNED)
    axes.plot(xs, ys, style, color=colour, markersize=5, label=model, gid=f"{MARK}-{model}", clip_on=False)


def _within(metric: str, limits: tuple[float, float], largest: float) -> tuple[float, float]:
    """No axis beyond 100 %, where no value is."""
    low, high = limits
    return (low, min(high, 1.0)) if is_percentage(metric) and largest <= 1 else limits


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [_shown(name) for name in reversed(names)])
    axes.tick_params(axis="y", labelcolor=Ink.TEXT)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="y")


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2, handlelength=2.4)


def _metric_axis(axes: Axes, which: str, metric: str, *, is_difference: bool = False, bins: int = 6) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(bins))
    if not is_percentage(metric):
        return
    show: Callable[[float, int], str] = (
        (lambda value, _: f"{100 * value:+.3g}" if value else "0")
        if is_difference
        else (lambda value, _: f"{100 * value:.4g} %")
    )
    axis.set_major_formatter(FuncFormatter(show))


def _unit(metric: str) -> str:
    return " (points)" if is_percentage(metric) else ""


def _shown(name: str, limit: int = _LABEL_CHARACTERS) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
