"""Attempts to get out of a real sandboxed child: each is refused, and the child lives to say so."""

from __future__ import annotations

import errno
import json
import os
import socket
import sqlite3
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from helpers import sandboxing
from pruning_server.adapters.clock import SystemClock
from pruning_server.adapters.exits import ExitCause, classify
from pruning_server.adapters.process import Child, ExitStatus, child_environment, python_command
from pruning_server.adapters.sandbox_trial import require_sandbox, try_sandbox
from pruning_server.adapters.usage import Allowance, Excess, Resource, Watchdog
from pruning_server.errors import PreconditionError, Reason
from pruning_server.sandbox.paths import library_folders
from pruning_server.sandbox.policy import EXIT_NO_SANDBOX, Policy, from_text, sandboxed, to_text

SCRIPT = "attempt.py"
# What an attempt is told when it is refused: not permitted, or no access.
REFUSED = {errno.EPERM, errno.EACCES}
PRELUDE = """
    import ctypes, errno, json, os, signal, sys
    libc = ctypes.CDLL(None, use_errno=True)
    told = {}
    def attempt(name, what):
        try:
            result = what()
        except OSError as error:
            told[name] = error.errno
        else:
            told[name] = "done" if result is None else repr(result)
    def call(*arguments):
        if libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    outside, parent = sys.argv[1], os.getppid()
"""
CLOSING = """
    print(json.dumps(told), flush=True)
"""


@pytest.fixture(autouse=True)
def _given() -> None:
    sandboxing.needs_sandbox()


@dataclass
class Cell:
    """A run's folder beside others of the server."""

    root: Path
    policy: Policy = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.root / "jobs" / "a" / "1"
        self.folder.mkdir(parents=True)
        other = self.root / "jobs" / "b" / "1"
        other.mkdir(parents=True)
        (other / "model.pt").write_bytes(b"secret")
        with sqlite3.connect(self.root / "jobs.sqlite3") as database:
            database.execute("create table secrets (name text)")
        database.close()
        self.policy = Policy(write=(str(self.folder),), file_bytes=1 << 20)

    def start(self, script: str, *arguments: str) -> Child:
        (self.folder / SCRIPT).write_text(textwrap.dedent(PRELUDE) + textwrap.dedent(script) + textwrap.dedent(CLOSING))
        return Child(
            [*python_command(str(self.folder / SCRIPT)), str(self.root), *arguments],
            folder=self.folder,
            environment=child_environment(home=self.folder, threads=1, cuda_devices=""),
            policy=self.policy,
        )

    def told(self, script: str, *arguments: str) -> dict[str, object]:
        """What the attempts of a script came to."""
        with self.start(script, *arguments) as child:
            status = ended(child)
            assert status.code == 0, (status, child.stderr.text())
            told: dict[str, object] = json.loads(child.stdout.text())
        return told


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    return Cell(tmp_path)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        yield server


def ended(child: Child, timeout_seconds: float = 60.0) -> ExitStatus:
    clock = SystemClock()
    deadline = clock.monotonic() + timeout_seconds
    while not child.has_exited():
        assert clock.monotonic() < deadline, "the child did not end"
        child.read(0.05)
    child.drain(1.0)
    return child.finish()


def assert_refused(told: dict[str, object]) -> None:
    assert told
    assert {name: result for name, result in told.items() if result not in REFUSED} == {}


def test_the_trial_finds_the_sandbox_whole(tmp_path: Path) -> None:
    found = try_sandbox(tmp_path / "jobs", SystemClock())
    assert found.lacking == ()
    assert found.landlock_abi >= 1
    assert list((tmp_path / "jobs").iterdir()) == []


