"""What the page is made of, as plain values, and how single values of a report read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pruning_client.reading import Section
from pruning_client.text import printable

# Longer lists of objects, such as the history of epochs, are for programs.
_LISTED = 3
# Names that end so are counts, which people read in groups of three digits.
_COUNTS = ("weights", "samples", "bytes", "parameters", "channels")
_TARGET_KEYS = {"kind", "value"}
MISSING = "-"


@dataclass(frozen=True)
class Fact:
    """A name and a value."""

    name: str
    value: str


@dataclass(frozen=True)
class Segment:
    """A part of a bar: `kind` is a class of the style sheet, `percent` of the bar's width."""

    kind: str
    percent: float


@dataclass(frozen=True)
class Table:
    """Cells [lines, headings], the first of which names its line.

    Attributes:
        left_out: lines that there was no room for.
        bars: one bar per line, behind the cells; or none at all.
        is_long: shown in a box of its own that scrolls.
    """

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    left_out: int = 0
    bars: tuple[tuple[Segment, ...], ...] = ()
    is_long: bool = False


@dataclass(frozen=True)
class Figure:
    """A picture and the same in numbers.

    Attributes:
        anchor: unique on the page.
        label: what a picture says to those who do not see it.
        svg: the picture, safe to be placed as it is; empty where its numbers cannot be drawn.
    """

    anchor: str
    title: str
    label: str
    caption: str
    svg: str
    table: Table | None = None


@dataclass(frozen=True)
class Picture:
    """A sample's thumbnail, as base64 of a PNG; `label`: what it is, in words."""

    png: str
    label: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Chapter:
    """A part of the page under one heading; `notes`: what is missing, and why.

    Attributes:
        title: up to its first `:` or `,`, also the name in the page's list of parts.
        lines: sentences, one below the other.
        bar: one bar over the whole width, with its legend.
    """

    anchor: str
    title: str
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    facts: tuple[Fact, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    bar: tuple[Segment, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()

    @property
    def short(self) -> str:
        """Its name in a list."""
        return re.split("[:,]", self.title)[0]

    @property
    def has_content(self) -> bool:
        """Whether there is more than the reason why there is nothing."""
        return bool(self.figures or self.tables or self.facts or self.pictures or self.lines or self.bar)


def facts_of(values: Section, leave_out: tuple[str, ...] = ()) -> tuple[Fact, ...]:
    """Returns every value that is set, as text, in the report's order."""
    return tuple(
        Fact(words(name), fact_text(value, str(name)))
        for name, value in values.items()
        if name not in leave_out and value is not None and value not in ("", [], {})
    )


def fact_text(value: object, name: str = "") -> str:
    """Returns any JSON value as text for people; `name` is its key."""
    if isinstance(value, Mapping):
        if set(value) == _TARGET_KEYS:
            return f"{fact_text(value['kind'])} {fact_text(value['value'])}"
        inner = [(str(key), item) for key, item in value.items() if item is not None]
        return ", ".join(f"{words(key)} {fact_text(item, key)}" for key, item in inner)
    if isinstance(value, list):
        if name == "shape":
            return f"of each sample {shape_text(value)}" if value else "one number per sample"
        if len(value) > _LISTED and any(isinstance(inner, Mapping | list) for inner in value):
            return f"{len(value)} entries in the JSON report"
        return ", ".join(fact_text(inner) for inner in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return count_text(value) if isinstance(value, int) and name.endswith(_COUNTS) else printable(value, 400)


def words(name: object) -> str:
    """Returns a key as words."""
    return printable(name, 80).replace("_", " ")


def count_text(value: float) -> str:
    """Returns `1,234`."""
    return f"{value:,.0f}"


def shape_text(sizes: list[object]) -> str:
    """Returns `64x3x3x3`."""
    return "x".join(printable(size, 20) for size in sizes[:10])


def percent(fraction: float) -> float:
    """Returns a fraction as percent of a bar, kept within the bar."""
    return round(100 * min(max(fraction, 0.0), 1.0), 3)
