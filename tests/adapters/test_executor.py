"""One run, with real processes: every way in which a worker can end has its own outcome, and nothing of it stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from helpers.job_world import OWNER, World
from helpers.processes import command_lines, is_alive, wait_until
from pruning_server.adapters.process import python_command
from pruning_server.errors import InvalidArtifactError, Reason
from pruning_server.jobs.events import (
    CheckPassed,
    CountersAdded,
    LogWritten,
    PhaseFinished,
    PhaseStarted,
    RunSucceeded,
    WorkerAlive,
)
from pruning_server.jobs.ports import RunOutcome
from pruning_server.spec.artifacts import ArtifactKind
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import ArtifactRef, Evaluation, Limits, Verdict


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "data")
    yield world
    world.close()


@pytest.fixture(autouse=True)
def nothing_is_left(world: World) -> Iterator[None]:
    """After every run: no folder, no process."""
    yield
    assert [path for path in world.runs.rglob("*") if path.is_file()] == []
    assert list(world.runs.iterdir()) == []
    wait_until(lambda: command_lines(str(world.folder)) == {}, what="the end of every worker")


def failed(world: World, *behaviours: str, **fields: object) -> RunOutcome:
    outcome, _ = world.run(world.claimed(*behaviours, **fields))
    assert outcome.result is None
    assert outcome.failure is not None
    assert outcome.failure.message
    return outcome


def test_a_good_run_stores_model_and_report_and_passes_the_messages_on(world: World) -> None:
    outcome, messages = world.run(world.claimed())
    assert (outcome.failure, outcome.retryable, outcome.exit_cause) == (None, False, "ok")
    model = world.artifacts.get(OWNER, outcome.result.model_artifact_id)
    report = world.artifacts.get(OWNER, outcome.result.report_artifact_id)
    assert (model.kind, model.active) == (ArtifactKind.TORCHSCRIPT, True)
    assert (report.kind, report.active) == (ArtifactKind.REPORT, True)
    assert world.artifacts.path(model.artifact_id).read_bytes() == b"a model"
    assert model.sha256 in world.artifacts.path(report.artifact_id).read_text()
    assert [message.phase for message in messages if isinstance(message, PhaseFinished)] == list(Phase)
    assert isinstance(messages[-1], RunSucceeded)
    assert any(isinstance(message, CountersAdded) for message in messages)


def test_the_worker_sees_its_folder_and_nothing_of_the_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    job = world.claimed("environment")
    _, messages = world.run(job)
    lines = [message.text for message in messages if isinstance(message, LogWritten)]
    variables = dict(line.split("=", 1) for line in lines if "=" in line and " " not in line.split("=", 1)[0])
    folder = str(world.runs / job.job_id / "1")
    assert variables["HOME"] == variables["TMPDIR"] == folder
    assert variables["CUDA_VISIBLE_DEVICES"] == ""
    assert variables["PYTHONHASHSEED"] == "0"
    assert "AWS_SECRET_ACCESS_KEY" not in variables
    cwd, session, stdin, *_ = lines[-1].split()
    assert (cwd, session, stdin) == (folder, "True", "eof")


@pytest.mark.parametrize(
    ("behaviour", "reason", "cause", "retryable"),
    [
        ("segfault", Reason.WORKER_SIGNAL, "signal", True),
        ("sigkill", Reason.WORKER_LOST, "lost", True),
        ("oom", Reason.WORKER_OUT_OF_MEMORY, "oom", False),
        ("abort", Reason.WORKER_OUT_OF_MEMORY, "oom", False),
        ("raise", Reason.WORKER_EXCEPTION, "exception", False),
        ("exit=0", Reason.WORKER_LOST, "lost", True),
        ("exit=3", Reason.WORKER_EXCEPTION, "exception", False),
        ("refuse", Reason.NOTHING_PRUNABLE, "ok", False),
        ("full_disk", Reason.STORAGE_FULL, "ok", True),
    ],
)
def test_every_way_to_die_is_typed(world: World, behaviour: str, reason: Reason, cause: str, retryable: bool) -> None:
    outcome = failed(world, behaviour)
    assert (outcome.failure.reason, outcome.exit_cause, outcome.retryable) == (reason, cause, retryable)


def test_an_exception_is_told_without_terminal_codes(world: World, caplog: pytest.LogCaptureFixture) -> None:
    failure = failed(world, "raise").failure
    assert "ValueError: broken \\x1b[31m on purpose" in failure.metadata["stderr_tail"]
    assert "\x1b" not in failure.message + failure.metadata["stderr_tail"] + caplog.text
    assert "Traceback" in caplog.text


def test_a_refusal_keeps_its_phase_and_loses_its_control_characters(world: World) -> None:
    failure = failed(world, "refuse").failure
    assert failure.phase is Phase.PLAN
    assert failure.message == "nothing\N{REPLACEMENT CHARACTER} here"


def test_out_of_memory_names_the_limit_and_the_ways_out(world: World) -> None:
    failure = failed(world, "oom").failure
    assert "2.0 GiB" in failure.message
    assert "limits.memory_bytes" in failure.message


def test_a_job_s_own_memory_limit_is_what_its_worker_gets(world: World) -> None:
    failure = failed(world, "eat", limits=Limits(memory_bytes=400 * 2**20)).failure
    assert failure.reason is Reason.WORKER_OUT_OF_MEMORY
    assert "0.4 GiB" in failure.message


@pytest.mark.parametrize("behaviour", ["hang", "stubborn", "grandchild=hang", "silent"])
def test_cancelling_ends_the_worker_and_all_that_it_started(world: World, behaviour: str) -> None:
    cancelled = threading.Event()
    job = world.claimed(behaviour)
    answers: list[RunOutcome] = []
    messages: list[object] = []
    thread = threading.Thread(
        target=lambda: answers.append(world.executor().run(job, "cpu", messages.append, cancelled))
    )
    thread.start()
    wait_until(lambda: any(isinstance(m, WorkerAlive | PhaseStarted) for m in messages), what="the worker's start")
    started = time.monotonic()
    cancelled.set()
    thread.join(10.0)
    assert time.monotonic() - started < 3.0
    assert (answers[0].exit_cause, answers[0].failure.reason) == ("cancelled", Reason.CANCELLED)
    for pid in [int(m.text.split()[1]) for m in messages if isinstance(m, LogWritten)]:
        wait_until(lambda pid=pid: not is_alive(pid), what="the grandchild's end")


def test_a_job_that_was_cancelled_before_its_start_starts_nothing(world: World) -> None:
    cancelled = threading.Event()
    cancelled.set()
    outcome, messages = world.run(world.claimed("hang"), cancelled)
    assert outcome.exit_cause == "cancelled"
    assert messages == []


def test_a_grandchild_that_is_left_behind_dies_and_the_run_succeeds(world: World) -> None:
    outcome, messages = world.run(world.claimed("grandchild"))
    assert outcome.exit_cause == "ok"
    pid = next(int(m.text.split()[1]) for m in messages if isinstance(m, LogWritten))
    wait_until(lambda: not is_alive(pid), what="the grandchild's end")


def test_a_flood_on_stdout_and_stderr_neither_blocks_the_worker_nor_fills_memory(world: World) -> None:
    outcome, _ = world.run(world.claimed("flood=30"))
    assert outcome.exit_cause == "ok"


def test_garbage_among_the_messages_changes_nothing(world: World) -> None:
    outcome, messages = world.run(world.claimed("garbage"))
    assert outcome.exit_cause == "ok"
    assert isinstance(messages[-1], RunSucceeded)


def test_a_crash_after_the_last_word_changes_nothing(world: World) -> None:
    outcome, _ = world.run(world.claimed("crash_late"))
    assert outcome.exit_cause == "ok"
    assert outcome.result is not None


def test_a_worker_that_lingers_after_its_last_word_is_sent_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning_server.adapters.supervisor.FAREWELL_SECONDS", 0.2)
    outcome, _ = world.run(world.claimed("linger"))
    assert outcome.exit_cause == "ok"
    assert outcome.result is not None


@pytest.mark.parametrize("behaviour", ["silent", "broken_pipe"])
def test_a_silent_worker_is_lost(world: World, behaviour: str) -> None:
    world.limits = replace(world.limits, silence_timeout_seconds=0.5)
    outcome = failed(world, behaviour)
    assert (outcome.failure.reason, outcome.exit_cause, outcome.retryable) == (Reason.WORKER_LOST, "lost", True)
    assert "0.5 s" in outcome.failure.message


def test_a_phase_over_its_limit_is_named_with_the_flag_to_raise(world: World) -> None:
    world.limits = replace(world.limits, load_timeout_seconds=0.4)
    outcome = failed(world, "load_forever")
    assert (outcome.failure.reason, outcome.exit_cause) == (Reason.DEADLINE_EXCEEDED, "deadline")
    assert outcome.failure.phase is Phase.LOAD
    assert "--load-timeout" in outcome.failure.message
    assert not outcome.retryable


def test_a_worker_that_never_reaches_its_first_phase_is_ended(world: World) -> None:
    world.limits = replace(world.limits, start_timeout_seconds=0.5)
    outcome = failed(world, "hang")
    assert outcome.failure.reason is Reason.DEADLINE_EXCEEDED
    assert "before its first phase" in outcome.failure.message


def test_the_job_s_own_timeout_ends_it_and_says_so(world: World) -> None:
    started = time.monotonic()
    outcome = failed(world, "hang", timeout_seconds=0.6)
    assert time.monotonic() - started < 5.0
    assert (outcome.failure.reason, outcome.exit_cause) == (Reason.DEADLINE_EXCEEDED, "deadline")
    assert "--timeout" in outcome.failure.message


def test_the_timeout_counts_from_the_job_s_first_start(world: World) -> None:
    job = world.claimed(timeout_seconds=30.0)
    late = msgspec.structs.replace(job, start_time=world.clock.now() - 31.0)
    outcome, messages = world.run(late)
    assert outcome.failure.reason is Reason.DEADLINE_EXCEEDED
    assert messages == []


def test_a_check_that_fails_fails_the_run(world: World) -> None:
    outcome = failed(world, "mismatch")
    assert outcome.failure.reason is Reason.VERIFICATION_FAILED
    assert outcome.failure.phase is Phase.EXPORT


def test_a_check_that_crashes_is_a_death_in_the_export_phase(world: World) -> None:
    outcome = failed(world, "check_segfault")
    assert (outcome.failure.reason, outcome.failure.phase) == (Reason.WORKER_SIGNAL, Phase.EXPORT)


def test_a_check_may_take_longer_than_a_start(world: World) -> None:
    world.limits = replace(world.limits, start_timeout_seconds=0.6)
    outcome, messages = world.run(world.claimed("check_slow=1.0"))
    assert outcome.exit_cause == "ok"
    assert not any(isinstance(message, CheckPassed) for message in messages)


@pytest.mark.parametrize("behaviour", ["wrong_hash", "symlink", "no_report"])
def test_a_result_that_is_not_what_it_says_is_refused_and_not_stored(world: World, behaviour: str) -> None:
    before = len(world.artifacts.list(OWNER, None, 100, "")[0])
    outcome = failed(world, behaviour)
    assert outcome.failure.reason is Reason.RESULT_REFUSED
    assert outcome.failure.phase is Phase.EXPORT
    assert len(world.artifacts.list(OWNER, None, 100, "")[0]) == before + 2  # the inputs


def test_a_pruned_model_that_the_gate_refuses_is_refused(world: World) -> None:
    def refuse(_kind: ArtifactKind, source: Path) -> None:
        if source.parent.name == "out":
            raise InvalidArtifactError(Reason.MODEL_CORRUPT, "it is broken")

    world.gate.before_repack = refuse
    outcome = failed(world)
    assert outcome.failure.reason is Reason.RESULT_REFUSED
    assert "it is broken" in outcome.failure.message


def test_an_input_that_the_gate_refuses_fails_the_job_for_good(world: World) -> None:
    def refuse(kind: ArtifactKind, _source: Path) -> None:
        if kind is ArtifactKind.DATASET:
            raise InvalidArtifactError(Reason.DATASET_EMPTY, "it is empty")

    world.gate.before_repack = refuse
    outcome = failed(world)
    assert (outcome.failure.reason, outcome.exit_cause, outcome.retryable) == (Reason.DATASET_EMPTY, "gate", False)


@pytest.mark.parametrize(("code", "reason"), [(28, Reason.STORAGE_FULL), (5, Reason.INTERNAL)])
def test_a_fault_of_the_disk_is_not_the_job_s_fault(world: World, code: int, reason: Reason) -> None:
    def fault(_kind: ArtifactKind, _source: Path) -> None:
        raise OSError(code, "the disk says no")

    world.gate.before_repack = fault
    outcome = failed(world)
    assert (outcome.failure.reason, outcome.retryable) == (reason, True)


def test_an_artifact_that_is_gone_is_named(world: World) -> None:
    job = world.claimed()
    gone = msgspec.structs.replace(job.spec, train=ArtifactRef(artifact_id="gone"))
    outcome, _ = world.run(msgspec.structs.replace(job, spec=gone))
    assert outcome.failure.reason is Reason.ARTIFACT_NOT_FOUND


def test_a_missed_verdict_fails_the_job_and_keeps_the_result(world: World) -> None:
    evaluation = Evaluation(required_verdict=Verdict.PASS)
    outcome, _ = world.run(world.claimed("bad_verdict", evaluation=evaluation))
    assert outcome.failure.reason is Reason.VERDICT_NOT_REACHED
    assert outcome.result.verdict is Verdict.INCONCLUSIVE
    assert world.artifacts.get(OWNER, outcome.result.model_artifact_id).active
    assert not outcome.retryable


def test_a_message_that_cannot_be_stored_does_not_leave_the_worker_running(world: World) -> None:
    def broken(_message: object) -> None:
        raise RuntimeError("the database is gone")

    with pytest.raises(RuntimeError, match="database is gone"):
        world.executor().run(world.claimed("hang"), "cpu", broken, threading.Event())


def test_folders_of_a_dead_server_are_removed_at_the_start(world: World) -> None:
    stale = world.runs / "job" / "2" / "in"
    stale.mkdir(parents=True)
    (stale / "model.pt").write_bytes(b"x")
    world.executor()
    assert list(world.runs.iterdir()) == []


def test_a_worker_that_is_not_installed_is_named_so(world: World) -> None:
    script = "raise ModuleNotFoundError(\"No module named 'torch'\")"
    world.worker_command = python_command("-c", script)
    assert failed(world).failure.reason is Reason.WORKER_NOT_INSTALLED
