"""Lists of alike objects in a report's strategy (steps, drift, trials, candidates), as tables of the page."""

from __future__ import annotations

from collections.abc import Callable

from pruning_client.html.facts import Table
from pruning_client.reading import Section, items, section

# What people scroll through; the JSON has the rest.
MAX_LINES = 40
_LONG = 12
# What names a line, wherever it stands in the JSON.
_LEADING = ("name", "step", "criterion", "layer", "target", "text")
# Where they are: the objects on the way, and the list's name.
_PLACES = (
    ("criterion_choice", "trials", "Criteria that were tried"),
    ("details", "steps", "Steps"),
    ("details", "candidates", "Candidates"),
    ("details", "merged", "Merged channels"),
    ("continued", "drift", "Drift of the data since the earlier job"),
    ("details", "features", "Features of the condition"),
    ("details", "comparisons", "Comparisons of the condition"),
)


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
        keys.sort(key=lambda one: _LEADING.index(one) if one in _LEADING else len(_LEADING))
        if keys:
            lines = tuple(
                tuple("" if (cell := line.get(one)) is None else fact(cell) for one in keys) for line in shown
            )
            tables.append(
                Table(title, tuple(map(words, keys)), lines, len(found) - len(shown), is_long=len(shown) > _LONG)
            )
    return tables
