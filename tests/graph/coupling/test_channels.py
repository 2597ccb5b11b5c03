"""Union-find with freezing and boxes; the registry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_server.graph.channels import FIXED, Cause, Channels
from pruning_server.graph.coupling.registry import Registry
from pruning_server.graph.coupling.rules import REGISTRY

WHY = Cause("aten::op", "file:1", "a reason")

PAIRS = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12)


@given(pairs=PAIRS, frozen=st.sets(st.integers(0, 11), max_size=3), order=st.randoms(use_true_random=False))
def test_classes_do_not_depend_on_the_order(
    pairs: list[tuple[int, int]], frozen: set[int], order: st.DataObject
) -> None:
    def build(steps: list[tuple[int, ...]]) -> Channels:
        channels = Channels()
        channels.create(12)
        for step in steps:
            if len(step) == 1:
                channels.freeze(np.array(step), WHY)
            else:
                channels.unite(np.array(step[:1]), np.array(step[1:]), WHY)
        return channels

    steps: list[tuple[int, ...]] = [*pairs, *((one,) for one in sorted(frozen))]
    mixed = list(steps)
    order.shuffle(mixed)
    one, other = build(steps), build(mixed)
    assert [one.find(element) for element in range(12)] == [other.find(element) for element in range(12)]
    assert [one.is_frozen(element) for element in range(12)] == [other.is_frozen(element) for element in range(12)]
    for left, right in pairs:
        assert one.find(left) == one.find(right)
    for element in frozen:
        assert one.causes(element) == (WHY,)


def test_meeting_a_fixed_coordinate_freezes() -> None:
    channels = Channels()
    ids = channels.create(4)
    channels.unite(ids, np.array([FIXED, 2, 2, FIXED]), WHY)
    assert [channels.is_frozen(element) for element in range(4)] == [True, False, False, True]
    assert channels.find(1) == channels.find(2)
    assert channels.find(FIXED) == FIXED


def test_a_box_keeps_the_axis_with_most_classes() -> None:
    channels = Channels()
    wide = channels.create(12).reshape(3, 4)
    tall = channels.create(12).reshape(3, 4)
    channels.require_box(wide)
    channels.require_box(tall)
    channels.unite_along(tall, 1, WHY)  # heads: decided already
    channels.settle(WHY)
    assert channels.varying_axes(wide) == (1,)
    assert channels.varying_axes(tall) == (0,)
    assert len(np.unique(channels.roots(wide))) == 4


def test_what_a_box_meets_decides_it() -> None:
    channels = Channels()
    box, rows = channels.create(12).reshape(3, 4), channels.create(3).reshape(3, 1)
    channels.meet(box, rows, WHY)
    channels.settle(WHY)
    assert channels.varying_axes(box) == (0,)  # although the other axis has more classes
    assert (channels.roots(box) == channels.roots(rows)).all()


def test_what_a_box_meets_on_an_axis_that_is_held_stays() -> None:
    channels = Channels()
    box, columns = channels.create(12).reshape(3, 4), channels.create(4).reshape(1, 4)
    channels.meet(box, columns, WHY)
    channels.unite_along(box, 1, WHY)  # heads, decided later
    channels.settle(WHY)
    assert channels.varying_axes(box) == (0,)
    assert all(channels.is_frozen(element) for element in columns.ravel().tolist())
    assert not any(channels.is_frozen(element) for element in box.ravel().tolist())


def test_frozen_columns_do_not_decide_a_box() -> None:
    channels = Channels()
    box, columns = channels.create(12).reshape(3, 4), channels.create(4).reshape(1, 4)
    channels.meet(box, columns, WHY)
    channels.freeze(columns, WHY)
    channels.settle(WHY)
    assert channels.varying_axes(box) == (0,)
    assert not any(channels.is_frozen(element) for element in box.ravel().tolist())


def test_a_decision_for_one_axis_heeds_what_the_box_has_met() -> None:
    channels = Channels()
    box, rows = channels.create(12).reshape(3, 4), channels.create(3).reshape(3, 1)
    channels.meet(box, rows, WHY)
    assert channels.choose_axis(box.T.copy(), WHY) == 1
    channels.settle(WHY)
    assert not any(channels.is_frozen(element) for element in rows.ravel().tolist())


def test_one_rule_per_op() -> None:
    def rule(_: object) -> list[object]:
        return []

    with pytest.raises(ValueError, match="aten::relu"):
        Registry({"aten::relu": rule}, {"aten::relu": rule})
    assert Registry({"aten::relu": rule}).find("aten::relu_") is rule
    assert Registry({"aten::relu": rule}).find("aten::gelu") is None


def test_every_rule_is_for_an_op_that_exists() -> None:
    import torch

    known = {schema.name for schema in torch._C._jit_get_all_schemas()}
    assert {op for op in REGISTRY.ops() if op not in known and f"{op}_" not in known} == set()
