"""Leaks: what the lookahead detector reports, what one replay shows, and when two replays are the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ULPS = 64  # rounding that the length of a matrix product may cause


@dataclass(frozen=True)
class Leak:
    """One column that knows the future.

    Attributes:
        subject: what was tested.
        column: name of the observation or table column, or ``info[key]``, ``reward``, ``fill``, ``ended``, ``action``.
        step: first offending row, counted from the first one served; of an environment, reset is 0, then step 1, 2..
        bars_ahead: how far it sees, as far as the trials show.
        how: what was changed, and what that did.
        row: the bar on which that step stands.
        lane: of a vector environment, the lane in which it was seen first.
    """

    subject: str
    column: str
    step: int
    bars_ahead: int
    how: str
    row: int
    lane: int | None = None

    def __str__(self) -> str:
        bars = "1 bar" if self.bars_ahead == 1 else f"{self.bars_ahead} bars"
        where = f"bar {self.row}" if self.lane is None else f"bar {self.row}, lane {self.lane}"
        return f"{self.subject}: {self.column!r}, step {self.step} ({where}), looks {bars} ahead: {self.how}"


class Leaks(list[Leak]):
    """The leaks of one subject, with what was tried: ``trials`` replays of ``rows`` rows and ``columns`` columns."""

    def __init__(self, leaks: Iterable[Leak], subject: str, rows: int, columns: int, trials: int, skipped: int) -> None:
        super().__init__(leaks)
        self.subject = subject
        self.rows = rows
        self.columns = columns
        self.trials = trials
        self.skipped = skipped
        self.refusal = ""  # why the first of ``skipped`` could not be played
        self.told, self.ends = 0, 0  # how many of the columns are info values; how many are reward and ended
        self.unsteady: tuple[str, ...] = ()  # info entries that two equal replays do not share: clocks, mostly

    def __str__(self) -> str:
        served = self.columns - self.ends - self.told
        parts = f" ({served} observed, reward, ended, {self.told} info values)" if self.ends == 2 else ""
        tried = f"{self.columns} columns{parts}, {self.trials} trials over {self.rows} rows"
        if self.unsteady:
            tried += f" (not compared, since no two replays share them: {', '.join(self.unsteady)})"
        lines = [f"{self.subject}: nothing found in {tried}"]
        if self:
            lines = [f"{self.subject}: LEAKS in {len(self)} of {tried}", *(f"  {leak}" for leak in self)]
        if self.skipped:
            why = f" (first: {self.refusal})" if self.refusal else ""
            lines.append(f"  note: {self.skipped} more could not be played, and nothing is known of those{why}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        facts = {name: getattr(self, name) for name in ("subject", "rows", "columns", "trials", "skipped", "unsteady")}
        return {**facts, "clean": not self, "leaks": [asdict(leak) for leak in self]}


@dataclass(frozen=True, eq=False)
class Record:
    """What one replay showed.

    Attributes:
        values: ``(R, D)`` numbers. ``names``: one per column.
        rows: ``(R,)`` last bar that each line may know, never decreasing.
        steps, bars, lanes: ``(R,)`` what a report says of each line, where lines of several lanes are mixed.
    """

    values: Floats
    rows: NDArray[np.int64]
    names: tuple[str, ...]
    steps: NDArray[np.int64] | None = None
    bars: NDArray[np.int64] | None = None
    lanes: NDArray[np.int64] | None = None

    def only(self, kept: NDArray[np.bool_]) -> Record:
        """Return the columns that a mask keeps."""
        names = tuple(name for name, keep in zip(self.names, kept, strict=True) if keep)
        return replace(self, values=self.values[:, kept], names=names)

    @cached_property
    def begun(self) -> int:
        """The last bar on which a line of step 0 stands: data must reach beyond it to be played."""
        if self.steps is None:
            return int(self.rows[0])
        return int(self.rows[self.steps == 0].max())

    def bar(self, line: int) -> int:
        """Return the bar on which a line stands."""
        return int((self.rows if self.bars is None else self.bars)[line])


def differs(one: Floats, two: Floats) -> NDArray[np.bool_]:
    """Say where two arrays are not the same bits; NaN equals NaN."""
    different = one.view(np.int64) != two.view(np.int64)
    return np.asarray(different & ~(np.isnan(one) & np.isnan(two)))


def known(rows: NDArray[np.int64], k: int) -> int:
    """Return how many leading rows stand on bars before ``k``."""
    return int(np.searchsorted(rows, k))


def rounding(one: Floats, two: Floats) -> NDArray[np.bool_]:
    """Say where two arrays differ by no more than another length of a matrix product explains."""
    scale = np.nanmax(np.abs(one), axis=0, initial=0.0, where=np.isfinite(one))
    single = bool((one.astype(np.float32) == one)[np.isfinite(one)].all()) if np.all(scale < 1e38) else False
    unit = float(np.finfo(np.float32 if single else np.float64).eps)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(one - two) <= ULPS * unit * scale)


def named(names: Sequence[str] | None, width: int) -> tuple[str, ...]:
    """Return a name per column: those given, then their places."""
    given = tuple(names or ())
    return tuple(given[place] if place < len(given) else f"column {place}" for place in range(width))
