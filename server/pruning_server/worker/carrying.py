"""Taking trained values over into a fresh load of the archive, so that everything else in it is as it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning_server.graph.modules import get_tensor
from pruning_server.graph.training import restore_constants
from pruning_server.worker.archives import ModelArchive


def carry_over(
    archive: ModelArchive, trained: torch.jit.ScriptModule, names: Sequence[str], *, frozen_archive: bool
) -> torch.jit.ScriptModule:
    """A fresh load of the archive with the named tensors' values of `trained`.

    Methods, attributes, training flags, dtypes, sharing and `requires_grad` are those of the archive, whatever training
    did to the copy that it worked on. Constants of a frozen archive get the values of the thawed copy.
    """
    fresh = archive.load()
    if frozen_archive:
        fresh = restore_constants(fresh, trained)
    with torch.no_grad():
        for name in names:
            _copy(get_tensor(trained, name), fresh, name, missing_ok=frozen_archive)
    return fresh


def _copy(value: torch.Tensor, fresh: torch.jit.ScriptModule, name: str, *, missing_ok: bool) -> None:
    try:
        tensor = get_tensor(fresh, name)
    except KeyError:
        if missing_ok:  # a thawed constant, written by restore_constants
            return
        raise
    tensor.copy_(value)
