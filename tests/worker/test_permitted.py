"""What torch resolved is looked at once more: an operator that hides from the gate is refused before anything runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruning_server.errors import JobFailureError, Reason
from pruning_server.worker.permitted import require_permitted


class Resizes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 1e9):
            for _ in range(2):
                x = x.clone().resize_([1])
        return x


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Resizes()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def other(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.parametrize("make", [Resizes, Outer])
def test_an_operator_in_any_branch_of_any_method_is_refused_by_name(make: type[nn.Module]) -> None:
    with pytest.raises(JobFailureError) as refused:
        require_permitted(torch.jit.script(make()), "model")
    assert refused.value.reason is Reason.MODEL_REFUSED
    assert "aten::resize_" in refused.value.message


def test_a_plain_model_is_taken() -> None:
    require_permitted(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())), "model")
