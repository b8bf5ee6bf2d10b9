"""What a row of a table of encoders is: a name, the settings it depends on, and a fit that embeds bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from encoders.table_store import Outcome
from markets.bars import Bars
from markets.errors import unknown

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Model:
    """A fitted row.

    Attributes:
        embed: bars to ``(T, D)`` rows, or where ``sparse`` to the scored rows ``(R, D)`` of them.
        odds: the columns are odds of regimes, whose largest is the cluster; else k-means makes the clusters.
        whiten: standardise before k-means; False where distances mean something as they are.
        cpu_seconds: of training, all fits that the row needs; NaN where nothing is trained.
        facts: further figures of the fit itself.
    """

    embed: Callable[[Bars], Floats]
    odds: bool = False
    whiten: bool = True
    sparse: bool = False
    cpu_seconds: float = float("nan")
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a table.

    Attributes:
        name: on the command line and in files. title: in the table.
        fit: seed to the fitted model. settings: what it depends on beside the seed.
        seeded: False for a row that is the same whatever the seed: it is computed once and shows no interval.
    """

    name: str
    title: str
    fit: Callable[[int], Model]
    settings: Mapping[str, Any]
    seeded: bool = True


class Benchmark(Protocol):
    """Rows and the judge of them: :class:`~encoders.table_market.Market`, :class:`~encoders.table_bars.RealBars`."""

    rows: Sequence[Row]
    settings: Mapping[str, Any]
    code: str

    def judge(self, model: Model, seed: int) -> Outcome:
        """Score a fitted row on the test range."""

    def notes(self) -> list[str]:
        """Return the sentences below the table."""


def chosen(rows: Sequence[Row], names: Sequence[str] | None) -> list[Row]:
    """Return the rows of these names in the table's order, all where None.

    Raises:
        UnknownNameError: no such row, with the nearest valid one.
    """
    valid = [row.name for row in rows]
    for name in names or ():
        if name not in valid:
            raise unknown("row", name, valid)
    return [row for row in rows if names is None or row.name in names]


def joined(*parts: Callable[[Bars], Floats]) -> Callable[[Bars], Floats]:
    """Return an embedding whose columns are those of several."""
    return lambda bars: np.column_stack([part(bars) for part in parts])
