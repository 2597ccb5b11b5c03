"""What a caller asks for, as frozen values. Absent (None) means that the server decides.

Every ratio is new / old: smaller is smaller. A sparsity is the fraction removed.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class Granularity(enum.StrEnum):
    """The unit that is removed; `NM`: of every m consecutive weights n stay."""

    WEIGHT = "weight"
    CHANNEL = "channel"
    HEAD = "head"
    NM = "n:m"


class Scope(enum.StrEnum):
    """How pruning is shared out: scores compete over all layers, or inside each, or each layer's measured harm decides."""

    GLOBAL = "global"
    LAYER = "layer"
    SENSITIVITY = "sensitivity"


class Layout(enum.StrEnum):
    """Order of the axes of image inputs as stored in the dataset."""

    NCHW = "nchw"
    NHWC = "nhwc"


class Task(enum.StrEnum):
    """What the model is judged on."""

    CLASSIFICATION = "classification"
    MULTILABEL = "multilabel"
    REGRESSION = "regression"
    SEGMENTATION = "segmentation"
    SEQUENCE_LABELLING = "sequence_labelling"
    LANGUAGE_MODELLING = "language_modelling"
    EMBEDDING = "embedding"
    AGREEMENT = "agreement"


class Loss(enum.StrEnum):
    """Losses that ship with the service."""

    CROSS_ENTROPY = "cross_entropy"
    BCE_WITH_LOGITS = "bce_with_logits"
    MSE = "mse"
    L1 = "l1"


class Verdict(enum.StrEnum):
    """Whether the pruned model generalizes as the original does, against the margin."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


class Robustness(enum.StrEnum):
    """On how many kinds of harder inputs both models are compared."""

    NONE = "none"
    OCCLUSION = "occlusion"
    ALL = "all"


class MultipleTestingCorrection(enum.StrEnum):
    """How the tests of a condition are corrected for being many."""

    HOLM = "holm"
    BENJAMINI_HOCHBERG = "benjamini_hochberg"


@dataclass(frozen=True)
class Threshold:
    """Every weight with |w| < value becomes 0; value > 0."""

    value: float


@dataclass(frozen=True)
class Sparsity:
    """Fraction of the prunable weights to remove, in [0, 1)."""

    value: float


@dataclass(frozen=True)
class MacsRatio:
    """MACs after / before, in (0, 1]."""

    value: float


@dataclass(frozen=True)
class LatencyRatio:
    """Measured latency after / before on the requested device, in (0, 1]."""

    value: float


@dataclass(frozen=True)
class ParameterRatio:
    """Parameters after / before, in (0, 1]."""

    value: float


@dataclass(frozen=True)
class MaxAccuracyDrop:
    """The smallest model whose accuracy drop stays below this, in [0, 1)."""

    value: float


Target = Threshold | Sparsity | MacsRatio | LatencyRatio | ParameterRatio | MaxAccuracyDrop


@dataclass(frozen=True)
class NmPattern:
    """Of every `m` consecutive weights along the input axis, `n` are kept; 0 < n < m."""

    n: int
    m: int


@dataclass(frozen=True)
class ChannelConstraints:
    """Fewest channels that a layer keeps, and the multiple that kept channels are rounded to."""

    min_channels: int | None = None
    multiple: int | None = None


@dataclass(frozen=True)
class Static:
    """Prune once, after training. An empty criterion and no scope mean the server's defaults."""

    granularity: Granularity = Granularity.WEIGHT
    nm_pattern: NmPattern | None = None
    criterion: str = ""
    scope: Scope | None = None
    include_biases: bool = False
    include_norms: bool = False
    channels: ChannelConstraints = field(default_factory=ChannelConstraints)


@dataclass(frozen=True)
class Dynamic:
    """Prune while fine-tuning, on new data, and at inference."""

    granularity: Granularity | None = None
    nm_pattern: NmPattern | None = None
    criterion: str = ""
    scope: Scope = Scope.GLOBAL
    schedule: str = ""
    continue_from_job_id: str = ""
    inference_gate: bool = False
    channels: ChannelConstraints = field(default_factory=ChannelConstraints)


@dataclass(frozen=True)
class Risk:
    """Prune as far as P(accuracy loss <= max_loss) >= 1 - error_probability can be certified; both in (0, 1)."""

    max_loss: float
    error_probability: float


