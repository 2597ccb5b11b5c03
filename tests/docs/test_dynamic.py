"""docs/dynamic.md names exactly the registered schedules, and says of each what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruning_server.pruning import schedules
from pruning_server.spec.report_strategy import DynamicDetails, DynamicStep

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "dynamic.md").read_text(encoding="utf-8")
# The first table of the page.
ROWS = [line for line in PAGE.split("**`cubic`**")[0].splitlines() if line.startswith("| `")]


def test_the_table_names_exactly_the_registry() -> None:
    assert [line.split("`")[1] for line in ROWS] == list(schedules.names())


@pytest.mark.parametrize("name", schedules.names())
def test_each_schedule_is_explained(name: str) -> None:
    schedule = schedules.get(name)
    assert f"| `{name}` | {', '.join(sorted(schedule.granularities))} | {schedule.source} |" in ROWS
    assert f"**`{name}`**" in PAGE


def test_every_field_of_the_report_is_named() -> None:
    missing = [name for name in DynamicStep.__struct_fields__ if f"`{name}`" not in PAGE]
    assert not missing
    assert "`strategy.details`" in PAGE
    assert DynamicDetails.__struct_config__.tag == "dynamic"
