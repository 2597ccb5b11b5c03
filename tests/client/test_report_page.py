"""The HTML page: whole, self-contained, and safe whatever the report holds."""

from __future__ import annotations

import copy
import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.fake_server import example_report
from pruning_client.html.page import render_page
from pruning_client.html.tables import MAX_LINES
from pruning_client.html.view import MAX_ROWS, build_view

VOID = {"meta", "br"}


class Checker(html.parser.HTMLParser):
    """Collects tags and text, and checks that tags are balanced."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    @classmethod
    def of(cls, page: str) -> Checker:
        """Parses a page and checks that everything is closed."""
        checker = cls()
        checker.feed(page)
        checker.close()
        assert checker._open == []
        return checker


def test_the_page_has_everything() -> None:
    page = Checker.of(render_page(example_report()))
    for words in (
        "PASS", "the interval lies above the margin", "96.00 %", "95.00 %", "[-2.50, +0.50] %", "margin 3.00 %",
        "fc.weight", "80.0%", "aten::foo", "model.py:3", "7.8 KiB", "2.9 KiB", "2 ms", "few samples", "RECOVER", "3 s",
        "torch version", "2.13.0", "samples", "300", "job-1",
    ):  # fmt: skip
        assert words in page.text, words
    assert "svg" in page.tags


def test_phases_stand_in_the_order_in_which_they_ran() -> None:
    timings = {"BASELINE": 1.0, "EXPORT": 1.0, "LOAD": 1.0, "RECOVER": 1.0, "total": 4.0}
    rows = build_view(example_report() | {"timings": timings}).timings
    assert [row.name for row in rows] == ["LOAD", "BASELINE", "RECOVER", "EXPORT", "total"]


def test_the_request_is_for_people() -> None:
    report = example_report()
    tried = [{"name": "fine_tuning", "kept": True, "loss": 0.5, "metric": 0.75}]
    report["strategy"] |= {
        "target": {"kind": "sparsity", "value": 0.8},
        "prunable_weights": 151072,
        "notes": ["said once"],
        "recovery": {"batch_size": 29, "history": [{"epoch": 1}], "select": tried},
    }
    report["data"] |= {"inputs": [{"shape": [1, 8, 8]}], "targets": {"dtype": "int64", "shape": []}}
    text = re.sub(r"\s+", " ", Checker.of(render_page(report)).text)
    for words in (
        "sparsity 0.8",
        "151,072",
        "batch size29",
        "fine tuning0.575.00 %kept",
        "1x8x8",
        "one number per sample",
    ):
        assert words in text, words
    assert text.count("said once") == 1
    assert "kind sparsity" not in text


def test_the_page_tells_of_the_proof_and_of_what_was_cut() -> None:
    report = example_report()
    assert "Proof" not in render_page(report)
    report["strategy"] |= {"granularity": "channel", "removable_channels": 160, "removed_channels": 45}
    report["layers"][0] |= {"shape_after": [7, 100], "kept": {"0": [0, 1, 2, 3, 5, 8, 9]}}
    report["verify"] = {
        "max_relative_error": 1.5e-7, "max_relative_error_randomized": 2.5e-16, "batch_sizes": [1, 3],
        "dtype": "float32", "dtype_randomized": "float64", "half_precision_difference": None,
        "methods": ["forward", "reset"], "train_mode": True, "notes": ["Method foo was not compared"],
    }  # fmt: skip
    text = re.sub(r"\s+", " ", Checker.of(render_page(report)).text)
    for words in (
        "Proof", "largest relative error, float321.5e-07", "with random weights, float642.5e-16", "batch sizes1, 3",
        "methodsforward, reset", "train modeyes", "Method foo was not compared", "removed channels45", "10x100 to 7x100",
        "under layers, kept",
    ):  # fmt: skip
        assert words in text, words
    assert "own precision" not in text


def test_the_page_needs_nothing_else() -> None:
    text = render_page(example_report())
    page = Checker.of(text)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"https?://|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert "width=device-width" in text


def test_the_interval_is_drawn_where_it_is() -> None:
    drawing = build_view(example_report()).interval
    assert drawing is not None
    assert drawing.margin is not None
    assert 0 < drawing.margin < drawing.low < drawing.delta < drawing.zero < drawing.high < 100


def hostile(value: Any) -> Any:
    """Every text in `value`, also the keys of free mappings, replaced by an attack."""
    attack = "</title></style><script>alert(1)</script>\"'><img src=x onerror=y>\x1b[2J\u202e{{ 7*7 }}"
    if isinstance(value, str):
        return attack
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    if isinstance(value, dict):
        return {key: hostile(inner) for key, inner in value.items()}
    return value


def test_names_cannot_inject() -> None:
    report = hostile(example_report())
    report["timings"] = {hostile("x"): 1.0}
    page = Checker.of(render_page(report))
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    assert "49" not in page.text


@pytest.mark.parametrize("key", sorted(example_report()))
@pytest.mark.parametrize("value", [None, {}, [], "text", 7, [None, 3, "x"], {"samples": {"x": []}}], ids=repr)
def test_sections_may_be_anything(key: str, value: Any) -> None:
    Checker.of(render_page(example_report() | {key: value}))
    missing = example_report()
    del missing[key]
    Checker.of(render_page(missing))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [prefix] if prefix else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        found += paths(inner, (*prefix, key))
    return found


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(place=st.sampled_from(paths(example_report())), value=json_values)
def test_any_value_anywhere_gives_a_page(place: tuple[Any, ...], value: Any) -> None:
    report = copy.deepcopy(example_report())
    parent: Any = report
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    Checker.of(render_page(report))


def test_a_report_of_many_layers_stays_a_page() -> None:
    report = example_report()
    report["layers"] = report["layers"] * (MAX_ROWS + 5)
    view = build_view(report)
    assert (len(view.layers), view.layers_left_out) == (MAX_ROWS, 5)


# --- prune report -----------------------------------------------------------------------------------------------------


def test_what_a_strategy_did_is_told_step_by_step() -> None:
    report = example_report()
    step = {"step": 3, "action": "rollback", "sparsity": 0.75, "train_loss": None, "select_loss": 0.125}
    moved = {"name": "input.x.mean", "psi": 4.75, "drifted": True}
    report["strategy"] |= {
        "details": {"schedule": "controller", "steps": [step] * 50},
        "continued": {"job_id": "job-0", "drift": [moved] * 5},
        "criterion_choice": {"chosen": "apoz", "trials": [{"criterion": "fpgm", "metric": 0.625}]},
    }
    tables = {table.title: table for table in build_view(report).tables}
    assert [len(table.lines) for table in tables.values()] == [1, MAX_LINES, 5]
    steps = tables["Steps"]
    assert steps.headings == ("step", "action", "sparsity", "select loss")
    assert (steps.lines[0], steps.left_out) == (("3", "rollback", "0.75", "0.125"), 50 - MAX_LINES)
    page = render_page(report)
    for word in ("rollback", "input.x.mean", "4.75", "fpgm", "0.625", f"{50 - MAX_LINES} more are in the JSON"):
        assert word in page


def test_prune_report(prune: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(example_report()))
    ended = prune("report", tmp_path / "r.json", "-o", tmp_path / "r.html", "--json")
    assert ended.code == 0
    assert (ended.body["job"], ended.body["report"]) == ("job-1", example_report())
    assert (tmp_path / "r.html").read_text() == render_page(example_report())


@pytest.mark.parametrize("content", [None, "", "no json", "[]", "{}", "\xff"])
def test_prune_report_of_something_else(content: str | None, prune: Callable[..., Any], tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "r.json").write_bytes(content.encode("latin-1"))
    ended = prune("report", tmp_path / "r.json", "-o", tmp_path / "r.html", "--json")
    assert ended.code == 2
    assert "r.json" in ended.body["message"]
    assert not (tmp_path / "r.html").exists()


def test_prune_report_onto_its_source(prune: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(example_report()))
    assert prune("report", tmp_path / "r.json", "-o", tmp_path / "r.json").code == 2
    assert json.loads((tmp_path / "r.json").read_text()) == example_report()
