"""A worker that prunes nothing: speaks the messages and misbehaves on demand, without importing torch.

    python standin_worker.py run|check|probe [--workspace DIR] [--events-fd N] [--memory-bytes M]

What it does is named by `spec.exclude_layers`: `segfault` is `Worker.do_segfault`, and `check_segfault` does it in the
check; after all of them it succeeds.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from pruning_server.errors import Reason
from pruning_server.jobs import workspace
from pruning_server.jobs.events import (
    CheckPassed,
    CountersAdded,
    LogWritten,
    PhaseFinished,
    PhaseStarted,
    ProgressMade,
    RunFailed,
    RunSucceeded,
    Severity,
    WorkerAlive,
    WorkerMessage,
)
from pruning_server.jobs.model import Progress
from pruning_server.jobs.probe import CriterionInfo, DeviceInfo, Probe, StrategyInfo
from pruning_server.jobs.workspace import WorkerJob
from pruning_server.spec.base import from_json, to_json
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import Granularity, TargetKind, Verdict

PROBE = Probe(
    torch_version="0.0",
    cuda_version=None,
    python_version="3",
    devices=(DeviceInfo(name="cpu", description="stand-in", memory_bytes=1),),
    strategies=(
        StrategyInfo(
            name="static",
            summary="",
            available=True,
            granularities=(Granularity.WEIGHT,),
            targets=(TargetKind.THRESHOLD, TargetKind.SPARSITY),
            criteria=(CriterionInfo(name="l1", summary="", source=""),),
        ),
    ),
)


class Worker:
    def __init__(self, events_fd: int, folder: Path) -> None:
        self.fd = events_fd
        self.folder = folder
        self.report_extra: dict[str, object] = {}

    def send(self, message: WorkerMessage) -> None:
        os.write(self.fd, to_json(message) + b"\n")

    def say_progress(self, phase: Phase, fraction: float, epoch: int = 0) -> None:
        self.send(ProgressMade(progress=Progress(phase=phase, fraction=fraction, epoch=epoch, epochs=3)))

    def behave(self, name: str) -> None:
        """Does what `name` or `name=argument` says; names that are none of ours are for others."""
        kind, _, argument = name.partition("=")
        behaviour = getattr(self, f"do_{kind}", None)
        if behaviour is not None:
            behaviour(argument)

    def do_full_disk(self, _: str) -> None:
        self.send(RunFailed(reason=Reason.STORAGE_FULL, text="The server's disk is full.", phase=Phase.EXPORT))
        sys.exit(0)

    def do_segfault(self, _: str) -> None:
        ctypes.string_at(0)

    def do_abort(self, _: str) -> None:
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os.abort()

    def do_oom(self, _: str) -> None:
        bytearray(1 << 40)

    def do_eat(self, _: str) -> None:
        kept = []
        while True:
            kept.append(b"x" * (16 << 20))

    def do_sigkill(self, _: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def do_raise(self, _: str) -> None:
        raise ValueError("broken \x1b[31m on purpose")

    def do_exit(self, argument: str) -> None:
        sys.exit(int(argument))

    def do_refuse(self, _: str) -> None:
        self.send(RunFailed(reason=Reason.NOTHING_PRUNABLE, text="nothing\x07 here", phase=Phase.PLAN))
        sys.exit(0)

    def do_hang(self, _: str) -> None:
        while True:
            self.send(WorkerAlive(rss_bytes=1))
            time.sleep(0.05)

    def do_silent(self, _: str) -> None:
        self.send(PhaseStarted(phase=Phase.RECOVER))
        time.sleep(600)

    def do_load_forever(self, argument: str) -> None:
        self.send(PhaseStarted(phase=Phase.LOAD))
        self.do_hang(argument)

    def do_stubborn(self, argument: str) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.do_hang(argument)

    def do_grandchild(self, argument: str) -> None:
        """Leaves a process in our group, holding our pipes, and deaf."""
        script = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", script])
        self.send(LogWritten(severity=Severity.INFO, text=f"pid {child.pid}"))
        if argument == "hang":
            self.do_hang(argument)

    def do_flood(self, argument: str) -> None:
        """Writes `argument` MiB to stdout and to stderr each."""
        block = b"x" * 65536
        for _ in range(int(argument) * 16):
            os.write(1, block)
            os.write(2, block)

    def do_garbage(self, _: str) -> None:
        os.write(self.fd, b'{"message": "nonsense"}\nnot json\n\xff\xfe\n' + b"y" * (3 << 20) + b"\n")

    def do_broken_pipe(self, _: str) -> None:
        os.close(self.fd)
        time.sleep(600)

    def do_slow(self, argument: str) -> None:
        time.sleep(float(argument))

    def do_linger(self, _: str) -> None:
        self.succeed()
        time.sleep(600)

    def do_crash_late(self, argument: str) -> None:
        self.succeed()
        self.do_segfault(argument)

    def do_crash_once(self, argument: str) -> None:
        """The first attempt dies, the next ones work."""
        if self.job().attempt == 1:
            self.do_segfault(argument)

    def do_wrong_hash(self, _: str) -> None:
        self.succeed(sha256="0" * 64)
        sys.exit(0)

    def do_symlink(self, _: str) -> None:
        self.succeed()
        (self.folder / workspace.PRUNED_FILE).unlink()
        (self.folder / workspace.PRUNED_FILE).symlink_to("/etc/hostname")
        sys.exit(0)

    def do_no_report(self, _: str) -> None:
        self.succeed()
        (self.folder / workspace.REPORT_FILE).unlink()
        sys.exit(0)

    def do_bad_verdict(self, _: str) -> None:
        self.succeed(verdict=Verdict.INCONCLUSIVE)
        sys.exit(0)

    def do_environment(self, _: str) -> None:
        """Logs the environment, then the folder, whether it leads its session, and what stdin holds."""
        for name, value in sorted(os.environ.items()):
            self.send(LogWritten(severity=Severity.INFO, text=f"{name}={value}"))
        facts = [str(Path.cwd()), str(os.getsid(0) == os.getpid()), os.read(0, 1).decode() or "eof"]
        self.send(LogWritten(severity=Severity.WARNING, text=" ".join(facts)))

    def job(self) -> WorkerJob:
        return from_json((self.folder / workspace.JOB_FILE).read_bytes(), WorkerJob)

    def meet_fault(self, phase: Phase) -> None:
        """`die_in=PHASE` kills this process in its first attempt, `kill_server_in=PHASE` the one that started it."""
        job = self.job()
        if job.attempt == 1 and f"die_in={phase.value}" in job.spec.exclude_layers:
            os.kill(os.getpid(), signal.SIGKILL)
        server, is_due = os.getppid(), f"kill_server_in={phase.value}" in job.spec.exclude_layers
        # An orphan has another parent, who must not suffer for it.
        if job.attempt == 1 and is_due and os.environ["PRUNING_PARENT_PID"] == str(server):
            os.kill(server, signal.SIGKILL)

    def do_own_report(self, _: str) -> None:
        self.report_extra = {"job_id": self.job().job_id}

    def work(self) -> None:
        for index, phase in enumerate(Phase):
            self.send(PhaseStarted(phase=phase))
            self.meet_fault(phase)
            self.say_progress(phase, index / 9)
            if phase is Phase.RECOVER:
                for epoch in (1, 2, 3):
                    self.say_progress(phase, index / 9, epoch)
            self.send(PhaseFinished(phase=phase, seconds=0.001))
        self.send(
            CountersAdded(parameters_processed=100, parameters_removed=80, samples_trained=10, samples_evaluated=5)
        )

    def succeed(self, sha256: str | None = None, verdict: Verdict = Verdict.PASS) -> None:
        self.work()
        pruned = self.folder / workspace.PRUNED_FILE
        shutil.copyfile(self.folder / workspace.MODEL_FILE, pruned)
        found = hashlib.sha256(pruned.read_bytes()).hexdigest()
        report = {"model": {"pruned_sha256": sha256 or found}} | self.report_extra
        (self.folder / workspace.REPORT_FILE).write_bytes(to_json(report))
        self.send(RunSucceeded(verdict=verdict, sparsity=0.8, accuracy_drop=0.0, device_type="cpu"))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("run", "check", "probe"))
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--events-fd", type=int)
    parser.add_argument("--memory-bytes", type=int)
    arguments = parser.parse_args()
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    if arguments.command == "probe":
        print("a library says hello")
        print(to_json(PROBE).decode())
        return 0
    if arguments.memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (arguments.memory_bytes, arguments.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    worker = Worker(arguments.events_fd, arguments.workspace)
    behaviours = worker.job().spec.exclude_layers
    if arguments.command == "check":
        for name in behaviours:
            if name.startswith("check_"):
                worker.behave(name.removeprefix("check_"))
        if "mismatch" in behaviours:
            text = "the outputs differ"
            worker.send(RunFailed(reason=Reason.VERIFICATION_FAILED, text=text, phase=Phase.EXPORT))
        else:
            worker.send(CheckPassed(max_relative_error=0.0))
        return 0
    for name in behaviours:
        worker.behave(name)
    worker.succeed()
    return 0


if __name__ == "__main__":
    sys.exit(main())
