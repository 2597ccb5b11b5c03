import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Granularity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRANULARITY_UNSPECIFIED: _ClassVar[Granularity]
    GRANULARITY_WEIGHT: _ClassVar[Granularity]
    GRANULARITY_CHANNEL: _ClassVar[Granularity]
    GRANULARITY_HEAD: _ClassVar[Granularity]
    GRANULARITY_NM: _ClassVar[Granularity]

class Scope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCOPE_UNSPECIFIED: _ClassVar[Scope]
    SCOPE_GLOBAL: _ClassVar[Scope]
    SCOPE_LAYER: _ClassVar[Scope]
    SCOPE_SENSITIVITY: _ClassVar[Scope]

class MultipleTestingCorrection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MULTIPLE_TESTING_CORRECTION_UNSPECIFIED: _ClassVar[MultipleTestingCorrection]
    MULTIPLE_TESTING_CORRECTION_HOLM: _ClassVar[MultipleTestingCorrection]
    MULTIPLE_TESTING_CORRECTION_BENJAMINI_HOCHBERG: _ClassVar[MultipleTestingCorrection]

class Robustness(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROBUSTNESS_UNSPECIFIED: _ClassVar[Robustness]
    ROBUSTNESS_NONE: _ClassVar[Robustness]
    ROBUSTNESS_OCCLUSION: _ClassVar[Robustness]
    ROBUSTNESS_ALL: _ClassVar[Robustness]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_PASS: _ClassVar[Verdict]
    VERDICT_FAIL: _ClassVar[Verdict]
    VERDICT_INCONCLUSIVE: _ClassVar[Verdict]

class Layout(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LAYOUT_UNSPECIFIED: _ClassVar[Layout]
    LAYOUT_NCHW: _ClassVar[Layout]
    LAYOUT_NHWC: _ClassVar[Layout]

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_CLASSIFICATION: _ClassVar[Task]
    TASK_MULTILABEL: _ClassVar[Task]
    TASK_REGRESSION: _ClassVar[Task]
    TASK_SEGMENTATION: _ClassVar[Task]
    TASK_SEQUENCE_LABELLING: _ClassVar[Task]
    TASK_LANGUAGE_MODELLING: _ClassVar[Task]
    TASK_EMBEDDING: _ClassVar[Task]
    TASK_AGREEMENT: _ClassVar[Task]

class Loss(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOSS_UNSPECIFIED: _ClassVar[Loss]
    LOSS_CROSS_ENTROPY: _ClassVar[Loss]
    LOSS_BCE_WITH_LOGITS: _ClassVar[Loss]
    LOSS_MSE: _ClassVar[Loss]
    LOSS_L1: _ClassVar[Loss]
GRANULARITY_UNSPECIFIED: Granularity
GRANULARITY_WEIGHT: Granularity
GRANULARITY_CHANNEL: Granularity
GRANULARITY_HEAD: Granularity
GRANULARITY_NM: Granularity
SCOPE_UNSPECIFIED: Scope
SCOPE_GLOBAL: Scope
SCOPE_LAYER: Scope
SCOPE_SENSITIVITY: Scope
MULTIPLE_TESTING_CORRECTION_UNSPECIFIED: MultipleTestingCorrection
MULTIPLE_TESTING_CORRECTION_HOLM: MultipleTestingCorrection
MULTIPLE_TESTING_CORRECTION_BENJAMINI_HOCHBERG: MultipleTestingCorrection
ROBUSTNESS_UNSPECIFIED: Robustness
ROBUSTNESS_NONE: Robustness
ROBUSTNESS_OCCLUSION: Robustness
ROBUSTNESS_ALL: Robustness
VERDICT_UNSPECIFIED: Verdict
VERDICT_PASS: Verdict
VERDICT_FAIL: Verdict
VERDICT_INCONCLUSIVE: Verdict
LAYOUT_UNSPECIFIED: Layout
LAYOUT_NCHW: Layout
LAYOUT_NHWC: Layout
TASK_UNSPECIFIED: Task
TASK_CLASSIFICATION: Task
TASK_MULTILABEL: Task
TASK_REGRESSION: Task
TASK_SEGMENTATION: Task
TASK_SEQUENCE_LABELLING: Task
TASK_LANGUAGE_MODELLING: Task
TASK_EMBEDDING: Task
TASK_AGREEMENT: Task
LOSS_UNSPECIFIED: Loss
LOSS_CROSS_ENTROPY: Loss
LOSS_BCE_WITH_LOGITS: Loss
LOSS_MSE: Loss
LOSS_L1: Loss

class PruningSpec(_message.Message):
    __slots__ = ("model", "validation", "train", "static", "dynamic", "conditional", "threshold", "sparsity", "macs_ratio", "latency_ratio", "parameter_ratio", "max_accuracy_drop", "device", "fine_tune", "recovery", "evaluation", "preprocessing", "task", "loss", "loss_module", "arguments", "output_selector", "method_samples", "exclude_layers", "seed", "limits", "timeout", "dynamic_axes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    STATIC_FIELD_NUMBER: _ClassVar[int]
    DYNAMIC_FIELD_NUMBER: _ClassVar[int]
    CONDITIONAL_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    SPARSITY_FIELD_NUMBER: _ClassVar[int]
    MACS_RATIO_FIELD_NUMBER: _ClassVar[int]
    LATENCY_RATIO_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_RATIO_FIELD_NUMBER: _ClassVar[int]
    MAX_ACCURACY_DROP_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    FINE_TUNE_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LOSS_MODULE_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SELECTOR_FIELD_NUMBER: _ClassVar[int]
    METHOD_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    DYNAMIC_AXES_FIELD_NUMBER: _ClassVar[int]
    model: ArtifactSource
    validation: ArtifactSource
    train: ArtifactSource
    static: StaticStrategy
    dynamic: DynamicStrategy
    conditional: ConditionalStrategy
    threshold: float
    sparsity: float
    macs_ratio: float
    latency_ratio: float
    parameter_ratio: float
    max_accuracy_drop: float
    device: str
    fine_tune: FineTune
    recovery: Recovery
    evaluation: Evaluation
    preprocessing: Preprocessing
    task: Task
    loss: Loss
    loss_module: ArtifactSource
    arguments: _containers.RepeatedCompositeFieldContainer[ScalarArgument]
    output_selector: str
    method_samples: _containers.RepeatedCompositeFieldContainer[MethodSamples]
    exclude_layers: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    limits: Limits
    timeout: _duration_pb2.Duration
    dynamic_axes: _containers.RepeatedCompositeFieldContainer[DynamicAxes]
    def __init__(self, model: _Optional[_Union[ArtifactSource, _Mapping]] = ..., validation: _Optional[_Union[ArtifactSource, _Mapping]] = ..., train: _Optional[_Union[ArtifactSource, _Mapping]] = ..., static: _Optional[_Union[StaticStrategy, _Mapping]] = ..., dynamic: _Optional[_Union[DynamicStrategy, _Mapping]] = ..., conditional: _Optional[_Union[ConditionalStrategy, _Mapping]] = ..., threshold: _Optional[float] = ..., sparsity: _Optional[float] = ..., macs_ratio: _Optional[float] = ..., latency_ratio: _Optional[float] = ..., parameter_ratio: _Optional[float] = ..., max_accuracy_drop: _Optional[float] = ..., device: _Optional[str] = ..., fine_tune: _Optional[_Union[FineTune, _Mapping]] = ..., recovery: _Optional[_Union[Recovery, _Mapping]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., preprocessing: _Optional[_Union[Preprocessing, _Mapping]] = ..., task: _Optional[_Union[Task, str]] = ..., loss: _Optional[_Union[Loss, str]] = ..., loss_module: _Optional[_Union[ArtifactSource, _Mapping]] = ..., arguments: _Optional[_Iterable[_Union[ScalarArgument, _Mapping]]] = ..., output_selector: _Optional[str] = ..., method_samples: _Optional[_Iterable[_Union[MethodSamples, _Mapping]]] = ..., exclude_layers: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., dynamic_axes: _Optional[_Iterable[_Union[DynamicAxes, _Mapping]]] = ...) -> None: ...

class ArtifactSource(_message.Message):
    __slots__ = ("artifact_id", "uri", "sha256")
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    artifact_id: str
    uri: str
    sha256: str
    def __init__(self, artifact_id: _Optional[str] = ..., uri: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class NmPattern(_message.Message):
    __slots__ = ("n", "m")
    N_FIELD_NUMBER: _ClassVar[int]
    M_FIELD_NUMBER: _ClassVar[int]
    n: int
    m: int
    def __init__(self, n: _Optional[int] = ..., m: _Optional[int] = ...) -> None: ...

class StaticStrategy(_message.Message):
    __slots__ = ("granularity", "nm_pattern", "criterion", "scope", "include_biases", "include_norms", "channels")
    GRANULARITY_FIELD_NUMBER: _ClassVar[int]
    NM_PATTERN_FIELD_NUMBER: _ClassVar[int]
    CRITERION_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_BIASES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_NORMS_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    granularity: Granularity
    nm_pattern: NmPattern
    criterion: str
    scope: Scope
    include_biases: bool
    include_norms: bool
    channels: ChannelConstraints
    def __init__(self, granularity: _Optional[_Union[Granularity, str]] = ..., nm_pattern: _Optional[_Union[NmPattern, _Mapping]] = ..., criterion: _Optional[str] = ..., scope: _Optional[_Union[Scope, str]] = ..., include_biases: bool = ..., include_norms: bool = ..., channels: _Optional[_Union[ChannelConstraints, _Mapping]] = ...) -> None: ...

class ChannelConstraints(_message.Message):
    __slots__ = ("min_channels", "multiple")
    MIN_CHANNELS_FIELD_NUMBER: _ClassVar[int]
    MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    min_channels: int
    multiple: int
    def __init__(self, min_channels: _Optional[int] = ..., multiple: _Optional[int] = ...) -> None: ...

class DynamicStrategy(_message.Message):
    __slots__ = ("granularity", "nm_pattern", "criterion", "scope", "schedule", "continue_from_job_id", "inference_gate", "channels")
    GRANULARITY_FIELD_NUMBER: _ClassVar[int]
    NM_PATTERN_FIELD_NUMBER: _ClassVar[int]
    CRITERION_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FROM_JOB_ID_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_GATE_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    granularity: Granularity
    nm_pattern: NmPattern
    criterion: str
    scope: Scope
    schedule: str
    continue_from_job_id: str
    inference_gate: bool
    channels: ChannelConstraints
    def __init__(self, granularity: _Optional[_Union[Granularity, str]] = ..., nm_pattern: _Optional[_Union[NmPattern, _Mapping]] = ..., criterion: _Optional[str] = ..., scope: _Optional[_Union[Scope, str]] = ..., schedule: _Optional[str] = ..., continue_from_job_id: _Optional[str] = ..., inference_gate: bool = ..., channels: _Optional[_Union[ChannelConstraints, _Mapping]] = ...) -> None: ...

class ConditionalStrategy(_message.Message):
    __slots__ = ("granularity", "condition", "risk", "margin", "correction", "channels")
    GRANULARITY_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    RISK_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    granularity: Granularity
    condition: str
    risk: RiskCondition
    margin: float
    correction: MultipleTestingCorrection
    channels: ChannelConstraints
    def __init__(self, granularity: _Optional[_Union[Granularity, str]] = ..., condition: _Optional[str] = ..., risk: _Optional[_Union[RiskCondition, _Mapping]] = ..., margin: _Optional[float] = ..., correction: _Optional[_Union[MultipleTestingCorrection, str]] = ..., channels: _Optional[_Union[ChannelConstraints, _Mapping]] = ...) -> None: ...

class RiskCondition(_message.Message):
    __slots__ = ("max_loss", "error_probability")
    MAX_LOSS_FIELD_NUMBER: _ClassVar[int]
    ERROR_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    max_loss: float
    error_probability: float
    def __init__(self, max_loss: _Optional[float] = ..., error_probability: _Optional[float] = ...) -> None: ...

class FineTune(_message.Message):
    __slots__ = ("epochs", "learning_rate", "batch_size", "weight_decay", "dropout")
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    epochs: int
    learning_rate: float
    batch_size: int
    weight_decay: float
    dropout: float
    def __init__(self, epochs: _Optional[int] = ..., learning_rate: _Optional[float] = ..., batch_size: _Optional[int] = ..., weight_decay: _Optional[float] = ..., dropout: _Optional[float] = ...) -> None: ...

class Recovery(_message.Message):
    __slots__ = ("disabled",)
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    disabled: bool
    def __init__(self, disabled: bool = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("margin", "confidence_level", "required_verdict", "split", "latency_batch_size", "batch_size", "robustness", "include_samples")
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_VERDICT_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    LATENCY_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    ROBUSTNESS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    margin: float
    confidence_level: float
    required_verdict: Verdict
    split: SplitFractions
    latency_batch_size: int
    batch_size: int
    robustness: Robustness
    include_samples: bool
    def __init__(self, margin: _Optional[float] = ..., confidence_level: _Optional[float] = ..., required_verdict: _Optional[_Union[Verdict, str]] = ..., split: _Optional[_Union[SplitFractions, _Mapping]] = ..., latency_batch_size: _Optional[int] = ..., batch_size: _Optional[int] = ..., robustness: _Optional[_Union[Robustness, str]] = ..., include_samples: bool = ...) -> None: ...

class SplitFractions(_message.Message):
    __slots__ = ("fit", "select", "report", "calibrate")
    FIT_FIELD_NUMBER: _ClassVar[int]
    SELECT_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    CALIBRATE_FIELD_NUMBER: _ClassVar[int]
    fit: float
    select: float
    report: float
    calibrate: float
    def __init__(self, fit: _Optional[float] = ..., select: _Optional[float] = ..., report: _Optional[float] = ..., calibrate: _Optional[float] = ...) -> None: ...

class Preprocessing(_message.Message):
    __slots__ = ("scale", "mean", "std", "layout")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    scale: float
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    layout: Layout
    def __init__(self, scale: _Optional[float] = ..., mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ..., layout: _Optional[_Union[Layout, str]] = ...) -> None: ...

class ScalarArgument(_message.Message):
    __slots__ = ("position", "int_value", "float_value", "bool_value", "string_value")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INT_VALUE_FIELD_NUMBER: _ClassVar[int]
    FLOAT_VALUE_FIELD_NUMBER: _ClassVar[int]
    BOOL_VALUE_FIELD_NUMBER: _ClassVar[int]
    STRING_VALUE_FIELD_NUMBER: _ClassVar[int]
    position: int
    int_value: int
    float_value: float
    bool_value: bool
    string_value: str
    def __init__(self, position: _Optional[int] = ..., int_value: _Optional[int] = ..., float_value: _Optional[float] = ..., bool_value: bool = ..., string_value: _Optional[str] = ...) -> None: ...

class DynamicAxes(_message.Message):
    __slots__ = ("input", "axes")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    input: int
    axes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, input: _Optional[int] = ..., axes: _Optional[_Iterable[int]] = ...) -> None: ...

class MethodSamples(_message.Message):
    __slots__ = ("method", "samples")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    method: str
    samples: ArtifactSource
    def __init__(self, method: _Optional[str] = ..., samples: _Optional[_Union[ArtifactSource, _Mapping]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("memory_bytes", "max_attempts", "priority")
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    max_attempts: int
    priority: int
    def __init__(self, memory_bytes: _Optional[int] = ..., max_attempts: _Optional[int] = ..., priority: _Optional[int] = ...) -> None: ...