def test_its_own_folder_is_all_that_a_child_can_use(cell: Cell) -> None:
    told = cell.told("""
        os.mkdir("own")
        open("own/file", "w").write("x")
        os.rename("own/file", "own/renamed")
        os.unlink("own/renamed")
        os.rmdir("own")
        attempt("own file", lambda: None)
    """)
    assert told == {"own file": "done"}
    told = cell.told("""
        for path in ("/etc/passwd", "/etc/hostname", outside + "/jobs/b/1/model.pt", outside + "/jobs.sqlite3",
                     f"/proc/{parent}/environ", f"/proc/{parent}/mem", f"/proc/{parent}/maps", f"/proc/{parent}/cmdline",
                     "/proc/1/environ", "/proc/kallsyms", "/dev/mem", "/dev/kmsg"):
            if os.access(path, os.F_OK):
                attempt("read " + path, lambda: open(path, "rb").read(1))
        for path in ("/", "/tmp", "/home", "/root", "/proc", outside, outside + "/jobs", outside + "/jobs/b/1"):
            if os.path.isdir(path):
                attempt("list " + path, lambda: os.listdir(path))
        for path in ("/tmp/pruning-escape", "/dev/shm/pruning-escape", outside + "/escape", outside + "/jobs/b/1/model.pt",
                     outside + "/jobs.sqlite3", os.path.dirname(os.__file__) + "/escape.py"):
            attempt("write " + path, lambda: open(path, "w").write("x"))
        database = outside + "/jobs.sqlite3"
        attempt("truncate", lambda: os.truncate(database, 0))
        attempt("open to truncate", lambda: os.open(database, os.O_RDONLY | os.O_TRUNC))
        attempt("open with mode 3", lambda: os.open(database, 3 | os.O_TRUNC))
        attempt("unlink", lambda: os.unlink(database))
        attempt("rename out", lambda: os.rename("attempt.py", outside + "/escape"))
        attempt("rename in", lambda: os.rename(database, "stolen"))
        attempt("chmod", lambda: os.chmod("attempt.py", 0o4755))
        attempt("chown", lambda: os.chown("attempt.py", 0, 0))
        attempt("times", lambda: os.utime("attempt.py", (0, 0)))
        attempt("xattr", lambda: os.setxattr("attempt.py", "user.x", b"x"))
        attempt("make a symlink", lambda: os.symlink(database, "link"))
        attempt("make a hard link", lambda: os.link(database, "link"))
        attempt("make a pipe", lambda: os.mkfifo("pipe"))
        attempt("make a device", lambda: os.mknod("device", 0o600 | 0o020000, os.makedev(1, 1)))
    """)
    told = {name: result for name, result in told.items() if not (name.startswith("rename") and result == errno.EXDEV)}
    assert_refused(told)
    assert (cell.root / "jobs.sqlite3").stat().st_size > 0
    assert (cell.root / "jobs" / "b" / "1" / "model.pt").read_bytes() == b"secret"


