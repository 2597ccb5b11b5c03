"""What was raised: failed allocations told from other errors, and the line that says something. Torch-free."""

from __future__ import annotations

_SIGNS = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "bad_alloc")
_TAIL_CHARACTERS = 2000
MAX_QUOTED_CHARACTERS = 600


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's, CUDA's, or one inside torch, which raises a plain RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)[-_TAIL_CHARACTERS:].lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def last_line(error: BaseException) -> str:
    """The last line of an error that says something, printable and capped.

    TorchScript puts its traceback, many lines of it, before what was raised.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    text = text.removeprefix("builtins.")
    shown = "".join(character if character.isprintable() else " " for character in text)
    return shown if len(shown) <= MAX_QUOTED_CHARACTERS else shown[:MAX_QUOTED_CHARACTERS] + " [...]"


def sentence(error: BaseException) -> str:
    """The last line, ended by a full stop, to be followed by advice."""
    text = last_line(error)
    return text if text.endswith((".", "!", "?")) else f"{text}."
