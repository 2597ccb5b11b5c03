"""The committed schema is that of the values, is a schema, and refuses what is no report."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from helpers.report_schema import SCHEMA_FILE, validator
from pruning_server.spec.report import SCHEMA_VERSION
from pruning_server.spec.report_schema import key_paths, report_schema, schema_text

REPORTS = Path(__file__).resolve().parents[1] / "client" / "reports"


def test_the_committed_schema_is_that_of_the_values() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run `make report-schema`"


def test_it_is_a_schema_of_its_dialect_and_version() -> None:
    Draft202012Validator.check_schema(report_schema())
    assert report_schema()["$id"].endswith(SCHEMA_VERSION)


def test_the_fixed_keys_are_there() -> None:
    fixed = {
        "cost.original.latency_seconds.p50", "accuracy.interval", "accuracy.mcnemar_p", "generalization.verdict",
        "generalization.gap_original", "verify.max_relative_error", "layers[].kept", "frozen[].layers",
        "accuracy.classes[].p_corrected", "generalization.curves[].select_loss",
    }  # fmt: skip
    assert fixed <= set(key_paths())


@pytest.mark.parametrize("name", sorted(path.name for path in REPORTS.glob("*.json")))
def test_recorded_reports_fit(name: str) -> None:
    report = json.loads((REPORTS / name).read_text(encoding="utf-8"))
    assert not [error.message for error in validator().iter_errors(report)]


@pytest.mark.parametrize("change", [{"accuracy": 7}, {"unknown": 1}, {"schema_version": None}])
def test_what_is_no_report_is_refused(change: dict[str, Any]) -> None:
    recorded = sorted(REPORTS.glob("*.json"))
    report = json.loads(recorded[0].read_text(encoding="utf-8")) if recorded else {}
    assert not validator().is_valid(copy.deepcopy(report) | change)
