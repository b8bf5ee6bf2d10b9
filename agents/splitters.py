"""Splits of bars that keep what a label knows out of the test: walk-forward, and combinatorial purged cross-validation.

Row t of T bars has a label that looks at rows t .. ``ends[t]`` (its window; a horizon of h bars is ``t + h``). A row is
*purged* from training where its window and the window of a test row have a row in common. The *embargo* drops the rows
that begin within so many bars after a run of test windows: they see the test through whatever looks back.

Combinatorial purged cross-validation cuts the rows into N groups and tests k of them at a time: C(N, k) splits, each
group is tested ``C(N, k) k / N`` times, which are as many whole paths through all N groups.

Source: Lopez de Prado, "Advances in Financial Machine Learning" (2018), sections 7.4 and 12.4. Deviation: purging is
symmetric by construction here, since windows are compared with windows, also across the gap between test groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb

import numpy as np
import numpy.typing as npt

from markets.errors import ConfigError

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """One split.

    Attributes:
        train, test: rising row numbers. groups: the test groups of a combinatorial split, (place of the fold,) of a
            walk-forward one.
    """

    train: Rows
    test: Rows
    groups: tuple[int, ...]


def windows(bars: int, horizon: int) -> Rows:
    """Return the last row that each row's label looks at, ``(T,)``: ``t + horizon``, cut at the last bar."""
    _whole("bars", bars, 2)
    _whole("horizon", horizon, 0)
    return np.minimum(np.arange(bars) + horizon, bars - 1)


def purged(ends: npt.ArrayLike, test: Rows, embargo: int = 0) -> Rows:
    """Return every row that may train beside the ``test`` rows: not in them, not purged, not under the embargo.

    Raises:
        ConfigError: windows that end before they begin or beyond the bars, or a negative embargo.
    """
    last = _checked(ends)
    _whole("embargo", embargo, 0)
    allowed = np.ones(len(last), bool)
    if len(test):
        for run in np.split(test, np.flatnonzero(np.diff(test) > 1) + 1):
            begin, end = int(run[0]), int(last[run].max())
            rows = np.arange(len(last))
            allowed &= (last < begin) | (rows > end + embargo)
    return np.flatnonzero(allowed)


def walk_forward(
    ends: npt.ArrayLike, folds: int, train: int, embargo: int = 0, anchored: bool = True
) -> Iterator[Fold]:
    """Yield ``folds`` splits whose test rows follow each other to the last bar, each after its training rows.

    Args:
        ends: ``(T,)`` of :func:`windows`.
        train: rows before the first test row; the rest is tested, in ``folds`` parts whose lengths differ by 1 at most.
        embargo: rows left out between the last training window and the test, beside the purge.
        anchored: train from the first bar on; else on the ``train`` rows before the test (fewer by purge and embargo).

    Raises:
        ConfigError: more folds than rows to test, or a training range that purge and embargo leave empty.
    """
    last = _checked(ends)
    _whole("folds", folds, 1)
    _whole("train", train, 1)
    _whole("embargo", embargo, 0)
    if len(last) - train < folds:
        raise ConfigError(f"folds={folds}: {len(last)} bars less {train} to train on leave too few to test")
    edges = np.linspace(train, len(last), folds + 1).astype(np.int64)
    for place, (begin, end) in enumerate(pairwise(edges.tolist())):
        first = 0 if anchored else begin - train
        rows = np.arange(first, begin)
        rows = rows[last[rows] < begin - embargo]
        if not len(rows):
            raise ConfigError(f"train={train}: horizon and embargo={embargo} leave no row to train on before {begin}")
        yield Fold(rows, np.arange(begin, end), (place,))


def combinatorial_purged(ends: npt.ArrayLike, groups: int, tested: int, embargo: int = 0) -> Iterator[Fold]:
    """Yield the C(groups, tested) splits of combinatorial purged cross-validation, in lexicographic order.

    Raises:
        ConfigError: groups or tested that cannot be, or a split that is left without training rows.
    """
    last = _checked(ends)
    _check_groups(groups, tested)
    if len(last) < groups:
        raise ConfigError(f"groups={groups}: there are {len(last)} bars")
    parts = np.array_split(np.arange(len(last)), groups)
    for chosen in combinations(range(groups), tested):
        test = np.concatenate([parts[group] for group in chosen])
        train = purged(last, test, embargo)
        if not len(train):
            raise ConfigError(
                f"groups={groups}, tested={tested}: purge and embargo leave split {chosen} no row to train"
            )
        yield Fold(train, test, chosen)


def number_of_paths(groups: int, tested: int) -> int:
    """Return how many paths through all groups the splits make, ``C(N, k) k / N = C(N - 1, k - 1)``."""
    _check_groups(groups, tested)
    return comb(groups - 1, tested - 1)


def paths(groups: int, tested: int) -> Rows:
    """Return which split tests each group of each path, ``(paths, groups)`` places in :func:`combinatorial_purged`.

    Path j takes, of the splits that test a group, the j-th one; so every (split, test group) is used exactly once.
    """
    _check_groups(groups, tested)
    users: list[list[int]] = [[] for _ in range(groups)]
    for place, chosen in enumerate(combinations(range(groups), tested)):
        for group in chosen:
            users[group].append(place)
    return np.array(users, dtype=np.int64).T


def _checked(ends: npt.ArrayLike) -> Rows:
    last = np.asarray(ends)
    if last.ndim != 1 or len(last) < 2 or last.dtype.kind not in "iu":
        raise ConfigError(
            f"ends is {last.dtype} of shape {last.shape}, expected whole numbers (bars,) of 2 bars or more"
        )
    last = last.astype(np.int64)
    wrong = np.flatnonzero((last < np.arange(len(last))) | (last >= len(last)))
    if len(wrong):
        raise ConfigError(
            f"ends[{wrong[0]}]={last[wrong[0]]} must lie between its own row and the last, {len(last) - 1}"
        )
    return last


def _check_groups(groups: int, tested: int) -> None:
    _whole("groups", groups, 2)
    _whole("tested", tested, 1)
    if tested >= groups:
        raise ConfigError(f"tested={tested} must be below groups={groups}")


def _whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name}={value!r} must be a whole number from {least}")
