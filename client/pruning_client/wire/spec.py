"""The pruning request, to the wire and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pruning_api.v1 import spec_pb2
from pruning_client.errors import BadInputError
from pruning_client.spec import (
    ChannelConstraints,
    Conditional,
    Dynamic,
    Granularity,
    LatencyRatio,
    Layout,
    Loss,
    MacsRatio,
    MaxAccuracyDrop,
    MultipleTestingCorrection,
    NmPattern,
    ParameterRatio,
    Preprocessing,
    RemoteFile,
    Risk,
    Robustness,
    ScalarValue,
    Scope,
    Source,
    Sparsity,
    SplitFractions,
    Static,
    StoredArtifact,
    Strategy,
    Submission,
    Target,
    Task,
    Threshold,
    Verdict,
)
from pruning_client.wire.common import duration_to_wire, enum_from_wire, enum_to_wire, seconds_from_wire

_TARGET_BY_FIELD: dict[str, type[Target]] = {
    "threshold": Threshold,
    "sparsity": Sparsity,
    "macs_ratio": MacsRatio,
    "latency_ratio": LatencyRatio,
    "parameter_ratio": ParameterRatio,
    "max_accuracy_drop": MaxAccuracyDrop,
}
_FIELD_BY_TARGET = {kind: name for name, kind in _TARGET_BY_FIELD.items()}


def target_name(target: Target) -> str:
    """Returns the target's name on the wire, e.g. `macs_ratio`."""
    return _FIELD_BY_TARGET[type(target)]


def strategy_name(strategy: Strategy) -> str:
    """Returns the strategy's name on the wire: `static`, `dynamic` or `conditional`."""
    return type(strategy).__name__.lower()


# --- To the wire ------------------------------------------------------------------------------------------------------


def spec_to_wire(submission: Submission) -> spec_pb2.PruningSpec:
    """Returns the message; every source must be stored already.

    Raises:
        BadInputError: a value does not fit its field, e.g. a negative number of epochs.
    """
    try:
        return _spec_to_wire(submission)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInputError(f"the request has a value that does not fit its field: {error}") from error


def source_to_wire(source: Source) -> spec_pb2.ArtifactSource:
    """Returns the message of a source that is stored already.

    Raises:
        BadInputError: it is a path, which must be uploaded first.
    """
    if isinstance(source, StoredArtifact):
        return spec_pb2.ArtifactSource(artifact_id=source.artifact_id, sha256=source.sha256)
    if isinstance(source, RemoteFile):
        return spec_pb2.ArtifactSource(uri=source.uri, sha256=source.sha256)
    raise BadInputError(f"{source} must be uploaded before it can be named in a request")


def _spec_to_wire(s: Submission) -> spec_pb2.PruningSpec:
    spec = spec_pb2.PruningSpec(
        model=source_to_wire(s.model),
        validation=source_to_wire(s.validation),
        device=s.device,
        fine_tune=_fine_tune_to_wire(s),
        recovery=spec_pb2.Recovery(disabled=not s.recovery),
        evaluation=_evaluation_to_wire(s),
        preprocessing=_preprocessing_to_wire(s.preprocessing),
        task=enum_to_wire(spec_pb2.Task, "TASK", Task, s.task),
        arguments=[argument_to_wire(position, value) for position, value in s.arguments.items()],
        output_selector=s.output_selector,
        method_samples=[
            spec_pb2.MethodSamples(method=method, samples=source_to_wire(source))
            for method, source in s.method_samples.items()
        ],
        exclude_layers=s.exclude_layers,
        seed=s.seed,
        limits=spec_pb2.Limits(
            memory_bytes=s.memory_limit_bytes or 0, max_attempts=s.max_attempts or 0, priority=s.priority
        ),
        timeout=None if s.timeout_seconds is None else duration_to_wire(s.timeout_seconds),
        dynamic_axes=axes_to_wire(s.dynamic_axes),
    )
    if s.train is not None:
        spec.train.CopyFrom(source_to_wire(s.train))
    if isinstance(s.loss, Loss) or (isinstance(s.loss, str) and s.loss in set(Loss)):
        spec.loss = enum_to_wire(spec_pb2.Loss, "LOSS", Loss, s.loss)
    elif s.loss is not None:
        spec.loss_module.CopyFrom(source_to_wire(s.loss))
    if s.target is not None:
        setattr(spec, target_name(s.target), s.target.value)
    getattr(spec, strategy_name(s.strategy)).CopyFrom(_strategy_to_wire(s.strategy))
    return spec


def _fine_tune_to_wire(s: Submission) -> spec_pb2.FineTune:
    return spec_pb2.FineTune(
        epochs=s.epochs,
        learning_rate=s.learning_rate,
        batch_size=s.fine_tune_batch_size or 0,
        weight_decay=s.weight_decay,
        dropout=s.dropout,
    )


