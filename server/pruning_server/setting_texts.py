"""Reads the texts that settings are given as; a ValueError says what to change."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

MAX_TIME_SECONDS = 365 * 24 * 3600.0
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})", re.ASCII)
_NUMBER_AND_UNIT = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[A-Za-z]*)", re.ASCII)
_SECONDS_PER = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 24 * 3600.0}
_BYTES_PER = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def parse_address(text: str) -> str:
    """Returns HOST:PORT, [IPV6]:PORT or unix:PATH as it is."""
    match = _ADDRESS.fullmatch(text)
    if text.removeprefix("unix:") not in {text, ""} or (match is not None and int(match["port"]) <= 65535):
        return text
    raise ValueError(f"{text!r} is not HOST:PORT; for example 127.0.0.1:50051 or [::1]:50051")


def parse_duration(text: str) -> float:
    """Returns seconds: `90`, `90s`, `15m`, `24h`, `7d`; above 0 and at most a year."""
    seconds = parse_pause(text)
    if seconds == 0:
        raise ValueError(f"{text!r} must be above 0")
    return seconds


def parse_pause(text: str) -> float:
    """As `parse_duration`, but takes 0 as well."""
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    unit = None if match is None else _SECONDS_PER.get(match["unit"].lower())
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a time; for example 90, 90s, 15m, 24h or 7d")
    seconds = float(match["number"]) * unit
    if seconds > MAX_TIME_SECONDS:
        raise ValueError(f"{text!r} is more than a year")
    return seconds


def parse_size(text: str) -> int:
    """Returns bytes: `1048576`, `512MiB`, `16GiB`, `2GB`; at least 1."""
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    unit = None if match is None else _BYTES_PER.get(match["unit"].lower())
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a size; for example 1048576, 512MiB, 16GiB or 2GB")
    size = float(match["number"]) * unit
    if not 1 <= size < 2**63 or not math.isfinite(size):
        raise ValueError(f"{text!r} must be at least 1 byte and fit 63 bits")
    return int(size)


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Returns a reader of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,18}", text.strip(), re.ASCII) is None or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return read


def parse_boolean(text: str) -> bool:
    """Returns whether it is switched on."""
    if text.lower() not in _BOOLEANS:
        raise ValueError(f"{text!r} is neither true nor false")
    return _BOOLEANS[text.lower()]


def parse_file(text: str) -> Path:
    """Returns the path of a file that is there."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {text}")
    return path


def parse_folder(text: str) -> Path:
    """Returns the path of a folder, which need not be there yet."""
    path = Path(text).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ValueError(f"{text} is not a folder")
    return path


def parse_level(text: str) -> str:
    """Returns the name of a level of the log."""
    if text.upper() not in LEVELS:
        raise ValueError(f"{text!r} is not one of {', '.join(LEVELS)}")
    return text.upper()
