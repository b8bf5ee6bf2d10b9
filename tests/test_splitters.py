"""Splits of bars: nothing that a training label knows reaches a test row, every path is whole; mutants are caught."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import pytest

from agents.splitters import Fold, Rows, combinatorial_purged, number_of_paths, paths, purged, walk_forward, windows
from markets.errors import ConfigError

SEED = 7
CASES = [(40, 0, 0), (40, 3, 0), (60, 1, 5), (61, 7, 2), (97, 12, 12)]  # bars, horizon, embargo


def ragged(bars: int, horizon: int) -> Rows:
    """Windows of uneven length, as of labels that end at a barrier."""
    reach = np.random.default_rng(SEED).integers(0, horizon + 1, bars)
    return np.minimum(np.arange(bars) + reach, bars - 1)


def check_apart(fold: Fold, ends: Rows, embargo: int) -> None:
    """No training window shares a bar with a test window; no training row begins in an embargo; row by row."""
    assert len(fold.train)
    assert len(fold.test)
    for test in fold.test:
        overlapping = (fold.train <= ends[test]) & (ends[fold.train] >= test)
        assert not overlapping.any(), f"train rows {fold.train[overlapping]} know test row {test}"
    runs = np.split(fold.test, np.flatnonzero(np.diff(fold.test) > 1) + 1)
    for run in runs:
        end = ends[run].max()
        assert not ((fold.train > end) & (fold.train <= end + embargo)).any(), "train rows in the embargo"


@pytest.mark.parametrize("make", [windows, ragged])
@pytest.mark.parametrize(("bars", "horizon", "embargo"), CASES)
def test_no_training_row_of_a_combinatorial_split_knows_a_test_row(
    bars: int, horizon: int, embargo: int, make: Callable[[int, int], Rows]
) -> None:
    ends = make(bars, horizon)
    for fold in combinatorial_purged(ends, 5, 2, embargo):
        check_apart(fold, ends, embargo)


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize(("bars", "horizon", "embargo"), CASES)
def test_walk_forward_trains_on_the_past_only(bars: int, horizon: int, embargo: int, anchored: bool) -> None:
    ends = ragged(bars, horizon)
    folds = list(walk_forward(ends, 4, 30, embargo, anchored))
    for fold in folds:
        check_apart(fold, ends, embargo)
        assert ends[fold.train].max() + embargo < fold.test[0]
        assert fold.train[0] == 0 if anchored else fold.train[0] == fold.test[0] - 30
    assert np.array_equal(np.concatenate([fold.test for fold in folds]), np.arange(30, bars))
    sizes = [len(fold.test) for fold in folds]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("fault", ["no purge before", "no purge after", "no embargo", "unsorted window"])
def test_a_splitter_with_a_planted_fault_is_caught(fault: str) -> None:
    bars, horizon, embargo = 97, 7, 6
    ends = windows(bars, horizon)
    caught = 0
    for fold in combinatorial_purged(ends, 5, 2, embargo):
        rows, test = np.arange(bars), fold.test
        wrong = {
            "no purge before": np.union1d(fold.train, rows[(rows == test[0] - 1)]),
            "no purge after": np.union1d(fold.train, rows[(rows == test[-1] + horizon)]),
            "no embargo": np.setdiff1d(purged(ends, test, 0), []),
            "unsorted window": np.setdiff1d(rows, test),
        }[fault].astype(np.int64)
        try:
            check_apart(replace(fold, train=wrong), ends, embargo)
        except AssertionError:
            caught += 1
    assert caught >= 6, f"{fault}: caught in {caught} of 10 splits"


def test_nothing_is_dropped_that_need_not_be() -> None:
    """Twin of the purge: without horizon and embargo, training is every row that is not tested."""
    ends = windows(50, 0)
    for fold in combinatorial_purged(ends, 5, 2):
        assert np.array_equal(np.union1d(fold.train, fold.test), np.arange(50))
    assert np.array_equal(purged(windows(20, 2), np.arange(8, 12), 3), [0, 1, 2, 3, 4, 5, 17, 18, 19])
    assert np.array_equal(purged(windows(5, 1), np.array([], dtype=np.int64)), np.arange(5))


# Paths


def check_paths(found: Rows, splits: Sequence[Fold], groups: int) -> None:
    assert found.shape == (len(splits) * len(splits[0].groups) // groups, groups)
    uses = Counter((int(place), group) for path in found for group, place in enumerate(path))
    assert set(uses) == {(place, group) for place, fold in enumerate(splits) for group in fold.groups}
    assert set(uses.values()) == {1}


@pytest.mark.parametrize(("groups", "tested"), [(2, 1), (6, 2), (6, 3), (8, 2), (10, 1)])
def test_every_path_covers_every_group_with_a_split_that_tested_it(groups: int, tested: int) -> None:
    splits = list(combinatorial_purged(windows(200, 2), groups, tested, 1))
    assert len(splits) == comb(groups, tested)
    found = paths(groups, tested)
    check_paths(found, splits, groups)
    assert len(found) == number_of_paths(groups, tested) == comb(groups, tested) * tested // groups


def test_the_book_s_example_has_five_paths_of_fifteen_splits() -> None:
    assert (comb(6, 2), number_of_paths(6, 2)) == (15, 5)


def test_a_path_that_takes_a_split_twice_is_caught() -> None:
    splits, found = list(combinatorial_purged(windows(200, 2), 6, 2)), paths(6, 2)
    wrong = found.copy()
    wrong[0, 3] = wrong[1, 3]
    check_paths(found, splits, 6)
    with pytest.raises(AssertionError):
        check_paths(wrong, splits, 6)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: windows(1, 0), "bars=1"), (lambda: windows(9, -1), "horizon=-1"),
        (lambda: list(walk_forward(windows(20, 0), 0, 10)), "folds=0"),
        (lambda: list(walk_forward(windows(20, 0), 15, 10)), "folds=15"),
        (lambda: list(walk_forward(windows(20, 0), 2, 10, embargo=10)), "embargo=10 leave no row"),
        (lambda: list(combinatorial_purged(windows(20, 0), 4, 4)), "tested=4"),
        (lambda: list(combinatorial_purged(windows(20, 0), 30, 2)), "groups=30"),
        (lambda: list(combinatorial_purged(windows(20, 15), 4, 2, 9)), "no row to train"),
        (lambda: purged(np.array([0, 0, 2]), np.array([1])), r"ends\[1\]=0"),
        (lambda: purged(np.array([0.0, 1.0]), np.array([1])), "ends is float64"),
        (lambda: number_of_paths(1, 1), "groups=1"),
    ],
)  # fmt: skip
def test_bad_numbers_are_named(call: Callable[[], Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        call()
