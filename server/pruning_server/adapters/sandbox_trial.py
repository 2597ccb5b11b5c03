"""Whether this machine gives the sandbox, found out by a process that goes in and tries to get out."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from pruning_server.adapters.process import Child, child_environment, python_command
from pruning_server.errors import PreconditionError, Reason
from pruning_server.jobs.ports import Clock
from pruning_server.sandbox import trial
from pruning_server.sandbox.trial import Trial

READ_SECONDS = 0.05
DRAIN_SECONDS = 1.0
COMMAND = python_command("-m", "pruning_server.sandbox", "try")


def require_sandbox(folder: Path, clock: Clock, command: tuple[str, ...] = COMMAND) -> Trial:
    """Tries the sandbox out in a folder of its own below `folder`, where the runs will be.

    Raises:
        PreconditionError: a part is lacking; says which, and what to do.
    """
    found = try_sandbox(folder, clock, command)
    if found.lacking:
        raise PreconditionError(
            Reason.WORKER_NOT_INSTALLED,
            f"workers run models of callers, and cannot be contained here: {'; '.join(found.lacking)}. Use a kernel with"
            " Landlock (Linux 5.13 or newer, `landlock` in the kernel's `lsm=` list) and a container runtime that allows it,"
            " or accept the risk with --insecure-no-sandbox and serve only models that you trust (docs/security.md)",
        )
    return found


def try_sandbox(folder: Path, clock: Clock, command: tuple[str, ...] = COMMAND) -> Trial:
    """Tries the sandbox out and returns what it gives."""
    home = folder / f"trial-{uuid.uuid4().hex}"
    home.mkdir(parents=True, mode=0o700)
    try:
        environment = child_environment(home=home, threads=1, cuda_devices="")
        with Child([*command, str(home)], folder=home, environment=environment) as child:
            deadline = clock.monotonic() + trial.TRIAL_SECONDS
            while not child.has_exited() and clock.monotonic() < deadline:
                child.read(READ_SECONDS)
            child.drain(DRAIN_SECONDS)
            child.kill()
            status = child.finish()
            try:
                return trial.read(child.stdout.text())
            except (ValueError, TypeError, KeyError):
                how = status.signal_name or f"exit code {status.code}"
                return Trial(0, (f"the trial of the sandbox ended by {how}: {child.stderr.last_line()}",))
    except OSError as error:
        return Trial(0, (f"the trial of the sandbox could not be started ({error.strerror})",))
    finally:
        shutil.rmtree(home, ignore_errors=True)
