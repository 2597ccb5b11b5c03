"""docs/tasks.md says of each task what the code does: its rows are tried one by one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pruning_server.errors import JobFailureError
from pruning_server.evaluation.metrics import choose_metric
from pruning_server.evaluation.retrieval import MAX_GALLERY
from pruning_server.recovery.choosing import choose_objective
from pruning_server.recovery.losses import build_loss
from pruning_server.recovery.objective import Link, Objective
from pruning_server.spec.request import Task
from pruning_server.worker.facts import output_facts, target_facts
from pruning_server.worker.feeding import Feed, Samples
from pruning_server.worker.forms import InputForm
from pruning_server.worker.judging import Judging
from pruning_server.worker.next_tokens import NextTokens, token_facts
from pruning_server.worker.others import MAX_CLASSES, MIN_TOP_CLASSES, PairedOutputs, judge_others

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if re.match(r"\| `\w+` \|", line)
]
N, SIZES = 40, {"N": 40, "C": 12, "K": 3, "L": 5, "H": 4, "W": 6, "1": 1}
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Row:
    """A row of the table as data that fit it."""

    task: Task
    outputs: np.ndarray
    targets: np.ndarray | None
    tokens: np.ndarray


def shape(text: str) -> tuple[int, ...]:
    found = re.search(r"\[([^\]]+)\]", text)
    return tuple(SIZES[name.strip()] for name in found[1].split(",")) if found else (N, 4, 4)


def example(cells: list[str]) -> Row:
    task, outputs, targets = Task(cells[0].strip("`")), RNG.normal(size=shape(cells[1])).astype(np.float32), cells[2]
    tokens = RNG.integers(SIZES["C"], size=(N, SIZES["L"]))
    if targets.startswith("none"):
        return Row(task, outputs, None, tokens)
    size = shape(targets)
    if targets.startswith("one-hot"):
        return Row(task, outputs, np.eye(size[1])[RNG.integers(size[1], size=N)], tokens)
    if targets.startswith("floats"):
        return Row(task, outputs, RNG.normal(size=size), tokens)
    if targets.startswith("next tokens"):
        return Row(task, outputs, np.concatenate([tokens[:, 1:], np.full((N, 1), -100)], axis=1), tokens)
    return Row(task, outputs, RNG.integers(2 if targets.startswith("0 and 1") else SIZES["C"], size=size), tokens)


def samples(row: Row) -> Samples:
    return Samples("validation", (row.tokens,), ("inputs",), ("int64",), row.targets, None, None)


def choose(row: Row, task: Task | None) -> Objective:
    return choose_objective(
        task=task,
        loss=None,
        has_loss_module=False,
        output=output_facts(torch.from_numpy(row.outputs)),
        targets=target_facts(row.targets),
        tokens=token_facts(NextTokens(0), samples(row)),
    )


def judging(row: Row, objective: Objective) -> Judging:
    metric = choose_metric(
        objective.task,
        row.outputs.shape[1:],
        threshold=0.5 if objective.link is Link.PROBABILITIES else 0.0,
        class_axis=objective.class_axis,
    )
    feed = Feed(samples(row), (InputForm(torch.int64),), {}, "cpu")
    tokens = NextTokens(0) if objective.next_tokens else None
    return Judging(feed, objective, build_loss(objective, None), metric, 8, np.zeros, tokens)


def names(row: Row) -> list[str]:
    pruned = row.outputs + RNG.normal(scale=0.1, size=row.outputs.shape).astype(np.float32)
    outputs = PairedOutputs(np.arange(N), row.outputs, pruned, None)
    found = judge_others(judging(row, choose(row, row.task)), outputs, confidence_level=0.95, seed=0)
    return [one.name for one in found]


def listed(cells: list[str], above: list[str]) -> list[str]:
    """The further metrics of a row for data of 12 classes."""
    text = above[5] if cells[5] == "as above" else cells[5]
    return re.findall(r"`(\w+)`", re.sub(r"; `f1` for 2 classes", "", text))


def test_every_task_has_a_row() -> None:
    assert {cells[0].strip("`") for cells in ROWS} == set(Task)


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_each_row_says_what_the_code_does(number: int) -> None:
    cells = ROWS[number]
    row = example(cells)
    objective = choose(row, row.task)
    assert objective.loss is not None
    assert f"`{objective.loss.value}`" == cells[3]
    assert f"`{judging(row, objective).metric.name}`" == cells[4]
    assert sorted(names(row)) == sorted(listed(cells, ROWS[number - 1]))


@pytest.mark.parametrize("cells", ROWS, ids=lambda cells: f"{cells[0]} {cells[1]} {cells[2]}")
def test_each_row_says_what_is_inferred(cells: list[str]) -> None:
    row = example(cells)
    try:
        found: Task | None = choose(row, None).task
    except JobFailureError:
        found = None
    assert (found is row.task) == cells[6].startswith("inferred")


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"from {MIN_TOP_CLASSES} classes on" in PAGE
    assert f"{MAX_CLASSES:,} classes or labels" in PAGE
    assert f"more than {MAX_GALLERY:,} samples" in PAGE
