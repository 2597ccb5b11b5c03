"""From a matplotlib figure to SVG that can stand inside a page beside others: themed, small, without ids that clash.

Colours: figures are drawn in placeholders, which become the page's CSS variables, so that one drawing serves light, dark
and print. Text stays text and takes the page's font.
"""

from __future__ import annotations

import enum
import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

WIDTH = 360.0
# Beyond, tick labels and widths of doubles give out.
LARGEST = 1e12
SMALLEST_SPAN = 1e-9
MARK = "mark"
_POINTS_PER_INCH = 72.0
_REFERENCE = re.compile(r"#([\w.-]+)")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_FONT = re.compile(r" ?font-family: [^;]*;?")
_HREF = "{http://www.w3.org/1999/xlink}href"
_SHORTENED = ("d", "x", "y", "transform", "width", "height", "cx", "cy", "r")


class Ink(enum.StrEnum):
    """The roles of colours: placeholders that no other colour of a figure has."""

    TEXT = "#010203"
    SOFT = "#010204"
    LINE = "#010205"
    PAGE = "#010206"
    ORIGINAL = "#010207"
    PRUNED = "#010208"
    GOOD = "#010209"
    BAD = "#01020a"


_VARIABLES = {
    Ink.TEXT: "var(--ink)",
    Ink.SOFT: "var(--soft)",
    Ink.LINE: "var(--line)",
    Ink.PAGE: "var(--card)",
    Ink.ORIGINAL: "var(--original)",
    Ink.PRUNED: "var(--pruned)",
    Ink.GOOD: "var(--pass)",
    Ink.BAD: "var(--fail)",
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "page",
    # A name with two dollar signs is a name.
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.size": 11.0,
    "axes.labelsize": 11.0,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "text.color": str(Ink.TEXT),
    "axes.labelcolor": str(Ink.SOFT),
    "axes.edgecolor": str(Ink.LINE),
    "xtick.color": str(Ink.LINE),
    "ytick.color": str(Ink.LINE),
    "xtick.labelcolor": str(Ink.SOFT),
    "ytick.labelcolor": str(Ink.SOFT),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": str(Ink.LINE),
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}


def can_draw(values: Iterable[float | None]) -> bool:
    """Whether all numbers are there, finite, and of a size that an axis can show."""
    return all(value is not None and math.isfinite(value) and abs(value) <= LARGEST for value in values)


def draw(name: str, height: float, paint: Callable[[Axes], None]) -> str:
    """Returns the SVG that `paint` makes of empty axes.

    Args:
        name: unique among the figures of a page: the prefix of its ids.
        height: of the drawing, where its width is `WIDTH`; a unit is about a CSS pixel.
        paint: draws in colours of `Ink`.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        # A name in a script that the measuring font lacks; the page's font draws it.
        warnings.simplefilter("ignore", UserWarning)
        mpl.rcdefaults()  # not the user's own settings
        mpl.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(WIDTH / _POINTS_PER_INCH, height / _POINTS_PER_INCH), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.tick_params(length=0)
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name)


def pad(values: Iterable[float], share: float = 0.08) -> tuple[float, float]:
    """Returns limits of an axis a little wider than the values, and never empty."""
    points = list(values)
    low, high = min(points), max(points)
    span = max(high - low, SMALLEST_SPAN, 1e-6 * max(abs(low), abs(high)))
    return low - share * span, high + share * span


def _inline(svg: str, name: str) -> str:
    root = ET.fromstring(svg)  # noqa: S314 - what matplotlib has just written
    for parent in root.iter():
        for child in [*parent]:
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    used = {found for node in root.iter() for value in node.attrib.values() for found in _REFERENCE.findall(value)}
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        node.attrib = dict(_attributes(node, name, used))
        # Line breaks between elements; text elements hold none.
        node.text, node.tail = (node.text if node.tag == "text" else None), None
    root.attrib = {"viewBox": root.attrib["viewBox"]}
    # Its figures' names are not for people: the page labels each picture.
    return ET.tostring(root, encoding="unicode")


def _attributes(node: ET.Element, name: str, used: set[str]) -> Iterable[tuple[str, str]]:
    for key, value in node.attrib.items():
        if key == "id":
            if value.startswith(MARK):
                yield "class", MARK
            if value in used:
                yield "id", f"{name}-{value}"
        elif key == _HREF:
            yield "href", f"#{name}-{value[1:]}"
        elif key == "clip-path":
            yield key, value.replace("#", f"#{name}-")
        elif key == "style":
            yield key, _FONT.sub("", _themed(value))
        else:
            yield key, _LONG_NUMBER.sub(_shorten, value) if key in _SHORTENED else value


def _themed(style: str) -> str:
    for ink, variable in _VARIABLES.items():
        style = style.replace(ink, variable)
    return style


def _shorten(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"
