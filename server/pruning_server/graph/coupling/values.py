"""Tensors and sizes that remember which channels their coordinates belong to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from pruning_server.graph.channels import FIXED, Ids


@dataclass(frozen=True, eq=False)
class AxisMap:
    """Which element each coordinate belongs to, over one axis of a value or, after a split, over several at once.

    Attributes:
        ids: as many axes as the value; the value's length on the axes that the map covers, 1 on the others.
    """

    ids: Ids

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes that it covers."""
        return tuple(axis for axis, size in enumerate(self.ids.shape) if size > 1)

    def covers(self, axis: int) -> bool:
        """Whether the coordinates on this axis are labelled by it."""
        return int(self.ids.shape[axis]) > 1

    def aligned(self, dims: int) -> AxisMap:
        """The same map for a value that is broadcast to `dims` axes."""
        return AxisMap(self.ids.reshape((1,) * (dims - self.ids.ndim) + self.ids.shape))


Maps: TypeAlias = tuple[AxisMap, ...]


@dataclass(frozen=True, eq=False)
class Labelled:
    """A tensor with disjoint maps; axes without one are batch, time, space, or always stay.

    Attributes:
        tensor: the value itself.
        maps: which channels its coordinates are.
        stored: it is made of stored tensors only, and depends on no input.
    """

    tensor: torch.Tensor
    maps: Maps = ()
    stored: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape; empty for a nested tensor, which has none and never carries labels."""
        return () if self.tensor.is_nested else tuple(self.tensor.shape)

    def map_at(self, axis: int) -> AxisMap | None:
        """The map that covers an axis; negative axes count from the end."""
        return map_at(self.maps, axis % len(self.shape))


class LabelledInt(int):
    """A length read off a labelled axis; it changes with the channels unless it is pinned."""

    map: AxisMap
    axis: int

    @classmethod
    def read(cls, value: int, source: AxisMap, axis: int) -> LabelledInt:
        """The length of an axis that `source` covers."""
        number = cls(value)
        number.map, number.axis = source, axis
        return number


class SettableInt(int):
    """A number that depends on an attribute which some method sets: it is no constant that may be rewritten."""


def map_at(maps: Maps, axis: int) -> AxisMap | None:
    """The map that covers an axis, counted from 0."""
    return next((one for one in maps if one.covers(axis)), None)


def single(ids: Ids, axis: int, dims: int) -> Maps:
    """A map over one axis of a value with `dims` axes; none for a single coordinate, which is never labelled."""
    if len(ids) < 2:
        return ()
    shape = [1] * dims
    shape[axis] = len(ids)
    return (AxisMap(ids.reshape(shape)),)


def without_axis(ids: Ids, axis: int) -> Ids:
    """The first row along an axis, which keeps length 1."""
    return np.take(ids, [0], axis)


def squeezed(maps: Maps, axes: Sequence[int]) -> Maps:
    """The maps of a value that has lost these axes; none of them may be covered."""
    return tuple(AxisMap(np.squeeze(one.ids, tuple(axes))) for one in maps)


def as_tensor(source: AxisMap, shape: Sequence[int]) -> torch.Tensor:
    """The map as a tensor of the value's shape that takes no more memory than the map."""
    return torch.from_numpy(np.ascontiguousarray(source.ids)).expand(tuple(shape))


def from_tensor(labels: torch.Tensor) -> Ids:
    """The inverse: length 1 on every axis along which nothing varies."""
    for axis in range(labels.dim()):
        first = labels.narrow(axis, 0, 1) if labels.shape[axis] > 1 else labels
        if labels.shape[axis] > 1 and (labels.stride(axis) == 0 or bool((labels == first).all())):
            labels = first
    ids: Ids = labels.contiguous().numpy().copy()
    return ids


def is_unlabelled(ids: Ids) -> bool:
    """Whether no coordinate belongs to a channel."""
    return bool((ids == FIXED).all())


def tensors_in(value: Any) -> Iterator[Labelled]:
    """Every labelled tensor in a nest of lists, tuples and dicts."""
    if isinstance(value, Labelled):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors_in(one)


def sizes_in(value: Any) -> Iterator[LabelledInt]:
    """Every labelled size in a nest of lists, tuples and dicts."""
    if isinstance(value, LabelledInt):
        yield value
    elif isinstance(value, list | tuple | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from sizes_in(one)


def is_settable(value: Any) -> bool:
    """Whether any number in a nest of lists and tuples is a `SettableInt`."""
    if isinstance(value, list | tuple):
        return any(is_settable(one) for one in value)
    return isinstance(value, SettableInt)


def unlabel(value: Any) -> Any:
    """The same nest with plain tensors; sizes are numbers as they are."""
    if isinstance(value, Labelled):
        return value.tensor
    if isinstance(value, list):
        return [unlabel(one) for one in value]
    if isinstance(value, tuple):
        return tuple(unlabel(one) for one in value)
    if isinstance(value, dict):
        return {key: unlabel(one) for key, one in value.items()}
    return value
