"""Splits: exact, disjoint, complete, stratified, grouped, seeded; and the caller's own."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning_server.errors import JobFailureError, Reason
from pruning_server.evaluation.assignment import share_out
from pruning_server.evaluation.splits import PARTS, Splits, split_dataset
from pruning_server.evaluation.units import find_units
from pruning_server.spec.request import SplitFractions, Task

DEFAULT = SplitFractions()


def inputs_of(count: int) -> tuple[np.ndarray, ...]:
    """Distinct samples."""
    return (np.arange(2 * count, dtype=np.float32).reshape(count, 2),)


def split(
    inputs: tuple[np.ndarray, ...],
    targets: np.ndarray | None = None,
    *,
    groups: np.ndarray | None = None,
    marks: np.ndarray | None = None,
    fractions: SplitFractions = DEFAULT,
    seed: int = 0,
    task: Task = Task.CLASSIFICATION,
) -> Splits:
    """Splits with defaults."""
    return split_dataset(inputs, targets, groups=groups, marks=marks, fractions=fractions, seed=seed, task=task)


def parts_of(splits: Splits) -> dict[str, np.ndarray]:
    """Rows by part."""
    return {part: getattr(splits, part) for part in PARTS}


def check_invariants(splits: Splits, count: int) -> None:
    """Disjoint, complete, sorted; no unit in two parts."""
    rows = parts_of(splits)
    together = np.concatenate(list(rows.values()))
    assert sorted(together) == list(range(count))
    for part in rows.values():
        assert part.dtype == np.int64
        assert all(a < b for a, b in pairwise(part))
    seen: dict[int, str] = {}
    for name, part in rows.items():
        for unit in splits.units[part]:
            assert seen.setdefault(int(unit), name) == name


fractions = st.tuples(*[st.integers(0, 5)] * 3).map(
    lambda n: SplitFractions(
        fit=(1 + n[0]) / (sum(n) + 3), select=(1 + n[1]) / (sum(n) + 3), report=(1 + n[2]) / (sum(n) + 3), calibrate=0.0
    )
)


@settings(max_examples=150, deadline=None)
@given(count=st.integers(4, 300), classes=st.integers(1, 12), seed=st.integers(0, 5), shares=fractions)
def test_parts_have_their_exact_size_and_every_class_its_share(
    count: int, classes: int, seed: int, shares: SplitFractions
) -> None:
    targets = np.random.default_rng(seed).integers(classes, size=count)
    splits = split(inputs_of(count), targets, fractions=shares, seed=seed)
    check_invariants(splits, count)
    wanted = {"fit": shares.fit, "select": shares.select, "report": shares.report, "calibrate": 0.0}
    for part, rows in parts_of(splits).items():
        # One sample of rounding, and one or two where a part needs a minimum.
        assert abs(len(rows) - count * wanted[part]) < 1 + 2 * (
            count * min(shares.select, shares.report, shares.fit) < 2
        )
    if count * min(shares.fit, shares.select, shares.report) >= 2:
        per_class = Counter(targets.tolist())
        for part, rows in parts_of(splits).items():
            for label, number in Counter(targets[rows].tolist()).items():
                if per_class[label] >= 3:
                    assert abs(number - per_class[label] * wanted[part]) < 3


@settings(max_examples=150, deadline=None)
@given(
    groups=st.lists(st.integers(0, 20), min_size=4, max_size=120).filter(lambda g: len(set(g)) >= 3),
    repeated=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_groups_and_duplicates_never_straddle(groups: list[int], repeated: int, seed: int) -> None:
    count = len(groups)
    inputs = (np.arange(count, dtype=np.int64) // repeated + 1000 * (np.array(groups) % 3),)
    if len(np.unique(find_units(inputs, np.array(groups)))) < 3:
        with pytest.raises(JobFailureError, match="must not be split"):
            split(inputs, groups=np.array(groups))
        return
    splits = split(inputs, np.array(groups) % 2, groups=np.array(groups), seed=seed)
    check_invariants(splits, count)
    rows = parts_of(splits)
    for group in set(groups):
        assert sum(any(groups[row] == group for row in part) for part in rows.values()) == 1
    assert len(rows["fit"]) >= 1
    assert len(rows["select"]) >= 1
    assert len(rows["report"]) >= 2


def test_units_are_connected_by_groups_and_by_duplicates() -> None:
    inputs = (np.array([[1, 1], [2, 2], [1, 1], [3, 3], [4, 4], [4, 4]], dtype=np.uint8), np.arange(6) // 6)
    assert find_units(inputs, None).tolist() == [0, 1, 0, 2, 3, 3]
    # 0 and 2 are twins, 2 and 3 share a group, 3 and 1 share none.
    assert find_units(inputs, np.array(["a", "b", "c", "c", "d", "e"])).tolist() == [0, 1, 0, 0, 2, 2]


def test_a_chain_of_pairs_is_one_unit() -> None:
    count = 40
    inputs = (np.arange(count) // 2,)
    groups = (np.arange(count) + 1) // 2
    assert set(find_units(inputs, groups).tolist()) == {0}


def test_the_same_seed_gives_the_same_split_and_another_another() -> None:
    targets = np.arange(200) % 5
    first, again, other = (split(inputs_of(200), targets, seed=seed) for seed in (7, 7, 8))
    assert all(np.array_equal(parts_of(first)[part], parts_of(again)[part]) for part in PARTS)
    assert not np.array_equal(first.report, other.report)


def test_default_sizes() -> None:
    splits = split(inputs_of(1000), np.arange(1000) % 10)
    assert splits.sizes() == {"fit": 600, "select": 150, "report": 250, "calibrate": 0}
    assert (splits.source, splits.stratified, splits.warnings) == ("seeded", True, ())
    for rows, each in ((splits.fit, 60), (splits.select, 15), (splits.report, 25)):
        assert Counter((rows % 10).tolist()) == dict.fromkeys(range(10), each)


def test_the_order_of_the_samples_does_not_leak_into_the_parts() -> None:
    """A part is no block of rows: of 100 rows of a class, the report's are spread over all of them."""
    starts = [split(inputs_of(100), None, seed=seed).report.mean() for seed in range(40)]
    assert abs(np.mean(starts) - 49.5) < 3
    hits = np.zeros(100)
    for seed in range(200):
        hits[split(inputs_of(100), None, seed=seed).report] += 1
    assert hits.min() > 20  # 50 are expected of each row, with a standard deviation of 6
    assert hits.max() < 80


