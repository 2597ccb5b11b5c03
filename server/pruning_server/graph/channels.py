"""Which coordinates of which tensor axes can only be removed together: a union-find over elements.

An element is one coordinate of one axis of one stored tensor. A class of united elements is what can be removed at once;
a frozen class stays, and says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pruning_server.graph.head_choices import HeadChoices

Ids: TypeAlias = NDArray[np.int64]

FIXED = -1
"""Stands where an element's number would, for a coordinate that always stays and belongs to no class."""


@dataclass(frozen=True)
class Cause:
    """Why something cannot be removed: the op, where it stands in the model's code, and the reason for the user.

    `expected` ones, such as the extent of a kernel, are no news and are not reported.
    """

    op: str
    source: str
    reason: str
    expected: bool = False


class Channels:
    """Elements, their classes, and which classes are frozen.

    Attributes:
        choices: where attention may lose dimensions inside heads too; None where only whole heads go.
    """

    def __init__(self) -> None:
        self.choices: HeadChoices | None = None
        self._parents: list[int] = []
        self._causes: dict[int, dict[Cause, None]] = {}
        self._consumers: set[int] = set()
        self._made_of: dict[int, set[int]] = {}
        self._heads: set[int] = set()
        self._last: set[int] = set()
        self._contracted: list[tuple[Ids, Cause]] = []
        self._shifted: list[Ids] = []
        self._mixed: list[Ids] = []
        self._counted: list[Ids] = []
        self._bent: list[tuple[Ids, Cause]] = []
        self._sealed: Ids | None = None
        self._boxes: dict[tuple[tuple[int, ...], bytes], Ids] = {}
        self._meetings: list[tuple[Ids, Ids, Cause]] = []

    def __len__(self) -> int:
        return len(self._parents)

    def create(self, count: int) -> Ids:
        """`count` new elements, each in a class of its own."""
        self._sealed = None
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def find(self, element: int) -> int:
        """The number that stands for the element's class; `FIXED` for `FIXED`."""
        if element < 0:
            return FIXED
        parents = self._parents
        while parents[element] != element:
            parents[element] = parents[parents[element]]
            element = parents[element]
        return element

    def roots(self, ids: Ids) -> Ids:
        """The class of every element in an array of any shape."""
        if self._sealed is not None:
            return np.where(ids < 0, FIXED, self._sealed[ids])
        elements, positions = np.unique(ids, return_inverse=True)
        found = np.fromiter((self.find(element) for element in elements.tolist()), np.int64, len(elements))
        return found[positions].reshape(ids.shape)

    def seal(self) -> None:
        """Makes finding classes fast until the next union; freezing changes none."""
        self._sealed = np.fromiter((self.find(element) for element in range(len(self))), np.int64, len(self))

    def unite(self, one: Ids, other: Ids, cause: Cause) -> None:
        """Unites classes element by element, with broadcasting; what meets `FIXED` is frozen for `cause`."""
        if one is other:
            return
        left, right = np.broadcast_arrays(one, other)
        different = left != right
        # One number per pair: sorting those is several times faster than sorting rows.
        scale = len(self) + 1
        pairs = np.unique((left[different] + 1) * scale + right[different] + 1)
        for first, second in zip((pairs // scale - 1).tolist(), (pairs % scale - 1).tolist(), strict=True):
            if FIXED in {first, second}:
                self._freeze(self.find(max(first, second)), [cause])
            else:
                self._join(self.find(first), self.find(second))

    def unite_along(self, ids: Ids, axis: int, cause: Cause) -> None:
        """Unites all elements that differ only in their coordinate on one axis."""
        self.unite(ids, ids[(slice(None),) * axis + (slice(0, 1),)], cause)

    def freeze(self, ids: Ids, cause: Cause) -> None:
        """The classes of these elements always stay."""
        for element in np.unique(ids).tolist():
            if element != FIXED:
                self._freeze(self.find(element), [cause])

    def keep_last(self, element: int, cause: Cause) -> None:
        """The element's class stays because nothing would be left of an axis without it; others of the axis may go."""
        self._last.add(self.find(element))
        self._freeze(self.find(element), [cause])

    def is_last(self, element: int) -> bool:
        """Whether `keep_last` is all that keeps the element's class."""
        return self.find(element) in self._last

    def is_frozen(self, element: int) -> bool:
        """Whether the element's class always stays."""
        return element == FIXED or self.find(element) in self._causes

    def causes(self, element: int) -> tuple[Cause, ...]:
        """Why the element's class is frozen, first cause first; empty where it is free."""
        return tuple(self._causes.get(self.find(element), ()))

    def mark_consumer(self, ids: Ids) -> None:
        """These elements of stored tensors multiply a channel: zeros there, and in what they are made of, switch it off."""
        waiting = [element for element in np.unique(ids).tolist() if element != FIXED]
        while waiting:
            element = waiting.pop()
            if element not in self._consumers:
                self._consumers.add(element)
                waiting += self._made_of.get(element, ())

    def mark_made_of(self, ids: Ids, sources: Sequence[Ids]) -> None:
        """Elements of a value that is computed from stored tensors: those of the same class in these take part in it."""
        members: dict[int, set[int]] = {}
        for source in sources:
            for element in np.unique(source).tolist():
                members.setdefault(self.find(element), set()).add(element)
        for element in np.unique(ids).tolist():
            if element != FIXED:
                self._made_of.setdefault(element, set()).update(members.get(self.find(element), set()) - {element})

    def is_consumer(self, element: int) -> bool:
        """Whether `mark_consumer` named this element itself."""
        return element in self._consumers

    def mark_heads(self, ids: Ids) -> None:
        """These channels are whole heads of attention."""
        self._heads.update(element for element in np.unique(ids).tolist() if element != FIXED)

    def head_classes(self) -> frozenset[int]:
        """The classes of what `mark_heads` named."""
        return frozenset(self.find(element) for element in self._heads)

    def mark_contracted(self, ids: Ids, cause: Cause) -> None:
        """Two activations are multiplied and summed over these channels: no stored tensor can switch them off there."""
        self._contracted.append((ids, cause))

    def mark_shifted(self, ids: Ids) -> None:
        """An op may turn zeros in these channels into something else."""
        self._shifted.append(ids)

    def mark_bent(self, ids: Ids, cause: Cause) -> None:
        """Zeros in these elements of a stored tensor become something else before they are used."""
        self._bent.append((ids, cause))

    def freeze_bent(self) -> None:
        """Freezes channels that could only be switched off by such elements."""
        for ids, cause in self._bent:
            switches = [element for element in np.unique(ids).tolist() if element in self._consumers]
            self.freeze(np.array(switches, dtype=np.int64), cause)

    def mark_mixed(self, ids: Ids) -> None:
        """These channels meet values that do not come from them, so that they are not constant where their weights are 0."""
        self._mixed.append(ids)

    def mark_counted(self, ids: Sequence[Ids]) -> None:
        """Constants in these channels depend on how many positions there are."""
        self._counted += ids

    def counted_classes(self) -> frozenset[int]:
        """The classes of what `mark_counted` named."""
        return frozenset(root for ids in self._counted for root in np.unique(self.roots(ids)).tolist())

    def mixed_classes(self) -> frozenset[int]:
        """The classes of what `mark_mixed` named."""
        return frozenset(root for ids in self._mixed for root in np.unique(self.roots(ids)).tolist())

    def switch_off_at_producers(self) -> frozenset[int]:
        """Classes that must be zero where they are made; those that an op shifts away from zero are frozen."""
        shifted = {root for ids in self._shifted for root in np.unique(self.roots(ids)).tolist()}
        found: set[int] = set()
        for ids, cause in self._contracted:
            for root in np.unique(self.roots(ids)).tolist():
                if root in shifted:
                    self._freeze(root, [cause])
                elif root != FIXED:
                    found.add(root)
        return frozenset(found)

    # --- Boxes --------------------------------------------------------------------------------------------------------

    def require_box(self, ids: Ids) -> None:
        """What stays of these elements must be whole rows of one axis: they are one channel's index over several axes.

        Which axis is decided by `settle`, when everything else is known.
        """
        self._boxes[ids.shape, ids.tobytes()] = ids

    def meet(self, box: Ids, rows: Ids, cause: Cause) -> None:
        """A box is combined with labels of some of its axes: they decide the box, unless these axes come to be held."""
        self.require_box(box)
        self._meetings.append((box, rows, cause))

    def settle(self, cause: Cause) -> None:
        """Decides every open box: for what it has met, else for the axis that leaves most classes apart."""
        if self.choices is not None:
            self.choices.settle()
        while self._meetings:
            self._settle_meeting(*self._meetings.pop(0))
        for ids in self._boxes.values():
            self.choose_axis(ids, cause)

    def _settle_meeting(self, box: Ids, rows: Ids, cause: Cause) -> None:
        if self.choices is not None:
            self.choices.settle_for(rows)
            self.choices.note_met(box, rows)
        varying = self.varying_axes(box)
        shared = [axis for axis in varying if rows.shape[axis] > 1]
        if varying and (not shared or (len(shared) < len(varying) and self._all_frozen(rows))):
            for axis in shared:
                self.unite_along(box, axis, cause)
            self.freeze(rows, cause)
            return
        for axis in set(varying) - set(shared):
            self.unite_along(box, axis, cause)
        self.unite(box, rows, cause)

    def _all_frozen(self, ids: Ids) -> bool:
        return all(self.is_frozen(element) for element in np.unique(ids).tolist())

    def _settle_meetings_of(self, ids: Ids) -> None:
        roots = np.unique(self.roots(ids))
        for meeting in [one for one in self._meetings if np.isin(self.roots(one[0]), roots).any()]:
            self._meetings = [one for one in self._meetings if one is not meeting]
            self._settle_meeting(*meeting)

    def choose_axis(self, ids: Ids, cause: Cause) -> int | None:
        """Unites along all axes of a box but the one that leaves most classes; returns it, None where nothing varies."""
        self._settle_meetings_of(ids)
        varying = self.varying_axes(ids)
        if not varying:
            self.freeze(ids, cause)
            return None
        kept = max(varying, key=lambda axis: (self.classes_if_kept(ids, axis), -axis))
        for axis in varying:
            if axis != kept:
                self.unite_along(ids, axis, cause)
        return kept

    def varying_axes(self, ids: Ids) -> tuple[int, ...]:
        """Axes along which the classes differ."""
        roots = self.roots(ids)
        return tuple(
            axis for axis in range(ids.ndim) if ids.shape[axis] > 1 and (roots != np.take(roots, [0], axis)).any()
        )

    def classes_if_kept(self, ids: Ids, kept: int) -> int:
        """Number of classes of a box that would be left if all of its axes but one were united."""
        rows = np.moveaxis(self.roots(ids), kept, 0).reshape(ids.shape[kept], -1)
        return _components(rows)

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _join(self, one: int, other: int) -> None:
        if one == other:
            return
        self._sealed = None
        # The smaller number stands for the class, so that results do not depend on the order of unions.
        kept, gone = min(one, other), max(one, other)
        self._parents[gone] = kept
        if gone in self._causes:
            self._freeze(kept, self._causes.pop(gone))

    def _freeze(self, root: int, causes: Iterable[Cause]) -> None:
        self._causes.setdefault(root, {}).update(dict.fromkeys(causes))


def _components(rows: NDArray[np.int64]) -> int:
    """Number of groups of rows when rows that share a class belong together."""
    groups: dict[int, int] = {}
    parents = list(range(len(rows)))

    def top(row: int) -> int:
        while parents[row] != row:
            row = parents[row]
        return row

    for number, row in enumerate(rows):
        for label in np.unique(row).tolist():
            parents[top(number)] = top(groups.setdefault(label, number))
    return len({top(row) for row in range(len(rows))})


def unlabelled(ids: Sequence[int]) -> Ids:
    """An array of `FIXED` of a given shape."""
    return np.full(tuple(ids), FIXED, dtype=np.int64)
