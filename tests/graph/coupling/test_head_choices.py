"""Whatever else is known of heads and dimensions: what is left of a split index is always some heads by some dimensions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_server.graph.channels import Cause, Channels, Ids
from pruning_server.graph.head_choices import HeadChoices

WHY = Cause("aten::op", "file:1", "a reason")


def split_indices(heads: int, dims: int, *, whole: tuple[int, ...] = ()) -> tuple[Channels, Ids, Ids, Ids]:
    """Queries, keys and values [heads, dims], contracted as attention does under key 7."""
    channels = Channels()
    channels.choices = HeadChoices(channels, whole)
    boxes = [channels.create(heads * dims).reshape(heads, dims) for _ in range(3)]
    for box in boxes:
        channels.require_box(box)
    queries, keys, values = boxes
    channels.choices.open(((queries, 1), (keys, 1)), 7, WHY)
    first, second = (channels.choices.heads_of(box, 1) for box in (queries, keys))
    assert first is not None
    assert second is not None
    channels.unite(first, second, WHY)
    channels.meet(values, first, WHY)
    return channels, queries, keys, values


def is_box(channels: Channels, box: Ids, removed: set[int]) -> bool:
    """Whether the rest is some rows by some columns."""
    left = ~np.isin(channels.roots(box), list(removed))
    return bool((left == np.outer(left.any(axis=1), left.any(axis=0))).all())


@given(
    heads=st.integers(1, 4),
    dims=st.integers(1, 5),
    data=st.data(),
)
def test_a_rest_is_always_heads_by_dimensions(heads: int, dims: int, data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([(), (7,)]))
    channels, *boxes = split_indices(heads, dims, whole=whole)
    count = heads * dims * 3
    elements = st.integers(0, count - 1)
    for one, other in data.draw(st.lists(st.tuples(elements, elements), max_size=4)):
        channels.unite(np.array([one]), np.array([other]), WHY)
    channels.freeze(np.array(sorted(data.draw(st.sets(elements, max_size=2))), dtype=np.int64), WHY)
    channels.settle(WHY)
    free = sorted({root for box in boxes for root in np.unique(channels.roots(box)).tolist()})
    free = [root for root in free if not channels.is_frozen(root)]
    removed = set(data.draw(st.lists(st.sampled_from(free), unique=True))) if free else set()
    assert all(is_box(channels, box, removed) for box in boxes)
    left = [~np.isin(channels.roots(box), list(removed)) for box in boxes]
    queries, keys, _ = left
    assert queries.sum() == keys.sum()
    # As many heads everywhere, unless nothing is left at all.
    if all(one.any() for one in left):
        assert len({int(one.any(axis=1).sum()) for one in left}) == 1


@pytest.mark.parametrize(("heads", "dims", "whole", "by_dims"), [
    (2, 5, (), True), (2, 5, (7,), False), (5, 2, (), False), (3, 3, (), False), (1, 4, (), True), (4, 1, (), False),
])  # fmt: skip
def test_the_finer_one_goes(heads: int, dims: int, whole: tuple[int, ...], by_dims: bool) -> None:
    channels, queries, keys, values = split_indices(heads, dims, whole=whole)
    channels.settle(WHY)
    assert channels.choices is not None
    assert channels.choices.by_dims() == by_dims
    assert len(np.unique(channels.roots(queries))) == (dims if by_dims else heads)
    assert (channels.roots(queries) == channels.roots(keys)).all()
    shared = np.isin(channels.roots(values), channels.roots(queries)).all()
    assert bool(shared) != by_dims


def test_heads_that_are_held_leave_the_dimensions() -> None:
    channels, queries, _, values = split_indices(5, 2)
    heads = channels.choices.heads_of(queries, 1) if channels.choices is not None else None
    assert heads is not None
    channels.freeze(heads, WHY)
    channels.settle(WHY)
    assert [len(np.unique(channels.roots(box))) for box in (queries, values)] == [2, 2]
    assert not channels.is_frozen(int(queries[0, 0]))


def test_dimensions_that_are_frozen_afterwards_were_no_good_choice() -> None:
    channels, queries, _, values = split_indices(2, 5)
    channels.settle(WHY)
    assert channels.choices is not None
    assert channels.choices.missed() == frozenset()
    channels.keep_last(int(queries[0, 0]), WHY)  # one of them always stays
    assert channels.choices.missed() == frozenset()
    channels.freeze(values[:, :1], WHY)
    assert channels.choices.missed() == {7}
