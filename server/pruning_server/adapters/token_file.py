"""The file of tokens: who may call. It holds hashes only, so that whoever reads it can still not call.

One entry per line: `NAME ROLE sha256:HEX`; empty lines and those that begin with `#` say nothing. Tokens are made here and
have 256 random bits, so that one round of SHA-256 is as good as a slow hash: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pruning_server.adapters.watched_file import WatchedFiles
from pruning_server.errors import InvalidRequestError
from pruning_server.jobs.access import PRINCIPAL_NAME, Principal, Role
from pruning_server.jobs.ports import Clock

TOKEN_PREFIX = "prn_"  # noqa: S105 - what scanners for leaked secrets look for
TOKEN_BYTES = 32
MAX_FILE_BYTES = 4 * 2**20
_HASH = re.compile(r"sha256:(?P<hex>[0-9a-f]{64})")


@dataclass(frozen=True)
class Entry:
    """One token: whose it is, and its hash as 64 hexadecimal digits."""

    principal: Principal
    sha256: str

    def line(self) -> str:
        """As in the file."""
        return f"{self.principal.name} {self.principal.role} sha256:{self.sha256}\n"


class TokenFile:
    """Fills `jobs.access.TokenBook` from a file, which may change while the server runs; emptied, it lets nobody in.

    Raises:
        InvalidRequestError: the file cannot be read, holds no entry, or a line of it is none.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._entries: WatchedFiles[tuple[Entry, ...]] = WatchedFiles((path,), lambda: read_entries(path), clock)
        if not self._entries.current():
            raise _unusable(f"{path} holds no entry; make one: pruning-server token add NAME --role submit")

    def find(self, token: str) -> Principal | None:
        """Returns whose token it is, or None; looks at every entry, whichever fits."""
        presented, found = hash_token(token).encode(), None
        for entry in self._entries.current():
            if hmac.compare_digest(entry.sha256.encode(), presented):
                found = entry.principal
        return found


def hash_token(token: str) -> str:
    """Returns the SHA-256 of a token as 64 hexadecimal digits."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_entries(path: Path) -> tuple[Entry, ...]:
    """Returns the entries of the file, in their order.

    Raises:
        InvalidRequestError: it cannot be read, others may write to it, or a line of it is none; says which, never what.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unusable(f"cannot read {path}: {error.strerror}") from error
    if mode & stat.S_IWOTH:
        raise _unusable(f"every user of this machine may write to {path}; chmod o-w it")
    if len(data) > MAX_FILE_BYTES:
        raise _unusable(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise _unusable(f"{path} is not plain text") from error
    entries = [
        _entry(path, number, words)
        for number, line in enumerate(lines, 1)
        if (words := line.split()) and not words[0].startswith("#")
    ]
    if len({entry.sha256 for entry in entries}) < len(entries):
        raise _unusable(f"{path} has one token twice, so that it is not clear whose it is")
    return tuple(entries)


def add_token(path: Path, name: str, role: Role) -> str:
    """Makes a token, appends its entry to the file, which is made if it is missing, and returns the token.

    Nothing keeps the token: whoever loses it needs another one.

    Raises:
        InvalidRequestError: the name cannot be one, or the file cannot be read or written.
    """
    if PRINCIPAL_NAME.fullmatch(name) is None:
        raise InvalidRequestError.for_field(
            "NAME", f"{name!r} must be 1 to 64 letters, digits and ._@-, with a letter or digit first"
        )
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    entries = read_entries(path) if path.exists() else ()
    _write(path, (*entries, Entry(Principal(name, role), hash_token(token))))
    return token


def remove_tokens(path: Path, name: str) -> int:
    """Removes every token of a principal from the file and returns how many there were.

    Raises:
        InvalidRequestError: the file cannot be read or written.
    """
    entries = read_entries(path)
    kept = tuple(entry for entry in entries if entry.principal.name != name)
    if len(kept) < len(entries):
        _write(path, kept)
    return len(entries) - len(kept)


def _entry(path: Path, number: int, words: Sequence[str]) -> Entry:
    match = _HASH.fullmatch(words[-1])
    if len(words) != 3 or match is None or PRINCIPAL_NAME.fullmatch(words[0]) is None or words[1] not in list(Role):
        roles = ", ".join(Role)
        # The line is not shown: somebody may have written a token into it.
        raise _unusable(f"line {number} of {path} is not `NAME ROLE sha256:HEX` with one of the roles {roles}")
    return Entry(Principal(words[0], Role(words[1])), match["hex"])


def _write(path: Path, entries: Sequence[Entry]) -> None:
    """Replaces the file, readable by this user only, so that a server never reads half of it. Comments are not kept."""
    path = Path(os.path.realpath(path))  # a link stays a link
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.writelines(entry.line() for entry in entries)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(f"cannot write {path}: {error.strerror}") from error


def _unusable(text: str) -> InvalidRequestError:
    return InvalidRequestError.for_field("--token-file", text)