def test_a_regression_is_stratified_by_its_quantiles() -> None:
    targets = np.random.default_rng(0).exponential(size=400)
    spreads = []
    for seed in range(20):
        splits = split(inputs_of(400), targets, seed=seed, task=Task.REGRESSION)
        assert splits.stratified
        check_invariants(splits, 400)
        spreads.append(abs(targets[splits.report].mean() - targets.mean()))
    # Without strata the mean of 100 of these varies by 0.087.
    assert np.mean(spreads) < 0.05
    two = np.stack([targets, 100 * targets[::-1]], axis=1)
    check_invariants(split(inputs_of(400), two, task=Task.REGRESSION), 400)


@pytest.mark.parametrize("task", [Task.MULTILABEL, Task.SEGMENTATION, Task.AGREEMENT])
def test_other_tasks_are_split_without_strata(task: Task) -> None:
    splits = split(inputs_of(50), np.zeros((50, 4), np.uint8), task=task)
    check_invariants(splits, 50)
    assert not splits.stratified


def test_one_hot_classes_are_stratified_as_numbers_are() -> None:
    labels = np.arange(120) % 4
    splits = split(inputs_of(120), np.eye(4)[labels])
    assert splits.stratified
    assert all(abs(number - 7.5) <= 1.5 for number in Counter(labels[splits.report].tolist()).values())


def test_small_classes_are_pooled_with_a_warning() -> None:
    targets = np.concatenate([np.zeros(50), np.ones(50), [2, 2, 3, 4]]).astype(np.int64)
    splits = split(inputs_of(104), targets)
    check_invariants(splits, 104)
    assert len(splits.warnings) == 1
    assert "3 classes" in splits.warnings[0]
    assert "2, 3, 4" in splits.warnings[0]


