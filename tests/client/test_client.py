"""The SDK against a scripted server: jobs, watching through failures, errors as types."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from helpers.fake_artifacts import status
from helpers.fake_server import FakeServer, failing_run, log_event, progress_event, state_event, succeeding_run
from helpers.quick_client import QUICK
from pruning_api.v1 import pruning_job_pb2 as job_pb
from pruning_client import (
    ERROR_BY_CODE,
    ArtifactKind,
    BadInputError,
    FieldViolation,
    Heartbeat,
    InvalidRequestError,
    JobState,
    LogLine,
    Loss,
    NotFoundError,
    Phase,
    Progress,
    PruningClient,
    PruningClientError,
    ResourceExhaustedError,
    Snapshot,
    Sparsity,
    StateChange,
    Static,
    StoredArtifact,
    Submission,
    TensorSpec,
    UnavailableError,
    UnimplementedError,
    Verdict,
    WaitTimeoutError,
)

Code = grpc.StatusCode


@pytest.fixture
def submission(inputs: Any) -> Submission:
    """A request for a job."""
    return Submission(model=inputs.model, validation=inputs.data, strategy=Static(), target=Sparsity(0.8))


# --- Jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_from_files_to_result(client: PruningClient, submission: Submission, tmp_path: Path) -> None:
    job = client.submit(submission, labels={"team": "vision"})
    assert job.state is JobState.QUEUED
    ended = client.wait(job.job_id)
    assert ended.state is JobState.SUCCEEDED
    assert ended.labels == {"team": "vision"}
    assert ended.result is not None
    assert (ended.result.verdict, ended.result.sparsity) == (Verdict.PASS, 0.8)
    client.download_artifact(ended.result.model_artifact_id, tmp_path / "pruned.pt")
    assert (tmp_path / "pruned.pt").stat().st_size > 0
    assert client.report(ended)["schema_version"] == "1.1"
    kinds = {a.kind for a in client.list_artifacts()}
    assert kinds == {ArtifactKind.TORCHSCRIPT, ArtifactKind.DATASET, ArtifactKind.REPORT}


def test_files_are_sent_once_and_named_by_id(
    client: PruningClient, server: FakeServer, submission: Submission, inputs: Any
) -> None:
    stored = client.store(dataclasses.replace(submission, train=inputs.data))
    assert server.script.count("CreateArtifact") == server.script.count("WriteArtifact") == 2
    assert isinstance(stored.model, StoredArtifact)
    assert stored.validation == stored.train


def test_one_file_as_two_things_is_refused(
    client: PruningClient, server: FakeServer, submission: Submission, inputs: Any
) -> None:
    with pytest.raises(BadInputError, match="given both as"):
        client.store(dataclasses.replace(submission, loss=inputs.model))
    assert server.script.calls == []


def test_a_request_can_be_submitted_again_as_the_server_shows_it(client: PruningClient, submission: Submission) -> None:
    first = client.submit(submission)
    second = client.submit(first.spec)
    assert second.job_id != first.job_id
    assert second.spec == first.spec


def test_the_same_request_id_gives_the_same_job(client: PruningClient, submission: Submission) -> None:
    ids = {client.submit(submission, request_id="11111111-1111-4111-8111-111111111111").job_id for _ in range(3)}
    assert len(ids) == 1


def test_every_submit_has_its_own_request_id(client: PruningClient, server: FakeServer, submission: Submission) -> None:
    assert client.submit(submission).job_id != client.submit(submission).job_id
    requests = [r.request_id for name, r in server.script.calls if name == "CreatePruningJob"]
    assert len(set(requests)) == 2


def test_a_submit_that_is_repeated_after_a_lost_answer_makes_one_job(
    client: PruningClient, server: FakeServer, submission: Submission
) -> None:
    server.script.answer("CreatePruningJob", status(Code.UNAVAILABLE, "DRAINING", "busy"))
    client.submit(submission)
    requests = {r.request_id for name, r in server.script.calls if name == "CreatePruningJob"}
    assert server.script.count("CreatePruningJob") == 2
    assert len(requests) == 1


def test_validate_only_makes_no_job(client: PruningClient, submission: Submission) -> None:
    assert client.submit(submission, validate_only=True).job_id == ""
    assert list(client.list()) == []


@pytest.mark.parametrize("count", [0, 1, 5])
def test_list_goes_over_all_pages(client: PruningClient, submission: Submission, count: int) -> None:
    ids = [client.submit(submission).job_id for _ in range(count)]
    assert [job.job_id for job in client.list(page_size=2)] == ids[::-1]


def test_list_by_state(client: PruningClient, server: FakeServer, submission: Submission) -> None:
    server.jobs.next_run = lambda: failing_run("MODEL_CORRUPT", "broken")
    failed = client.submit(submission)
    server.jobs.next_run = succeeding_run
    client.submit(submission)
    assert [job.job_id for job in client.list(states=[JobState.FAILED])] == [failed.job_id]
    assert list(client.list(states=[JobState.CANCELLED])) == []


def test_cancel_and_delete(client: PruningClient, server: FakeServer, submission: Submission) -> None:
    server.jobs.next_run = lambda: [state_event(job_pb.JOB_STATE_RUNNING)]
    job = client.submit(submission)
    with pytest.raises(PruningClientError) as caught:
        client.delete(job.job_id)
    assert caught.value.reason == "JOB_NOT_TERMINAL"
    client.cancel(job.job_id)
    assert client.wait(job.job_id).state is JobState.CANCELLED
    client.delete(job.job_id)
    with pytest.raises(NotFoundError, match=job.job_id):
        client.get(job.job_id)


def test_a_failed_job_is_an_answer_not_an_error(
    client: PruningClient, server: FakeServer, submission: Submission
) -> None:
    server.jobs.next_run = lambda: failing_run("MODEL_CORRUPT", "the archive is damaged; save it again")
    job = client.wait(client.submit(submission).job_id)
    assert job.state is JobState.FAILED
    assert job.failure is not None
    assert (job.failure.reason, job.failure.phase) == ("MODEL_CORRUPT", Phase.LOAD)
    with pytest.raises(NotFoundError, match="has no report"):
        client.report(job)


def test_server_info_strategies_and_inspection(client: PruningClient, server: FakeServer, inputs: Any) -> None:
    server.jobs.devices = ["cpu", "cuda:0"]
    server.jobs.inspection.layers.add(name="fc", kind="linear", shape=[10, 100], parameters=1000, macs=1000)
    server.jobs.inspection.frozen.add(op="aten::view", source="m.py:1", reason="unknown", layers=["fc"])
    assert [d.name for d in client.server_info().devices] == ["cpu", "cuda:0"]
    assert {s.name: s.available for s in client.list_strategies()} == {
        "static": True, "dynamic": False, "conditional": False,
    }  # fmt: skip
    found = client.inspect(inputs.model, inputs=[TensorSpec((1, 100))], arguments={1: 16000})
    assert (found.layers[0].name, found.layers[0].shape) == ("fc", (10, 100))
    assert found.frozen[0].layers == ("fc",)
    request = server.script.calls[-1][1]
    assert (list(request.inputs[0].shape), request.arguments[0].int_value) == ([1, 100], 16000)


# --- Watching ---------------------------------------------------------------------------------------------------------


def test_a_watch_is_a_snapshot_and_then_every_event(client: PruningClient, submission: Submission) -> None:
    events = list(client.watch(client.submit(submission).job_id))
    assert isinstance(events[0].body, Snapshot)
    assert [e.sequence for e in events[1:]] == list(range(1, 7))
    progress = events[4].body
    assert isinstance(progress, Progress)
    assert (progress.phase, progress.epoch, progress.epochs) == (Phase.RECOVER, 1, 2)
    assert (progress.remaining_seconds, progress.metrics) == (5.0, {"fit_loss": 0.5})
    assert isinstance(events[-1].body, StateChange)


@pytest.mark.parametrize("cuts", [[0], [1], [3], [2, 4], [0, 0, 1, 5], [5]])
def test_a_watch_that_is_cut_loses_and_repeats_nothing(
    client: PruningClient, server: FakeServer, submission: Submission, cuts: list[int | None]
) -> None:
    server.jobs.cut_watch_after = list(cuts)
    numbered = [
        e for e in client.watch(client.submit(submission).job_id) if not isinstance(e.body, Snapshot | Heartbeat)
    ]
    assert [e.sequence for e in numbered] == list(range(1, 7))
    assert server.script.count("WatchPruningJob") == len(cuts) + 1


def test_a_watch_goes_on_after_a_restart_of_the_server(
    client: PruningClient, server: FakeServer, submission: Submission
) -> None:
    server.jobs.next_run = lambda: [state_event(job_pb.JOB_STATE_RUNNING)]
    job = client.submit(submission)
    seen: list[int] = []
    restarted = False
    for event in client.watch(job.job_id):
        if isinstance(event.body, Heartbeat) and not restarted:
            restarted = True
            server.stop()
            server.start()
            server.jobs.emit(job.job_id, progress_event(job_pb.PHASE_LOAD, 0.5))
            server.jobs.emit(job.job_id, state_event(job_pb.JOB_STATE_SUCCEEDED))
        elif not isinstance(event.body, Snapshot | Heartbeat):
            seen.append(event.sequence)
    assert seen == [1, 2, 3]


def test_a_watch_that_ends_before_the_job_is_taken_up_again(
    client: PruningClient, server: FakeServer, submission: Submission
) -> None:
    server.jobs.next_run = lambda: succeeding_run()[:-1]
    server.jobs.end_watch_after = [0, 3, 4]
    job = client.submit(submission)
    seen: list[int] = []
    for event in client.watch(job.job_id):
        if not isinstance(event.body, Snapshot | Heartbeat):
            seen.append(event.sequence)
            if event.sequence == 5:
                server.jobs.emit(job.job_id, state_event(job_pb.JOB_STATE_SUCCEEDED))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert server.script.count("WatchPruningJob") == 4


def test_an_unknown_job_is_not_waited_for(client: PruningClient) -> None:
    with pytest.raises(NotFoundError):
        list(client.watch("job-none"))


def test_wait_gives_up_after_its_time_and_the_job_goes_on(
    client: PruningClient, server: FakeServer, submission: Submission
) -> None:
    server.jobs.next_run = lambda: [state_event(job_pb.JOB_STATE_RUNNING)]
    job = client.submit(submission)
    with pytest.raises(WaitTimeoutError, match="goes on"):
        client.wait(job.job_id, timeout_seconds=0.3)
    assert client.get(job.job_id).state is JobState.RUNNING
    with pytest.raises(TimeoutError):
        client.wait(job.job_id, timeout_seconds=0)


def test_on_event_sees_log_lines(client: PruningClient, server: FakeServer, submission: Submission) -> None:
    server.jobs.next_run = lambda: [log_event("hello"), *succeeding_run()]
    lines: list[str] = []
    client.wait(
        client.submit(submission).job_id,
        on_event=lambda e: lines.append(e.body.message) if isinstance(e.body, LogLine) else None,
    )
    assert lines == ["hello"]


def test_a_silent_server_is_noticed(
    client: PruningClient, server: FakeServer, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruning_client.watching._SILENCE_SECONDS", 0.3)
    job = client.submit(submission)
    release = threading.Event()
    calls: list[int] = []

    def hang_once(request: Any, context: grpc.ServicerContext) -> Any:
        calls.append(1)
        if len(calls) == 1:
            release.wait(10)
        return original(request, context)

    original = server.jobs.WatchPruningJob
    monkeypatch.setattr(server.jobs, "WatchPruningJob", hang_once)
    server.stop()
    server.start()
    assert client.wait(job.job_id).state is JobState.SUCCEEDED
    release.set()
    assert len(calls) == 2


# --- Errors and retries -----------------------------------------------------------------------------------------------


def test_every_code_but_ok_has_its_error() -> None:
    assert set(ERROR_BY_CODE) == set(Code) - {Code.OK}


@pytest.mark.parametrize("code", sorted(ERROR_BY_CODE, key=lambda c: c.name), ids=lambda c: c.name)
def test_an_error_keeps_everything_that_the_server_said(code: Code, client: PruningClient, server: FakeServer) -> None:
    answer = status(
        code, "SOME_REASON", "what to change", violations={"spec.sparsity": "must be below 1"},
        metadata={"k": "v"}, retry_after_seconds=99.0,
    )  # fmt: skip
    server.script.answer("GetPruningJob", *[answer] * 10)
    with pytest.raises(PruningClientError) as caught:
        client.get("job-1")
    error = caught.value
    assert type(error) is ERROR_BY_CODE[code]
    assert (error.reason, error.message, str(error)) == ("SOME_REASON", "what to change", "what to change")
    assert error.violations == (FieldViolation("spec.sparsity", "must be below 1"),)
    assert (error.metadata, error.retry_after_seconds) == ({"k": "v"}, 99.0)
    expected_calls = QUICK.attempts if code is Code.UNAVAILABLE else 1
    assert server.script.count("GetPruningJob") == expected_calls


def test_unavailable_is_tried_again(client: PruningClient, server: FakeServer) -> None:
    server.script.answer("GetServerInfo", *[status(Code.UNAVAILABLE, "DRAINING", "starting")] * (QUICK.attempts - 1))
    assert client.server_info().version == "9.9"


def test_a_full_queue_is_tried_again_when_the_server_says_so(client: PruningClient, server: FakeServer) -> None:
    full = status(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", "100 jobs wait", retry_after_seconds=0.05)
    server.script.answer("GetServerInfo", full)
    assert client.server_info().version == "9.9"


@pytest.mark.parametrize("retry_after_seconds", [None, 60.0])
def test_a_full_queue_is_an_error_where_waiting_does_not_help(
    client: PruningClient, server: FakeServer, retry_after_seconds: float | None
) -> None:
    full = status(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", "100 jobs", retry_after_seconds=retry_after_seconds)
    server.script.answer("GetServerInfo", full)
    with pytest.raises(ResourceExhaustedError, match="100 jobs"):
        client.server_info()
    assert server.script.count("GetServerInfo") == 1


def test_a_server_that_is_not_there(server: FakeServer) -> None:
    server.stop()
    with (
        PruningClient(server.address, retry_policy=QUICK) as client,
        pytest.raises(UnavailableError, match=f"cannot reach a pruning server at {server.address}"),
    ):
        client.server_info()


def test_another_service_at_the_address(client: PruningClient, server: FakeServer) -> None:
    server.script.answer("GetServerInfo", status(Code.UNIMPLEMENTED, "", "Method not found!"))
    with pytest.raises(UnimplementedError, match="does not know this call"):
        client.server_info()


@pytest.mark.parametrize(
    "address", ["", "localhost", "host:", ":50051", "host:0", "host:65536", "http://host:1", "a b:1", "host:port"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(BadInputError, match="HOST:PORT"):
        PruningClient(address)


@pytest.mark.parametrize("address", ["localhost:1", "[::1]:50051", "10.0.0.1:443", "unix:/tmp/x.sock", "a-b.c:80"])
def test_addresses_that_are_some(address: str) -> None:
    PruningClient(address).close()


def test_a_token_is_shown_on_every_call(server: FakeServer, submission: Submission, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-123\n")
    with PruningClient(server.address, token_file=tmp_path / "token", retry_policy=QUICK) as client:
        client.wait(client.submit(submission).job_id)
        client.server_info()
    assert len(server.script.metadata) > 5
    assert all(m.get("authorization") == "Bearer secret-123" for m in server.script.metadata)


@pytest.mark.parametrize("content", ["", "  \n", "two words", "two\nlines", "ü"])
def test_token_files_that_hold_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(BadInputError, match="one token"):
        PruningClient("127.0.0.1:1", token_file=tmp_path / "token")


def test_a_token_does_not_leave_the_machine_in_the_clear(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    with pytest.raises(BadInputError, match="in the clear"):
        PruningClient("example.org:50051", token_file=tmp_path / "token")


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_ca_files_that_are_none(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(BadInputError, match=r"ca\.pem"):
        PruningClient("127.0.0.1:1", tls_ca=tmp_path / "ca.pem")


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": -1}, {"seed": -1}, {"target": Sparsity("many")}, {"task": "guessing"}, {"arguments": {-1: 2}},
        {"arguments": {1: 2**63}}, {"strategy": Static(granularity="atom")},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_fit_no_field(client: PruningClient, submission: Submission, change: dict[str, Any]) -> None:
    with pytest.raises((BadInputError, InvalidRequestError)):
        client.submit(dataclasses.replace(submission, **change))


def test_a_loss_may_be_given_by_name_as_text(client: PruningClient, submission: Submission) -> None:
    job = client.submit(dataclasses.replace(submission, loss="mse"))
    assert job.spec.loss is Loss.MSE
