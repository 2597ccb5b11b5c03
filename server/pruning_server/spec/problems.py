"""Collects everything that is wrong with a request, so that its sender hears of it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pruning_server.errors import FieldViolation, InvalidRequestError, Reason

T = TypeVar("T")


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


def check_one(field: str, value: T | None, rule: Callable[[T], str | None]) -> Iterator[Problem]:
    """Yields what a rule says of a value; nothing where there is no value."""
    if value is not None and (why := rule(value)) is not None:
        yield invalid(field, why)


def check_each(field: str, values: Iterable[T], rule: Callable[[T], str | None]) -> Iterator[Problem]:
    """Yields what a rule says of each value of a list."""
    for index, value in enumerate(values):
        yield from check_one(f"{field}[{index}]", value, rule)


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
