"""Attention that is open to two cuts: whole heads, or the same dimensions inside every head.

Queries and keys are contracted over the last axis of a split index [heads, dimensions]. Of such an index either rows or
columns can go, and what the scores' axis of heads stands for depends on which. So the scores get labels of their own, and
the choice is made when everything else that meets the index is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pruning_server.graph.channels import FIXED, Cause, Ids


@dataclass
class Choice:
    """One contraction of two split indices.

    Attributes:
        key: which op contracts them; the same in every run over the same code.
        sides: both split indices with the axis that is contracted.
        heads: labels of the scores' axis of heads, per side.
        index: the same for one split index in several pieces of code.
        stays_whole: dimensions are not to be taken.
        partners: split indices of values with the axis whose dimensions go with those of the sides.
        met: further split indices that are laid out by the same heads, such as those of the values.
        by_dims: what was decided; None while it is open.
        was_open: both ways were possible.
    """

    key: int
    sides: tuple[tuple[Ids, int], ...]
    heads: tuple[Ids, ...]
    cause: Cause
    index: bytes
    stays_whole: bool = False
    partners: tuple[tuple[Ids, int], ...] = ()
    met: list[Ids] = field(default_factory=list)
    by_dims: bool | None = None
    was_open: bool = False


class _Channels(Protocol):
    """What choices need of `Channels`."""

    def create(self, count: int) -> Ids: ...
    def roots(self, ids: Ids) -> Ids: ...
    def unite(self, one: Ids, other: Ids, cause: Cause) -> None: ...
    def unite_along(self, ids: Ids, axis: int, cause: Cause) -> None: ...
    def freeze(self, ids: Ids, cause: Cause) -> None: ...
    def is_frozen(self, element: int) -> bool: ...
    def is_last(self, element: int) -> bool: ...
    def varying_axes(self, ids: Ids) -> tuple[int, ...]: ...
    def classes_if_kept(self, ids: Ids, kept: int) -> int: ...
    def require_box(self, ids: Ids) -> None: ...
    def mark_heads(self, ids: Ids) -> None: ...
    def mark_contracted(self, ids: Ids, cause: Cause) -> None: ...


class HeadChoices:
    """All choices of one model.

    Args:
        channels: where classes are united and frozen.
        whole: keys of contractions of which only whole heads may go.
    """

    def __init__(self, channels: _Channels, whole: Iterable[int] = ()) -> None:
        self._channels = channels
        self._whole = frozenset(whole)
        self._heads: dict[tuple[tuple[int, ...], bytes, int], Ids] = {}
        self._choices: dict[tuple[int, tuple[bytes, ...]], Choice] = {}

    def open(
        self,
        sides: Sequence[tuple[Ids, int]],
        key: int,
        cause: Cause,
        partners: Sequence[tuple[Ids, int]] = (),
    ) -> None:
        """Two split indices are contracted over one axis each; where dimensions go, `partners` lose the same."""
        number = key, tuple(ids.tobytes() for ids, _ in sides)
        if number not in self._choices:
            heads = tuple(self._create(ids, axis) for ids, axis in sides)
            index = np.unique(self._channels.roots(sides[0][0])).tobytes()
            self._choices[number] = Choice(key, tuple(sides), heads, cause, index, key in self._whole, tuple(partners))

    def heads_of(self, ids: Ids, axis: int) -> Ids | None:
        """What labels the heads of a split index of which an axis was contracted; None where none was."""
        return self._heads.get((ids.shape, ids.tobytes(), axis))

    def settle(self) -> None:
        """Decides what is open; what may only lose whole heads goes first."""
        for choice in sorted(self._choices.values(), key=lambda one: not one.stays_whole):
            self._settle(choice)

    def settle_for(self, rows: Ids) -> None:
        """Decides now what these labels of heads depend on, since an op needs to know."""
        for choice in self._sharing(rows):
            self._settle(choice)

    def note_met(self, box: Ids, rows: Ids) -> None:
        """A split index is laid out by these labels of heads."""
        for choice in self._sharing(rows):
            choice.met.append(box)

    def missed(self) -> frozenset[int]:
        """Keys of choices for dimensions that were no good, though heads might have been.

        Either some dimensions turned out not to be removable, or they can only go together with those of other
        products, which have more heads in all.
        """
        chosen = [one for one in self._choices.values() if one.by_dims and one.was_open]
        held = [one for one in chosen if any(self._is_held(ids) for ids in self._boxes(one))]
        shared = [one for one in chosen if self._is_coarse(one, chosen)]
        return frozenset(one.key for one in (*held, *shared))

    def by_dims(self) -> int:
        """How many split indices of queries lose dimensions inside heads, whatever code contracts them."""
        chosen = [one for one in self._choices.values() if one.by_dims and not self._is_held(one.sides[0][0])]
        return len({one.index for one in chosen})

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _create(self, ids: Ids, axis: int) -> Ids:
        """One label per head; heads with the same elements, as of every sample where they share an axis, share it."""
        place = ids.shape, ids.tobytes(), axis
        if place not in self._heads:
            rows = np.moveaxis(ids, axis, -1)
            shape = rows.shape[:-1]
            distinct, positions = np.unique(rows.reshape(-1, rows.shape[-1]), axis=0, return_inverse=True)
            labels = self._channels.create(len(distinct))[positions.reshape(-1)]
            heads: Ids = np.expand_dims(labels.reshape(shape), axis)
            if sum(size > 1 for size in heads.shape) > 1:
                self._channels.require_box(heads)
            self._heads[place] = heads
        return self._heads[place]

    def _sharing(self, rows: Ids) -> list[Choice]:
        roots = self._channels.roots(rows)
        return [
            choice
            for choice in self._choices.values()
            if any(np.isin(self._channels.roots(heads), roots).any() for heads in choice.heads)
        ]

    def _boxes(self, choice: Choice) -> list[Ids]:
        return [*(ids for ids, _ in (*choice.sides, *choice.partners)), *choice.met]

    def _is_held(self, ids: Ids) -> bool:
        return any(
            root == FIXED or (self._channels.is_frozen(root) and not self._channels.is_last(root))
            for root in np.unique(ids).tolist()
        )

    def _is_coarse(self, choice: Choice, others: Sequence[Choice]) -> bool:
        """Whether whole heads of all products that share dimensions with this one would leave more to choose from."""
        classes = self._classes(choice)
        sharing = [one for one in others if not classes.isdisjoint(self._classes(one))]
        heads = {one.index: len(np.unique(one.heads[0])) for one in sharing}
        return len(heads) > 1 and sum(heads.values()) >= len(classes)

    def _classes(self, choice: Choice) -> frozenset[int]:
        return frozenset(np.unique(self._channels.roots(choice.sides[0][0])).tolist())

    def _settle(self, choice: Choice) -> None:
        if choice.by_dims is None:
            choice.by_dims = self._prefers_dims(choice)
            (self._take_dims if choice.by_dims else self._take_heads)(choice)

    def _prefers_dims(self, choice: Choice) -> bool:
        varying = [(ids, axis, self._channels.varying_axes(ids)) for ids, axis in choice.sides]
        dims = all(axis in axes for _, axis, axes in varying)
        heads = all(set(axes) - {axis} for _, axis, axes in varying) and not all(
            self._is_held(labels) for labels in choice.heads
        )
        choice.was_open = dims and heads
        if not choice.was_open or choice.stays_whole:
            return dims and not heads
        return min(self._channels.classes_if_kept(ids, axis) for ids, axis, _ in varying) > max(
            self._channels.classes_if_kept(ids, other) for ids, axis, axes in varying for other in axes if other != axis
        )

    def _take_heads(self, choice: Choice) -> None:
        for (ids, axis), heads in zip(choice.sides, choice.heads, strict=True):
            self._channels.unite_along(ids, axis, choice.cause)
            self._channels.unite(np.take(ids, [0], axis), heads, choice.cause)
            self._channels.mark_heads(ids)
            if not self._channels.varying_axes(ids):
                self._channels.freeze(ids, choice.cause)

    def _take_dims(self, choice: Choice) -> None:
        columns = [self._columns(ids, axis, choice.cause) for ids, axis in (*choice.sides, *choice.partners)]
        for (ids, _), heads in zip(choice.sides, choice.heads, strict=True):
            self._channels.freeze(heads, choice.cause)
            self._channels.mark_contracted(ids, choice.cause)
        for other in columns[1:]:
            self._channels.unite(columns[0], other, choice.cause)

    def _columns(self, ids: Ids, axis: int, cause: Cause) -> Ids:
        """One element per dimension, the same in every head from now on."""
        for other in range(ids.ndim):
            if other != axis:
                self._channels.unite_along(ids, other, cause)
        line: Ids = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)[:, 0]
        return line
