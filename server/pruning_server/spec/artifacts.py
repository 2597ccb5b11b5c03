"""What the gate finds in an artifact, as values."""

from __future__ import annotations

import enum
from typing import Literal

from pruning_server.spec.base import Value


class ArtifactKind(enum.StrEnum):
    """What an artifact holds."""

    TORCHSCRIPT = "torchscript"
    DATASET = "dataset"
    LOSS = "loss"
    REPORT = "report"


class TensorSummary(Value, frozen=True, kw_only=True):
    """Name, dtype (as numpy names it) and shape of a stored array."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class ModelSummary(Value, frozen=True, kw_only=True, tag_field="kind", tag="model"):
    """What the gate read in a TorchScript archive, without running it."""

    format_version: int
    root: str
    methods: tuple[str, ...]
    tensor_bytes: int
    code_bytes: int
    size_bytes: int
    extra_files: tuple[str, ...] = ()


class DatasetSummary(Value, frozen=True, kw_only=True, tag_field="kind", tag="dataset"):
    """What the gate read in a dataset: its arrays, first axis = samples."""

    container: Literal["npz", "safetensors"]
    samples: int
    inputs: tuple[TensorSummary, ...]
    targets: TensorSummary | None
    has_split: bool
    has_groups: bool
    size_bytes: int


Summary = ModelSummary | DatasetSummary
