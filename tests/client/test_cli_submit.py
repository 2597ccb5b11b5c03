"""`prune submit`: what it checks before anything is sent, what it says, and how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from helpers.fake_artifacts import status
from helpers.fake_server import PRUNED_MODEL, FakeServer, example_report, failing_run, log_event, state_event
from pruning_api.v1 import pruning_job_pb2 as job_pb
from pruning_api.v1 import spec_pb2

Code = grpc.StatusCode
KEYS = {"job", "state", "reason", "message", "report"}


@pytest.fixture
def submit(prune: Callable[..., Any], inputs: Any) -> Callable[..., Any]:
    """Runs `prune submit MODEL --validation DATA --strategy static FLAGS`."""

    def call(*flags: object) -> Any:
        return prune("submit", inputs.model, "--validation", inputs.data, "--strategy", "static", *flags)

    return call


# --- A job that succeeds ----------------------------------------------------------------------------------------------


def test_files_are_written_and_the_outcome_is_told(submit: Callable[..., Any], tmp_path: Path) -> None:
    out, report, page = tmp_path / "out.pt", tmp_path / "report.json", tmp_path / "report.html"
    out.write_text("old")
    ended = submit("--sparsity", 0.8, "-o", out, "--report", report, "--html", page)
    assert ended.code == 0, ended.err
    assert out.read_bytes() == PRUNED_MODEL
    assert json.loads(report.read_text()) == example_report()
    assert page.read_text().lstrip().startswith("<!doctype html>")
    for words in (
        "96.00 %",
        "95.00 %",
        "-1.00 %",
        "[-2.50, +0.50] %",
        "PASS",
        "80.00%",
        str(out),
        str(report),
        str(page),
    ):
        assert words in ended.out
    for words in ("upload model.pt", "RECOVER", "epoch 1/2", "fit_loss=0.5", "left"):
        assert words in ended.err
    assert not list(tmp_path.glob("*.part"))


def test_json_is_one_object_and_stdout_has_nothing_else(submit: Callable[..., Any]) -> None:
    ended = submit("--sparsity", 0.8, "--json")
    assert ended.code == 0
    assert ended.out.count("\n") == 1
    body = ended.body
    assert set(body) == KEYS
    assert (body["job"], body["state"], body["reason"]) == ("job-1", "SUCCEEDED", None)
    assert body["report"] == example_report()


def test_without_o_the_model_stays_on_the_server(submit: Callable[..., Any], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    ended = submit("--sparsity", 0.8)
    assert ended.code == 0
    assert "prune fetch job-1 -o OUT.pt" in ended.err
    assert sorted(tmp_path.iterdir()) == before


def test_no_wait_exits_once_the_job_is_accepted(submit: Callable[..., Any], server: FakeServer) -> None:
    server.jobs.next_run = list
    ended = submit("--sparsity", 0.8, "--no-wait")
    assert (ended.code, ended.out) == (0, "job-1\n")
    assert "prune watch job-1" in ended.err
    body = submit("--sparsity", 0.8, "--no-wait", "--json").body
    assert set(body) == KEYS
    assert (body["job"], body["state"], body["report"]) == ("job-2", "QUEUED", None)
    assert server.script.count("WatchPruningJob") == 0


def every_flag() -> list[object]:
    """All flags of the request, with values that differ from the defaults."""
    return [
        "--sparsity", 0.5, "--granularity", "weight", "--criterion", "random", "--scope", "layer", "--device", "cpu",
        "--epochs", 3, "--seed", 7, "--timeout", 90.5, "--task", "classification", "--loss", "cross-entropy",
        "--scale", 0.5, "--mean=0.1,-0.2,0.3", "--std", "1,2,3", "--layout", "nhwc", "--arg", "1=16000",
        "--arg", "2=0.5", "--arg", "3=true", "--arg", "4=text", "--arg", '5="7"', "--margin", 0.02,
        "--require-verdict", "pass", "--output-selector", "0.logits", "--exclude-layers", "fc", "--exclude-layers", "stem.*",
        "--dynamic-axes", "2,3", "--dynamic-axes", "1:1",
    ]  # fmt: skip


def test_every_flag_arrives(submit: Callable[..., Any], server: FakeServer, inputs: Any) -> None:
    assert submit(*every_flag(), "--train", inputs.data).code == 0
    spec = server.jobs.jobs["job-1"].spec
    assert spec.WhichOneof("strategy") == "static"
    assert (spec.sparsity, spec.device, spec.seed, spec.fine_tune.epochs) == (0.5, "cpu", 7, 3)
    assert spec.static.granularity == spec_pb2.GRANULARITY_WEIGHT
    assert (spec.static.criterion, spec.static.scope) == ("random", spec_pb2.SCOPE_LAYER)
    assert (spec.timeout.seconds, spec.timeout.nanos) == (90, 500_000_000)
    assert (spec.task, spec.loss) == (spec_pb2.TASK_CLASSIFICATION, spec_pb2.LOSS_CROSS_ENTROPY)
    assert (spec.preprocessing.scale, list(spec.preprocessing.mean)) == (0.5, [0.1, -0.2, 0.3])
    assert (list(spec.preprocessing.std), spec.preprocessing.layout) == ([1, 2, 3], spec_pb2.LAYOUT_NHWC)
    values = {a.position: getattr(a, a.WhichOneof("value")) for a in spec.arguments}
    assert values == {1: 16000, 2: 0.5, 3: True, 4: "text", 5: "7"}
    assert [a.WhichOneof("value") for a in spec.arguments][:2] == ["int_value", "float_value"]
    assert (spec.evaluation.margin, spec.evaluation.required_verdict) == (0.02, spec_pb2.VERDICT_PASS)
    assert (spec.output_selector, list(spec.exclude_layers)) == ("0.logits", ["fc", "stem.*"])
    assert {axes.input: list(axes.axes) for axes in spec.dynamic_axes} == {0: [2, 3], 1: [1]}
    assert spec.train.artifact_id == spec.validation.artifact_id != spec.model.artifact_id


def test_what_is_not_said_is_left_to_the_server(submit: Callable[..., Any], server: FakeServer) -> None:
    assert submit("--threshold", 0.01).code == 0
    spec = server.jobs.jobs["job-1"].spec
    assert spec.threshold == 0.01
    assert not spec.fine_tune.HasField("epochs")
    assert not spec.evaluation.HasField("margin")
    assert not spec.HasField("timeout")
    assert not spec.HasField("train")
    assert (spec.task, spec.loss, spec.device, spec.recovery.disabled) == (0, 0, "auto", False)


@pytest.mark.parametrize(("flags", "epochs", "disabled"), [(["--epochs", 0], 0, False), (["--no-recovery"], 0, True)])
def test_recovery(
    flags: list[object], epochs: int, disabled: bool, submit: Callable[..., Any], server: FakeServer
) -> None:
    assert submit("--sparsity", 0.5, *flags).code == 0
    spec = server.jobs.jobs["job-1"].spec
    assert (spec.fine_tune.epochs, spec.recovery.disabled) == (epochs, disabled)
    assert spec.fine_tune.HasField("epochs") is (not disabled)


@pytest.mark.parametrize("flags", [[], ["--no-samples"]])
def test_samples_are_left_out_where_asked(flags: list[str], submit: Callable[..., Any], server: FakeServer) -> None:
    assert submit("--sparsity", 0.5, *flags).code == 0
    evaluation = server.jobs.jobs["job-1"].spec.evaluation
    assert evaluation.HasField("include_samples") is bool(flags)
    assert not evaluation.include_samples


def test_a_loss_module_is_sent(submit: Callable[..., Any], server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "loss.pt").write_bytes(b"PK loss")
    assert submit("--sparsity", 0.5, "--loss", tmp_path / "loss.pt").code == 0
    spec = server.jobs.jobs["job-1"].spec
    assert spec.loss == 0
    assert bytes(server.artifacts.content[spec.loss_module.artifact_id]) == b"PK loss"


def other_strategies() -> list[tuple[str, list[str], Callable[[Any], object], object]]:
    """Strategy, flags, what to look at, what it must be."""
    return [
        ("dynamic", ["--sparsity", "0.5", "--schedule", "cubic"], lambda s: s.dynamic.schedule, "cubic"),
        ("dynamic", ["--macs-ratio", "0.5", "--continue-from", "job-9"], lambda s: s.dynamic.continue_from_job_id, "job-9"),
        ("dynamic", ["--sparsity", "0.5", "--inference-gate"], lambda s: s.dynamic.inference_gate, True),
        ("dynamic", ["--sparsity", "0.5", "--granularity", "channel"], lambda s: s.dynamic.granularity, spec_pb2.GRANULARITY_CHANNEL),
        ("conditional", ["--condition", "p < 1"], lambda s: s.conditional.condition, "p < 1"),
        ("conditional", ["--condition", "p < 1"], lambda s: s.conditional.granularity, spec_pb2.GRANULARITY_UNSPECIFIED),
        ("conditional", ["--condition", "p < 1", "--correction", "benjamini-hochberg"], lambda s: s.conditional.correction, spec_pb2.MULTIPLE_TESTING_CORRECTION_BENJAMINI_HOCHBERG),
        ("conditional", ["--condition", "p < 1", "--correction", "holm"], lambda s: s.conditional.correction, spec_pb2.MULTIPLE_TESTING_CORRECTION_HOLM),
        ("conditional", ["--condition", "p < 1", "--min-channels", "3"], lambda s: s.conditional.channels.min_channels, 3),
        ("conditional", ["--risk", "0.02:0.1"], lambda s: (s.conditional.risk.max_loss, s.conditional.risk.error_probability), (0.02, 0.1)),
        ("conditional", ["--condition", "p < 1", "--max-accuracy-drop", "0"], lambda s: s.WhichOneof("target"), "max_accuracy_drop"),
        ("static", ["--parameter-ratio", "1", "--granularity", "2:4"], lambda s: (s.static.nm_pattern.n, s.static.nm_pattern.m), (2, 4)),
        ("static", ["--latency-ratio", "0.5", "--granularity", "head"], lambda s: s.static.granularity, spec_pb2.GRANULARITY_HEAD),
        ("static", ["--macs-ratio", "0.5", "--granularity", "channel", "--min-channels", "4", "--multiple", "16"], lambda s: (s.static.channels.min_channels, s.static.channels.multiple), (4, 16)),
        ("static", ["--sparsity", "0.5", "--granularity", "head"], lambda s: (s.static.channels.min_channels, s.static.channels.multiple), (0, 0)),
        ("dynamic", ["--sparsity", "0.5", "--granularity", "channel", "--min-channels", "4"], lambda s: s.dynamic.channels.min_channels, 4),
        ("conditional", ["--condition", "p < 1", "--granularity", "channel", "--multiple", "1"], lambda s: s.conditional.channels.multiple, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(("strategy", "flags", "look", "expected"), other_strategies())
def test_strategies_that_a_later_server_has(
    strategy: str, flags: list[str], look: Callable[[Any], object], expected: object,
    prune: Callable[..., Any], server: FakeServer, inputs: Any,
) -> None:  # fmt: skip
    for offered in server.jobs.strategies.strategies:
        offered.available = True
        del offered.granularities[:], offered.targets[:]
    ended = prune("submit", inputs.model, "--validation", inputs.data, "--strategy", strategy, *flags)
    assert ended.code == 0, ended.err
    assert look(server.jobs.jobs["job-1"].spec) == expected


@pytest.mark.parametrize(
    "report", [{"schema_version": "2.0"}, dict.fromkeys(example_report()), {"accuracy": 7}], ids=str
)
def test_a_report_that_lacks_sections_is_no_reason_to_fail(
    report: dict[str, Any], submit: Callable[..., Any], server: FakeServer, tmp_path: Path
) -> None:
    server.jobs.report = lambda *_: report
    ended = submit("--sparsity", 0.8, "--html", tmp_path / "r.html")
    assert ended.code == 0, ended.err
    assert "no verdict" in ended.out
    assert (tmp_path / "r.html").exists()
    assert submit("--sparsity", 0.8, "--json").body["report"] == report


def test_the_summary_tells_channels_from_weights(submit: Callable[..., Any], server: FakeServer) -> None:
    report = example_report()
    report["strategy"] |= {"granularity": "channel", "achieved_sparsity": 0.25, "removable_channels": 160}
    report["strategy"] |= {"removed_channels": 40}
    report["cost"]["pruned"]["nonzero_parameters"] = 440
    server.jobs.report = lambda *_: report
    lines = [line.split() for line in submit("--sparsity", 0.25).out.splitlines()]
    assert ["removable", "channels", "160", "120", "sparsity", "25.00%"] in lines
    assert ["nonzero", "weights", "1,000", "440", "x0.44"] in lines


# --- Jobs that end otherwise ------------------------------------------------------------------------------------------


def test_a_failed_job(submit: Callable[..., Any], server: FakeServer, tmp_path: Path) -> None:
    server.jobs.next_run = lambda: failing_run("MODEL_CORRUPT", "the archive is damaged; save it again")
    ended = submit("--sparsity", 0.8, "-o", tmp_path / "out.pt", "--json")
    assert ended.code == 1
    body = ended.body
    assert (body["job"], body["state"], body["reason"], body["report"]) == ("job-1", "FAILED", "MODEL_CORRUPT", None)
    assert "save it again" in body["message"]
    assert not (tmp_path / "out.pt").exists()


def test_a_missed_verdict_still_gives_the_model(submit: Callable[..., Any], server: FakeServer, tmp_path: Path) -> None:
    server.jobs.next_run = lambda: failing_run("VERDICT_NOT_REACHED", "the verdict is FAIL")
    ended = submit("--sparsity", 0.8, "-o", tmp_path / "out.pt", "--require-verdict", "PASS", "--json")
    assert (ended.code, ended.body["state"], ended.body["reason"]) == (1, "FAILED", "VERDICT_NOT_REACHED")
    assert ended.body["report"] == example_report()
    assert (tmp_path / "out.pt").read_bytes() == PRUNED_MODEL


def test_a_required_verdict_is_checked_here_as_well(submit: Callable[..., Any], server: FakeServer) -> None:
    server.jobs.verdict = spec_pb2.VERDICT_INCONCLUSIVE
    ended = submit("--sparsity", 0.8, "--require-verdict", "PASS", "--json")
    assert (ended.code, ended.body["reason"]) == (1, "VERDICT_NOT_REACHED")


def test_a_cancelled_job(submit: Callable[..., Any], server: FakeServer) -> None:
    server.jobs.next_run = lambda: [state_event(job_pb.JOB_STATE_CANCELLED)]
    ended = submit("--sparsity", 0.8, "--json")
    assert (ended.code, ended.body["state"], ended.body["reason"]) == (4, "CANCELLED", "CANCELLED")


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (Code.INVALID_ARGUMENT, 2), (Code.UNIMPLEMENTED, 2), (Code.UNAVAILABLE, 3), (Code.DEADLINE_EXCEEDED, 3),
        (Code.NOT_FOUND, 5), (Code.RESOURCE_EXHAUSTED, 5), (Code.UNAUTHENTICATED, 5), (Code.PERMISSION_DENIED, 5),
        (Code.ALREADY_EXISTS, 5), (Code.FAILED_PRECONDITION, 5), (Code.INTERNAL, 5),
    ],
)  # fmt: skip
def test_refusals(code: Code, exit_code: int, submit: Callable[..., Any], server: FakeServer) -> None:
    answer = status(code, "SOME_REASON", "do it otherwise", violations={"spec.seed": "must be even"})
    server.script.answer("CreatePruningJob", *[answer] * 9)
    ended = submit("--sparsity", 0.8, "--json")
    assert ended.code == exit_code
    assert ended.body == {
        "job": None, "state": None, "reason": "SOME_REASON", "message": "do it otherwise", "report": None,
    }  # fmt: skip
    assert "do it otherwise" in ended.err
    assert "spec.seed: must be even" in ended.err


def test_waiting_that_fails_names_the_job(submit: Callable[..., Any], server: FakeServer) -> None:
    server.script.answer("WatchPruningJob", status(Code.PERMISSION_DENIED, "REVOKED", "no longer yours"))
    ended = submit("--sparsity", 0.8, "--json")
    assert ended.code == 5
    assert (ended.body["job"], ended.body["state"], ended.body["reason"]) == ("job-1", "QUEUED", "REVOKED")
    assert "prune watch job-1" in ended.err


def test_a_download_that_fails_names_the_job_and_the_way_out(
    submit: Callable[..., Any], server: FakeServer, tmp_path: Path
) -> None:
    server.script.answer("ReadArtifact", status(Code.NOT_FOUND, "ARTIFACT_NOT_FOUND", "it has expired"))
    ended = submit("--sparsity", 0.8, "-o", tmp_path / "out.pt", "--json")
    assert ended.code == 5
    assert (ended.body["job"], ended.body["state"]) == ("job-1", "SUCCEEDED")
    assert "prune fetch job-1" in ended.err
    assert not (tmp_path / "out.pt").exists()


def test_control_characters_of_others_do_not_reach_the_terminal(submit: Callable[..., Any], server: FakeServer) -> None:
    evil = "\x1b]0;owned\x07 \x1b[2J \x9b31m \u202egnp.exe\r\nfake line"
    server.jobs.next_run = lambda: [log_event(evil), *failing_run("MODEL_CORRUPT", evil)]
    ended = submit("--sparsity", 0.8)
    assert ended.code == 1
    for text in (ended.out, ended.err):
        assert not [c for c in text if c != "\n" and (ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c == "\u202e")]
        assert "\nfake line" not in text


# --- What is checked before anything is sent --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ([], "target"),
        (["--sparsity", "0.5", "--threshold", "0.1"], "not allowed with"),
        (["--sparsity", "0.5", "--macs-ratio", "0.5"], "not allowed with"),
        *((["--threshold", v], "threshold") for v in ("0", "-1", "nan", "inf", "x", "")),
        *((["--sparsity", v], "sparsity") for v in ("1", "-0.1", "1.5", "nan")),
        *(([f"--{name}-ratio", v], "ratio") for name in ("macs", "latency", "parameter") for v in ("0", "1.1")),
        (["--max-accuracy-drop", "1"], "max-accuracy-drop"),
        *((["--sparsity", "0.5", "--granularity", v], "granularity") for v in ("atom", "4:2", "0:4", "2:2", "2:", "n:m")),
        *((["--sparsity", "0.5", "--granularity", "channel", f"--{name}", v], name) for name in ("min-channels", "multiple") for v in ("0", "-1", "1.5")),
        (["--sparsity", "0.5", "--multiple", "8"], "--granularity"),
        (["--sparsity", "0.5", "--granularity", "2:4", "--min-channels", "8"], "--granularity"),
        (["--sparsity", "0.5", "--device", "tpu"], "device"),
        *((["--sparsity", "0.5", "--epochs", v], "epochs") for v in ("-1", "1.5", "many")),
        (["--sparsity", "0.5", "--epochs", "2", "--no-recovery"], "no-recovery"),
        *((["--sparsity", "0.5", "--margin", v], "margin") for v in ("0", "1", "-0.1")),
        (["--sparsity", "0.5", "--require-verdict", "MAYBE"], "require-verdict"),
        (["--sparsity", "0.5", "--timeout", "0"], "timeout"),
        (["--sparsity", "0.5", "--seed", "-1"], "seed"),
        (["--sparsity", "0.5", "--task", "guessing"], "task"),
        (["--sparsity", "0.5", "--loss", "hope"], "loss"),
        (["--sparsity", "0.5", "--scale", "0"], "scale"),
        (["--sparsity", "0.5", "--std", "1,0"], "std"),
        (["--sparsity", "0.5", "--mean", "1,x"], "mean"),
        (["--sparsity", "0.5", "--mean", "1,2,3", "--std", "1,2"], "std"),
        *((["--sparsity", "0.5", "--arg", v], "arg") for v in ("16000", "x=1", "-1=2", f"1={2**63}")),
        (["--sparsity", "0.5", "--arg", "1=2", "--arg", "1=3"], "twice"),
        (["--sparsity", "0.5", "--condition", "x > 1"], "condition"),
        (["--sparsity", "0.5", "--schedule", "cubic"], "schedule"),
        (["--sparsity", "0.5", "--continue-from", "job-1"], "continue-from"),
        (["--sparsity", "0.5", "--nonsense"], "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)  # fmt: skip
def test_bad_flags(flags: list[str], word: str, submit: Callable[..., Any], server: FakeServer) -> None:
    ended = submit(*flags, "--json")
    assert ended.code == 2
    assert set(ended.body) == KEYS
    assert (ended.body["job"], ended.body["state"]) == (None, None)
    assert word in ended.body["message"]
    assert server.script.calls == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--condition", " "],
        [],
        ["--condition", "x", "--granularity", "2:4"],
        ["--condition", "x", "--risk", "0.02:0.1"],
        ["--risk", "0.02:0.1", "--sparsity", "0.5"],
        ["--risk", "0.02"],
        ["--risk", "0.02:1"],
        ["--risk", "0:0.1"],
        ["--risk", "a:b"],
    ],
    ids=str,
)
def test_bad_flags_of_conditional(flags: list[str], prune: Callable[..., Any], inputs: Any) -> None:
    ended = prune("submit", inputs.model, "--validation", inputs.data, "--strategy", "conditional", *flags)
    assert ended.code == 2


def test_missing_and_unknown_files(prune: Callable[..., Any], server: FakeServer, inputs: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no dataset")
    cases = [
        (tmp_path / "no.pt", inputs.data, "no.pt"),
        (tmp_path, inputs.data, "directory"),
        (inputs.model, tmp_path / "no.npz", "does not exist"),
        (inputs.model, tmp_path / "notes.txt", ".npz or .safetensors"),
    ]
    for model, data, word in cases:
        ended = prune(
            "submit", model, "--validation", data, "--strategy", "static", "--sparsity", 0.5, "--json"
        )  # fmt: skip
        assert ended.code == 2
        assert word in ended.body["message"]
        assert ended.body["job"] is None
    assert server.script.calls == []


def test_output_paths_that_cannot_be_written(
    submit: Callable[..., Any], server: FakeServer, inputs: Any, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    bad: list[tuple[list[object], str]] = [
        (["-o", tmp_path], "is a directory"),
        (["-o", tmp_path / "no" / "out.pt"], "does not exist"),
        (["--report", tmp_path / "no" / "r.json"], "does not exist"),
        (["--html", tmp_path / "no" / "r.html"], "does not exist"),
        (["-o", tmp_path / "pipe"], "not a regular file"),
        (["-o", "/dev/null"], "not a regular file"),
        (["-o", "/proc/out.pt"], "cannot be written"),
        (["-o", inputs.model], "overwrite an input"),
        (["--report", inputs.data], "overwrite an input"),
        (["-o", tmp_path / "same", "--report", tmp_path / "same"], "same file"),
    ]
    for flags, word in bad:
        ended = submit("--sparsity", 0.5, *flags, "--json")
        assert (ended.code, ended.body["reason"]) == (2, "OUTPUT_NOT_WRITABLE"), flags
        assert word in ended.body["message"]
    assert server.script.calls == []


def test_a_page_without_jinja2_is_refused_before_the_upload(
    submit: Callable[..., Any], server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    ended = submit("--sparsity", 0.5, "--html", tmp_path / "r.html", "--json")
    assert ended.code == 2
    assert "pip install 'pruning-service[report]'" in ended.body["message"]
    assert server.script.calls == []


@pytest.mark.parametrize(
    ("flags", "reason", "word"),
    [
        (["--sparsity", 0.5, "--device", "cuda"], "UNKNOWN_DEVICE", "it has cpu"),
        (["--sparsity", 0.5, "--device", "cuda:3"], "UNKNOWN_DEVICE", "cuda:3"),
        (["--sparsity", 0.5, "--criterion", "astrology"], "UNKNOWN_CRITERION", "l1, random"),
        (["--macs-ratio", 0.5], "NOT_IMPLEMENTED", "macs_ratio"),
        (["--sparsity", 0.5, "--granularity", "channel"], "NOT_IMPLEMENTED", "channel"),
        (["--sparsity", 0.5, "--granularity", "2:4"], "NOT_IMPLEMENTED", "n:m"),
    ],
    ids=str,
)
def test_what_the_server_cannot_do_is_said_before_the_upload(
    flags: list[object], reason: str, word: str, submit: Callable[..., Any], server: FakeServer
) -> None:
    ended = submit(*flags, "--json")
    assert (ended.code, ended.body["reason"]) == (2, reason)
    assert word in ended.body["message"]
    assert server.script.count("CreateArtifact") == 0


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cpu", "auto"])
def test_devices_that_the_server_has(device: str, submit: Callable[..., Any], server: FakeServer) -> None:
    server.jobs.devices = ["cpu", "cuda:0", "cuda:1"]
    assert submit("--sparsity", 0.5, "--device", device).code == 0


def test_a_file_that_the_server_would_not_take(submit: Callable[..., Any], server: FakeServer) -> None:
    server.jobs.max_artifact_bytes = 1000
    ended = submit("--sparsity", 0.5, "--json")
    assert (ended.code, ended.body["reason"]) == (2, "ARTIFACT_TOO_LARGE")
    assert server.script.count("CreateArtifact") == 0


def test_unreachable(submit: Callable[..., Any], server: FakeServer) -> None:
    server.stop()
    ended = submit("--sparsity", 0.5, "--json")
    assert (ended.code, ended.body["job"], ended.body["report"]) == (3, None, None)
    assert server.address in ended.body["message"]


# --- The process ------------------------------------------------------------------------------------------------------


def command(server: FakeServer, *arguments: object) -> list[str]:
    """`python -m pruning_client ARGUMENTS`."""
    return [sys.executable, "-m", "pruning_client", *map(str, arguments), "--server", server.address]


def test_ctrl_c_stops_waiting_and_not_the_job(server: FakeServer, inputs: Any) -> None:
    server.jobs.next_run = lambda: [state_event(job_pb.JOB_STATE_RUNNING)]
    process = subprocess.Popen(
        command(server, "submit", inputs.model, "--validation", inputs.data, "--strategy", "static", "--sparsity", 0.5, "--json"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert any("RUNNING" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    body = json.loads(out)
    assert (body["job"], body["state"], body["reason"]) == ("job-1", "RUNNING", "INTERRUPTED")
    assert "prune watch job-1" in err
    assert "Traceback" not in err
    assert server.script.count("CancelPruningJob") == 0
    assert server.jobs.jobs["job-1"].state == job_pb.JOB_STATE_RUNNING


def test_ctrl_c_in_an_upload(server: FakeServer, inputs: Any, tmp_path: Path) -> None:
    (tmp_path / "big.pt").write_bytes(os.urandom(32 << 20))
    started, go_on = threading.Event(), threading.Event()

    def block(request: Any) -> None:
        if request.offset >= 1 << 20:
            started.set()
            go_on.wait(20)

    server.artifacts.on_write = block
    process = subprocess.Popen(
        command(server, "submit", tmp_path / "big.pt", "--validation", inputs.data, "--strategy", "static", "--sparsity", 0.5, "--json"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert started.wait(20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    go_on.set()
    assert process.returncode == 130, err
    assert json.loads(out)["job"] is None
    assert "goes on from there" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("debug", ["", "1"])
def test_something_unexpected_is_one_line(
    debug: str, submit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setenv("PRUNING_DEBUG", debug)
    monkeypatch.setattr("pruning_client.cli.submit.preflight", explode)
    ended = submit("--sparsity", 0.5, "--json")
    assert ended.code == 1
    assert "ZeroDivisionError: a defect" in ended.body["message"]
    assert ("Traceback" in ended.err) is (debug == "1")
    assert debug == "1" or ended.err.count("\n") == 1


def test_the_server_may_come_from_the_environment(server: FakeServer) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pruning_client", "jobs", "--json"], check=False, capture_output=True, text=True,
        timeout=20, env={**os.environ, "PRUNING_SERVER": server.address},
    )  # fmt: skip
    assert (ended.returncode, json.loads(ended.stdout)) == (0, {"jobs": []})
