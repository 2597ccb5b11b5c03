"""The pruning request between the wire and its value.

A field that the wire leaves at zero means the default, as the proto states beside each; the value carries the default.
Ranges are not checked here but in `spec.validation`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pruning_api.v1 import spec_pb2
from pruning_server.errors import Reason
from pruning_server.service import converters_common as common
from pruning_server.service.converters_common import Findings
from pruning_server.service.converters_strategy import strategy_from_wire, strategy_to_wire
from pruning_server.spec.problems import Problem, missing, refuse
from pruning_server.spec.request import (
    DEFAULT_CONFIDENCE_LEVEL,
    DEFAULT_LATENCY_BATCH_SIZE,
    DEFAULT_MARGIN,
    ArtifactRef,
    DynamicAxes,
    Evaluation,
    FineTune,
    Limits,
    MethodSamples,
    Preprocessing,
    PruningSpec,
    Recovery,
    Robustness,
    ScalarArgument,
    SplitFractions,
    Target,
    TargetKind,
)
from pruning_server.spec.validation import find_problems

# --- From the wire ----------------------------------------------------------------------------------------------------


def spec_from_wire(message: spec_pb2.PruningSpec, earlier: Iterable[Problem] = ()) -> PruningSpec:
    """Returns the request as a value.

    Args:
        message: as it came.
        earlier: what is wrong with the rest of the call; said together with what is wrong here.

    Raises:
        InvalidRequestError: there are earlier problems, or the message lacks what no value can do without, or has
            numbers that this version does not know. Its violations name also the fields that are out of range.
    """
    findings = Findings()
    for problem in earlier:
        findings.add(problem)
    spec = _spec(message, findings)
    if findings.problems:
        named = {problem.field for problem in findings.problems}
        refuse([*findings.problems, *(problem for problem in find_problems(spec) if problem.field not in named)])
    return spec


def _spec(message: spec_pb2.PruningSpec, findings: Findings) -> PruningSpec:
    target = message.WhichOneof("target")
    return PruningSpec(
        model=source_from_wire(message.model, "spec.model", findings),
        validation=source_from_wire(message.validation, "spec.validation", findings),
        strategy=strategy_from_wire(message, findings),
        train=_optional_source(message, "train", findings),
        target=None if target is None else Target(kind=TargetKind(target), value=getattr(message, target)),
        device=message.device or "auto",
        fine_tune=_fine_tune(message.fine_tune),
        recovery=Recovery(disabled=message.recovery.disabled),
        evaluation=_evaluation(message.evaluation, findings),
        preprocessing=_preprocessing(message.preprocessing, findings),
        task=findings.member(common.TASKS, message.task, "spec.task"),
        loss=findings.member(common.LOSSES, message.loss, "spec.loss"),
        loss_module=_optional_source(message, "loss_module", findings),
        arguments=tuple(
            argument_from_wire(item, f"spec.arguments[{index}]", findings)
            for index, item in enumerate(message.arguments)
        ),
        output_selector=message.output_selector,
        method_samples=tuple(
            MethodSamples(
                method=item.method,
                samples=source_from_wire(item.samples, f"spec.method_samples[{index}].samples", findings),
            )
            for index, item in enumerate(message.method_samples)
        ),
        exclude_layers=tuple(message.exclude_layers),
        seed=message.seed,
        limits=Limits(
            memory_bytes=message.limits.memory_bytes or None,
            max_attempts=message.limits.max_attempts or None,
            priority=message.limits.priority,
        ),
        timeout_seconds=common.seconds_of(message.timeout) if message.HasField("timeout") else None,
        dynamic_axes=axes_from_wire(message.dynamic_axes),
    )


MAX_URI_CHARACTERS = 4096


def source_from_wire(source: spec_pb2.ArtifactSource, field: str, findings: Findings) -> ArtifactRef:
    """Returns the artifact that a field names, or the file that is to be fetched first."""
    uri = source.uri if source.WhichOneof("source") == "uri" else None
    if uri is not None and len(uri) > MAX_URI_CHARACTERS:
        findings.add(Problem(field, f"the URI is longer than {MAX_URI_CHARACTERS} characters", Reason.URI_DENIED))
    return ArtifactRef(artifact_id=source.artifact_id, sha256=source.sha256 or None, uri=uri)


def _optional_source(message: spec_pb2.PruningSpec, name: str, findings: Findings) -> ArtifactRef | None:
    return source_from_wire(getattr(message, name), f"spec.{name}", findings) if message.HasField(name) else None


def _fine_tune(message: spec_pb2.FineTune) -> FineTune:
    return FineTune(
        epochs=message.epochs if message.HasField("epochs") else None,
        learning_rate=message.learning_rate if message.HasField("learning_rate") else None,
        batch_size=message.batch_size or None,
        weight_decay=message.weight_decay,
        dropout=message.dropout if message.HasField("dropout") else None,
    )


def _evaluation(message: spec_pb2.Evaluation, findings: Findings) -> Evaluation:
    field = "spec.evaluation.required_verdict"
    return Evaluation(
        margin=message.margin if message.HasField("margin") else DEFAULT_MARGIN,
        confidence_level=message.confidence_level or DEFAULT_CONFIDENCE_LEVEL,
        required_verdict=findings.member(common.VERDICTS, message.required_verdict, field),
        split=_split(message.split),
        latency_batch_size=message.latency_batch_size or DEFAULT_LATENCY_BATCH_SIZE,
        batch_size=message.batch_size or None,
        robustness=findings.member(common.ROBUSTNESS, message.robustness, "spec.evaluation.robustness")
        or Robustness.ALL,
        include_samples=message.include_samples if message.HasField("include_samples") else True,
    )


def _split(message: spec_pb2.SplitFractions) -> SplitFractions:
    if not (message.fit or message.select or message.report or message.calibrate):
        return SplitFractions()
    return SplitFractions(fit=message.fit, select=message.select, report=message.report, calibrate=message.calibrate)


def _preprocessing(message: spec_pb2.Preprocessing, findings: Findings) -> Preprocessing:
    return Preprocessing(
        scale=message.scale or None,
        mean=tuple(message.mean),
        std=tuple(message.std),
        layout=findings.member(common.LAYOUTS, message.layout, "spec.preprocessing.layout"),
    )


def axes_from_wire(messages: Iterable[spec_pb2.DynamicAxes]) -> tuple[DynamicAxes, ...]:
    """Returns the axes that may have any length, by input."""
    return tuple(DynamicAxes(input=message.input, axes=tuple(message.axes)) for message in messages)


def argument_from_wire(message: spec_pb2.ScalarArgument, field: str, findings: Findings) -> ScalarArgument:
    """Returns a scalar argument; one without a value becomes a problem."""
    name = message.WhichOneof("value")
    if name is None:
        findings.add(missing(f"{field}.value", "is needed: int, float, bool or string"))
        return ScalarArgument(position=message.position, value=0)
    return ScalarArgument(position=message.position, value=getattr(message, name))


# --- To the wire ------------------------------------------------------------------------------------------------------


def spec_to_wire(spec: PruningSpec) -> spec_pb2.PruningSpec:
    """Returns the message, with every default written out."""
    message = spec_pb2.PruningSpec(
        model=_source_to_wire(spec.model),
        validation=_source_to_wire(spec.validation),
        device=spec.device,
        fine_tune=spec_pb2.FineTune(
            epochs=spec.fine_tune.epochs,
            learning_rate=spec.fine_tune.learning_rate,
            batch_size=spec.fine_tune.batch_size or 0,
            weight_decay=spec.fine_tune.weight_decay,
            dropout=spec.fine_tune.dropout,
        ),
        recovery=spec_pb2.Recovery(disabled=spec.recovery.disabled),
        evaluation=_evaluation_to_wire(spec.evaluation),
        preprocessing=spec_pb2.Preprocessing(
            scale=spec.preprocessing.scale or 0.0,
            mean=spec.preprocessing.mean,
            std=spec.preprocessing.std,
            layout=common.LAYOUTS.to_wire(spec.preprocessing.layout),
        ),
        task=common.TASKS.to_wire(spec.task),
        loss=common.LOSSES.to_wire(spec.loss),
        arguments=[_argument_to_wire(argument) for argument in spec.arguments],
        output_selector=spec.output_selector,
        method_samples=[
            spec_pb2.MethodSamples(method=item.method, samples=_source_to_wire(item.samples))
            for item in spec.method_samples
        ],
        exclude_layers=spec.exclude_layers,
        seed=spec.seed,
        limits=spec_pb2.Limits(
            memory_bytes=spec.limits.memory_bytes or 0,
            max_attempts=spec.limits.max_attempts or 0,
            priority=spec.limits.priority,
        ),
        timeout=common.duration(spec.timeout_seconds),
        dynamic_axes=[spec_pb2.DynamicAxes(input=one.input, axes=one.axes) for one in spec.dynamic_axes],
        **strategy_to_wire(spec.strategy),
    )
    if spec.train is not None:
        message.train.CopyFrom(_source_to_wire(spec.train))
    if spec.loss_module is not None:
        message.loss_module.CopyFrom(_source_to_wire(spec.loss_module))
    if spec.target is not None:
        setattr(message, spec.target.kind.value, spec.target.value)
    return message


def _source_to_wire(ref: ArtifactRef) -> spec_pb2.ArtifactSource:
    return spec_pb2.ArtifactSource(artifact_id=ref.artifact_id, sha256=ref.sha256 or "")


def _evaluation_to_wire(evaluation: Evaluation) -> spec_pb2.Evaluation:
    split = evaluation.split
    return spec_pb2.Evaluation(
        margin=evaluation.margin,
        confidence_level=evaluation.confidence_level,
        required_verdict=common.VERDICTS.to_wire(evaluation.required_verdict),
        split=spec_pb2.SplitFractions(
            fit=split.fit, select=split.select, report=split.report, calibrate=split.calibrate
        ),
        latency_batch_size=evaluation.latency_batch_size,
        batch_size=evaluation.batch_size or 0,
        robustness=common.ROBUSTNESS.to_wire(evaluation.robustness),
        include_samples=evaluation.include_samples,
    )


def _argument_to_wire(argument: ScalarArgument) -> spec_pb2.ScalarArgument:
    value: dict[str, Any]
    match argument.value:
        case bool():
            value = {"bool_value": argument.value}
        case int():
            value = {"int_value": argument.value}
        case float():
            value = {"float_value": argument.value}
        case str():
            value = {"string_value": argument.value}
    return spec_pb2.ScalarArgument(position=argument.position, **value)
