"""The pruning request as values, mirroring `protos/pruning_api/v1/spec.proto`; defaults are filled in here.

Every ratio is new / old: smaller is smaller. `None` means that the service decides.
"""

from __future__ import annotations

import enum

from pruning_server.spec.base import Value

DEFAULT_MARGIN = 0.01
DEFAULT_CONFIDENCE_LEVEL = 0.95
DEFAULT_LATENCY_BATCH_SIZE = 32
# The schedule of dynamic pruning that the select split moves: it needs no target, and no epochs either.
JUDGED_SCHEDULE = "controller"


class Granularity(enum.StrEnum):
    """The unit that is removed."""

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
    """Order of the axes of image inputs as stored."""

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


class TargetKind(enum.StrEnum):
    """How far to prune; exactly one per request."""

    THRESHOLD = "threshold"
    SPARSITY = "sparsity"
    MACS_RATIO = "macs_ratio"
    LATENCY_RATIO = "latency_ratio"
    PARAMETER_RATIO = "parameter_ratio"
    MAX_ACCURACY_DROP = "max_accuracy_drop"


class Target(Value, frozen=True, kw_only=True):
    """A kind and its number, in the unit that `TargetKind` and the proto state."""

    kind: TargetKind
    value: float


class ArtifactRef(Value, frozen=True, kw_only=True):
    """A stored file; `sha256` is an optional check against what is stored.

    `uri`: where a file lies that is not stored yet; `artifact_id` is empty then. It is fetched before anything else, and
    what is stored of a request names artifacts only: a URI may hold a secret.
    """

    artifact_id: str
    sha256: str | None = None
    uri: str | None = None


class NmPattern(Value, frozen=True, kw_only=True):
    """Of every `m` consecutive weights along the input axis, `n` are kept."""

    n: int
    m: int


class ChannelConstraints(Value, frozen=True, kw_only=True):
    """Floors and roundings of structural pruning. `multiple` None: 8 for layers of 64 channels and more, else 1."""

    min_channels: int = 1
    multiple: int | None = None


class StaticStrategy(Value, frozen=True, kw_only=True, tag_field="strategy", tag="static"):
    """After training, once."""

    granularity: Granularity = Granularity.WEIGHT
    nm_pattern: NmPattern | None = None
    criterion: str = "l1"
    scope: Scope = Scope.GLOBAL
    include_biases: bool = False
    include_norms: bool = False
    channels: ChannelConstraints = ChannelConstraints()


class Continuation(Value, frozen=True, kw_only=True):
    """What a job goes on from, found by the server when it was admitted: an earlier job's pruned model and its report."""

    pruned: ArtifactRef
    report: ArtifactRef


class DynamicStrategy(Value, frozen=True, kw_only=True, tag_field="strategy", tag="dynamic"):
    """Over the model's life: while fine-tuning, on new data, at inference.

    `continuation` is no part of a request: the server fills it in for `continue_from_job_id`, so that the files are kept.
    """

    granularity: Granularity = Granularity.CHANNEL
    nm_pattern: NmPattern | None = None
    criterion: str | None = None
    scope: Scope = Scope.GLOBAL
    schedule: str | None = None
    continue_from_job_id: str | None = None
    continuation: Continuation | None = None
    inference_gate: bool = False
    channels: ChannelConstraints = ChannelConstraints()


class MultipleTestingCorrection(enum.StrEnum):
    """How `p_harm` is corrected for many tests."""

    HOLM = "holm"
    BENJAMINI_HOCHBERG = "benjamini_hochberg"


class RiskCondition(Value, frozen=True, kw_only=True):
    """Prune as far as P(accuracy loss <= max_loss) >= 1 - error_probability can be certified; both in (0, 1)."""

    max_loss: float
    error_probability: float


class ConditionalStrategy(Value, frozen=True, kw_only=True, tag_field="strategy", tag="conditional"):
    """A condition decides, per weight, channel or layer."""

    granularity: Granularity = Granularity.WEIGHT
    condition: str | None = None
    risk: RiskCondition | None = None
    margin: float | None = None
    correction: MultipleTestingCorrection = MultipleTestingCorrection.HOLM
    channels: ChannelConstraints = ChannelConstraints()


Strategy = StaticStrategy | DynamicStrategy | ConditionalStrategy


