"""Conditions against a real server: one that decides, and one that is refused before anything is queued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.models import fitted, mlp, table_data


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A trained net with a pair of twins, and its data."""
    inputs, targets = table_data(200)
    net: Any = fitted(mlp(16), inputs, targets, epochs=2)
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0.5 * net[0].weight[9], 0.5 * net[0].bias[9]
    torch.jit.script(net).save(str(tmp_path / "model.pt"))
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=targets)
    return tmp_path / "model.pt", tmp_path / "data.npz"


def test_a_condition_decides(prune: Callable[..., Any], files: tuple[Path, Path]) -> None:
    model, data = files
    answer = prune(
        "submit", model, "--validation", data, "--strategy", "conditional",
        "--condition", 'weight_correlation > 0.9999 and kind == "linear"', "--epochs", "0",
    )  # fmt: skip
    assert (answer.exit_code, answer.body["state"]) == (0, "SUCCEEDED"), answer
    strategy = answer.body["report"]["strategy"]
    assert (strategy["name"], strategy["granularity"], strategy["removed_channels"]) == ("conditional", "channel", 1)
    (pair,) = strategy["details"]["merged"]
    assert (pair["removed"], pair["kept"], pair["layer"]) == (2, 9, "3.weight")
    assert pair["slope"] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("condition", "flags", "message"),
    [
        ("wieght_correlation > 0.9", (), "column 1: there is no feature 'wieght_correlation'; did you mean weight_correlation"),
        ("p_harm < 0.05", ("--granularity", "weight"), "column 1: p_harm decides over whole channels"),
        ("l1 < 1 and kind == 3", (), "column 12: a text and a number cannot be compared"),
    ],
)  # fmt: skip
def test_a_bad_condition_is_refused_with_its_column(
    condition: str, flags: tuple[str, ...], message: str, prune: Callable[..., Any], files: tuple[Path, Path]
) -> None:
    model, data = files
    answer = prune("submit", model, "--validation", data, "--strategy", "conditional", "--condition", condition, *flags)
    assert (answer.exit_code, answer.body["job"]) == (2, None)
    assert message in answer.stderr
    lines = answer.stderr.splitlines()
    shown = next(number for number, line in enumerate(lines) if line == f"  {condition}")
    column = int(message.split(":", maxsplit=1)[0].removeprefix("column "))
    assert lines[shown + 1] == " " * (2 + column - 1) + "^"
    assert prune("jobs").body == {"jobs": []} or all(job["state"] == "SUCCEEDED" for job in prune("jobs").body["jobs"])
