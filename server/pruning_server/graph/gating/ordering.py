"""Another order of channels: the model computes the same, and the channels that matter most come first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pruning_server.graph import ir
from pruning_server.graph.execution import compile_methods
from pruning_server.graph.structure import Structure
from pruning_server.graph.surgery.cut import AxisCut, Cut
from pruning_server.graph.surgery.tensors import shrink_tensors

Order = Mapping[int, Sequence[int]]
"""By number of a group, its channels in their new order: a permutation of `range(size)`."""


def find_permutations(structure: Structure, order: Order) -> Cut:
    """What an order makes of each stored axis: `kept` is the old coordinate at each new place, and nothing goes.

    Channels of one group are alike, so that each place takes what belongs to the channel that comes there; of several
    coordinates of a channel on one axis, the first stays the first.

    Raises:
        ValueError: an order that is no permutation of its group's channels.
    """
    moved: dict[int, int] = {}
    for number, places in order.items():
        classes = structure.groups[number].classes
        if sorted(places) != list(range(len(classes))):
            raise ValueError(f"the order of group {number} is no permutation of its {len(classes)} channels")
        moved.update((classes[place], classes[channel]) for place, channel in enumerate(places))
    found = []
    for one in structure.axes:
        coordinates: dict[int, list[int]] = {}
        for coordinate, root in enumerate(one.classes):
            coordinates.setdefault(root, []).append(coordinate)
        turns = {root: iter(coordinates[moved.get(root, root)]) for root in coordinates}
        kept = tuple(next(turns[root]) for root in one.classes)
        if kept != tuple(range(len(kept))):
            found.append(AxisCut(one.tensor, one.aliases, one.axis, len(kept), kept, ()))
    return tuple(found)


def reorder(module: ir.Module, permutations: Cut) -> None:
    """Puts the stored tensors of a load of the analysed archive into their new order, in place."""
    shrink_tensors(module, compile_methods(module, in_place=True).values(), permutations)


def after(cut: Cut, permutations: Cut) -> Cut:
    """What a cut and then an order leave of the original: `kept` is no longer ascending."""
    orders = {(one.tensor, one.axis): one for one in permutations}
    first = tuple(
        replace(one, kept=tuple(one.kept[place] for place in orders.pop((one.tensor, one.axis)).kept))
        if (one.tensor, one.axis) in orders
        else one
        for one in cut
    )
    return (*first, *orders.values())
