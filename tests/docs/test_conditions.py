"""docs/conditions.md: its table is the catalogue, and its examples are requests that the service takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pruning_client.cli.main import build_parser
from pruning_client.wire.answers import strategy_info_from_wire
from pruning_server.service.converters_jobs import strategy_info_to_wire
from pruning_server.spec.condition import FEATURES, FeatureInfo, check_granularity, natural_granularity, parse_condition
from pruning_server.spec.condition.catalogue import Order
from pruning_server.spec.condition.language import FUNCTIONS
from pruning_server.spec.condition.lexer import MAX_CHARACTERS, MAX_WORDS
from pruning_server.spec.request import Granularity
from pruning_server.worker.probe import strategies

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "conditions.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| `")]
COMMANDS = re.findall(r"^\$ (prune submit .*)$", PAGE, re.MULTILINE)


def row(info: FeatureInfo) -> str:
    """The row of the table."""
    cells = (f"`{info.name}`", info.level.value, info.formula.replace("|", "\\|"), info.source, info.cost)
    return f"| {' | '.join(cells)} |"


def test_the_table_is_the_catalogue() -> None:
    assert [line.split("`")[1] for line in ROWS] == list(FEATURES)


@pytest.mark.parametrize("name", list(FEATURES))
def test_each_row_says_what_the_code_says(name: str) -> None:
    assert row(FEATURES[name]) in ROWS


def test_the_service_lists_the_same_features() -> None:
    (listed,) = (info for info in strategies() if info.name == "conditional")
    assert listed.available
    sent = strategy_info_from_wire(strategy_info_to_wire(listed))
    assert [(one.name, one.level, one.formula, one.source, one.cost) for one in sent.features] == [
        (info.name, info.level, info.formula, info.source, info.cost) for info in FEATURES.values()
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_are_conditions(command: str) -> None:
    options = build_parser().parse_args(shlex.split(command)[1:])
    condition = parse_condition(options.condition)
    granularity = Granularity(options.granularity[0]) if options.granularity else natural_granularity(options.condition)
    check_granularity(condition, granularity)


def test_functions_limits_and_orders_are_those_of_the_code() -> None:
    assert len(COMMANDS) >= 5
    for name in FUNCTIONS:
        assert f"`{name}(x" in PAGE
    assert f"{MAX_CHARACTERS:,} characters" in PAGE
    assert f"{MAX_WORDS:,} words" in PAGE.replace("\n", " ")
    text = PAGE[PAGE.index("else of the first with an order") : PAGE.index("else of the smallest l1")]
    small, large = text.split("first; large")
    plain = {name: info for name, info in FEATURES.items() if info.order is not Order.NONE and info.role != "relative"}
    assert set(re.findall(r"`(\w+)`", small)) == {name for name, info in plain.items() if info.order is Order.LOW}
    assert set(re.findall(r"`(\w+)`", large)) == {name for name, info in plain.items() if info.order is Order.HIGH}
