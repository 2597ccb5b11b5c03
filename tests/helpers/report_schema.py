"""The committed JSON Schema, for every report that a test sees."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA_FILE = Path(__file__).resolve().parents[2] / "docs" / "report.schema.json"


@functools.cache
def validator() -> Draft202012Validator:
    """Of `docs/report.schema.json`."""
    return Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))


def check_report(report: dict[str, Any]) -> dict[str, Any]:
    """Returns the report, which fits the schema.

    Raises:
        AssertionError: it does not; says where.
    """
    problems = [f"{error.json_path}: {error.message[:200]}" for error in validator().iter_errors(report)]
    assert not problems, problems
    return report
