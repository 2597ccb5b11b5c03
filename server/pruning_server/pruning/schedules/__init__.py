"""How pruning goes on while a model is trained. One file per schedule and one line in the registry here."""

from __future__ import annotations

from types import MappingProxyType

from pruning_server.errors import InvalidRequestError
from pruning_server.pruning.schedules import controller, cubic, rigl, soft
from pruning_server.pruning.schedules.base import Schedule, Timing

__all__ = ["DEFAULT", "Schedule", "Timing", "get", "names"]

_REGISTRY = MappingProxyType(
    {
        one.name: one
        for one in (
            cubic.SCHEDULE,
            rigl.SCHEDULE,
            soft.SCHEDULE,
            controller.SCHEDULE,
        )
    }
)

DEFAULT = cubic.SCHEDULE.name


def names() -> tuple[str, ...]:
    """Names of all schedules, in the order of registration."""
    return tuple(_REGISTRY)


def get(name: str | None) -> Schedule:
    """The schedule of that name; None or empty: the default.

    Raises:
        InvalidRequestError: there is none of that name; the message lists those that exist.
    """
    wanted = name or DEFAULT
    if wanted not in _REGISTRY:
        known = ", ".join(_REGISTRY)
        raise InvalidRequestError.for_field("spec.dynamic.schedule", f"there is no schedule {wanted!r}; known: {known}")
    return _REGISTRY[wanted]
