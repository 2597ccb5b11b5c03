"""Protobuf to values and back: total both ways."""

from __future__ import annotations

import math

import pytest
from google.protobuf import descriptor_pool
from hypothesis import given
from hypothesis import strategies as st

from helpers.specs import good_spec, pruning_specs
from pruning_api.v1 import artifact_service_pb2, pruning_job_pb2, pruning_job_service_pb2, spec_pb2
from pruning_server.errors import InvalidRequestError, Reason
from pruning_server.jobs.events import Event, LogEvent, ProgressEvent, Severity, Snapshot, StateEvent
from pruning_server.jobs.model import Failure, Job, JobState, Progress, Result
from pruning_server.jobs.ports import Artifact
from pruning_server.service import converters_common as common
from pruning_server.service.converters_artifacts import artifact_to_wire
from pruning_server.service.converters_common import ALL_TABLES, duration, seconds_of, timestamp
from pruning_server.service.converters_jobs import (
    event_to_wire,
    heartbeat_to_wire,
    job_to_wire,
    progress_to_wire,
    snapshot_to_wire,
)
from pruning_server.service.converters_spec import spec_from_wire, spec_to_wire
from pruning_server.service.converters_strategy import strategy_from_wire
from pruning_server.spec.artifacts import ArtifactKind
from pruning_server.spec.phases import Phase
from pruning_server.spec.problems import invalid
from pruning_server.spec.request import Granularity, PruningSpec, Scope, StaticStrategy, Target, TargetKind, Verdict

FILES = (artifact_service_pb2, pruning_job_service_pb2, pruning_job_pb2, spec_pb2)
# An artifact is either whole or not: the value says so with a bool.
WITHOUT_TABLE = {"ArtifactState"}


def wire_enums() -> dict[str, set[str]]:
    """Every enum of the package, with its names but for the unspecified one."""
    pool, found = descriptor_pool.Default(), {}
    for name in ("artifact", "artifact_service", "pruning_job", "pruning_job_service", "spec"):
        for enum_name, enum in pool.FindFileByName(f"pruning_api/v1/{name}.proto").enum_types_by_name.items():
            found[enum_name] = {value.name for value in enum.values if value.number != 0}
    return found


def test_every_enum_of_the_wire_has_a_table() -> None:
    tables = {table.wire.DESCRIPTOR.name for table in ALL_TABLES}
    assert tables == set(wire_enums()) - WITHOUT_TABLE


@pytest.mark.parametrize("table", ALL_TABLES, ids=lambda table: table.wire.DESCRIPTOR.name)
def test_every_member_has_a_number_and_every_number_a_member(table: common.EnumTable) -> None:
    names = wire_enums()[table.wire.DESCRIPTOR.name]
    assert {table.from_wire(table.wire.Value(name)) for name in names} == set(table.kind)
    assert {table.wire.Name(table.to_wire(member)) for member in table.kind} == names
    assert table.from_wire(0) is None
    assert table.to_wire(None) == 0
    with pytest.raises(KeyError):
        table.from_wire(max(table.wire.values()) + 1)


def test_every_target_of_the_wire_has_a_kind() -> None:
    arms = spec_pb2.PruningSpec.DESCRIPTOR.oneofs_by_name["target"].fields
    assert {field.name for field in arms} == set(TargetKind)


def test_every_field_of_the_request_has_a_value() -> None:
    """A field added to the proto must not be ignored in silence."""
    arms = {"static", "dynamic", "conditional", *TargetKind}
    wire = {field.name for field in spec_pb2.PruningSpec.DESCRIPTOR.fields} - arms
    values = set(PruningSpec.__struct_fields__) - {"strategy", "target"}
    assert wire - {"timeout"} == values - {"timeout_seconds"}


@given(pruning_specs)
def test_a_request_survives_the_wire(spec: PruningSpec) -> None:
    message = spec_pb2.PruningSpec.FromString(spec_to_wire(spec).SerializeToString())
    assert spec_from_wire(message) == spec


@given(pruning_specs)
def test_every_default_is_written_out(spec: PruningSpec) -> None:
    """What a caller reads back says what will be done, without knowing the defaults of the server."""
    message = spec_to_wire(spec)
    assert spec_to_wire(spec_from_wire(message)) == message


def test_the_emptiest_request_gets_the_defaults() -> None:
    message = spec_pb2.PruningSpec(
        model=spec_pb2.ArtifactSource(artifact_id="model"),
        validation=spec_pb2.ArtifactSource(artifact_id="validation"),
        static=spec_pb2.StaticStrategy(),
        sparsity=0.5,
    )
    assert spec_from_wire(message) == good_spec()


