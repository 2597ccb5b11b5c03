"""One inspection in its process: reads the task of a folder, and leaves an answer in it. Imports torch."""

from __future__ import annotations

from pathlib import Path

import torch

from pruning_server.archive.traced_inputs import ExampleValue, read_traced_inputs
from pruning_server.errors import InvalidArtifactError
from pruning_server.jobs.inspection import InspectionTask
from pruning_server.spec.inspection import Inspection
from pruning_server.worker.archives import load_module
from pruning_server.worker.datasets import read_samples
from pruning_server.worker.inspection import inspect_model
from pruning_server.worker.inspection_inputs import InputFinder, Inputs
from pruning_server.worker.permitted import require_permitted


def carry_out(folder: Path, task: InspectionTask) -> Inspection:
    """Loads the model, finds inputs that it takes, and inspects a second load of it.

    Raises:
        JobFailureError: torch does not load the model.
        InvalidRequestError: there are no inputs that it takes.
    """
    torch.set_num_threads(max(1, task.threads))
    path = folder / task.model
    loaded = load_module(path, "cpu", "model").eval()
    require_permitted(loaded, "model")
    finder = InputFinder(loaded, task.arguments)
    inputs = _inputs(folder, task, finder)
    twice = finder.doubled(inputs)
    sized, notes = finder.resized(inputs, task.dynamic_axes)
    others = [*([] if twice is None else [twice]), *sized]
    return inspect_model(load_module(path, "cpu", "model").eval(), inputs, others, notes)


def _inputs(folder: Path, task: InspectionTask, finder: InputFinder) -> Inputs:
    if task.samples is not None:
        return finder.from_samples(read_samples(folder / task.samples, "samples"))
    if task.inputs:
        return finder.given(task.inputs)
    remembered = _remembered(folder / task.model)
    found = finder.examples(remembered) if remembered is not None else None
    return found if found is not None else finder.inferred()


def _remembered(path: Path) -> tuple[ExampleValue, ...] | None:
    try:
        with path.open("rb") as archive:
            return read_traced_inputs(archive)
    except InvalidArtifactError:
        return None  # torch ignores the record, so a damaged one is no reason to refuse the model
