"""Choice by exact count, with ties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning_server.pruning.ranking import lowest

FLOATS = st.lists(
    st.one_of(st.sampled_from([0.0, -0.0, 1.0, 1e-45, 1e-300, 3e38]), st.floats(0, 2.0**100, width=32)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(values=FLOATS, double=st.booleans(), data=st.data())
def test_exactly_the_first_of_a_stable_order_go(values: list[float], double: bool, data: st.DataObject) -> None:
    scores = torch.tensor(values, dtype=torch.float64 if double else torch.float32)
    count = data.draw(st.integers(0, len(values)))
    expected = sorted(range(len(values)), key=lambda index: (float(scores[index]), index))[:count]
    assert lowest(scores, count).nonzero().flatten().tolist() == sorted(expected)


def test_of_equal_scores_the_first_go() -> None:
    assert lowest(torch.ones(6), 2).tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("scores", "count"),
    [([1.0], 2), ([1.0], -1), ([float("nan")], 1), ([float("inf")], 1), ([-1.0], 1)],
)
def test_what_cannot_be_ranked_is_an_error(scores: list[float], count: int) -> None:
    with pytest.raises(ValueError, match=r"cannot choose|finite"):
        lowest(torch.tensor(scores), count)
