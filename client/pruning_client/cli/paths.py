"""Checks of the paths that a command will write, before anything is sent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pruning_client.errors import BadInputError

_REASON = "OUTPUT_NOT_WRITABLE"


def check_outputs(outputs: Sequence[tuple[str, Path]], inputs: Sequence[Path] = ()) -> None:
    """Checks that every output can be written; an existing file is allowed, and is replaced at the end.

    Args:
        outputs: flag and path.
        inputs: files that must not be overwritten.

    Raises:
        BadInputError: one cannot, two are the same, or one is an input.
    """
    seen: dict[str, str] = {}
    for flag, path in outputs:
        _check_output(flag, path)
        real = os.path.realpath(path)
        if real in seen:
            raise BadInputError(f"{seen[real]} and {flag} name the same file: {path}", reason=_REASON)
        seen[real] = flag
        if any(real == os.path.realpath(source) for source in inputs):
            raise BadInputError(f"{flag} {path} would overwrite an input", reason=_REASON)


def _check_output(flag: str, path: Path) -> None:
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise BadInputError(f"{flag} {path} is a directory; name a file", reason=_REASON)
    if path.exists() and not path.is_file():
        raise BadInputError(f"{flag} {path} is not a regular file", reason=_REASON)
    if not path.parent.is_dir():
        raise BadInputError(f"{flag} {path}: the directory {path.parent} does not exist", reason=_REASON)
    try:
        # Asking beats guessing from permission bits: read-only file systems, quotas, root.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise BadInputError(f"{flag} {path} cannot be written: {error.strerror}", reason=_REASON) from error


def check_readable(flag: str, path: Path) -> None:
    """Checks that a file is there and can be read.

    Raises:
        BadInputError: it is not, or cannot.
    """
    reason = "FILE_UNREADABLE"
    if path.is_dir():
        raise BadInputError(f"{flag} {path} is a directory; name a file", reason=reason)
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise BadInputError(f"{flag} {path} cannot be read: {error.strerror}", reason=reason) from error


def write_text_atomically(path: Path, content: str) -> None:
    """Replaces `path` in one step.

    Raises:
        BadInputError: it cannot be written.
    """
    path = Path(os.path.realpath(path))
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise BadInputError(f"cannot write {path}: {error.strerror}", reason=_REASON) from error
