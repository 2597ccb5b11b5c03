"""How much each weight matters. One file per criterion and one line in the registry here."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from pruning_server.errors import InvalidRequestError, Reason
from pruning_server.pruning.criteria import l1, l2, random
from pruning_server.pruning.criteria.base import Criterion

__all__ = ["Criterion", "get", "names", "register"]


def register(criteria: Iterable[Criterion]) -> MappingProxyType[str, Criterion]:
    """A registry by name.

    Raises:
        ValueError: two criteria have the same name.
    """
    table: dict[str, Criterion] = {}
    for criterion in criteria:
        if criterion.name in table:
            raise ValueError(f"two criteria are named {criterion.name!r}")
        table[criterion.name] = criterion
    return MappingProxyType(table)


_REGISTRY = register(
    [
        l1.CRITERION,
        l2.CRITERION,
        random.CRITERION,
    ]
)


def names() -> tuple[str, ...]:
    """Names of all criteria, in the order of registration."""
    return tuple(_REGISTRY)


def get(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        InvalidRequestError: UNKNOWN_CRITERION, with the names that exist.
    """
    if name not in _REGISTRY:
        known = ", ".join(_REGISTRY)
        raise InvalidRequestError.for_field(
            "spec.static.criterion", f"there is no criterion {name!r}; known: {known}", Reason.UNKNOWN_CRITERION
        )
    return _REGISTRY[name]
