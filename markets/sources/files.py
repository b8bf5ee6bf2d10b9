"""Sources ``parquet:``, ``npz:`` and ``csv:``: candles from files, with funding, a volatility index, option mids."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from markets.bars import Bars
from markets.baskets import join_symbols
from markets.errors import ConfigError, DataError, unknown
from markets.sources import files_of, find, reject_unknown
from markets.sources.tables import of_symbol, read_table

OPTIONS = ("funding", "symbol", "symbols", "interval", "stamp", "start", "end", "market", "rename", "vix", "grid")
_log = logging.getLogger(__name__)


def load_parquet(path: str, options: dict[str, str], specification: str) -> Bars:
    """Read a parquet file of candles (extra ``data``)."""
    return _load("parquet", path, options, specification)


def load_npz(path: str, options: dict[str, str], specification: str) -> Bars:
    """Read an npz file of candles, an array per column; needs no extra."""
    return _load("npz", path, options, specification)


def load_csv(path: str, options: dict[str, str], specification: str) -> Bars:
    """Read a CSV file of candles; compressed files (``.gz``, ``.zip``) are opened by their ending."""
    return _load("csv", path, options, specification)


def _load(kind: str, path: str, options: dict[str, str], specification: str) -> Bars:
    reject_unknown(options, OPTIONS, kind)
    paths = files_of(path)
    symbols = options.pop("symbols", None)
    if len(paths) == 1 and symbols is None:
        return _load_one(kind, path, options, specification)
    for name in ("funding", "symbol", "vix", "grid"):
        if name in options:
            raise ConfigError(f"{name}={options[name]!r} is for one file, not for several (symbols=...)")
    named = [] if symbols is None else [name.strip() for name in symbols.split(",")]  # " BTCUSDT" has no contract
    if len(paths) == 1:  # a long table, or one asset that is named
        paths = paths * len(named)
    count = sum(map(bool, named))
    if not count == len(named) == len(paths):
        raise ConfigError(f"symbols={symbols!r} names {count} symbols for {len(paths)} files: name each once")
    parts = []
    for file, symbol in zip(paths, named, strict=True):
        try:
            parts.append(_load_one(kind, file, {**options, "symbol": symbol}, f"{kind}:{file}"))
        except DataError as error:
            raise DataError(f"{file}: {error}") from error
    _check_labels(dict(zip(named, zip(paths, parts, strict=True), strict=True)))
    return join_symbols(parts, specification)


def _check_labels(loaded: Mapping[str, tuple[str, Bars]]) -> None:
    """Look for files that got another one's symbol, which candles alone cannot tell.

    Raises:
        DataError: two symbols have the same candles.
    """
    for symbol, (file, _) in loaded.items():
        name = Path(file).stem.upper()
        other = next((one for one in loaded if one.upper() in name and symbol.upper() not in name), None)
        if other is not None:
            _log.warning("%s is loaded as %s, and its name speaks of %s: symbols go by position", file, symbol, other)
    known: dict[bytes, str] = {}
    for symbol, (_, part) in loaded.items():
        twin = known.setdefault(part.close.tobytes() + part.volume.tobytes(), symbol)
        if twin != symbol:
            raise DataError(f"{twin} and {symbol} have the same {len(part)} candles: one of the files is there twice")


def _load_one(kind: str, path: str, options: dict[str, str], specification: str) -> Bars:
    if "symbol" in options:
        options["symbol"] = options["symbol"].strip()
    renames = read_renames(options.pop("rename", ""))
    funding = options.pop("funding", None)
    raw = read_table(find(path), kind)
    for name in renames:
        if name not in raw.columns:
            raise unknown("column to rename", name, raw.columns)
    raw = of_symbol(raw, options.get("symbol"), path)
    table = None if funding is None else read_table(find(funding)).rename(columns=renames)
    frame = raw.rename(columns=renames)
    vix = options.pop("vix", None)
    daily = None if vix is None else read_table(find(vix))
    mids = options.pop("grid", None)
    grid = None if mids is None else read_table(find(mids))
    return Bars.from_frame(frame, funding=table, vix=daily, grid=grid, source=specification, **options)


def read_renames(text: str) -> dict[str, str]:
    """Read ``old:new,old2:new2``."""
    pairs = [part.rsplit(":", 1) for part in text.split(",") if part]
    if any(len(pair) != 2 for pair in pairs):
        raise ConfigError(f"rename={text!r} is not of the form old:new,old2:new2")
    return dict(pairs)