def _evaluation_to_wire(s: Submission) -> spec_pb2.Evaluation:
    split = s.split
    return spec_pb2.Evaluation(
        margin=s.margin,
        confidence_level=s.confidence_level or 0.0,
        required_verdict=enum_to_wire(spec_pb2.Verdict, "VERDICT", Verdict, s.required_verdict),
        split=None
        if split is None
        else spec_pb2.SplitFractions(
            fit=split.fit, select=split.select, report=split.report, calibrate=split.calibrate
        ),
        latency_batch_size=s.latency_batch_size or 0,
        batch_size=s.evaluation_batch_size or 0,
        robustness=enum_to_wire(spec_pb2.Robustness, "ROBUSTNESS", Robustness, s.robustness),
        # Absent, as an older client sends it, where nothing is asked.
        **({} if s.include_samples else {"include_samples": False}),
    )


def _preprocessing_to_wire(p: Preprocessing) -> spec_pb2.Preprocessing:
    return spec_pb2.Preprocessing(
        scale=p.scale or 0.0,
        mean=p.mean,
        std=p.std,
        layout=enum_to_wire(spec_pb2.Layout, "LAYOUT", Layout, p.layout),
    )


def _granularity_to_wire(granularity: Granularity | str | None) -> Any:
    return enum_to_wire(spec_pb2.Granularity, "GRANULARITY", Granularity, granularity)


def _channels_to_wire(c: ChannelConstraints) -> spec_pb2.ChannelConstraints:
    return spec_pb2.ChannelConstraints(min_channels=c.min_channels or 0, multiple=c.multiple or 0)


def _strategy_to_wire(strategy: Strategy) -> Any:
    common: dict[str, Any] = {
        "granularity": _granularity_to_wire(strategy.granularity),
        "channels": _channels_to_wire(strategy.channels),
    }
    if isinstance(strategy, Conditional):
        return _conditional_to_wire(strategy, common)
    pattern = strategy.nm_pattern
    common |= {
        "nm_pattern": None if pattern is None else spec_pb2.NmPattern(n=pattern.n, m=pattern.m),
        "criterion": strategy.criterion,
        "scope": enum_to_wire(spec_pb2.Scope, "SCOPE", Scope, strategy.scope),
    }
    if isinstance(strategy, Static):
        return spec_pb2.StaticStrategy(
            include_biases=strategy.include_biases, include_norms=strategy.include_norms, **common
        )
    return spec_pb2.DynamicStrategy(
        schedule=strategy.schedule,
        continue_from_job_id=strategy.continue_from_job_id,
        inference_gate=strategy.inference_gate,
        **common,
    )


def _conditional_to_wire(strategy: Conditional, common: dict[str, Any]) -> spec_pb2.ConditionalStrategy:
    message = spec_pb2.ConditionalStrategy(
        margin=strategy.margin or 0.0,
        correction=enum_to_wire(
            spec_pb2.MultipleTestingCorrection,
            "MULTIPLE_TESTING_CORRECTION",
            MultipleTestingCorrection,
            strategy.correction,
        ),
        **common,
    )
    if strategy.condition and strategy.risk is not None:
        raise BadInputError("a conditional strategy takes a condition or a risk, not both")
    if strategy.risk is not None:
        message.risk.max_loss = strategy.risk.max_loss
        message.risk.error_probability = strategy.risk.error_probability
    else:
        message.condition = strategy.condition
    return message


def axes_to_wire(axes: Mapping[int, Iterable[int]]) -> list[spec_pb2.DynamicAxes]:
    """Returns the axes that may have any length, by input."""
    return [spec_pb2.DynamicAxes(input=position, axes=found) for position, found in axes.items()]


def argument_to_wire(position: int, value: ScalarValue) -> spec_pb2.ScalarArgument:
    """Returns a scalar argument; the Python type of `value` decides its type on the wire."""
    message = spec_pb2.ScalarArgument(position=position)
    if isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int):
        message.int_value = value
    elif isinstance(value, float):
        message.float_value = value
    else:
        message.string_value = value
    return message


# --- From the wire ----------------------------------------------------------------------------------------------------


