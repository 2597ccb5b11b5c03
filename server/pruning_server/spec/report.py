"""The report of a job: its JSON schema as values. Base units; every ratio and sparsity in [0, 1].

Keys here are a contract that users script against; a change of meaning needs a new `SCHEMA_VERSION`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pruning_server.spec.base import Value
from pruning_server.spec.report_accuracy import AccuracySection, GeneralizationSection
from pruning_server.spec.report_robustness import RobustnessSection
from pruning_server.spec.report_strategy import StrategySection

SCHEMA_VERSION = "1.1"


class ModelSection(Value, frozen=True, kw_only=True):
    """The two archives. Sizes in bytes; hashes are SHA-256 of the whole file."""

    original_sha256: str
    original_bytes: int
    pruned_sha256: str | None
    pruned_bytes: int
    kind: str
    format_version: int
    methods: tuple[str, ...]
    extra_files: tuple[str, ...]


class FeatureHistogram(Value, frozen=True, kw_only=True):
    """How one number per sample is spread: `counts` of samples below the first of `edges`, between two, and from the last."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class DataSection(Value, frozen=True, kw_only=True):
    """What the verdict rests on: samples per split, and where the splits came from."""

    validation_sha256: str
    train_sha256: str | None
    samples: int
    train_samples: int | None
    splits: dict[str, int]
    split_source: str
    stratified: bool
    inputs: tuple[dict[str, Any], ...]
    targets: dict[str, Any] | None
    task: str
    loss: str
    warnings: tuple[str, ...]
    # By name of the feature: with them, a later job that continues from this one tells how its data has drifted.
    statistics: dict[str, FeatureHistogram] = msgspec.field(default_factory=dict)
    # Why this task: named by the request, that of the loss, or inferred from targets and outputs.
    task_reason: str = ""


class LatencySection(Value, frozen=True, kw_only=True):
    """Seconds per batch of `batch` samples."""

    p50: float
    p95: float
    batch: int
    device: str
    threads: int
    runs: int


class CostSection(Value, frozen=True, kw_only=True):
    """Cost of one model. `macs` for one sample; None where it cannot be counted."""

    parameters: int
    nonzero_parameters: int
    macs: int | None
    bytes: int
    latency_seconds: LatencySection


class CostsSection(Value, frozen=True, kw_only=True):
    """Both models' cost, measured in one run."""

    original: CostSection
    pruned: CostSection


class VerifySection(Value, frozen=True, kw_only=True):
    """Shrunk against masked; None in jobs that change values only.

    Errors are relative to the largest value of an output: `max_relative_error` with the delivered weights in `dtype`,
    `max_relative_error_randomized` with random ones in `dtype_randomized`, None where no random weights make the model
    run. `half_precision_difference`: in the model's own half precision, where it has one; the proof is in a wider copy.
    `input_shapes`: of the tensors of every call of forward that was compared.
    `methods`: those that were compared; `train_mode`: whether training mode was. `notes`: what was not, and why.
    """

    max_relative_error: float
    max_relative_error_randomized: float | None
    batch_sizes: tuple[int, ...]
    dtype: str = "float32"
    dtype_randomized: str | None = None
    half_precision_difference: float | None = None
    methods: tuple[str, ...] = ()
    train_mode: bool = False
    notes: tuple[str, ...] = ()
    input_shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()


class LayerSection(Value, frozen=True, kw_only=True):
    """One stored tensor that could be pruned; `kept`: by axis ("0", "1", ...) that was cut, what stayed of it."""

    name: str
    kind: str
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]
    kept: dict[str, tuple[int, ...]]
    sparsity: float


class FrozenSection(Value, frozen=True, kw_only=True):
    """What could not be pruned, and why."""

    op: str
    source: str
    reason: str
    layers: tuple[str, ...]


class Provenance(Value, frozen=True, kw_only=True):
    """What is needed to run it again."""

    job_id: str
    seed: int
    service_version: str
    torch_version: str
    python_version: str
    platform: str
    device: str
    threads: int
    created: str
    deterministic: bool


class Report(Value, frozen=True, kw_only=True):
    """The whole report; top-level keys are fixed."""

    schema_version: str
    job: dict[str, Any]
    model: ModelSection
    data: DataSection
    strategy: StrategySection
    cost: CostsSection
    accuracy: AccuracySection
    generalization: GeneralizationSection
    robustness: RobustnessSection | None
    verify: VerifySection | None
    layers: tuple[LayerSection, ...]
    frozen: tuple[FrozenSection, ...]
    timings: dict[str, float]
    provenance: Provenance