class FineTune(Value, frozen=True, kw_only=True):
    """Gradient steps after pruning. `epochs` None: automatic; 0: no gradient step, closed-form recovery only.

    `dropout` in [0, 1): the rate of every dropout of the model while it is trained; None: its own rates, lowered as far
    as was pruned behind them.
    """

    epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    weight_decay: float = 0.0
    dropout: float | None = None


class Recovery(Value, frozen=True, kw_only=True):
    """What is done to win back accuracy; `disabled`: nothing, the model comes back as pruned."""

    disabled: bool = False


class SplitFractions(Value, frozen=True, kw_only=True):
    """Parts of the caller's set, each in [0, 1], adding up to 1."""

    fit: float = 0.60
    select: float = 0.15
    report: float = 0.25
    calibrate: float = 0.0


# Where the request leaves the split open: a certificate needs samples that nothing else looked at.
RISK_SPLIT = SplitFractions(fit=0.50, select=0.10, report=0.20, calibrate=0.20)


class Evaluation(Value, frozen=True, kw_only=True):
    """How the result is judged.

    `margin` in (0, 1): the largest loss of the metric that is acceptable. `include_samples`: whether the report shows
    single samples.
    """

    margin: float = DEFAULT_MARGIN
    confidence_level: float = DEFAULT_CONFIDENCE_LEVEL
    required_verdict: Verdict | None = None
    split: SplitFractions = SplitFractions()
    latency_batch_size: int = DEFAULT_LATENCY_BATCH_SIZE
    batch_size: int | None = None
    robustness: Robustness = Robustness.ALL
    include_samples: bool = True


class Preprocessing(Value, frozen=True, kw_only=True):
    """Turns stored inputs into what the model takes: (x * scale - mean) / std, per channel.

    `scale` None: 1/255 for uint8 inputs of a floating-point model, else 1. Empty mean and std: 0 and 1.
    """

    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Layout | None = None


class ScalarArgument(Value, frozen=True, kw_only=True):
    """A scalar argument of forward by its position; 0 is the first input."""

    position: int
    value: bool | int | float | str


class MethodSamples(Value, frozen=True, kw_only=True):
    """Samples with which an exported method other than forward is observed."""

    method: str
    samples: ArtifactRef


class DynamicAxes(Value, frozen=True, kw_only=True):
    """Axes of one input (its position among forward's tensors, from 0) that may have any length; 0 is the batch."""

    input: int
    axes: tuple[int, ...]


class Limits(Value, frozen=True, kw_only=True):
    """Bounds of one job; None means the server's default. `priority` in [-10, 10], among the caller's waiting jobs."""

    memory_bytes: int | None = None
    max_attempts: int | None = None
    priority: int = 0


class PruningSpec(Value, frozen=True, kw_only=True):
    """The whole request of one job."""

    model: ArtifactRef
    validation: ArtifactRef
    strategy: Strategy
    train: ArtifactRef | None = None
    target: Target | None = None
    device: str = "auto"
    fine_tune: FineTune = FineTune()
    recovery: Recovery = Recovery()
    evaluation: Evaluation = Evaluation()
    preprocessing: Preprocessing = Preprocessing()
    task: Task | None = None
    loss: Loss | None = None
    loss_module: ArtifactRef | None = None
    arguments: tuple[ScalarArgument, ...] = ()
    output_selector: str = ""
    method_samples: tuple[MethodSamples, ...] = ()
    exclude_layers: tuple[str, ...] = ()
    seed: int = 0
    limits: Limits = Limits()
    timeout_seconds: float | None = None
    dynamic_axes: tuple[DynamicAxes, ...] = ()

    @property
    def continuation(self) -> Continuation | None:
        """What the job goes on from, where it goes on from an earlier one."""
        return self.strategy.continuation if isinstance(self.strategy, DynamicStrategy) else None

    @property
    def risk(self) -> RiskCondition | None:
        """What is to be certified, where something is."""
        return self.strategy.risk if isinstance(self.strategy, ConditionalStrategy) else None

    @property
    def split(self) -> SplitFractions:
        """The parts of the caller's set; a risk that leaves them open gets one to calibrate on."""
        asked = self.evaluation.split
        return RISK_SPLIT if self.risk is not None and asked == SplitFractions() else asked

    def artifact_refs(self) -> tuple[ArtifactRef, ...]:
        """Every artifact that the job reads."""
        optional = (self.train, self.loss_module, *(m.samples for m in self.method_samples))
        found = self.continuation
        earlier = (found.pruned, found.report) if found is not None else ()
        return (self.model, self.validation, *(ref for ref in optional if ref is not None), *earlier)
