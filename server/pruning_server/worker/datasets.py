"""Opening the run's datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pruning_server.archive.dataset import open_dataset
from pruning_server.worker.feeding import Samples

BFLOAT16 = "bfloat16"


def read_samples(path: Path, name: str) -> Samples:
    """Maps a dataset that the gate wrote; `name` is how messages call it."""
    dataset = open_dataset(path)
    count = len(dataset.inputs)
    names = ("inputs",) if count == 1 else tuple(f"inputs_{position}" for position in range(count))
    return Samples(
        name=name,
        inputs=dataset.inputs,
        input_names=names,
        input_dtypes=dataset.input_dtypes,
        targets=_targets(dataset.targets, dataset.target_dtype),
        split=dataset.split,
        groups=dataset.groups,
    )


def _targets(targets: np.ndarray | None, dtype: str | None) -> np.ndarray | None:
    if targets is None or dtype != BFLOAT16:
        return targets
    # bfloat16 is the upper half of a float32.
    return (targets.astype(np.uint32) << np.uint32(16)).view(np.float32)