def test_every_class_alone_is_split_with_a_warning() -> None:
    splits = split(inputs_of(30), np.arange(30))
    check_invariants(splits, 30)
    assert "20 more" in splits.warnings[0]


def test_duplicates_are_told() -> None:
    inputs = (np.concatenate([np.arange(50), np.arange(10)]),)
    splits = split(inputs)
    check_invariants(splits, 60)
    assert "10 samples are exact duplicates" in splits.warnings[0]


def test_hardly_distinct_inputs_are_split_all_the_same_and_told() -> None:
    splits = split((np.arange(60) % 2,), np.arange(60) % 3)
    check_invariants(splits, 60)
    assert "only 2 distinct inputs" in splits.warnings[0]
    assert splits.sizes()["report"] == 15


def test_grouped_parts_come_close_to_their_shares() -> None:
    groups = np.arange(600) // 6
    targets = (groups % 4 == 0).astype(np.int64)
    splits = split(inputs_of(600), targets, groups=groups)
    check_invariants(splits, 600)
    for part, share in (("fit", 0.6), ("select", 0.15), ("report", 0.25)):
        rows = parts_of(splits)[part]
        assert abs(len(rows) - 600 * share) <= 6
        assert abs(targets[rows].sum() - targets.sum() * share) <= 6


def test_calibrate_is_one_more_part() -> None:
    shares = SplitFractions(fit=0.4, select=0.1, report=0.25, calibrate=0.25)
    splits = split(inputs_of(200), np.arange(200) % 2, fractions=shares)
    assert splits.sizes() == {"fit": 80, "select": 20, "report": 50, "calibrate": 50}


def test_a_part_with_no_share_gets_nothing() -> None:
    splits = split(inputs_of(20), fractions=SplitFractions(fit=0.0, select=0.0, report=1.0))
    assert splits.sizes() == {"fit": 0, "select": 0, "report": 20, "calibrate": 0}
    check_invariants(splits, 20)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_samples(count: int) -> None:
    with pytest.raises(JobFailureError, match=f"{count} samples; at least 4") as failed:
        split(inputs_of(count))
    assert failed.value.reason is Reason.DATASET_TOO_SMALL


def test_the_fewest_samples_that_do() -> None:
    for seed in range(10):
        assert split(inputs_of(4), np.arange(4), seed=seed).sizes() == {
            "fit": 1, "select": 1, "report": 2, "calibrate": 0,
        }  # fmt: skip


@pytest.mark.parametrize("sizes", [(3, 1, 1), (2, 1, 1), (1, 1, 2), (5, 5, 1), (100, 1, 1), (1, 100, 1, 1)])
def test_a_handful_of_groups_fill_every_part(sizes: tuple[int, ...]) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    for seed in range(5):
        splits = split(inputs_of(len(groups)), groups=groups, seed=seed)
        check_invariants(splits, len(groups))
        assert min(len(splits.fit), len(splits.select), len(splits.report) - 1) >= 1


def test_too_few_groups() -> None:
    with pytest.raises(JobFailureError, match="2 groups") as failed:
        split(inputs_of(50), groups=np.arange(50) % 2)
    assert failed.value.reason is Reason.DATASET_TOO_SMALL


def test_the_callers_marks_win() -> None:
    marks = np.array([2, 2, 0, 1, 3, 0, 2], dtype=np.uint8)
    splits = split(inputs_of(7), np.arange(7), marks=marks, groups=np.arange(7))
    assert {part: rows.tolist() for part, rows in parts_of(splits).items()} == {
        "fit": [2, 5], "select": [3], "report": [0, 1, 6], "calibrate": [4],
    }  # fmt: skip
    assert (splits.source, splits.warnings) == ("caller", ())