def test_no_network_and_no_message_to_other_processes(cell: Cell, listener: socket.socket) -> None:
    told = cell.told(
        """
        import socket
        port = int(sys.argv[2])
        def connect():
            with socket.create_connection(("127.0.0.1", port)): pass
        attempt("connect", connect)
        for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK"):
            for kind in ("SOCK_STREAM", "SOCK_DGRAM", "SOCK_RAW"):
                attempt(f"{family} {kind}", lambda: socket.socket(getattr(socket, family), getattr(socket, kind)))
        attempt("socketpair", socket.socketpair)
        """,
        str(listener.getsockname()[1]),
    )
    assert_refused(told)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_no_process_no_program_and_no_hand_on_another(cell: Cell) -> None:
    told = cell.told("""
        import fcntl, resource, subprocess, threading
        attempt("fork", os.fork)
        attempt("vfork", lambda: call(58) if os.uname().machine == "x86_64" else os.fork())
        attempt("subprocess", lambda: subprocess.run(["/bin/true"]))
        attempt("posix_spawn", lambda: os.posix_spawn("/bin/true", ["true"], {}))
        attempt("exec", lambda: os.execv("/bin/true", ["true"]))
        attempt("exec python", lambda: os.execv(sys.executable, [sys.executable, "-c", ""]))
        attempt("kill the parent", lambda: os.kill(parent, signal.SIGTERM))
        attempt("kill the parent, signal 0", lambda: os.kill(parent, 0))
        attempt("kill everything", lambda: os.kill(-1, signal.SIGTERM))
        attempt("kill the group", lambda: os.kill(0, signal.SIGTERM))
        attempt("killpg", lambda: os.killpg(os.getpgid(parent), signal.SIGTERM))
        attempt("pidfd", lambda: os.pidfd_open(parent))
        def owner():
            reader, writer = os.pipe()
            fcntl.fcntl(reader, fcntl.F_SETOWN, parent)
        attempt("signal by owner", owner)
        attempt("new session", os.setsid)
        attempt("another group", lambda: os.setpgid(0, os.getpgid(parent)))
        attempt("limits of the parent", lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE, (8, 8)))
        attempt("cores of the parent", lambda: os.sched_setaffinity(parent, {0}))
        attempt("priority of the parent", lambda: os.setpriority(os.PRIO_PROCESS, parent, 19))
        attempt("become root", lambda: os.setuid(0))
        def prctl(option, value):
            if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) < 0:
                raise OSError(ctypes.get_errno(), "")
        attempt("live on without the parent", lambda: prctl(1, 0))
        attempt("let others trace", lambda: prctl(0x59616D61, parent))
        worked = []
        thread = threading.Thread(target=lambda: worked.append(1))
        thread.start()
        thread.join()
        assert worked == [1], "threads must work"
    """)
    assert_refused(told)


def test_no_call_that_reaches_into_the_kernel_or_another_process(cell: Cell) -> None:
    """By number, since Python has no names for most of them; x86-64 only."""
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86-64")
    calls = {
        "ptrace": (101, 16, "parent"), "process_vm_readv": (310, "parent"), "process_vm_writev": (311, "parent"),
        "mount": (165,), "umount": (166,), "chroot": (161,), "pivot_root": (155,), "unshare": (272, 0x10000000),
        "setns": (308,), "bpf": (321,), "perf_event_open": (298,), "userfaultfd": (323,), "keyctl": (250,),
        "add_key": (248,), "request_key": (249,), "memfd_create": (319,), "memfd_secret": (447,),
        "open_by_handle_at": (304,), "name_to_handle_at": (303,), "init_module": (175,), "finit_module": (313,),
        "kexec_load": (246,), "reboot": (169,), "swapon": (167,), "sethostname": (170,), "iopl": (172,), "ioperm": (173,),
        "acct": (163,), "quotactl": (179,), "syslog": (103, 3), "clock_settime": (227,), "adjtimex": (159,),
        "fanotify_init": (300,), "inotify_init": (253,), "shmget": (29,), "semget": (64,), "msgget": (68,),
        "mq_open": (240,), "kcmp": (312,), "pidfd_send_signal": (424,), "pidfd_getfd": (438,), "tkill": (200, "parent"),
        "rt_sigqueueinfo": (129, "parent"), "rt_tgsigqueueinfo": (297, "parent"), "vmsplice": (278,), "io_setup": (206,),
        "fsopen": (430,), "move_mount": (429,), "open_tree": (428,), "process_madvise": (440,), "seccomp": (317,),
        "landlock_create_ruleset": (444,), "setreuid": (113,), "capset": (126,), "personality": (135, 8),
    }  # fmt: skip
    told = cell.told(
        """
        for name, (number, *arguments) in json.loads(sys.argv[2]).items():
            values = [parent if value == "parent" else value for value in arguments]
            attempt(name, lambda: call(number, *values, *[0] * (6 - len(values))))
        """,
        json.dumps(calls),
    )
    assert_refused(told)
    absent = cell.told("""
        for name, number in {"clone3": 435, "openat2": 437, "io_uring_setup": 425, "of tomorrow": 9999}.items():
            attempt(name, lambda: call(number, 0, 0, 0, 0, 0, 0))
    """)
    assert set(absent.values()) == {errno.ENOSYS}


