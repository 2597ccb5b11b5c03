"""docs/criteria.md names exactly the registered criteria, and says of each what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruning_server.pruning import criteria
from pruning_server.pruning.criteria import Criterion
from pruning_server.spec.request import Granularity

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "criteria.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| `")]


def row(criterion: Criterion) -> str:
    """The row of the table."""
    both = Granularity.WEIGHT in criterion.granularities
    cells = (
        f"`{criterion.name}`",
        criterion.formula.replace("|", "\\|"),
        criterion.needs.value,
        "weights, channels" if both else "channels",
        criterion.source,
    )
    return f"| {' | '.join(cells)} |"


def test_the_table_names_exactly_the_registry() -> None:
    assert [line.split("`")[1] for line in ROWS] == list(criteria.names())


@pytest.mark.parametrize("name", criteria.names())
def test_each_row_says_what_the_code_says(name: str) -> None:
    assert row(criteria.get(name)) in ROWS
