"""A language model with a mask and a dict of outputs, through the command line and a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn


class Words(nn.Module):
    """Token numbers and their mask to a dict of scores and of what they were made of."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 12)
        self.hidden = nn.Linear(12, 24)
        self.head = nn.Linear(24, 6)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        embedded = self.table(input_ids) * attention_mask.unsqueeze(2).to(torch.float32)
        scores = self.head(torch.relu(self.hidden(embedded)))
        return {"logits": scores, "summary": scores.mean(1)}


def test_a_language_model_is_judged_on_its_own_tokens(prune: Callable, tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    torch.jit.script(Words()).save(str(tmp_path / "model.pt"))
    mask = np.arange(7) < rng.integers(3, 8, size=60)[:, None]
    np.savez(tmp_path / "data.npz", inputs_0=rng.integers(6, size=(60, 7)), inputs_1=mask)
    answer = prune(
        "submit", tmp_path / "model.pt", "--validation", tmp_path / "data.npz", "--strategy", "static", "--sparsity", 0.5,
        "--task", "language_modelling", "--epochs", 1, "--robustness", "none", "--output-selector", "logits",
        "--report", tmp_path / "report.json",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["data"]["task"] == "language_modelling"
    assert [one["name"] for one in report["accuracy"]["others"]] == ["perplexity", "token_accuracy"]
    assert "names the task" in report["data"]["task_reason"]