@pytest.mark.parametrize(
    ("condition", "asked", "granularity"),
    [
        ("apoz > 0.9", spec_pb2.GRANULARITY_UNSPECIFIED, Granularity.CHANNEL),
        ("apoz > 0.9", spec_pb2.GRANULARITY_WEIGHT, Granularity.WEIGHT),
        ("apoz > 0.9", spec_pb2.GRANULARITY_HEAD, Granularity.HEAD),
        ("abs_weight < 0.1", spec_pb2.GRANULARITY_UNSPECIFIED, Granularity.WEIGHT),
        ("not a condition", spec_pb2.GRANULARITY_UNSPECIFIED, Granularity.WEIGHT),
        ("", spec_pb2.GRANULARITY_UNSPECIFIED, Granularity.WEIGHT),
    ],
)
def test_a_condition_says_what_goes_where_the_request_does_not(
    condition: str, asked: spec_pb2.Granularity, granularity: Granularity
) -> None:
    message = spec_to_wire(good_spec())
    message.conditional.condition = condition
    message.conditional.granularity = asked
    assert spec_from_wire(message).strategy.granularity is granularity


def test_zero_is_a_value_where_the_wire_can_tell() -> None:
    message = spec_to_wire(good_spec())
    message.fine_tune.epochs = 0
    message.fine_tune.learning_rate = 0.0
    message.evaluation.margin = 0.0
    spec = spec_from_wire(message)
    assert (spec.fine_tune.epochs, spec.fine_tune.learning_rate, spec.evaluation.margin) == (0, 0.0, 0.0)
    message.sparsity = 0.0
    assert spec_from_wire(message).target == Target(kind=TargetKind.SPARSITY, value=0.0)


def violations(message: spec_pb2.PruningSpec) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        spec_from_wire(message)
    return {violation.field: violation.description for violation in caught.value.violations}


def test_an_empty_request_names_everything_that_is_missing() -> None:
    assert set(violations(spec_pb2.PruningSpec())) == {"spec.model", "spec.validation", "spec.strategy"}


def test_unknown_numbers_and_bad_ranges_are_said_together() -> None:
    message = spec_to_wire(good_spec())
    message.task, message.loss = 77, 78
    message.static.scope, message.static.granularity = 79, 80
    message.evaluation.required_verdict, message.preprocessing.layout = 81, 82
    message.sparsity = 3.0
    message.arguments.add(position=1)
    found = violations(message)
    assert set(found) == {
        "spec.task", "spec.loss", "spec.static.scope", "spec.static.granularity", "spec.evaluation.required_verdict",
        "spec.preprocessing.layout", "spec.sparsity", "spec.arguments[0].value",
    }  # fmt: skip
    assert "77" in found["spec.task"]
    assert "TASK_CLASSIFICATION" in found["spec.task"]


def test_earlier_problems_are_said_too() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        spec_from_wire(spec_to_wire(good_spec(seed=2**63)), [invalid("labels", "are too many")])
    assert [violation.field for violation in caught.value.violations] == ["labels", "spec.seed"]


def test_a_uri_is_carried_with_its_hash() -> None:
    """Whether it may be fetched is not for the converter to say."""
    message = spec_to_wire(good_spec())
    message.train.uri, message.train.sha256 = "https://example.org/train.npz", "ab" * 32
    train = spec_from_wire(message).train
    assert train is not None
    assert (train.artifact_id, train.uri, train.sha256) == ("", "https://example.org/train.npz", "ab" * 32)
    message.train.uri += "x" * 5000
    with pytest.raises(InvalidRequestError) as caught:
        spec_from_wire(message)
    assert caught.value.reason is Reason.URI_DENIED


# --- times ------------------------------------------------------------------------------------------------------------


@given(st.integers(-(2**53), 2**53))
def test_durations_are_exact_to_the_nanosecond_that_a_float_has(nanoseconds: int) -> None:
    seconds = nanoseconds / 1e9
    assert seconds_of(duration(seconds)) == pytest.approx(seconds, abs=1e-9)


def test_durations_beyond_the_wire_are_bounded() -> None:
    assert seconds_of(duration(1e300)) == common.MAX_DURATION_SECONDS
    assert duration(None) is None
    assert timestamp(None) is None
    assert timestamp(1.5).ToNanoseconds() == 1_500_000_000


# --- jobs and artifacts -----------------------------------------------------------------------------------------------


def job(**fields: object) -> Job:
    return Job(
        **{
            "job_id": "j", "owner": "o", "request_id": "r", "spec": good_spec(), "device": "cpu",
            "state": JobState.RUNNING, "attempt": 1, "max_attempts": 3, "create_time": 1.0, **fields,
        }
    )  # fmt: skip


