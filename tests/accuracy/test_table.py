"""The table of accuracies says what was asked for and whether every seed came to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from accuracy.results import Measured, Results
from accuracy.settings import DEFAULT, FEW_CLOSED_FORM, FEW_DEFAULT, SETTINGS
from accuracy.table import table, write_page
from accuracy.task import with_marks

GOOD = Measured(original=86.5, accuracy=84.5, seconds=200.0, threads=2, macs_ratio=0.5, speed_up=1.8)


def _verdicts(results: Results) -> list[str]:
    return [line.split("|")[-2].strip() for line in table(results)[0][2:]]


def test_a_seed_that_misses_shows() -> None:
    results = Results(None)
    results.add("ResNet-20", DEFAULT, 0, GOOD)
    results.add("ResNet-20", DEFAULT, 1, GOOD)
    assert _verdicts(results) == ["yes"]
    assert table(results)[1]
    results.add("ResNet-20", DEFAULT, 2, dataclasses.replace(GOOD, accuracy=83.9, seconds=300.0))
    assert _verdicts(results) == ["no: accuracy, time"]
    assert not table(results)[1]


def test_fine_tuning_is_compared_seed_by_seed() -> None:
    results = Results(None)
    for seed, (closed, tuned) in enumerate([(80.0, 81.0), (82.0, 82.0)]):
        results.add("ResNet-20", FEW_CLOSED_FORM, seed, dataclasses.replace(GOOD, accuracy=closed))
        results.add("ResNet-20", FEW_DEFAULT, seed, dataclasses.replace(GOOD, accuracy=tuned))
    assert _verdicts(results) == ["", "yes"]
    results.add("ResNet-20", FEW_DEFAULT, 1, dataclasses.replace(GOOD, accuracy=81.9))
    assert _verdicts(results)[1].startswith("no: worse")


def test_measurements_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.json"
    Results(path).add("ResNet-20", DEFAULT, 3, GOOD)
    again = Results(path)
    assert again.of("ResNet-20", DEFAULT) == {3: GOOD}
    assert again.has("ResNet-20", DEFAULT, 3)
    assert not again.has("ResNet-20", DEFAULT, 0)
    write_page(tmp_path / "accuracy.md", again, few=500, threads=2)
    assert "84.50" in (tmp_path / "accuracy.md").read_text()


def test_names_are_told_apart() -> None:
    # Results are found by how their keys begin.
    for settings in SETTINGS.values():
        names = [setting.name for setting in settings]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("seed", [0, 1])
def test_marks_are_what_the_yardstick_has(seed: int) -> None:
    caller = {"inputs": np.zeros((5000, 1)), "targets": np.zeros(5000, dtype=np.int64)}
    assert np.bincount(with_marks(caller, seed)["split"]).tolist() == [4400, 400, 200]
