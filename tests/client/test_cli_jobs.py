"""`prune jobs`, `show`, `watch`, `cancel`, `delete`, `fetch` and `inspect`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from helpers.fake_artifacts import status
from helpers.fake_server import PRUNED_MODEL, FakeServer, example_report, failing_run, state_event, succeeding_run
from helpers.streams import Terminal
from pruning_api.v1 import pruning_job_pb2 as job_pb
from pruning_client import (
    Conditional,
    Dynamic,
    Granularity,
    NmPattern,
    PruningClient,
    Risk,
    Scope,
    Sparsity,
    Static,
    Submission,
    Threshold,
)
from pruning_client.cli.output import Output
from pruning_client.spec import Strategy

KEYS = {"job", "state", "reason", "message", "report"}


@pytest.fixture
def submit(client: PruningClient, server: FakeServer, inputs: Any) -> Callable[..., str]:
    """Queues a job with the given run and returns its id."""

    def call(run: Callable[[], list[Any]] = succeeding_run, **change: Any) -> str:
        server.jobs.next_run = run
        fields = {"strategy": Static(), "target": Sparsity(0.8)} | change
        return client.submit(Submission(model=inputs.model, validation=inputs.data, **fields)).job_id

    return call


def running() -> list[Any]:
    """A run that does not end."""
    return [state_event(job_pb.JOB_STATE_RUNNING)]


def test_no_jobs(prune: Callable[..., Any]) -> None:
    assert prune("jobs", "--json").body == {"jobs": []}
    assert prune("jobs").out == "no jobs\n"


def test_jobs_are_all_listed_newest_first(prune: Callable[..., Any], submit: Callable[..., str]) -> None:
    first = submit()
    failed = submit(lambda: failing_run("MODEL_CORRUPT", "save it again"), target=Threshold(0.25))
    rows = prune("jobs", "--json").body["jobs"]
    assert [row["job"] for row in rows] == [failed, first]
    assert [row["state"] for row in rows] == ["FAILED", "SUCCEEDED"]
    assert rows[0]["reason"] == "MODEL_CORRUPT"
    assert rows[0]["target"] == {"threshold": 0.25}
    assert (rows[1]["verdict"], rows[1]["sparsity"], rows[1]["created"]) == ("PASS", 0.8, "2023-11-14T22:13:20Z")
    text = prune("jobs").out
    for word in (first, failed, "FAILED (MODEL_CORRUPT)", "SUCCEEDED", "PASS", "80.00%", "threshold 0.25"):
        assert word in text


@pytest.mark.parametrize("width", [40, 80, 100, 140])
def test_ids_stay_whole_on_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    screen = Terminal()
    job_id = "0123456789abcdef" * 2
    row = {
        "JOB": job_id,
        "STATE": "SUCCEEDED",
        "TARGET": "sparsity 0.8",
        "VERDICT": "INCONCLUSIVE",
        "CREATED": "x" * 20,
    }
    optional = ["CREATED", "TARGET", "VERDICT"]
    Output(is_json=False, stdout=screen).table(list(row), [tuple(row.values())], optional=optional)
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert max(map(len, text.splitlines())) <= width
    assert [job_id in text, "INCONCLUSIVE" in text, "x" * 20 in text] == [width >= 80, width >= 80, width >= 140]


def test_jobs_lists_more_than_a_page(prune: Callable[..., Any], submit: Callable[..., str], server: FakeServer) -> None:
    submit()
    one = server.jobs.jobs["job-1"]
    for number in range(2, 252):
        server.jobs.jobs[f"job-{number}"] = job_pb.PruningJob(job_id=f"job-{number}", spec=one.spec)
    assert len(prune("jobs", "--json").body["jobs"]) == 251
    assert server.script.count("ListPruningJobs") == 3


def test_show_a_failed_job(prune: Callable[..., Any], submit: Callable[..., str]) -> None:
    job = submit(lambda: failing_run("MODEL_CORRUPT", "the archive is damaged; save it again"), margin=0.05, seed=3)
    ended = prune("show", job)
    assert ended.code == 0
    for word in (
        job,
        "FAILED",
        "MODEL_CORRUPT",
        "save it again",
        "LOAD",
        "static",
        "sparsity 0.8",
        "0.05",
        "automatic",
    ):
        assert word in ended.out
    body = prune("show", job, "--json").body
    assert set(body) >= KEYS
    assert (body["state"], body["reason"], body["report"]) == ("FAILED", "MODEL_CORRUPT", None)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (Static(Granularity.NM, NmPattern(2, 4), criterion="taylor"), ["2:4", "taylor"]),
        (Static(Granularity.CHANNEL, scope=Scope.SENSITIVITY), ["channel", "sensitivity"]),
        (Dynamic(schedule="rigl", continue_from_job_id="job-0", inference_gate=True), ["rigl", "job-0", "gate"]),
        (Conditional(risk=Risk(0.02, 0.1)), ["0.02", "0.1"]),
        (Conditional(condition="l1 < 0.75"), ["l1 < 0.75"]),
    ],
)
def test_show_says_how_a_job_prunes(
    prune: Callable[..., Any], submit: Callable[..., str], strategy: Strategy, words: list[str]
) -> None:
    """What decides the result is what the job is told apart by later."""
    shown = prune("show", submit(strategy=strategy, exclude_layers=("stem*",))).out
    assert [word for word in [*words, "stem*"] if word not in shown] == []


def test_show_a_job_with_a_report(prune: Callable[..., Any], submit: Callable[..., str]) -> None:
    body = prune("show", submit(), "--json").body
    assert body["report"] == example_report()
    assert body["strategy"] == "static"


def test_watch_a_job_that_has_ended(prune: Callable[..., Any], submit: Callable[..., str], tmp_path: Path) -> None:
    ended = prune("watch", submit(), "-o", tmp_path / "out.pt", "--json")
    assert ended.code == 0
    assert set(ended.body) == KEYS
    assert (tmp_path / "out.pt").read_bytes() == PRUNED_MODEL


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELLED", 4)])
def test_watch_exits_as_the_job_ended(
    state: str, code: int, prune: Callable[..., Any], submit: Callable[..., str]
) -> None:
    job = submit(lambda: [state_event(job_pb.JobState.Value(f"JOB_STATE_{state}"))])
    ended = prune("watch", job, "--json")
    assert (ended.code, ended.body["state"]) == (code, state)


def test_cancel(prune: Callable[..., Any], submit: Callable[..., str], server: FakeServer) -> None:
    job = submit(running)
    ended = prune("cancel", job, "--json")
    assert (ended.code, ended.body["job"], ended.body["state"]) == (0, job, "CANCELLED")
    assert server.jobs.jobs[job].state == job_pb.JOB_STATE_CANCELLED
    assert prune("cancel", job).out == f"job {job} is CANCELLED: the job is cancelled\n"


def test_cancel_of_a_job_that_has_ended_does_not_claim_it(
    prune: Callable[..., Any], submit: Callable[..., str]
) -> None:
    job = submit()
    prune("watch", job)
    assert prune("cancel", job).out == f"job {job} is SUCCEEDED: it had ended before\n"


def test_delete(prune: Callable[..., Any], submit: Callable[..., str], server: FakeServer) -> None:
    job, busy = submit(), submit(running)
    assert prune("delete", job).out == f"job {job} is deleted\n"
    assert job not in server.jobs.jobs
    ended = prune("delete", busy, "--json")
    assert (ended.code, ended.body["reason"]) == (5, "JOB_NOT_TERMINAL")


@pytest.mark.parametrize("command", ["show", "watch", "cancel", "delete", "fetch"])
def test_a_job_that_is_not_there(command: str, prune: Callable[..., Any], tmp_path: Path) -> None:
    flags = ["-o", tmp_path / "out.pt"] if command == "fetch" else []
    ended = prune(command, "job-none", *flags, "--json")
    assert ended.code == 5
    assert ended.body == {
        "job": None, "state": None, "reason": "JOB_NOT_FOUND", "message": "no job job-none", "report": None,
    }  # fmt: skip


def test_fetch_everything(prune: Callable[..., Any], submit: Callable[..., str], tmp_path: Path) -> None:
    out, report, page = tmp_path / "out.pt", tmp_path / "r.json", tmp_path / "r.html"
    ended = prune("fetch", submit(), "-o", out, "--report", report, "--html", page)
    assert ended.code == 0
    assert out.read_bytes() == PRUNED_MODEL
    assert json.loads(report.read_text()) == example_report()
    assert "example" not in page.read_text()
    assert str(out) in ended.out


def test_fetch_of_a_job_that_missed_its_verdict(
    prune: Callable[..., Any], submit: Callable[..., str], tmp_path: Path
) -> None:
    job = submit(lambda: failing_run("VERDICT_NOT_REACHED", "the verdict is FAIL"))
    ended = prune("fetch", job, "-o", tmp_path / "out.pt", "--json")
    assert (ended.code, ended.body["state"], ended.body["reason"]) == (0, "FAILED", "VERDICT_NOT_REACHED")
    assert (tmp_path / "out.pt").read_bytes() == PRUNED_MODEL


def test_fetch_where_there_is_nothing(prune: Callable[..., Any], submit: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    ended = prune("fetch", submit(running), "-o", out, "--json")
    assert (ended.code, ended.body["reason"]) == (5, "JOB_NOT_TERMINAL")
    ended = prune("fetch", submit(lambda: failing_run("MODEL_CORRUPT", "save it again")), "-o", out, "--json")
    assert (ended.code, ended.body["state"], ended.body["reason"]) == (1, "FAILED", "MODEL_CORRUPT")
    ended = prune("fetch", submit(lambda: [state_event(job_pb.JOB_STATE_CANCELLED)]), "-o", out, "--json")
    assert (ended.code, ended.body["state"]) == (4, "CANCELLED")
    assert not out.exists()


def test_fetch_nothing(prune: Callable[..., Any], submit: Callable[..., str]) -> None:
    ended = prune("fetch", submit(), "--json")
    assert ended.code == 2
    assert "-o OUT.pt" in ended.body["message"]


def test_inspect(prune: Callable[..., Any], server: FakeServer, inputs: Any) -> None:
    found = server.jobs.inspection
    found.inputs.add(shape=[1, 3, 32, 32], dtype="float32")
    found.layers.add(name="conv\x1b[31m", kind="conv2d", shape=[8, 3, 3, 3], parameters=216, group_indices=[0])
    found.groups.add(channels=8, layers=["conv"])
    found.frozen.add(op="aten::view", source="net.py:7", reason="unknown shape", layers=["fc"])
    arguments = ["inspect", inputs.model, "--input", "1x3x32x32", "--input", "1x7:int64", "--arg", "2=0.5"]
    body = prune(*arguments, "--json").body
    assert set(body) == {"model", "layers", "groups", "frozen"}
    assert body["layers"][0]["shape"] == [8, 3, 3, 3]
    assert body["frozen"] == [{"op": "aten::view", "source": "net.py:7", "reason": "unknown shape", "layers": ["fc"]}]
    request = server.script.calls[-1][1]
    assert [(list(t.shape), t.dtype) for t in request.inputs] == [([1, 3, 32, 32], "float32"), ([1, 7], "int64")]
    text = prune(*arguments).out
    assert "\x1b" not in text
    for word in ("conv2d", "8x3x3x3", "unknown shape", "net.py:7"):
        assert word in text


def test_inspect_with_axes_of_any_length(prune: Callable[..., Any], server: FakeServer, inputs: Any) -> None:
    server.jobs.inspection.notes.append("Other sizes: observed with 40 along axis 2 of input 0 too.")
    arguments = ["inspect", inputs.model, "--input", "1x3x32?x32?", "--input", "1x7:int64", "--dynamic-axes", "1:1"]
    body = prune(*arguments, "--json").body
    assert body["model"]["notes"] == ["Other sizes: observed with 40 along axis 2 of input 0 too."]
    request = server.script.calls[-1][1]
    assert [list(given.shape) for given in request.inputs] == [[1, 3, 32, 32], [1, 7]]
    assert {axes.input: list(axes.axes) for axes in request.dynamic_axes} == {0: [2, 3], 1: [1]}
    assert "Other sizes" in prune(*arguments).out


@pytest.mark.parametrize("axes", ["0", "0:0", "a", "0:", ":2", "2,", "2,2", "1:2:3"])
def test_axes_that_are_none(axes: str, prune: Callable[..., Any], inputs: Any) -> None:
    ended = prune("inspect", inputs.model, "--dynamic-axes", axes, "--json")
    assert ended.code == 2
    assert "--dynamic-axes" in ended.body["message"]


@pytest.mark.parametrize("shape", ["", "x", "1x", "1x0", "1x-1", "1,3", "1x3:"])
def test_inspect_with_a_shape_that_is_none(shape: str, prune: Callable[..., Any], inputs: Any) -> None:
    ended = prune("inspect", inputs.model, "--input", shape, "--json")
    assert ended.code == 2
    assert "--input" in ended.body["message"]


def test_inspect_of_a_server_that_does_not(prune: Callable[..., Any], server: FakeServer, inputs: Any) -> None:
    answer = status(grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", "inspection is not implemented in this version")
    server.script.answer("InspectModel", answer)
    ended = prune("inspect", inputs.model, "--input", "1x3", "--json")
    assert (ended.code, ended.body["reason"]) == (2, "NOT_IMPLEMENTED")


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["show"], ["jobs", "extra"], ["--nonsense"]], ids=str)
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from pruning_client.cli.main import main

    assert main([*arguments, "--json"]) == 2
    assert set(json.loads(capsys.readouterr().out)) == KEYS
    assert main(arguments) == 2
    assert "usage: prune" in capsys.readouterr().err


def test_an_address_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    from pruning_client.cli.main import main

    assert main(["jobs", "--server", "nowhere"]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["submit"], ["inspect"], ["jobs"], ["show"], ["watch"], ["cancel"], ["delete"], ["fetch"], ["report"]], ids=str)  # fmt: skip
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from pruning_client.cli.main import main

    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "exit codes" in capsys.readouterr().out or command == ["report"]


def test_the_help_names_every_criterion(capsys: pytest.CaptureFixture[str]) -> None:
    from pruning_client.cli.main import main
    from pruning_server.pruning import criteria

    with pytest.raises(SystemExit):
        main(["submit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"what counts as small: {', '.join(criteria.names())} (default: l1)" in text


def test_a_reader_that_leaves_early_is_no_error(server: FakeServer, submit: Callable[..., str]) -> None:
    submit()
    one = server.jobs.jobs["job-1"]
    for number in range(2, 600):
        server.jobs.jobs[f"job-{number}"] = job_pb.PruningJob(job_id=f"job-{number}", spec=one.spec)
    process = subprocess.Popen(
        [sys.executable, "-m", "pruning_client", "jobs", "--server", server.address],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(20)
    assert err == ""
