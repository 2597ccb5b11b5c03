"""Children: what they see, what is read of them, and that nothing of them stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from helpers.processes import is_alive, wait_until
from pruning_server.adapters.process import Child, TailBuffer, child_environment, python_command, visible_cuda_device

SLEEP_FOREVER = "import time; time.sleep(600)"


def start(script: str, folder: Path, *, events: bool = False, limit: int = 65536) -> Child:
    return Child(
        python_command("-c", textwrap.dedent(script)),
        folder=folder,
        environment=child_environment(home=folder, threads=1, cuda_devices=""),
        events_flag="--events-fd" if events else None,
        stdout_limit_bytes=limit,
    )


def read_to_end(child: Child, timeout_seconds: float = 20.0) -> bytes:
    deadline = time.monotonic() + timeout_seconds
    events = b""
    while not child.has_exited():
        assert time.monotonic() < deadline, "the child did not end"
        events += child.read(0.1)
    return events + child.drain(1.0)


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_a_child_sees_only_the_environment_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    with start("import os; print(sorted(os.environ)); print(os.environ['HOME'])", tmp_path) as child:
        read_to_end(child)
        text = child.stdout.text()
    assert "A_SECRET" not in text
    assert "PYTHONPATH" not in text
    assert str(tmp_path) in text


def test_a_module_in_the_run_folder_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "wave.py").write_text("print('hijacked')")
    for arguments in (("-c", "import wave"), ("-m", "wave")):
        with Child(
            python_command(*arguments),
            folder=tmp_path,
            environment=child_environment(home=tmp_path, threads=1, cuda_devices=""),
        ) as child:
            read_to_end(child)
        assert "hijacked" not in child.stdout.text()


def test_stdin_is_empty_and_no_other_descriptor_is_passed(tmp_path: Path) -> None:
    extra = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(extra, True)
    script = """
        import os, sys
        print(repr(sys.stdin.read()))
        for name in sorted(map(int, os.listdir('/proc/self/fd'))):
            try: print(name, os.readlink(f'/proc/self/fd/{name}').split(':')[0])
            except OSError: pass
    """
    try:
        with start(script, tmp_path, events=True) as child:
            read_to_end(child)
    finally:
        os.close(extra)
    lines = child.stdout.text().splitlines()
    assert lines[0] == "''"
    assert [line.split()[1] for line in lines[1:]] == ["/dev/null", "pipe", "pipe", "pipe"]


def test_events_arrive_whole_while_both_other_pipes_are_flooded(tmp_path: Path) -> None:
    script = """
        import os, sys
        fd = int(sys.argv[sys.argv.index('--events-fd') + 1])
        for number in range(100):
            os.write(1, b'o' * 65536)
            os.write(2, b'e' * 65536)
            os.write(fd, b'%d\\n' % number)
        os.write(2, b'last words')
    """
    with start(script, tmp_path, events=True) as child:
        events = read_to_end(child)
        assert child.finish().code == 0
    assert events.split() == [str(number).encode() for number in range(100)]
    assert child.stdout.total_bytes == 100 * 65536
    assert len(child.stdout.raw()) == 65536
    assert child.stderr.last_line(10) == "last words"


@pytest.mark.parametrize(("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGKILL, "SIGKILL")])
def test_a_death_by_signal_is_named_and_not_taken_for_ours(tmp_path: Path, number: int, name: str) -> None:
    with start(f"import os; os.kill(os.getpid(), {number})", tmp_path) as child:
        read_to_end(child)
        status = child.finish()
    assert (status.signal_name, status.killed) == (name, False)


def test_an_exit_code_is_kept(tmp_path: Path) -> None:
    with start("raise SystemExit(7)", tmp_path) as child:
        read_to_end(child)
        assert child.finish().code == 7
        assert child.finish().signal_name is None


def test_kill_ends_the_whole_group_and_reaps_the_child(tmp_path: Path) -> None:
    script = f"""
        import signal, subprocess, sys
        for number in (signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
        print(subprocess.Popen([sys.executable, '-c', {SLEEP_FOREVER!r}]).pid, flush=True)
        {SLEEP_FOREVER}
    """
    with start(script, tmp_path) as child:
        wait_until(lambda: child.read(0.05) == b"" and child.stdout.text().strip(), what="the grandchild's pid")
        grandchild = int(child.stdout.text())
        assert is_alive(grandchild)
        child.kill()
        status = child.finish()
    assert (status.signal_name, status.killed) == ("SIGKILL", True)
    wait_until(lambda: not is_alive(grandchild), what="the grandchild's end")
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)  # reaped: not even a zombie is left


def test_a_grandchild_that_outlives_its_parent_is_killed_and_does_not_hold_us(tmp_path: Path) -> None:
    script = f"""
        import subprocess, sys
        print(subprocess.Popen([sys.executable, '-c', {SLEEP_FOREVER!r}]).pid, flush=True)
    """
    started = time.monotonic()
    with start(script, tmp_path, events=True) as child:
        read_to_end(child)
        grandchild = int(child.stdout.text())
        assert child.finish().code == 0
    assert time.monotonic() - started < 10.0
    wait_until(lambda: not is_alive(grandchild), what="the grandchild's end")


def test_no_descriptor_thread_or_process_is_left(tmp_path: Path) -> None:
    start("", tmp_path, events=True).__exit__(None, None, None)
    descriptors, threads = open_descriptors(), threading.active_count()
    for _ in range(5):
        with start(SLEEP_FOREVER, tmp_path, events=True):
            pass
    assert open_descriptors() == descriptors
    assert threading.active_count() == threads


@pytest.mark.parametrize(("name", "error"), [("missing", FileNotFoundError), ("a\0b", ValueError)])
def test_a_command_that_cannot_be_started_leaks_nothing(tmp_path: Path, name: str, error: type[Exception]) -> None:
    descriptors = open_descriptors()
    with pytest.raises(error):
        Child([str(tmp_path / name)], folder=tmp_path, environment={}, events_flag="--events-fd")
    assert open_descriptors() == descriptors


def test_a_child_that_asked_for_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child_script = f"""
import ctypes, os, pathlib, signal, time
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(os.environ['PRUNING_PARENT_PID']): raise SystemExit
pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))
time.sleep(600)
"""
    parent_script = f"""
import pathlib, time
from pruning_server.adapters.process import Child, child_environment, python_command
folder = pathlib.Path({str(tmp_path)!r})
child = Child(python_command('-c', {child_script!r}), folder=folder,
              environment=child_environment(home=folder, threads=1, cuda_devices=''))
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", parent_script])
    try:
        wait_until(lambda: pid_file.exists() and pid_file.read_text(), what="the child's start")
        child_pid = int(pid_file.read_text())
        assert is_alive(child_pid)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not is_alive(child_pid), what="the child's end")


def test_tail_buffer_keeps_the_end_and_escapes_what_a_terminal_would_obey() -> None:
    tail = TailBuffer(8)
    tail.add(b"0123456789")
    tail.add(b"ab\xff\x1b")
    assert tail.raw() == b"6789ab\xff\x1b"
    assert tail.text() == "6789ab\\xff\\x1b"
    assert tail.total_bytes == 14


def test_visible_cuda_device_follows_what_the_server_itself_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_cuda_device(1) == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-7f")
    assert visible_cuda_device(1) == "GPU-7f"
