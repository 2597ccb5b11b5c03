"""The report's JSON Schema, made from its values; `make report-schema` writes it to `docs/report.schema.json`."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import msgspec

from pruning_server.spec.report import SCHEMA_VERSION, Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def report_schema() -> dict[str, Any]:
    """Returns the schema (draft 2020-12) of what `SCHEMA_VERSION` reports hold; unknown keys are refused."""
    made = msgspec.json.schema(Report)
    definitions = {name: _tidy(part) for name, part in sorted(made["$defs"].items())}
    return {
        "$schema": DIALECT,
        "$id": f"urn:pruning-service:report:{SCHEMA_VERSION}",
        "title": f"Report of a pruning job, version {SCHEMA_VERSION}",
        "$ref": made["$ref"],
        "$defs": definitions,
    }


def schema_text() -> str:
    """The schema as it is committed."""
    return json.dumps(report_schema(), indent=2, ensure_ascii=False) + "\n"


def key_paths() -> tuple[str, ...]:
    """Every key of a report as a dotted path, `[]` after lists, in the order of the values."""
    definitions = report_schema()["$defs"]
    found: dict[str, None] = {}

    def walk(part: dict[str, Any], path: str) -> None:
        for option in part.get("anyOf", ()):
            walk(option, path)
        if "$ref" in part:
            walk(definitions[part["$ref"].rsplit("/", 1)[1]], path)
        items = part.get("items")
        if isinstance(items, dict):
            walk(items, f"{path}[]")
        if isinstance(part.get("additionalProperties"), dict):
            walk(part["additionalProperties"], f"{path}.*")
        for key, value in part.get("properties", {}).items():
            where = f"{path}.{key}" if path else key
            found[where] = None
            walk(value, where)

    walk(definitions["Report"], "")
    return tuple(found)


def _tidy(part: Any) -> Any:
    """Descriptions on one line each."""
    if isinstance(part, dict):
        return {
            key: re.sub(r"\s+", " ", value).strip() if key == "description" and isinstance(value, str) else _tidy(value)
            for key, value in part.items()
        }
    return [_tidy(one) for one in part] if isinstance(part, list) else part


if __name__ == "__main__":
    sys.stdout.write(schema_text())
