"""Every archive of the zoo, in the order of the table. Listing them imports no package and builds nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from zoo import builders_classic, builders_data, builders_monai, builders_torch, builders_transformers
from zoo.entries import Entry, Form, Source

_PACKAGES = {Source.TRANSFORMERS: ("transformers",), Source.MONAI: ("monai", "einops")}


def catalogue() -> tuple[Entry, ...]:
    """All entries."""
    return (
        *builders_classic.entries(),
        *builders_torch.entries(),
        *builders_transformers.entries(),
        *builders_monai.entries(),
        *builders_data.entries(),
    )


def archives() -> Iterator[tuple[Entry, Form]]:
    """Every entry with every form that is made of it."""
    for entry in catalogue():
        for form in entry.forms:
            yield entry, form


def find(name: str) -> Entry:
    """The entry of that name.

    Raises:
        KeyError: there is none.
    """
    return {entry.name: entry for entry in catalogue()}[name]


def missing(entry: Entry) -> str:
    """Which package an entry needs that is not installed; "" where nothing is missing."""
    wanted = [name for name in _PACKAGES.get(entry.source, ()) if importlib.util.find_spec(name) is None]
    return f"needs {' and '.join(wanted)}: pip install -e '.[zoo]'" if wanted else ""