@dataclass(frozen=True)
class Conditional:
    """A condition decides; exactly one of `condition` (a comparison over documented features) and `risk`.

    `granularity` None: the server takes the one that the condition's features have.
    """

    condition: str = ""
    risk: Risk | None = None
    granularity: Granularity | None = None
    margin: float | None = None
    correction: MultipleTestingCorrection | None = None
    channels: ChannelConstraints = field(default_factory=ChannelConstraints)


Strategy = Static | Dynamic | Conditional


@dataclass(frozen=True)
class StoredArtifact:
    """A file that the server has already, by its id; `sha256`, if given, is checked."""

    artifact_id: str
    sha256: str = ""


@dataclass(frozen=True)
class RemoteFile:
    """A file that the server fetches itself, where its operator allows that; `sha256` is required."""

    uri: str
    sha256: str


Source = str | Path | StoredArtifact | RemoteFile
"""Where a file is: a path on this side (uploaded when the job is submitted), or one of the other two."""


@dataclass(frozen=True)
class SplitFractions:
    """Parts of the validation set, each in [0, 1], adding up to 1."""

    fit: float = 0.60
    select: float = 0.15
    report: float = 0.25
    calibrate: float = 0.0


@dataclass(frozen=True)
class Preprocessing:
    """Turns stored inputs into what the model takes: (x * scale - mean) / std, per channel."""

    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Layout | None = None


ScalarValue = bool | int | float | str


@dataclass(frozen=True)
class Submission:
    """The whole request of one job.

    Attributes:
        model: the TorchScript archive.
        validation: dataset that is split into fit / select / report; a path may be `.npz`, `.safetensors`, `.csv`,
            `.parquet` or an image folder.
        strategy: how to prune.
        target: how far to prune; None only where a condition or an n:m pattern decides.
        train: the training set, for the generalization gap only; never fitted on.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        epochs: of fine-tuning; None: automatic, 0: no gradient step.
        dropout: rate of every dropout of the model while it is fine-tuned, in [0, 1); None: its own, lowered with pruning.
        recovery: False: the model comes back as pruned, with nothing done to win back accuracy.
        margin: the largest loss of the metric that is acceptable, in (0, 1).
        required_verdict: the job fails, its model still fetchable, unless the verdict is this one.
        robustness: on how many kinds of harder inputs both models are compared; None: the server's default, all.
        include_samples: whether the report shows single samples: targets, predictions and small pictures.
        loss: a shipped loss, or a TorchScript module called as `loss(output, target)`.
        arguments: scalar arguments of forward by position; 0 is the first input.
        output_selector: which part of a dict, tuple or list output is judged: `logits`, `0`, `0.logits`.
        method_samples: samples for exported methods other than forward.
        exclude_layers: names of layers to leave alone, with shell wildcards.
        timeout_seconds: the job's own deadline, from its start.
        dynamic_axes: by position of an input, its axes along which the pruned model will be called with other lengths
            than the dataset's (height and width, steps); axis 0, the batch, is always free.
        priority: among your own waiting jobs, in [-10, 10]; higher goes first.
    """

    model: Source
    validation: Source
    strategy: Strategy
    target: Target | None = None
    train: Source | None = None
    device: str = "auto"
    epochs: int | None = None
    learning_rate: float | None = None
    fine_tune_batch_size: int | None = None
    weight_decay: float = 0.0
    dropout: float | None = None
    recovery: bool = True
    margin: float | None = None
    confidence_level: float | None = None
    required_verdict: Verdict | None = None
    split: SplitFractions | None = None
    latency_batch_size: int | None = None
    evaluation_batch_size: int | None = None
    robustness: Robustness | None = None
    include_samples: bool = True
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    task: Task | None = None
    loss: Loss | Source | None = None
    arguments: Mapping[int, ScalarValue] = field(default_factory=dict)
    output_selector: str = ""
    method_samples: Mapping[str, Source] = field(default_factory=dict)
    exclude_layers: tuple[str, ...] = ()
    seed: int = 0
    memory_limit_bytes: int | None = None
    max_attempts: int | None = None
    priority: int = 0
    timeout_seconds: float | None = None
    dynamic_axes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