def test_calls_of_a_foreign_abi_end_the_process(cell: Cell) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("x32 is of x86-64")
    with cell.start("call(0x40000000 + 39)") as child:
        assert ended(child).signal_name == "SIGSYS"


def test_a_file_has_a_size_and_a_process_a_number_of_files(cell: Cell) -> None:
    told = cell.told("""
        import resource
        def fill():
            with open("big", "wb") as file:
                for _ in range(64): file.write(bytes(1 << 16))
        attempt("fill", fill)
        def exhaust():
            held = [open("big", "rb") for _ in range(5000)]
        attempt("open everything", exhaust)
        def raise_limit():
            try: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))
            except ValueError as error: raise PermissionError(errno.EPERM, str(error))
        attempt("raise the limit", raise_limit)
    """)
    assert told == {"fill": errno.EFBIG, "open everything": errno.EMFILE, "raise the limit": errno.EPERM}
    assert (cell.folder / "big").stat().st_size <= 1 << 20


def test_there_are_no_privileges_and_no_descriptors_of_the_server(cell: Cell) -> None:
    secret = os.open(cell.root / "jobs.sqlite3", os.O_RDWR)
    os.set_inheritable(secret, True)
    try:
        told = cell.told("""
            status = open("/proc/self/status").read()
            fields = dict(line.split(":", 1) for line in status.splitlines())
            for name in ("NoNewPrivs", "Seccomp", "CapBnd", "CapEff", "CapPrm", "CapInh"):
                told[name] = fields[name].strip()
            told["files"] = []
            for number in range(3, 1024):
                try: told["files"].append(os.readlink(f"/proc/self/fd/{number}"))
                except FileNotFoundError: pass
            told["environment"] = sorted(os.environ)
        """)
    finally:
        os.close(secret)
    assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")
    # Reading and writing files of others is all that a worker of root may keep, and Landlock is in front of that.
    assert int(str(told["CapEff"]), 16) | int(str(told["CapPrm"]), 16) | 0b110 == 0b110
    assert int(str(told["CapInh"]), 16) == 0
    assert [path for path in told["files"] if not str(path).startswith("/proc/")] == []  # type: ignore[attr-defined]
    allowed = {
        "PATH",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "LD_LIBRARY_PATH",
        "HOME",
        "TMPDIR",
        "USER",
        "CUDA_VISIBLE_DEVICES",
    }
    extra = {name for name in told["environment"] if not name.startswith(("PYTHON", "OMP_", "MKL_", "PRUNING_PARENT"))}  # type: ignore[attr-defined]
    assert extra <= allowed


def test_a_process_may_end_itself(cell: Cell) -> None:
    with cell.start("os.abort()") as child:
        assert ended(child).signal_name == "SIGABRT"
    with cell.start("os.kill(os.getpid(), signal.SIGKILL)") as child:
        assert ended(child).signal_name == "SIGKILL"


