"""Starts a child process by exec, reads what it says, and ends it with everything that it started.

The child is killed when the server dies: it asks the kernel for that itself (PR_SET_PDEATHSIG), which is bound to the
*thread* that started it. So the thread that starts a child must live as long as the child may: here it always waits for it.
"""

from __future__ import annotations

import io
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from pruning_server.adapters.usage import oom_kills
from pruning_server.sandbox.policy import Policy, sandboxed

TAIL_BYTES = 64 * 1024
READ_BYTES = 64 * 1024
POLL_SECONDS = 0.05
REAP_SECONDS = 10.0

# A child sees nothing of the server's environment but these, where they are set.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")


def python_command(*arguments: str) -> tuple[str, ...]:
    """A command for this Python, without the current folder and the user's packages on its path.

    A run's folder holds what callers sent and models wrote: a `torch.py` in it must not be imported.
    """
    return (sys.executable, "-P", "-s", *arguments)


def child_environment(*, home: Path, threads: int, cuda_devices: str | None) -> dict[str, str]:
    """The whole environment of a child.

    Args:
        home: what the child gets as HOME and TMPDIR.
        threads: for OpenMP and MKL, at least 1.
        cuda_devices: CUDA_VISIBLE_DEVICES; empty: none, None: all that the server sees.
    """
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Threads that spin while they wait make small steps ten times slower on a machine that does anything else.
        "OMP_WAIT_POLICY": "PASSIVE",
        # Lets a child notice that its parent died before the child could ask to die with it.
        "PRUNING_PARENT_PID": str(os.getpid()),
    }
    if cuda_devices is None:
        cuda_devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if cuda_devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = cuda_devices
    return environment


