"""Where bars come from: ``load("kind:path?key=value&...")``, one file a source, one row here.

Examples::

    load("synthetic:crypto?seed=7&interval=1h&bars=40000")
    load("parquet:btc_1h.parquet?funding=btc_funding.parquet&symbol=BTCUSDT&start=2020-01-01")
    load("parquet:spy_1m.parquet?market=spy&symbol=SPY&vix=vix_daily.parquet")       # regular sessions only
    load("parquet:spy_1m.parquet?market=spy&vix=vix_daily.parquet&grid=spxw_0dte_mid_grid.parquet")  # with option mids
    load("synthetic:spy?seed=7&sessions=250")
    load("parquet:btc.parquet+eth.parquet+sol.parquet?symbols=BTCUSDT,ETHUSDT,SOLUSDT")  # the hours that all have
    load("parquet:coins.parquet?symbols=BTCUSDT,ETHUSDT,SOLUSDT")  # of one long table with a column symbol
    load("synthetic:basket?seed=7&interval=1h&bars=40000&assets=3")                      # correlated coins
    load("csv:candles.csv?rename=Volume BTC:volume&interval=1h")
    load("memory:mine")                       # Bars that were registered under a name in this process

Relative paths are looked up in the working folder, then in the folder that ``REGIMEGYM_DATA`` names. Nothing falls
back to synthetic data in silence.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections import OrderedDict
from pathlib import Path
from urllib.parse import unquote

from markets.bars import Bars
from markets.errors import ConfigError, DataError, unknown

SOURCES = {
    "parquet": "markets.sources.files:load_parquet",
    "npz": "markets.sources.files:load_npz",
    "csv": "markets.sources.files:load_csv",
    "memory": "markets.sources.memory:load_memory",
    "synthetic": "markets.sources.generated:load_synthetic",
}
CACHED = 8  # bars kept in memory per process, most recently used last

_cache: OrderedDict[tuple[object, ...], Bars] = OrderedDict()
_log = logging.getLogger(__name__)


def load(specification: str) -> Bars:
    """Return the bars that ``kind:path?key=value&...`` names; the same file content is read once per process.

    Raises:
        UnknownNameError: unknown kind or option, with the nearest valid one.
        DataError: the content violates the schema of :class:`~markets.bars.Bars`.
    """
    kind, path, options = parse(specification)
    key = (kind, path, *sorted(options.items()), *_stamps(path, options))
    if kind != "memory" and key in _cache:
        _cache.move_to_end(key)
        return _cache[key]
    module, function = SOURCES[kind].split(":")
    try:
        bars: Bars = getattr(importlib.import_module(module), function)(path, dict(options), specification)
    except DataError as error:
        raise DataError(f"{specification}: {error}") from error
    if kind != "memory":
        _cache[key] = bars
        while len(_cache) > CACHED:
            _cache.popitem(last=False)
    return bars


def parse(specification: str) -> tuple[str, str, dict[str, str]]:
    """Split ``kind:path?key=value&...`` into its parts.

    Raises:
        UnknownNameError: the kind is not in ``SOURCES``.
        ConfigError: not of that form.
    """
    if not isinstance(specification, str) or ":" not in specification:
        raise ConfigError(f"bars={specification!r} is not of the form kind:path?key=value; kinds: {', '.join(SOURCES)}")
    kind, _, rest = specification.partition(":")
    if kind not in SOURCES:
        raise unknown("source", kind, SOURCES)
    path, _, query = rest.partition("?")
    if not path:
        raise ConfigError(f"bars={specification!r} names no path after {kind + ':'!r}")
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"bars={specification!r}: option {pair!r} is not key=value")
        if key in options:
            raise ConfigError(f"bars={specification!r}: option {key!r} is given twice")
        options[key] = unquote(value)
    return kind, path, options


def reject_unknown(options: dict[str, str], valid: tuple[str, ...], kind: str) -> None:
    """Raise for the first option that the source does not know."""
    for key in options:
        if key not in valid:
            raise unknown(f"option of source {kind!r}", key, valid)


def find(path: str) -> Path:
    """Return the file at ``path``: absolute, in the working folder, or in ``REGIMEGYM_DATA``.

    Raises:
        ConfigError: it is in none of them; the message lists where it was looked for.
    """
    places = [Path(path)]
    if not places[0].is_absolute() and os.environ.get("REGIMEGYM_DATA"):
        places.append(Path(os.environ["REGIMEGYM_DATA"]) / path)
    for place in places:
        if place.is_file():
            return place.resolve()
    looked = ", ".join(str(place.absolute()) for place in places)
    hint = "" if len(places) > 1 or places[0].is_absolute() else " (REGIMEGYM_DATA is not set)"
    raise ConfigError(f"no file {path!r}; looked at {looked}{hint}")


def files_of(path: str) -> list[str]:
    """Return the files that a path names: several with ``+`` between them, unless there is a file of that very name."""
    try:
        find(path)
    except ConfigError:
        return path.split("+")
    return [path]


def _stamps(path: str, options: dict[str, str]) -> tuple[object, ...]:
    """Identify the present content of the files that a specification names, so that a changed file is read again."""
    stamps: list[object] = []
    for name in (*files_of(path), options.get("funding", ""), options.get("vix", ""), options.get("grid", "")):
        try:
            place = find(name)
            status = place.stat()
            stamps += [str(place), status.st_mtime_ns, status.st_size]
        except (ConfigError, OSError):
            stamps.append(None)
    return tuple(stamps)