SHARED_MEMORY = """
    import mmap, time
    shared = mmap.mmap(-1, 1 << 28)
    shared.write(bytes(1 << 28))
    time.sleep(60)
"""
MANY_FILES = """
    import time
    for number in range(64):
        open(f"file-{number}", "wb").write(bytes(1 << 19))
    time.sleep(60)
"""
A_DELETED_FILE = """
    import mmap, time
    file = open("file", "wb+")
    file.truncate(1 << 20)
    os.unlink("file")
    held = mmap.mmap(file.fileno(), 1 << 20)
    file.close()
    held.write(b"x" * (1 << 20))
    time.sleep(60)
"""
THREADS = """
    import threading, time
    threading.stack_size(65536)
    for number in range(1200):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("script", "allowance", "resource_name"),
    [
        (SHARED_MEMORY, {"memory_bytes": 1 << 27}, Resource.MEMORY),
        (MANY_FILES, {"disk_bytes": 1 << 24}, Resource.DISK),
        (A_DELETED_FILE, {"disk_bytes": 1 << 19}, Resource.DISK),
        (THREADS, {}, Resource.THREADS),
    ],
    ids=["shared memory", "many files", "a deleted file", "threads"],
)
def test_what_no_limit_bounds_is_watched(
    cell: Cell, script: str, allowance: dict[str, int], resource_name: Resource
) -> None:
    found: Excess | None = None
    with cell.start(script) as child:
        watchdog = Watchdog(child.pid, Allowance(folder=cell.folder, **allowance))
        clock = SystemClock()
        deadline = clock.monotonic() + 60
        while found is None and not child.has_exited():
            assert clock.monotonic() < deadline, child.stderr.text()
            child.read(0.05)
            found = watchdog.excess()
    assert found is not None, child.stderr.text()
    assert found.resource is resource_name
    assert found.used > found.limit
    assert "limit" in str(found)


def test_a_sandbox_that_cannot_be_entered_runs_nothing(cell: Cell) -> None:
    with cell.start("told['ran'] = True") as child:
        assert ended(child).code == 0
    marker = cell.folder / "ran"
    (cell.folder / SCRIPT).write_text(f"open({str(marker)!r}, 'w')")
    for text in ("{}", "no policy", to_text(Policy())[:-1]):
        command = [*python_command("-m", "pruning_server.sandbox"), text, str(cell.folder / SCRIPT)]
        environment = child_environment(home=cell.folder, threads=1, cuda_devices="")
        with Child(command, folder=cell.folder, environment=environment) as child:
            assert ended(child).code == EXIT_NO_SANDBOX
            assert child.stderr.last_line().startswith("sandbox:")
    assert not marker.exists()


def test_a_kernel_without_landlock_is_named_and_refused(cell: Cell) -> None:
    """A process inside cannot go in again, as on a kernel or in a container that forbids it."""
    policy = to_text(Policy(write=(str(cell.root),), read=(str(cell.root),)))
    command = python_command("-m", "pruning_server.sandbox", policy, "-m", "pruning_server.sandbox", "try")
    with pytest.raises(PreconditionError, match="Landlock") as caught:
        require_sandbox(cell.root / "jobs", SystemClock(), command)
    assert caught.value.reason is Reason.WORKER_NOT_INSTALLED
    assert "--insecure-no-sandbox" in caught.value.message


def test_data_among_the_libraries_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    found = try_sandbox(tmp_path / "data" / "jobs", SystemClock())
    assert any(str(tmp_path) in text and "--data-dir" in text for text in found.lacking)


def test_the_folder_that_the_server_was_started_in_may_hold_its_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`python -m pruning_server` has it on its path; workers do not."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert try_sandbox(tmp_path / "data" / "jobs", SystemClock()).lacking == ()


def test_the_libraries_that_all_may_read_are_folders_of_libraries() -> None:
    assert not {"/", "/etc", "/home", "/root", "/usr", "/tmp", "/var", str(Path.home())} & set(library_folders())


def test_a_policy_survives_the_command_line() -> None:
    policy = Policy(write=("/a b", "/c"), read=("/d",), is_cuda=True, file_bytes=5, open_files=7)
    assert from_text(to_text(policy)) == policy
    command = sandboxed(python_command("-m", "x", "y"), policy)
    assert command[-3:] == ("-m", "x", "y")
    assert sandboxed(("x", "y"), None) == ("x", "y")
    with pytest.raises(ValueError, match="python_command"):
        sandboxed(("/bin/true",), policy)


def test_a_kill_is_out_of_memory_only_where_the_kernel_counted_one() -> None:
    assert classify(ExitStatus(-9, killed=False, memory_ran_out=True), None, "") is ExitCause.OOM
    assert classify(ExitStatus(-9, killed=False), None, "") is ExitCause.LOST


def test_core_dumps_are_off(cell: Cell) -> None:
    told = cell.told("import resource; told['core'] = resource.getrlimit(resource.RLIMIT_CORE)")
    assert told == {"core": [0, 0]}
