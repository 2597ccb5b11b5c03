"""Reads the texts that settings are given as; a ValueError says what to change."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

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


def parse_uri_prefixes(text: str) -> tuple[str, ...]:
    """Returns prefixes separated by commas: `https://HOST[:PORT]/FOLDER/`, `http://...`, `file:///FOLDER/`."""
    prefixes = tuple(part.strip() for part in text.split(",") if part.strip())
    for prefix in prefixes:
        parts = urlsplit(prefix)
        plain = parts._replace(query="", fragment="").geturl() == prefix and "@" not in parts.netloc
        has_host = bool(parts.hostname) == (parts.scheme in {"http", "https"})
        known = parts.scheme in {"http", "https", "file"}
        if not (known and has_host and plain and parts.path.endswith("/") and unquote(parts.path) == parts.path):
            raise ValueError(
                f"{prefix!r} is not https://HOST/, https://HOST/FOLDER/ or file:///FOLDER/; it must end with a slash"
            )
    return prefixes


def parse_networks(text: str) -> tuple[str, ...]:
    """Returns networks separated by commas, as they are: `10.1.0.0/16`, `fd00::/8`, `192.168.1.7`."""
    networks = tuple(part.strip() for part in text.split(",") if part.strip())
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ValueError(f"{network!r} is not a network such as 10.1.0.0/16 ({error})") from error
    return networks
