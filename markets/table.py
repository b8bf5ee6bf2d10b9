"""CausalTable: numbers about the market, one row per bar, each row known at the close of its bar."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from markets.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class CausalTable:
    """What a transform says about each bar, aligned with the bars: ``values[t]`` depends on bars 0..t only.

    Attributes:
        values: ``(T, D)`` float32, C-contiguous.
        names: D column names.
        low, high: ``(D,)`` finite bounds.
        valid_from: first row that is warmed up; earlier rows are never served.
        bars_hash: content hash of the bars it was made from.
        train_end: close of the last bar that anything was fitted on, or None where nothing is fitted.

    Raises:
        DataError: a served value is not finite or lies outside its bounds (column and row are named).
    """

    values: NDArray[np.float32]
    names: tuple[str, ...]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    valid_from: int
    bars_hash: str
    train_end: np.datetime64 | None = None
    checked: bool = True

    def __post_init__(self) -> None:
        width = len(self.names)
        if self.values.ndim != 2 or self.values.shape[1] != width or self.values.dtype != np.float32:
            raise ConfigError(f"a table of {width} names has values {self.values.dtype} {self.values.shape}")
        if len(set(self.names)) != width:
            raise ConfigError(f"column names repeat: {self.names}")
        if self.low.shape != (width,) or self.high.shape != (width,):
            raise ConfigError(f"bounds have shapes {self.low.shape} and {self.high.shape}, expected ({width},)")
        if self.checked:
            self._check_values()

    def _check_values(self) -> None:
        served = self.values[self.valid_from :]
        wrong = ~((served >= self.low) & (served <= self.high))  # also true for NaN
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            raise DataError(
                f"column {self.names[column]!r}, row {row + self.valid_from}: {served[row, column]} is outside "
                f"[{self.low[column]}, {self.high[column]}]"
            )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return self.values.nbytes


def join(tables: tuple[CausalTable, ...]) -> CausalTable:
    """Put tables of the same bars side by side; the result is valid where all of them are.

    Raises:
        ConfigError: the tables come from different bars, or two columns share a name.
    """
    if len(tables) == 1:
        return tables[0]
    hashes = {table.bars_hash for table in tables}
    if len(hashes) != 1:
        raise ConfigError(f"tables of {len(hashes)} different sets of bars cannot be joined")
    ends = [table.train_end for table in tables if table.train_end is not None]
    return CausalTable(
        values=np.ascontiguousarray(np.concatenate([table.values for table in tables], axis=1)),
        names=tuple(name for table in tables for name in table.names),
        low=np.concatenate([table.low for table in tables]),
        high=np.concatenate([table.high for table in tables]),
        valid_from=max(table.valid_from for table in tables),
        bars_hash=hashes.pop(),
        train_end=max(ends) if ends else None,
        checked=False,
    )
