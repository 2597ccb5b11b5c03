"""docs/report.md has a row for every key of the schema, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruning_server.spec.report import SCHEMA_VERSION
from pruning_server.spec.report_schema import report_schema

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
PARTS = {name: part for name, part in report_schema()["$defs"].items() if "properties" in part}


@pytest.mark.parametrize("name", PARTS)
def test_every_key_has_its_row(name: str) -> None:
    assert f"\n## {name}\n" in PAGE
    rows = PAGE.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]
    documented = [line.split("`")[1] for line in rows.splitlines() if line.startswith("| `")]
    assert sorted(documented) == sorted(PARTS[name]["properties"])


def test_the_page_has_no_other_parts_and_names_the_version() -> None:
    headings = {line[3:] for line in PAGE.splitlines() if line.startswith("## ")}
    assert headings == set(PARTS)
    assert f"`schema_version` {SCHEMA_VERSION};" in PAGE
