"""Makes an archive and its inputs from an entry, and reads them back without the code that made them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from zoo.entries import Entry, Form, Inputs

ARCHIVE, INPUTS = "archive.pt", "inputs.pt"


def make(entry: Entry, form: Form) -> torch.jit.ScriptModule:
    """Builds with a fixed seed, in evaluation mode, and scripts or traces it on inputs of the first batch size.

    Raises:
        MissingPartError: a file is not there.
        RuntimeError: it does not script or trace, or cannot be saved.
    """
    torch.manual_seed(0)
    module = entry.build().eval()
    with warnings.catch_warnings():
        # What traced packages warn of is what their archives are like.
        warnings.simplefilter("ignore")
        if form is Form.TRACE:
            return torch.jit.trace(module, entry.inputs(entry.batches[0]), check_trace=False)
        if form is Form.SCRIPT:
            return torch.jit.script(module)
    if not isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"{entry.name} is no TorchScript file")
    return module


def samples(entry: Entry) -> list[Inputs]:
    """The inputs of every run, by batch size."""
    return [entry.inputs(batch) for batch in entry.batches]


def reload(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Through the archive and back, as a caller's file comes."""
    return torch.jit.load(io.BytesIO(module.save_to_buffer()))


def save(entry: Entry, form: Form, folder: Path) -> None:
    """Leaves the archive and its inputs in a folder."""
    make(entry, form).save(str(folder / ARCHIVE))
    torch.save([list(inputs) for inputs in samples(entry)], folder / INPUTS)


def saved_samples(folder: Path) -> list[Sequence[object]]:
    """The inputs that `save` left."""
    found: list[Sequence[object]] = torch.load(folder / INPUTS, weights_only=True)
    return found