def spec_from_wire(spec: spec_pb2.PruningSpec) -> Submission:
    """Returns the request as a value that can be submitted again."""
    tune, judged, limits = spec.fine_tune, spec.evaluation, spec.limits
    target = spec.WhichOneof("target")
    return Submission(
        model=_source_from_wire(spec.model),
        validation=_source_from_wire(spec.validation),
        strategy=_strategy_from_wire(spec),
        target=None if target is None else _TARGET_BY_FIELD[target](getattr(spec, target)),
        train=_source_from_wire(spec.train) if spec.HasField("train") else None,
        device=spec.device or "auto",
        epochs=tune.epochs if tune.HasField("epochs") else None,
        learning_rate=tune.learning_rate if tune.HasField("learning_rate") else None,
        fine_tune_batch_size=tune.batch_size or None,
        weight_decay=tune.weight_decay,
        dropout=tune.dropout if tune.HasField("dropout") else None,
        recovery=not spec.recovery.disabled,
        margin=judged.margin if judged.HasField("margin") else None,
        confidence_level=judged.confidence_level or None,
        required_verdict=enum_from_wire(spec_pb2.Verdict, "VERDICT", Verdict, judged.required_verdict),
        split=_split_from_wire(judged.split) if judged.HasField("split") else None,
        latency_batch_size=judged.latency_batch_size or None,
        evaluation_batch_size=judged.batch_size or None,
        robustness=enum_from_wire(spec_pb2.Robustness, "ROBUSTNESS", Robustness, judged.robustness),
        include_samples=judged.include_samples if judged.HasField("include_samples") else True,
        preprocessing=_preprocessing_from_wire(spec.preprocessing),
        task=enum_from_wire(spec_pb2.Task, "TASK", Task, spec.task),
        loss=_loss_from_wire(spec),
        arguments={a.position: _argument_from_wire(a) for a in spec.arguments},
        output_selector=spec.output_selector,
        method_samples={m.method: _source_from_wire(m.samples) for m in spec.method_samples},
        exclude_layers=tuple(spec.exclude_layers),
        seed=spec.seed,
        memory_limit_bytes=limits.memory_bytes or None,
        max_attempts=limits.max_attempts or None,
        priority=limits.priority,
        timeout_seconds=seconds_from_wire(spec, "timeout"),
        dynamic_axes={one.input: tuple(one.axes) for one in spec.dynamic_axes},
    )


def _source_from_wire(source: spec_pb2.ArtifactSource) -> StoredArtifact | RemoteFile:
    if source.WhichOneof("source") == "uri":
        return RemoteFile(source.uri, source.sha256)
    return StoredArtifact(source.artifact_id, source.sha256)


def _loss_from_wire(spec: spec_pb2.PruningSpec) -> Loss | StoredArtifact | RemoteFile | None:
    if spec.HasField("loss_module"):
        return _source_from_wire(spec.loss_module)
    return enum_from_wire(spec_pb2.Loss, "LOSS", Loss, spec.loss)


def _split_from_wire(split: spec_pb2.SplitFractions) -> SplitFractions | None:
    if not (split.fit or split.select or split.report or split.calibrate):
        return None
    return SplitFractions(fit=split.fit, select=split.select, report=split.report, calibrate=split.calibrate)


def _preprocessing_from_wire(p: spec_pb2.Preprocessing) -> Preprocessing:
    return Preprocessing(
        scale=p.scale or None,
        mean=tuple(p.mean),
        std=tuple(p.std),
        layout=enum_from_wire(spec_pb2.Layout, "LAYOUT", Layout, p.layout),
    )


def _argument_from_wire(argument: spec_pb2.ScalarArgument) -> ScalarValue:
    name = argument.WhichOneof("value")
    return "" if name is None else getattr(argument, name)


def granularity_from_wire(number: int) -> Granularity | None:
    """Returns the granularity; None for unspecified and for what a newer server may send."""
    return enum_from_wire(spec_pb2.Granularity, "GRANULARITY", Granularity, number)


def _scope_from_wire(number: int) -> Scope | None:
    return enum_from_wire(spec_pb2.Scope, "SCOPE", Scope, number)


def _channels_from_wire(c: spec_pb2.ChannelConstraints) -> ChannelConstraints:
    return ChannelConstraints(min_channels=c.min_channels or None, multiple=c.multiple or None)


def _pattern_from_wire(message: Any) -> NmPattern | None:
    return NmPattern(message.nm_pattern.n, message.nm_pattern.m) if message.HasField("nm_pattern") else None


def _strategy_from_wire(spec: spec_pb2.PruningSpec) -> Strategy:
    kind = spec.WhichOneof("strategy")
    if kind == "conditional":
        return _conditional_from_wire(spec.conditional)
    if kind == "dynamic":
        d = spec.dynamic
        return Dynamic(
            granularity=granularity_from_wire(d.granularity),
            nm_pattern=_pattern_from_wire(d),
            criterion=d.criterion,
            scope=_scope_from_wire(d.scope) or Scope.GLOBAL,
            schedule=d.schedule,
            continue_from_job_id=d.continue_from_job_id,
            inference_gate=d.inference_gate,
            channels=_channels_from_wire(d.channels),
        )
    s = spec.static
    return Static(
        granularity=granularity_from_wire(s.granularity) or Granularity.WEIGHT,
        nm_pattern=_pattern_from_wire(s),
        criterion=s.criterion,
        scope=_scope_from_wire(s.scope),
        include_biases=s.include_biases,
        include_norms=s.include_norms,
        channels=_channels_from_wire(s.channels),
    )


def _conditional_from_wire(c: spec_pb2.ConditionalStrategy) -> Conditional:
    has_risk = c.WhichOneof("rule") == "risk"
    return Conditional(
        condition=c.condition,
        risk=Risk(c.risk.max_loss, c.risk.error_probability) if has_risk else None,
        granularity=granularity_from_wire(c.granularity),
        margin=c.margin or None,
        correction=enum_from_wire(
            spec_pb2.MultipleTestingCorrection,
            "MULTIPLE_TESTING_CORRECTION",
            MultipleTestingCorrection,
            c.correction,
        ),
        channels=_channels_from_wire(c.channels),
    )
