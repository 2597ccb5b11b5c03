"""Pages of a list, newest first: page sizes, and tokens that say where the next page begins."""

from __future__ import annotations

import base64
import binascii
import math
import re

import msgspec

from pruning_server.errors import InvalidRequestError, Reason
from pruning_server.spec.base import Value, from_json, to_json

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_TOKEN_CHARACTERS = 512
_ID = re.compile(r"[0-9a-f]{32}")


class Position(Value, frozen=True, kw_only=True):
    """The last row of a page: when it was created (seconds since the epoch) and its id, which orders equal times."""

    create_time: float
    row_id: str


# Newer than everything: the first page begins here.
START = Position(create_time=math.inf, row_id="")


def clamp_page_size(page_size: int) -> int:
    """Returns the number of rows of a page: 0 means 100, at most 1000."""
    return min(max(page_size, 1), MAX_PAGE_SIZE) if page_size else DEFAULT_PAGE_SIZE


def encode_token(position: Position) -> str:
    """Returns the token of the page after `position`."""
    return base64.urlsafe_b64encode(to_json(position)).decode("ascii")


def decode_token(token: str) -> Position:
    """Returns the position of a token; an empty one is the start.

    Raises:
        InvalidRequestError: it is not a token of ours.
    """
    if not token:
        return START
    position = _parse(token) if len(token) <= MAX_TOKEN_CHARACTERS else None
    if position is None or not _ID.fullmatch(position.row_id):
        raise InvalidRequestError.for_field(
            "page_token",
            "is not a token of this server; send the next_page_token of the page before, or none for the first page",
            Reason.INVALID_PAGE_TOKEN,
        )
    return position


def _parse(token: str) -> Position | None:
    try:
        return from_json(base64.b64decode(token, altchars=b"-_", validate=True), Position)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return None
