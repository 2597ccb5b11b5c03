"""What is wrong with a condition, and where."""

from __future__ import annotations

from pruning_server.errors import FieldViolation, InvalidRequestError, Reason

CONDITION_FIELD = "spec.conditional.condition"
_SHOWN_BEFORE = 40
_SHOWN_AFTER = 30


class ConditionError(InvalidRequestError):
    """A condition that cannot be read.

    Attributes:
        column: where, from 1.
        description: the reason, the part of the condition around that place, and a caret below it.
    """

    def __init__(self, why: str, text: str, column: int) -> None:
        self.column = column
        self.description = f"column {column}: {why}\n{_pointed(text, column)}"
        super().__init__(
            Reason.INVALID_FIELD,
            f"{CONDITION_FIELD}: {self.description}",
            violations=(FieldViolation(CONDITION_FIELD, self.description),),
            metadata={"column": str(column)},
        )


def _pointed(text: str, column: int) -> str:
    start, end = max(0, column - 1 - _SHOWN_BEFORE), column - 1 + _SHOWN_AFTER
    before, after = "..." if start else "", "..." if end < len(text) else ""
    # What does not print would move the caret.
    shown = "".join(character if character.isprintable() else " " for character in text[start:end])
    return f"  {before}{shown}{after}\n  {' ' * (len(before) + column - 1 - start)}^"