def visible_cuda_device(index: int) -> str:
    """The CUDA_VISIBLE_DEVICES that shows a child only the server's `cuda:<index>`."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[index] if index < len(visible) else str(index)


class TailBuffer:
    """The last bytes of a stream, however long it is."""

    def __init__(self, limit_bytes: int = TAIL_BYTES) -> None:
        self._limit = limit_bytes
        self._data = bytearray()
        self.total_bytes = 0

    def add(self, data: bytes) -> None:
        """Appends, forgetting the oldest bytes above the limit."""
        self.total_bytes += len(data)
        self._data += data
        if len(self._data) > self._limit:
            del self._data[: len(self._data) - self._limit]

    def text(self) -> str:
        """What is kept, with undecodable bytes and control characters escaped."""
        decoded = self._data.decode("utf-8", errors="backslashreplace")
        return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in decoded)

    def raw(self) -> bytes:
        """What is kept, as it came."""
        return bytes(self._data)

    def last_line(self, limit_characters: int = 500) -> str:
        """The last line that is not empty, capped; empty if there is none."""
        lines = [line.strip() for line in self.text().splitlines() if line.strip()]
        return lines[-1][-limit_characters:] if lines else ""


@dataclass(frozen=True)
class ExitStatus:
    """How a child ended: its exit code, or minus the signal that killed it.

    Attributes:
        killed: that was us.
        memory_ran_out: the kernel may have killed it because memory ran out; else somebody did.
    """

    code: int
    killed: bool
    memory_ran_out: bool = False

    @property
    def signal_name(self) -> str | None:
        """`SIGSEGV`, ...; None if no signal ended it."""
        if self.code >= 0:
            return None
        try:
            return signal.Signals(-self.code).name
        except ValueError:
            return f"signal {-self.code}"


class Child:
    """A child process in a session and process group of its own; used by one thread, the one that starts it.

    As a context manager it leaves nothing behind: the whole group is killed, and the child reaped.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environment: dict[str, str],
        events_flag: str | None = None,
        stdout_limit_bytes: int = TAIL_BYTES,
        policy: Policy | None = None,
    ) -> None:
        """Starts it.

        Args:
            command: as `python_command` makes them.
            folder: where it starts.
            environment: all of it, as `child_environment` makes them.
            events_flag: opens a pipe and hands its number to the child behind this flag.
            stdout_limit_bytes: how much of the end of its stdout is kept.
            policy: what it may do; None: it runs outside the sandbox.

        Raises:
            OSError: it could not be started.
        """
        command = sandboxed(command, policy)
        self._oom_kills = oom_kills()
        self.stdout = TailBuffer(stdout_limit_bytes)
        self.stderr = TailBuffer()
        self._killed = False
        self._exit: ExitStatus | None = None
        self._selector = selectors.DefaultSelector()
        with ExitStack() as undo:
            undo.callback(self._selector.close)
            reader, writer = None, None
            if events_flag is not None:
                reader, writer = _open_pipe(undo)
                command = [*command, events_flag, str(writer.fileno())]
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[] if writer is None else [writer.fileno()],
                start_new_session=True,
                bufsize=0,
            )
            undo.pop_all()
        if writer is not None:
            writer.close()
        streams = ((reader, None), (self._process.stdout, self.stdout), (self._process.stderr, self.stderr))
        for stream, tail in streams:
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                self._selector.register(stream, selectors.EVENT_READ, tail)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        self.finish()

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its process group."""
        return self._process.pid

    def read(self, timeout_seconds: float) -> bytes:
        """Waits for output or the end, keeps the tails of stdout and stderr, and returns what came over the events pipe.

        All three pipes are read here, a piece of each in turn, so that neither a flood nor silence on one of them can
        block the child or starve the others.
        """
        if not self._selector.get_map():
            time.sleep(min(timeout_seconds, POLL_SECONDS))
            return b""
        events = bytearray()
        for key, _ in self._selector.select(timeout_seconds):
            data = _stream_of(key).read(READ_BYTES)
            if data == b"":
                self._close(key)
            elif data is not None and key.data is None:
                events += data
            elif data is not None:
                key.data.add(data)
        return bytes(events)

    def has_exited(self) -> bool:
        """Whether the child itself is gone; what it wrote may still be in the pipes. Does not reap it."""
        if self._exit is not None:
            return True
        # Not reaped, the process group keeps its number: `kill` cannot hit a stranger.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        """Kills the whole process group at once. SIGKILL, since native code never gets to a Python handler."""
        if self._exit is not None:
            return
        self._killed = self._killed or not self.has_exited()
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # Everything in the group is gone already.
        except PermissionError:
            self._process.kill()

    def finish(self) -> ExitStatus:
        """Waits for the child to be gone, kills what it left behind in its group, reaps it and closes the pipes."""
        if self._exit is not None:
            return self._exit
        deadline = time.monotonic() + REAP_SECONDS
        while not self.has_exited() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 10)
        killed = self._killed
        self.kill()
        try:
            code = self._process.wait(timeout=REAP_SECONDS)
        except subprocess.TimeoutExpired:
            code, killed = -int(signal.SIGKILL), True  # Stuck in the kernel: it cannot run on, only linger.
        for key in list(self._selector.get_map().values()):
            self._close(key)
        self._selector.close()
        self._exit = ExitStatus(code, killed, memory_ran_out=self._memory_ran_out(code, killed=killed))
        return self._exit

    def _memory_ran_out(self, code: int, *, killed: bool) -> bool:
        """Whether the kernel's own count of such kills explains this one; a kernel that does not count may have."""
        if killed or code != -signal.SIGKILL:
            return False
        now = oom_kills()
        return now is None or now != self._oom_kills

    def drain(self, timeout_seconds: float) -> bytes:
        """Reads what is left in the pipes after the child is gone, until they are empty or time is up."""
        deadline = time.monotonic() + timeout_seconds
        events = bytearray()
        while self._selector.get_map() and (left := deadline - time.monotonic()) > 0:
            before = self.stdout.total_bytes + self.stderr.total_bytes + len(events)
            events += self.read(min(left, POLL_SECONDS))
            if self.stdout.total_bytes + self.stderr.total_bytes + len(events) == before:
                break  # A grandchild may hold the pipes open; what the child wrote was there at once.
        return bytes(events)

    def _close(self, key: selectors.SelectorKey) -> None:
        self._selector.unregister(key.fileobj)
        _stream_of(key).close()


def _open_pipe(undo: ExitStack) -> tuple[io.FileIO, io.FileIO]:
    reader, writer = (io.FileIO(number, mode) for number, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
    undo.callback(reader.close)
    undo.callback(writer.close)
    return reader, writer


def _stream_of(key: selectors.SelectorKey) -> io.FileIO:
    return cast("io.FileIO", key.fileobj)
