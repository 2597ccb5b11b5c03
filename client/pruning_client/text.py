"""Makes text of others fit for a terminal: names in a model and messages of a server may be hostile."""

from __future__ import annotations

import unicodedata

# Control, format (bidirectional overrides, zero width), surrogate, private use, line and paragraph separators: nothing
# that a terminal acts on or that hides what is shown.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: object, limit: int = 2000) -> str:
    """Returns `text` on one line, with every character replaced that could steer a terminal.

    Line breaks and tabs become spaces, other unsafe characters `?`; at most `limit` characters remain.
    """
    raw = str(text)
    safe = "".join(_safe_character(c) for c in raw[: limit + 1])
    return safe if len(raw) <= limit else f"{safe[: limit - 1]}…"


def _safe_character(character: str) -> str:
    if character in "\n\r\t":
        return " "
    return "?" if unicodedata.category(character) in _UNSAFE_CATEGORIES else character


def bytes_text(size_bytes: float) -> str:
    """`1536` -> `1.5 KiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration_text(seconds: float) -> str:
    """`0.0123` -> `12.3 ms`, `75` -> `1 min 15 s`."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
