"""Ladders of targets, and the part of one that is worth a closer look."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_server.pruning.rungs import rungs_of, window_around
from pruning_server.spec.request import Granularity, TargetKind


@pytest.mark.parametrize("granularity", [Granularity.WEIGHT, Granularity.CHANNEL, Granularity.HEAD])
@pytest.mark.parametrize("macs_known", [True, False])
def test_ladders_go_from_the_least_to_the_most_pruned(granularity: Granularity, macs_known: bool) -> None:
    ladder = rungs_of(granularity, macs_known=macs_known)
    removed = [one.value if one.kind is TargetKind.SPARSITY else 1 - one.value for one in ladder]
    assert len(ladder) == 15
    assert removed == sorted(set(removed))
    assert 0 < removed[0] < removed[-1] < 1
    assert len({one.kind for one in ladder}) == 1
    assert (ladder[0].kind is TargetKind.MACS_RATIO) == (macs_known and granularity is not Granularity.WEIGHT)


@given(rungs=st.integers(1, 40), reached=st.none() | st.integers(0, 39))
def test_the_window_holds_the_first_and_what_was_reached(rungs: int, reached: int | None) -> None:
    found = window_around(None if reached is None else min(reached, rungs - 1), rungs)
    assert list(found) == sorted(set(found))
    assert found[0] == 0
    assert found[-1] < rungs
    assert len(found) <= 8
    assert reached is None or min(reached, rungs - 1) in found
