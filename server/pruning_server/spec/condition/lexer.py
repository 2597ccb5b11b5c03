"""Splits a condition into the few kinds of words that it may hold, before Python's parser sees it.

What passes cannot make that parser warn, recurse deeply or build large numbers.
"""

from __future__ import annotations

import math
import re

from pruning_server.spec.condition.errors import ConditionError

MAX_CHARACTERS = 10_000
MAX_WORDS = 1_000
MAX_PARENTHESES = 40
MAX_PREFIXES = 20

_WORD = re.compile(
    r"""
    (?P<space>[ ]+)
    | (?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<text>"[^"\\]*"|'[^'\\]*')
    | (?P<operator>\*\*|<=|>=|==|!=|[-+*/<>()\[\],])
    """,
    re.VERBOSE,
)
_ADVICE = {
    "&": "write `and`",
    "|": "write `or`",
    "~": "write `not`",
    "!": "write `not`, or `!=` to compare",
    "=": "compare with `==`",
    "%": "there is no remainder",
    "@": "variables of other programs are not known here",
    "\\": "texts have no escapes",
    ".": "features have no attributes",
}


def check_words(text: str) -> None:
    """Checks that a condition holds nothing but numbers, names, texts and operators of the language, and not too many.

    Raises:
        ConditionError: at the first that is wrong.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConditionError(f"a condition has at most {MAX_CHARACTERS:,} characters", text, MAX_CHARACTERS + 1)
    position = words = prefixes = 0
    open_places: list[int] = []
    previous = ""
    while position < len(text):
        found = _WORD.match(text, position)
        if found is None:
            raise ConditionError(_why_not(text, position), text, position + 1)
        kind, word = found.lastgroup or "", found[0]
        if kind != "space":
            _check_word(text, position, kind, word, previous)
            words += 1
            _follow(text, position, word, open_places)
            prefixes = prefixes + 1 if word in {"-", "+", "not"} else prefixes * (word in {"(", "["})
            if words > MAX_WORDS:
                raise ConditionError(f"a condition has at most {MAX_WORDS:,} words and signs", text, position + 1)
            if len(open_places) > MAX_PARENTHESES or prefixes > MAX_PREFIXES:
                raise ConditionError("this is nested too deeply", text, position + 1)
        previous, position = kind, found.end()
    if open_places:
        raise ConditionError("this parenthesis is not closed", text, open_places[-1] + 1)
    if not words:
        raise ConditionError("the condition is empty; write a comparison, e.g. abs_weight < 0.01", text, 1)


def _check_word(text: str, position: int, kind: str, word: str, previous: str) -> None:
    # Python reads `1or 2` with a warning and `1.2.3` as two numbers.
    if previous == "number" and kind in {"name", "number", "text"}:
        raise ConditionError("a number ends here; put a space or an operator after it", text, position + 1)
    if previous in {"name", "text"} and kind == "text":
        raise ConditionError("a text cannot follow here; put an operator before it", text, position + 1)
    if kind == "number" and not math.isfinite(float(word)):
        raise ConditionError("this number is too large", text, position + 1)
    if kind == "number" and len(word) > 1 and word.isdigit() and word.startswith("0"):
        raise ConditionError("a number has no leading zeros", text, position + 1)
    if kind == "text" and not word.isprintable():
        raise ConditionError("a text holds printable characters only", text, position + 1)


def _follow(text: str, position: int, word: str, open_places: list[int]) -> None:
    if word in {"(", "["}:
        open_places.append(position)
    elif word in {")", "]"} and (not open_places or text[open_places.pop()] + word not in {"()", "[]"}):
        raise ConditionError("this parenthesis has no partner", text, position + 1)


def _why_not(text: str, position: int) -> str:
    character = text[position]
    if character in "\"'":
        closed = text.find(character, position + 1) >= 0
        return "texts have no escapes: leave the backslash out" if closed else "this text has no closing quote"
    if not character.isprintable():
        return "a condition is one line of printable characters"
    advice = _ADVICE.get(character, "")
    return f"{character!r} is not part of the language{advice and f'; {advice}'}"
