"""Tables of candles as files, column by column: parquet (extra ``data``), npz (NumPy alone), CSV; and long tables.

An npz holds one array per column, times in UTC; no objects, so that nothing in it can be executed. All three give back
the numbers that were written, bit for bit. A *long* table has the bars of several assets one under the other, with a
column ``symbol`` that tells them apart.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from markets.errors import ConfigError, DataError, require, unknown
from markets.frames import column_names

SUFFIXES = {".parquet": "parquet", ".pq": "parquet", ".npz": "npz"}  # the rest is CSV
SYMBOL = "symbol"


def read_table(file: Path, kind: str | None = None) -> pd.DataFrame:
    """Read a table; without a kind (a file beside the candles) the ending decides."""
    kind = kind or SUFFIXES.get(file.suffix, "csv")
    if kind == "parquet":
        require("pyarrow", "data")
    try:
        if kind == "npz":
            return _read_npz(file)
        return pd.read_parquet(file) if kind == "parquet" else pd.read_csv(file)
    except (
        OSError,
        ValueError,
        EOFError,
        BadZipFile,
        zlib.error,
    ) as error:  # pandas' and pyarrow's own are ValueErrors
        raise DataError(f"{file} cannot be read as {kind}: {error}") from error


def encode(frame: pd.DataFrame, name: str) -> bytes:
    """Return the content of a file for a table; the ending of ``name`` decides: .parquet, .pq, .npz, .gz or CSV.

    A DatetimeIndex becomes the first column, ``timestamp`` where it has no name; any other index is left out.
    """
    ending, buffer = Path(name).suffix.lower(), io.BytesIO()
    if isinstance(frame.index, pd.DatetimeIndex):
        frame = frame.reset_index(names=[str(frame.index.name or "timestamp")])
    kind = SUFFIXES.get(ending, "csv")
    if kind == "parquet":
        require("pyarrow", "data")
        frame.to_parquet(buffer, index=False)
    elif kind == "npz":
        columns: dict[str, Any] = {str(column): _plain(frame[column]) for column in frame}
        np.savez_compressed(buffer, **columns)
    else:
        frame.to_csv(buffer, index=False)
    content = buffer.getvalue()
    return gzip.compress(content, mtime=0) if ending == ".gz" else content


def of_symbol(frame: pd.DataFrame, symbol: str | None, file: str) -> pd.DataFrame:
    """Return the rows of one asset of a long table; a table of one asset as it is, whatever that is called in it.

    Raises:
        ConfigError: a table of several without a symbol. UnknownNameError: one that it does not hold.
    """
    name = column_names(frame).get(SYMBOL)
    held = [] if name is None else [str(one) for one in frame[name].dropna().unique()]
    if len(held) < 2:
        return frame
    if symbol is None:
        raise ConfigError(
            f"{file} holds {len(held)} assets ({', '.join(held[:10])}{', ..' if len(held) > 10 else ''}): "
            "name one with symbol=, or several with symbols=A,B"
        )
    if symbol not in held:
        raise unknown(f"symbol in {file}", symbol, held)
    return frame[frame[name].astype(str) == symbol].reset_index(drop=True)


def _read_npz(file: Path) -> pd.DataFrame:
    arrays = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)  # np.load leaves a bad file open
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array, not one per column")
    with arrays:
        return pd.DataFrame({name: arrays[name] for name in arrays.files})


def _plain(column: pd.Series) -> np.ndarray:
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return np.asarray(column.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy())
    values = column.to_numpy()
    return values.astype(str) if values.dtype == object else np.asarray(values)
