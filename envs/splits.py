"""Chronological splits: which rows of a set of bars belong to training, validation and test."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from markets.bars import Bars
from markets.errors import ConfigError, unknown
from markets.sessions import Sessions

SPLITS = ("train", "validation", "test")
FRACTIONS = (0.6, 0.8)  # ends of the training and validation ranges where no dates are given


def split_rows(bars: Bars, split: str, train_end: str | None, validation_end: str | None) -> tuple[int, int]:
    """Return first row and end (exclusive) of a split.

    A bar belongs to a range when it has closed by the range's end; a date alone counts to the end of that day.

    Raises:
        UnknownNameError: unknown split.
        ConfigError: only one date, dates in the wrong order, or dates that leave a split empty.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if (train_end is None) != (validation_end is None):
        missing = "train_end" if train_end is None else "validation_end"
        raise ConfigError(
            f"{missing} is missing: give both train_end and validation_end, or neither (fractions .6/.2/.2)"
        )
    total = len(bars)
    if train_end is None:
        edges = [0, int(FRACTIONS[0] * total), int(FRACTIONS[1] * total), total]
    else:
        ends = [bars.rows_closed_by(train_end, "train_end"), bars.rows_closed_by(validation_end, "validation_end")]
        if ends[0] > ends[1]:
            raise ConfigError(f"train_end={train_end!r} must come before validation_end={validation_end!r}")
        edges = [0, *ends, total]
    for name, low, high in zip(SPLITS, edges, edges[1:], strict=False):
        if high <= low:
            cut = "the fractions .6/.2/.2" if train_end is None else f"{train_end=}, {validation_end=}"
            raise ConfigError(
                f"{cut} leave split {name!r} empty; the bars run from {bars.time[0]} to {bars.close_time[-1]}"
            )
    place = SPLITS.index(split)
    return edges[place], edges[place + 1]


def split_sessions(
    bars: Bars, found: Sessions, split: str, train_end: str | None, validation_end: str | None
) -> NDArray[np.int64]:
    """Return which of the sessions belong to a split: whole ones, by the time of their last bar.

    Raises:
        UnknownNameError: unknown split.
        ConfigError: as :func:`split_rows`, or a split without a session.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if train_end is None and validation_end is None:
        edges = [0, *(int(fraction * len(found)) for fraction in FRACTIONS), len(found)]
    else:
        rows = [split_rows(bars, name, train_end, validation_end)[1] for name in SPLITS]
        edges = [0, *np.searchsorted(found.first + found.rows, rows, side="right").tolist()]
    place = SPLITS.index(split)
    if edges[place + 1] <= edges[place]:
        cut = "the fractions .6/.2/.2" if train_end is None else f"{train_end=}, {validation_end=}"
        raise ConfigError(f"{cut} leave split {split!r} without a session; there are {len(found)} whole ones")
    return np.arange(edges[place], edges[place + 1])
