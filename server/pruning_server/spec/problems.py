"""Collects everything that is wrong with a request, so that its sender hears of it at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pruning_server.errors import FieldViolation, InvalidRequestError, Reason


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the field as the API names it, what to change, and the reason."""

    field: str
    description: str
    reason: Reason = Reason.INVALID_FIELD


def invalid(field: str, description: str) -> Problem:
    """A field whose value cannot be used."""
    return Problem(field, description)


def missing(field: str, description: str) -> Problem:
    """A field that is needed and was not sent."""
    return Problem(field, description, Reason.MISSING_FIELD)


def refuse(problems: Iterable[Problem]) -> None:
    """Does nothing if there are no problems.

    Raises:
        InvalidRequestError: with a violation for every problem; its reason is that of the first.
    """
    found = tuple(problems)
    if not found:
        return
    raise InvalidRequestError(
        found[0].reason,
        "; ".join(f"{problem.field}: {problem.description}" for problem in found),
        violations=tuple(FieldViolation(problem.field, problem.description) for problem in found),
    )
