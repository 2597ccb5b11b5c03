"""In which precision a GPU trains: what is stored decides, wherever the archive keeps it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers import zoo
from pruning_server.graph.training import thaw
from pruning_server.worker.phases.recover import mixed_precision


@pytest.mark.parametrize("way", ["scripted", "frozen"])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float32, torch.bfloat16), (torch.float16, None), (torch.bfloat16, None), (torch.float64, None)],
    ids=str,
)
def test_only_single_precision_is_trained_in_half(
    dtype: torch.dtype, expected: torch.dtype | None, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    module = getattr(zoo, way)(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype).eval())
    for one in (module, thaw(module)):
        assert mixed_precision(one, "cuda") is expected
        assert mixed_precision(one, "cpu") is None
