import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from pruning_api.v1 import pruning_job_pb2 as _pruning_job_pb2
from pruning_api.v1 import spec_pb2 as _spec_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreatePruningJobRequest(_message.Message):
    __slots__ = ("request_id", "spec", "validate_only", "labels", "files_pending")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    FILES_PENDING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    spec: _spec_pb2.PruningSpec
    validate_only: bool
    labels: _containers.ScalarMap[str, str]
    files_pending: bool
    def __init__(self, request_id: _Optional[str] = ..., spec: _Optional[_Union[_spec_pb2.PruningSpec, _Mapping]] = ..., validate_only: bool = ..., labels: _Optional[_Mapping[str, str]] = ..., files_pending: bool = ...) -> None: ...

class CreatePruningJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _pruning_job_pb2.PruningJob
    def __init__(self, job: _Optional[_Union[_pruning_job_pb2.PruningJob, _Mapping]] = ...) -> None: ...

class GetPruningJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class GetPruningJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _pruning_job_pb2.PruningJob
    def __init__(self, job: _Optional[_Union[_pruning_job_pb2.PruningJob, _Mapping]] = ...) -> None: ...

class ListPruningJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "states", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[_pruning_job_pb2.JobState]
    labels: _containers.ScalarMap[str, str]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[_Union[_pruning_job_pb2.JobState, str]]] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListPruningJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[_pruning_job_pb2.PruningJob]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[_pruning_job_pb2.PruningJob, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchPruningJobRequest(_message.Message):
    __slots__ = ("job_id", "after_sequence")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    after_sequence: int
    def __init__(self, job_id: _Optional[str] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class WatchPruningJobResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _pruning_job_pb2.PruningJobEvent
    def __init__(self, event: _Optional[_Union[_pruning_job_pb2.PruningJobEvent, _Mapping]] = ...) -> None: ...

class CancelPruningJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class CancelPruningJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _pruning_job_pb2.PruningJob
    def __init__(self, job: _Optional[_Union[_pruning_job_pb2.PruningJob, _Mapping]] = ...) -> None: ...

class DeletePruningJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class DeletePruningJobResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InspectModelRequest(_message.Message):
    __slots__ = ("model", "samples", "inputs", "arguments", "dynamic_axes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    DYNAMIC_AXES_FIELD_NUMBER: _ClassVar[int]
    model: _spec_pb2.ArtifactSource
    samples: _spec_pb2.ArtifactSource
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    arguments: _containers.RepeatedCompositeFieldContainer[_spec_pb2.ScalarArgument]
    dynamic_axes: _containers.RepeatedCompositeFieldContainer[_spec_pb2.DynamicAxes]
    def __init__(self, model: _Optional[_Union[_spec_pb2.ArtifactSource, _Mapping]] = ..., samples: _Optional[_Union[_spec_pb2.ArtifactSource, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., arguments: _Optional[_Iterable[_Union[_spec_pb2.ScalarArgument, _Mapping]]] = ..., dynamic_axes: _Optional[_Iterable[_Union[_spec_pb2.DynamicAxes, _Mapping]]] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("shape", "dtype")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ...) -> None: ...

class InspectModelResponse(_message.Message):
    __slots__ = ("inputs", "layers", "groups", "frozen", "notes")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    layers: _containers.RepeatedCompositeFieldContainer[LayerInspection]
    groups: _containers.RepeatedCompositeFieldContainer[ChannelGroup]
    frozen: _containers.RepeatedCompositeFieldContainer[FrozenFinding]
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., layers: _Optional[_Iterable[_Union[LayerInspection, _Mapping]]] = ..., groups: _Optional[_Iterable[_Union[ChannelGroup, _Mapping]]] = ..., frozen: _Optional[_Iterable[_Union[FrozenFinding, _Mapping]]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class LayerInspection(_message.Message):
    __slots__ = ("name", "kind", "shape", "parameters", "macs", "group_indices", "min_parameter_ratio")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    GROUP_INDICES_FIELD_NUMBER: _ClassVar[int]
    MIN_PARAMETER_RATIO_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    parameters: int
    macs: int
    group_indices: _containers.RepeatedScalarFieldContainer[int]
    min_parameter_ratio: float
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., parameters: _Optional[int] = ..., macs: _Optional[int] = ..., group_indices: _Optional[_Iterable[int]] = ..., min_parameter_ratio: _Optional[float] = ...) -> None: ...

class ChannelGroup(_message.Message):
    __slots__ = ("channels", "layers")
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    channels: int
    layers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, channels: _Optional[int] = ..., layers: _Optional[_Iterable[str]] = ...) -> None: ...

class FrozenFinding(_message.Message):
    __slots__ = ("op", "source", "reason", "layers")
    OP_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    op: str
    source: str
    reason: str
    layers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, op: _Optional[str] = ..., source: _Optional[str] = ..., reason: _Optional[str] = ..., layers: _Optional[_Iterable[str]] = ...) -> None: ...

class ListStrategiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListStrategiesResponse(_message.Message):
    __slots__ = ("strategies",)
    STRATEGIES_FIELD_NUMBER: _ClassVar[int]
    strategies: _containers.RepeatedCompositeFieldContainer[StrategyInfo]
    def __init__(self, strategies: _Optional[_Iterable[_Union[StrategyInfo, _Mapping]]] = ...) -> None: ...

class StrategyInfo(_message.Message):
    __slots__ = ("name", "summary", "available", "granularities", "targets", "criteria", "schedules", "features")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    GRANULARITIES_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    CRITERIA_FIELD_NUMBER: _ClassVar[int]
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    summary: str
    available: bool
    granularities: _containers.RepeatedScalarFieldContainer[_spec_pb2.Granularity]
    targets: _containers.RepeatedScalarFieldContainer[str]
    criteria: _containers.RepeatedCompositeFieldContainer[CriterionInfo]
    schedules: _containers.RepeatedCompositeFieldContainer[ScheduleInfo]
    features: _containers.RepeatedCompositeFieldContainer[FeatureInfo]
    def __init__(self, name: _Optional[str] = ..., summary: _Optional[str] = ..., available: bool = ..., granularities: _Optional[_Iterable[_Union[_spec_pb2.Granularity, str]]] = ..., targets: _Optional[_Iterable[str]] = ..., criteria: _Optional[_Iterable[_Union[CriterionInfo, _Mapping]]] = ..., schedules: _Optional[_Iterable[_Union[ScheduleInfo, _Mapping]]] = ..., features: _Optional[_Iterable[_Union[FeatureInfo, _Mapping]]] = ...) -> None: ...

class CriterionInfo(_message.Message):
    __slots__ = ("name", "summary", "source", "granularities", "needs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    GRANULARITIES_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    summary: str
    source: str
    granularities: _containers.RepeatedScalarFieldContainer[_spec_pb2.Granularity]
    needs: str
    def __init__(self, name: _Optional[str] = ..., summary: _Optional[str] = ..., source: _Optional[str] = ..., granularities: _Optional[_Iterable[_Union[_spec_pb2.Granularity, str]]] = ..., needs: _Optional[str] = ...) -> None: ...

class ScheduleInfo(_message.Message):
    __slots__ = ("name", "summary", "source", "granularities")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    GRANULARITIES_FIELD_NUMBER: _ClassVar[int]
    name: str
    summary: str
    source: str
    granularities: _containers.RepeatedScalarFieldContainer[_spec_pb2.Granularity]
    def __init__(self, name: _Optional[str] = ..., summary: _Optional[str] = ..., source: _Optional[str] = ..., granularities: _Optional[_Iterable[_Union[_spec_pb2.Granularity, str]]] = ...) -> None: ...

class FeatureInfo(_message.Message):
    __slots__ = ("name", "level", "formula", "source", "cost")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    FORMULA_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    name: str
    level: str
    formula: str
    source: str
    cost: str
    def __init__(self, name: _Optional[str] = ..., level: _Optional[str] = ..., formula: _Optional[str] = ..., source: _Optional[str] = ..., cost: _Optional[str] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "torch_version", "python_version", "devices", "max_artifact_bytes", "queue_capacity_jobs", "max_attempts", "retention", "default_timeout", "sandboxed")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TORCH_VERSION_FIELD_NUMBER: _ClassVar[int]
    PYTHON_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MAX_ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_CAPACITY_JOBS_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    RETENTION_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    SANDBOXED_FIELD_NUMBER: _ClassVar[int]
    version: str
    torch_version: str
    python_version: str
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    max_artifact_bytes: int
    queue_capacity_jobs: int
    max_attempts: int
    retention: _duration_pb2.Duration
    default_timeout: _duration_pb2.Duration
    sandboxed: bool
    def __init__(self, version: _Optional[str] = ..., torch_version: _Optional[str] = ..., python_version: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., max_artifact_bytes: _Optional[int] = ..., queue_capacity_jobs: _Optional[int] = ..., max_attempts: _Optional[int] = ..., retention: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., default_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., sandboxed: bool = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "description", "memory_bytes", "slots")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    memory_bytes: int
    slots: int
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., slots: _Optional[int] = ...) -> None: ...
