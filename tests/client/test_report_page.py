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
from helpers.rich_report import rich_report
from pruning_client.html.costs import MAX_ROWS
from pruning_client.html.facts import Chapter
from pruning_client.html.headline import MINUS, concerns_of, savings_of, sentence_of
from pruning_client.html.page import render_page
from pruning_client.html.tables import MAX_LINES
from pruning_client.html.view import build_view

VOID = {"meta", "br", "img"}


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


def chapter(report: dict[str, Any], anchor: str) -> Chapter:
    """The part of the page with this anchor."""
    return next(one for one in build_view(report).chapters if one.anchor == anchor)


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
    (table,) = chapter(example_report() | {"timings": timings}, "timings").tables
    assert [line[0] for line in table.lines] == ["LOAD", "BASELINE", "RECOVER", "EXPORT", "total"]


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
    assert "None is needed: only values were changed" in render_page(report)
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
    assert not [value for name, value in page.attributes if name in ("src", "srcset", "action")]
    assert all(value and value[0] == "#" for name, value in page.attributes if name == "href")
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"https?://|url\((?!#)|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert "width=device-width" in text


def test_every_id_is_there_once_and_every_reference_has_one() -> None:
    page = Checker.of(render_page(rich_report()))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for name, value in page.attributes if name in ("href", "xlink:href") and value]
    targets += [value[5:-1] for name, value in page.attributes if name == "clip-path" and value]
    targets += [value for name, value in page.attributes if name == "aria-labelledby" and value]
    assert set(targets) <= set(ids)


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("PASS", "a loss of the margin, 3.00 points, is ruled out"),
        ("FAIL", "the loss is larger than the margin, 3.00 points"),
        ("INCONCLUSIVE", "whether the loss stays within the margin, 3.00 points, cannot be told"),
    ],
)
def test_the_verdict_is_one_sentence(verdict: str, words: str) -> None:
    sentence = sentence_of(example_report(verdict=verdict)).replace(MINUS, "-")
    assert sentence == (
        "Accuracy went from 96.00 % to 95.00 % (-1.00 points, interval -2.50 to +0.50): " + words + "."
    )  # fmt: skip


def test_identical_models_pass_whatever_the_interval() -> None:
    report = example_report()
    report["accuracy"] |= {"pruned": 0.96, "delta": 0.0, "interval": [-0.05, 0.05]}
    assert sentence_of(report).endswith(": both models give the same outputs.")


def test_a_verdict_without_numbers_is_told_in_the_reports_words() -> None:
    report = example_report()
    report["accuracy"]["interval"] = None
    assert sentence_of(report) == "the interval lies above the margin"
    assert sentence_of({}) == "no verdict"


def test_savings_say_what_changed_and_what_did_not() -> None:
    found = {one.name: (one.change.replace(MINUS, "-"), one.is_better) for one in savings_of(example_report())}
    assert found == {
        "MACs per sample": ("+0.0 %", False),
        "nonzero parameters": ("-80.0 %", True),
        "file": ("-62.5 %", True),
        "latency, median": ("+0.0 %", False),
    }


def test_worries_are_told_gravest_first() -> None:
    told = " ".join(concerns_of(rich_report())).replace(MINUS, "-")
    words = (
        "About 900 samples in the report split", "The recovery won 0.0300 more", "There is no gate in the model",
        "Class 4 lost 26.00 points", "calibration error +7.0 points", "Under occlusion the pruned model loses more",
        "Under noise the loss is larger than the margin, from 0.2", "Not measurably faster", "few samples",
    )  # fmt: skip
    places = [told.index(word) for word in words]
    assert places == sorted(places)
    assert concerns_of({}) == ()


def test_a_class_that_broke_stands_first() -> None:
    report = rich_report()
    report["accuracy"]["classes"].reverse()
    (table,) = chapter(report, "classes").tables
    assert table.lines[0][0] == "4"
    (figure,) = chapter(report, "classes").figures
    assert "class 4 (n=8) -26.0 points" in figure.label


def test_what_is_missing_is_said_with_its_reason() -> None:
    facts = {fact.name: fact.value for fact in chapter(example_report(), "absent").facts}
    assert facts["Robustness"] == "It was not measured."
    assert "class scores" in facts["Confidence"]
    assert {"Classes", "Proof"} <= set(facts)


