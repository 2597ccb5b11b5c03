"""Turns the bytes of a worker's event pipe into messages; whatever is none is dropped and counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import msgspec

from pruning_server.jobs.events import WorkerMessage
from pruning_server.spec.base import from_json

# The longest message is a failure's text; a line that is longer comes from a worker that is not ours any more.
MAX_LINE_BYTES = 1024 * 1024
MAX_LOGGED = 5

_log = logging.getLogger(__name__)


class MessageDecoder:
    """Splits a stream into lines and decodes each; memory stays below one line whatever is sent."""

    def __init__(self) -> None:
        self._rest = b""
        self._overlong = False
        self.refused = 0

    def feed(self, data: bytes) -> Iterator[WorkerMessage]:
        """Yields the messages that `data` completes."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest
        for index, line in enumerate(lines):
            if index == 0 and self._overlong:
                self._overlong = False  # the end of a line whose beginning was dropped
                continue
            yield from self._decode(line)
        if len(self._rest) > MAX_LINE_BYTES:
            self._refuse("a line of more than 1 MiB")
            self._rest, self._overlong = b"", True

    def _decode(self, line: bytes) -> Iterator[WorkerMessage]:
        if not line.strip():
            return
        try:
            yield from_json(line, WorkerMessage)  # type: ignore[arg-type]  # a union is no class, but decodes
        except msgspec.DecodeError as error:
            self._refuse(str(error))

    def _refuse(self, why: str) -> None:
        self.refused += 1
        if self.refused <= MAX_LOGGED:
            _log.warning("a worker sent something that is no message: %s", why)