@pytest.mark.parametrize(
    ("marks", "word"),
    [([0, 0, 1, 1], "report"), ([0, 0, 2, 2], "select"), ([1, 1, 2, 2], "fit"), ([0, 1, 2], "report")],
)
def test_marks_without_a_part_are_refused(marks: list[int], word: str) -> None:
    with pytest.raises(JobFailureError, match=f"as {word}") as failed:
        split(inputs_of(len(marks)), marks=np.array(marks, dtype=np.uint8))
    assert failed.value.reason is Reason.DATASET_SPLIT


def test_marks_need_no_fit_where_nothing_is_fitted() -> None:
    shares = SplitFractions(fit=0.0, select=0.5, report=0.5)
    splits = split(inputs_of(4), marks=np.array([1, 1, 2, 2], dtype=np.uint8), fractions=shares)
    assert splits.sizes() == {"fit": 0, "select": 2, "report": 2, "calibrate": 0}


def test_marks_that_leak_are_told() -> None:
    inputs = (np.array([5, 1, 2, 5, 3, 4]),)
    splits = split(inputs, marks=np.array([0, 0, 1, 2, 2, 2], dtype=np.uint8))
    assert "1 samples of the report part are equal to" in splits.warnings[0]


@settings(max_examples=100, deadline=None)
@given(count=st.integers(4, 10_000), shares=fractions)
def test_sizes_add_up(count: int, shares: SplitFractions) -> None:
    sizes = share_out(count, [shares.fit, shares.select, shares.report], [1, 1, 2])
    assert sum(sizes) == count
    assert min(sizes[0], sizes[1], sizes[2] - 1) >= 1


def places_of(splits: Splits, count: int) -> np.ndarray:
    """[N] which part each sample is in."""
    places = np.full(count, -1)
    for place, part in enumerate(PARTS):
        places[getattr(splits, part)] = place
    return places


@pytest.mark.parametrize("row", [0, 137, 599])
def test_one_label_moves_a_few_samples_and_not_the_split(row: int) -> None:
    """The labels of the report part are part of the labels: what they can change of the split must be small."""
    rng = np.random.default_rng(3)
    inputs, labels = (rng.normal(size=(600, 4)),), rng.integers(0, 3, size=600)
    other = labels.copy()
    other[row] = (labels[row] + 1) % 3
    found = [
        places_of(
            split_dataset(
                inputs, one, groups=None, marks=None, fractions=SplitFractions(), seed=5, task=Task.CLASSIFICATION
            ),
            600,
        )
        for one in (labels, other)
    ]
    # Each class may pass one sample on at each of the two borders between parts, and the sample itself moves.
    assert int((found[0] != found[1]).sum()) <= 3 * 2 * 2 + 1


@pytest.mark.parametrize("marks", [None, np.repeat(np.array([0, 1, 2], np.uint8), [60, 20, 20])])
def test_targets_that_are_all_the_same_are_told(marks: np.ndarray | None) -> None:
    inputs = (np.random.default_rng(0).normal(size=(100, 4)),)
    for targets, task in ((np.full(100, 7), Task.CLASSIFICATION), (np.full((100, 2), 0.5), Task.REGRESSION)):
        splits = split_dataset(inputs, targets, groups=None, marks=marks, fractions=SplitFractions(), seed=0, task=task)
        assert any("all 100 targets of the set are the same" in warning for warning in splits.warnings)


def test_a_report_part_with_one_label_is_told() -> None:
    inputs = (np.random.default_rng(0).normal(size=(100, 4)),)
    marks = np.repeat(np.array([0, 1, 2], np.uint8), [60, 20, 20])
    targets = np.where(marks == 2, 1, np.arange(100) % 3)
    splits = split_dataset(
        inputs, targets, groups=None, marks=marks, fractions=SplitFractions(), seed=0, task=Task.CLASSIFICATION
    )
    assert any("all 20 targets of the report part are the same (1)" in warning for warning in splits.warnings)
    mixed = split_dataset(
        inputs,
        np.arange(100) % 3,
        groups=None,
        marks=marks,
        fractions=SplitFractions(),
        seed=0,
        task=Task.CLASSIFICATION,
    )
    assert not any("the same" in warning for warning in mixed.warnings)