@pytest.mark.parametrize("png", ["", "no base64!", "AAAA", 7, ["x"], "iVBORw0KGgo" * 100_000])
def test_only_pictures_are_pictures(png: Any) -> None:
    report = rich_report()
    report["accuracy"]["churn"]["samples"][0]["thumbnail"] = png
    assert "img" not in Checker.of(render_page(report)).tags


def test_samples_are_seen_and_named() -> None:
    page = Checker.of(render_page(rich_report()))
    assert page.tags.count("img") == 1
    assert ("alt", "Sample 5: target 4, original 4, pruned 7, right to wrong") in page.attributes
    (table,) = chapter(rich_report(), "churn").tables
    assert table.lines == (("9", "4", "4", "7", "right to wrong", "+2.5"),)


@pytest.mark.parametrize("value", [1e300, -1e300, 1e-300, 0.0])
def test_numbers_of_any_size_give_a_page(value: float) -> None:
    report = rich_report()
    report["accuracy"] |= {"original": value, "pruned": value, "delta": value, "interval": [value, value]}
    report["generalization"]["curves"] = [{"epoch": epoch, "fit_loss": value} for epoch in range(3)]
    report["cost"]["pruned"]["latency_seconds"] |= {"p50": value, "p95": value}
    Checker.of(render_page(report))


def test_names_are_not_formulas() -> None:
    report = rich_report()
    report["accuracy"]["metric"] = "$\\frac{1}$ \u4e2d\U0001f600"
    assert "$\\frac{1}$ \u4e2d\U0001f600" in Checker.of(render_page(report)).text


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
    report = hostile(rich_report())
    report["timings"] = {hostile("x"): 1.0}
    page = Checker.of(render_page(report))
    assert not {"script", "img", "foreignobject", "style/"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    assert "49" not in page.text


@pytest.mark.parametrize("key", sorted(rich_report()))
@pytest.mark.parametrize("value", [None, {}, [], "text", 7, [None, 3, "x"], {"samples": {"x": []}}], ids=repr)
def test_sections_may_be_anything(key: str, value: Any) -> None:
    Checker.of(render_page(rich_report() | {key: value}))
    missing = rich_report()
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
@given(place=st.sampled_from(paths(rich_report())), value=json_values)
def test_any_value_anywhere_gives_a_page(place: tuple[Any, ...], value: Any) -> None:
    report = copy.deepcopy(rich_report())
    parent: Any = report
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    Checker.of(render_page(report))


def test_a_report_of_many_layers_stays_a_page() -> None:
    report = example_report()
    report["layers"] = report["layers"] * (MAX_ROWS + 5)
    view = build_view(report)
    (table,) = next(one for one in view.chapters if one.anchor == "layers").tables
    assert (len(table.lines), len(table.bars), table.left_out) == (MAX_ROWS, MAX_ROWS, 5)
    assert table.is_long


# --- prune report -----------------------------------------------------------------------------------------------------


def test_steps_without_a_gradient_step_between_them_are_drawn_one_after_the_other() -> None:
    report = rich_report()
    step = {"step": 0, "action": "accept", "select_metric": 0.9}
    report["strategy"]["details"]["steps"] = [step | {"sparsity": sparsity} for sparsity in (0.1, 0.3, 0.2, 0.4)]
    sparsity, metric = chapter(report, "strategy").figures
    assert "steps in turn" in sparsity.svg
    assert "at the end 40.0%" in sparsity.label
    assert "steps in turn" in metric.svg


def test_what_a_strategy_did_is_told_step_by_step() -> None:
    report = example_report()
    step = {"step": 3, "action": "rollback", "sparsity": 0.75, "train_loss": None, "select_loss": 0.125}
    moved = {"name": "input.x.mean", "psi": 4.75, "drifted": True}
    report["strategy"] |= {
        "details": {"schedule": "controller", "steps": [step] * 50},
        "continued": {"job_id": "job-0", "drift": [moved] * 5},
        "criterion_choice": {"chosen": "apoz", "trials": [{"criterion": "fpgm", "metric": 0.625}]},
    }
    tables = {table.title: table for table in chapter(report, "strategy").tables}
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
