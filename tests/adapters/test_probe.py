"""The probe: asked in the background, tried again, and never in the way of the server's start."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from helpers import standin_worker
from helpers.processes import command_lines, wait_until
from pruning_server.adapters.clock import SystemClock
from pruning_server.adapters.probe import WorkerProbe
from pruning_server.adapters.process import python_command
from pruning_server.errors import Reason, UnavailableError

STANDIN = python_command(str(Path(standin_worker.__file__)))


def probe(command: tuple[str, ...], **options: object) -> WorkerProbe:
    return WorkerProbe(clock=SystemClock(), command=command, **options)  # type: ignore[arg-type]


def test_the_answer_is_what_the_worker_printed_last() -> None:
    asked = probe(STANDIN)
    asked.start()
    assert asked.get(20.0) == standin_worker.PROBE
    asked.stop()


def test_before_the_answer_callers_are_told_to_come_back() -> None:
    asked = probe(python_command("-c", "import time; time.sleep(600)"))
    asked.start()
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="starting"):
        asked.get(0.1)
    assert time.monotonic() - started < 2.0
    asked.stop()


def test_stop_kills_the_worker_that_is_being_asked() -> None:
    mark = "probe-stop-test"
    asked = probe(python_command("-c", f"'{mark}'; import time; time.sleep(600)"))
    asked.start()
    wait_until(lambda: command_lines(mark), what="the probe's start")
    asked.stop()
    assert command_lines(mark) == {}


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("import torch_is_missing_here", "No module named"),
        ("print('{}')", "cannot be read"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    ],
)
def test_a_failure_is_typed_says_what_to_install_and_comes_at_once(script: str, told: str) -> None:
    asked = probe(python_command("-c", script), backoff_seconds=(600.0,))
    asked.start()
    started = time.monotonic()
    with pytest.raises(UnavailableError, match=r"pruning-service\[server\]") as caught:
        asked.get(60.0)
    assert caught.value.reason is Reason.WORKER_NOT_INSTALLED
    assert told in caught.value.message
    assert time.monotonic() - started < 20.0
    asked.stop()


def test_a_failed_probe_is_tried_again_until_it_works(tmp_path: Path) -> None:
    script = f"""
import pathlib, runpy, sys
mark = pathlib.Path({str(tmp_path / "mark")!r})
if not mark.exists():
    mark.touch()
    raise SystemExit(1)
sys.argv[0:1] = [{standin_worker.__file__!r}]
runpy.run_path({standin_worker.__file__!r}, run_name='__main__')
"""
    asked = probe(python_command("-c", script), backoff_seconds=(0.01,))
    asked.start()

    def answered() -> bool:
        try:
            return asked.get(1.0) == standin_worker.PROBE
        except UnavailableError:
            return False

    wait_until(answered, 20.0, "the second attempt's answer")
    asked.stop()


def test_a_worker_that_never_answers_is_given_up() -> None:
    asked = probe(python_command("-c", "import time; time.sleep(600)"), deadline_seconds=0.2, backoff_seconds=(600.0,))
    asked.start()
    with pytest.raises(UnavailableError, match=r"longer than 0\.2 s"):
        asked.get(20.0)
    asked.stop()
    wait_until(lambda: not any(thread.name == "probe" for thread in threading.enumerate()), what="the thread's end")
