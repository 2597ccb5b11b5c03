"""What one sandboxed process may do, as it is handed over on its command line, and what it is told when that fails."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

# What the launcher exits with if it cannot put itself inside. Nothing of the command has run then.
EXIT_NO_SANDBOX = 71
# Every line about that starts with this.
SAYS = "sandbox:"
OPEN_FILES = 1024


@dataclass(frozen=True)
class Policy:
    """What is open to a process besides Python, its libraries and the facts of the machine, which all may read.

    Attributes:
        write: folders that are the process's own: it may read, make, change and delete files in them.
        read: files and folders that it may read.
        is_cuda: whether it may use the machine's NVIDIA devices.
        file_bytes: size of the largest file that it may write; None: no limit.
        open_files: how many it may have open at a time.
    """

    write: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    is_cuda: bool = False
    file_bytes: int | None = None
    open_files: int = OPEN_FILES


def to_text(policy: Policy) -> str:
    """The policy as one argument of a command line."""
    return json.dumps(dataclasses.asdict(policy))


def from_text(text: str) -> Policy:
    """The inverse of `to_text`.

    Raises:
        ValueError, TypeError, KeyError: the text is no policy.
    """
    fields = json.loads(text)
    return Policy(**{**fields, "write": tuple(fields["write"]), "read": tuple(fields["read"])})


def sandboxed(command: Sequence[str], policy: Policy | None) -> tuple[str, ...]:
    """The command as it runs inside the sandbox; unchanged without a policy.

    Args:
        command: `python_command(...)`: an interpreter, `-P`, `-s`, and then a script, or `-m` and a module.
        policy: what it may do; None: everything.
    """
    if policy is None:
        return tuple(command)
    interpreter, *rest = command
    if rest[:2] != ["-P", "-s"]:
        raise ValueError(f"only commands of python_command() can be put into a sandbox, not {command!r}")
    return (interpreter, "-P", "-s", "-m", "pruning_server.sandbox", to_text(policy), *rest[2:])
