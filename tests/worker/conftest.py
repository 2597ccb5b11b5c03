"""Runs on small models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.runs import Ran, make_spec, make_workspace, run_here
from pruning_server.spec.request import PruningSpec


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The runs of this process use one thread and the default kernels, as the worker's own process would be told."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def prune(tmp_path: Path) -> Callable[..., Ran]:
    """Runs a job in this process: prune(model, arrays, spec?, **spec fields)."""
    count = 0

    def run(
        model: Path | torch.jit.ScriptModule,
        data: Mapping[str, np.ndarray],
        spec: PruningSpec | None = None,
        *,
        train: Mapping[str, np.ndarray] | None = None,
        loss_module: torch.jit.ScriptModule | None = None,
        **fields: Any,
    ) -> Ran:
        nonlocal count
        count += 1
        request = spec or make_spec(**fields)
        return run_here(make_workspace(tmp_path / f"run{count}", model, data, request, train=train, loss=loss_module))

    return run