def test_a_whole_job() -> None:
    message = job_to_wire(
        job(
            state=JobState.FAILED,
            start_time=2.0,
            end_time=3.0,
            expire_time=4.0,
            progress=Progress(phase=Phase.RECOVER, fraction=0.5, epoch=2, epochs=9, metrics={"fit_loss": 0.1}),
            failure=Failure(reason=Reason.VERDICT_NOT_REACHED, message="no", phase=Phase.EVALUATE, metadata={"a": "b"}),
            result=Result(model_artifact_id="m", report_artifact_id="p", verdict=Verdict.FAIL, sparsity=0.5),
            labels={"team": "vision"},
            last_sequence=7,
        )
    )
    assert message.state == pruning_job_pb2.JOB_STATE_FAILED
    assert (message.attempt, message.max_attempts, message.request_id) == (1, 3, "r")
    assert [t.seconds for t in (message.create_time, message.start_time, message.end_time, message.expire_time)] == [
        1, 2, 3, 4,
    ]  # fmt: skip
    assert (message.progress.phase, message.progress.epoch, message.progress.epochs) == (6, 2, 9)
    assert dict(message.progress.metrics) == {"fit_loss": 0.1}
    assert not message.progress.HasField("remaining")
    assert (message.failure.reason, message.failure.phase) == ("VERDICT_NOT_REACHED", pruning_job_pb2.PHASE_EVALUATE)
    assert (message.result.verdict, message.result.sparsity) == (spec_pb2.VERDICT_FAIL, 0.5)
    assert dict(message.labels) == {"team": "vision"}
    assert message.spec.static.scope == common.SCOPES.to_wire(Scope.GLOBAL)


def test_what_is_not_there_yet_is_unset() -> None:
    message = job_to_wire(job(state=JobState.QUEUED, attempt=0))
    for name in ("start_time", "end_time", "expire_time", "progress", "failure", "result"):
        assert not message.HasField(name)


def test_progress_that_no_field_can_hold_is_bounded() -> None:
    message = progress_to_wire(
        Progress(phase=Phase.RECOVER, fraction=1.0, epoch=2**70, epochs=2**40, remaining_seconds=1e200)
    )
    assert (message.epoch, message.epochs) == (2**32 - 1, 2**32 - 1)
    assert math.isfinite(seconds_of(message.remaining))


@pytest.mark.parametrize(
    ("payload", "arm"),
    [
        (StateEvent(state=JobState.QUEUED, attempt=1), "state"),
        (StateEvent(state=JobState.FAILED, attempt=1, failure=Failure(reason=Reason.INTERNAL, message="m")), "state"),
        (ProgressEvent(progress=Progress(phase=Phase.LOAD, fraction=0.0)), "progress"),
        (LogEvent(severity=Severity.WARNING, message="careful"), "log"),
    ],
)
def test_events(payload: StateEvent | ProgressEvent | LogEvent, arm: str) -> None:
    message = event_to_wire(Event(job_id="j", sequence=5, time=1.0, payload=payload))
    assert (message.WhichOneof("event"), message.sequence, message.time.seconds) == (arm, 5, 1)


def test_snapshots_and_heartbeats_carry_the_latest_number() -> None:
    snapshot = snapshot_to_wire(Snapshot(job=job(last_sequence=7)), now=9.0)
    assert (snapshot.WhichOneof("event"), snapshot.sequence, snapshot.time.seconds) == ("snapshot", 7, 9)
    heartbeat = heartbeat_to_wire(7, now=9.0)
    assert (heartbeat.WhichOneof("event"), heartbeat.sequence) == ("heartbeat", 7)


def test_an_artifact_does_not_tell_whose_it_is() -> None:
    artifact = Artifact(
        artifact_id="a", owner="somebody", kind=ArtifactKind.DATASET, sha256="0" * 64, size_bytes=9,
        committed_size_bytes=4, active=False, display_name="d", create_time=1.0, expire_time=2.0,
    )  # fmt: skip
    message = artifact_to_wire(artifact)
    assert (message.size_bytes, message.committed_size_bytes) == (9, 4)
    assert common.ARTIFACT_KINDS.from_wire(message.kind) is ArtifactKind.DATASET
    assert b"somebody" not in message.SerializeToString()


def test_a_static_strategy_without_a_criterion_gets_the_default() -> None:
    message = spec_to_wire(good_spec())
    message.static.criterion = ""
    assert spec_from_wire(message).strategy == StaticStrategy()


@pytest.mark.parametrize(
    ("granularity", "target", "expected"),
    [
        ("CHANNEL", {"macs_ratio": 0.5}, Scope.SENSITIVITY),
        ("HEAD", {"sparsity": 0.5}, Scope.SENSITIVITY),
        ("CHANNEL", {"latency_ratio": 0.5}, Scope.SENSITIVITY),
        ("CHANNEL", {"max_accuracy_drop": 0.02}, Scope.GLOBAL),
        ("WEIGHT", {"sparsity": 0.5}, Scope.GLOBAL),
    ],
)
def test_the_scope_that_nobody_named(granularity: str, target: dict[str, float], expected: Scope) -> None:
    static = spec_pb2.StaticStrategy(granularity=spec_pb2.Granularity.Value(f"GRANULARITY_{granularity}"))
    findings = common.Findings()
    found = strategy_from_wire(spec_pb2.PruningSpec(static=static, **target), findings)
    assert isinstance(found, StaticStrategy)
    assert found.scope is expected
