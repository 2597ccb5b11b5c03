"""Numbers for class names: sorted, unless another set has fixed them."""

from __future__ import annotations

from collections.abc import Iterable

from pruning_client.errors import BadInputError


def number_classes(names: Iterable[str], fixed: tuple[str, ...] | None, where: object) -> tuple[str, ...]:
    """Returns the class names in the order of their numbers.

    Args:
        names: the class names found.
        fixed: the order that the training set has fixed; None: sorted by name, as torchvision's ImageFolder does.
        where: the dataset, for the message.

    Raises:
        BadInputError: a name is not among `fixed`.
    """
    found = set(names)
    if fixed is None:
        return tuple(sorted(found))
    unknown = sorted(found - set(fixed))
    if unknown:
        raise BadInputError(
            f"{where} has the class {unknown[0]!r}, which the training set does not have ({', '.join(fixed)})",
            reason="DATASET_TARGETS",
        )
    return fixed


def describe_classes(classes: tuple[str, ...]) -> str:
    """Returns one line that says which class has which number, with a warning where the order may surprise."""
    line = "classes: " + ", ".join(f"{name}={number}" for number, name in enumerate(classes))
    if all(name.isdecimal() for name in classes) and sorted(classes, key=int) != list(classes):
        line += " (sorted as text, not as numbers: is that what the model was trained with?)"
    return line
