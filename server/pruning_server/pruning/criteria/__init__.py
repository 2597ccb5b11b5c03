"""How much each weight matters. One file per criterion and one line in the registry here."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from pruning_server.errors import InvalidRequestError, Reason
from pruning_server.pruning.criteria import (
    activation_mean,
    apoz,
    auto,
    bn_scale,
    fisher,
    fpgm,
    l1,
    l2,
    lamp,
    random,
    reconstruction,
    taylor,
)
from pruning_server.pruning.criteria.base import Criterion, Needs
from pruning_server.spec.request import Granularity

__all__ = ["Criterion", "Needs", "candidates", "get", "get_for", "names", "register"]


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
        lamp.CRITERION,
        bn_scale.CRITERION,
        fpgm.CRITERION,
        taylor.CRITERION,
        fisher.CRITERION,
        apoz.CRITERION,
        activation_mean.CRITERION,
        reconstruction.CRITERION,
        random.CRITERION,
        auto.CRITERION,
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


def get_for(name: str, granularity: Granularity) -> Criterion:
    """The criterion of that name, if it can be asked for at this granularity.

    Raises:
        InvalidRequestError: it cannot, or there is none of that name.
    """
    criterion = get(name)
    if granularity not in criterion.granularities:
        others = [one.name for one in _REGISTRY.values() if granularity in one.granularities]
        raise InvalidRequestError.for_field(
            "spec.static.criterion",
            f"{name} scores whole channels only; with granularity {granularity.value} use one of {', '.join(others)}",
        )
    return criterion


def candidates(granularity: Granularity) -> tuple[str, ...]:
    """What `auto` tries: all that can be asked for at this granularity but chance and itself.

    For single weights l2 chooses as l1 does, and is left out.
    """
    left_out = {random.CRITERION.name, auto.CRITERION.name}
    if granularity in {Granularity.WEIGHT, Granularity.NM}:
        left_out.add(l2.CRITERION.name)
    return tuple(
        one.name for one in _REGISTRY.values() if granularity in one.granularities and one.name not in left_out
    )
