"""Lists of alike objects in a report's strategy (steps, drift, trials, candidates), as tables of the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pruning_client.reading import Section, items, section

# What people scroll through; the JSON has the rest.
MAX_LINES = 40
# Where they are: the objects on the way, and the list's name.
_PLACES = (
    ("criterion_choice", "trials", "Criteria that were tried"),
    ("details", "steps", "Steps"),
    ("details", "candidates", "Candidates"),
    ("details", "merged", "Merged channels"),
    ("continued", "drift", "Drift of the data since the earlier job"),
    ("recovery", "rungs", "Rungs of recovery"),
)


@dataclass(frozen=True)
class Table:
    """Cells [lines, headings], and how many lines there was no room for."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    left_out: int


def find_tables(strategy: Section, words: Callable[[object], str], fact: Callable[[object], str]) -> list[Table]:
    """Returns the lists that hold objects; null cells are empty, and columns without any value are left out.

    Args:
        strategy: the report's section; nothing in it is trusted.
        words: a key as a heading.
        fact: a value as text.
    """
    tables = []
    for name, key, title in _PLACES:
        # `candidates` of a condition is a number.
        found = [one for one in items(section(strategy, name), key) if isinstance(one, dict)]
        shown = found[:MAX_LINES]
        keys = [one for one in (shown[0] if shown else ()) if any(line.get(one) not in (None, "") for line in shown)]
        if keys:
            lines = tuple(
                tuple("" if (cell := line.get(one)) is None else fact(cell) for one in keys) for line in shown
            )
            tables.append(Table(title, tuple(map(words, keys)), lines, len(found) - len(shown)))
    return tables
