"""How bars become what the PerpFutures step reads: the market matrix, and the features with their fitted scaler."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from envs.perp_config import PerpFuturesConfig
from envs.splits import split_rows
from markets import features, sources
from markets.bars import Bars
from markets.errors import ConfigError
from markets.table import CausalTable
from markets.windows import Floats, window_mean

DAY = np.timedelta64(1, "D")
CACHED = 8  # scalers and tables of the last few markets, shared by splits and lanes

_cache: dict[tuple[str, ...], Any] = {}


def bars_of(config: PerpFuturesConfig) -> Bars:
    """Return the bars of a configuration.

    Raises:
        ConfigError: they hold several symbols.
    """
    bars = config.bars if isinstance(config.bars, Bars) else sources.load(config.bars)
    if len(bars.symbols) != 1:
        raise ConfigError(f"PerpFutures trades one symbol; the bars hold {', '.join(bars.symbols)}")
    return bars


def features_of(config: PerpFuturesConfig, bars: Bars) -> tuple[features.FeatureScaler, CausalTable]:
    """Return the scaler and the served table; the raw features, four times as large, are not kept."""
    scaler = _given_scaler(config)
    values: list[Floats] = []

    def raw() -> Floats:
        if not values:
            values.append(features.raw(bars))
        return values[0]

    if scaler is None:
        _, stop = split_rows(bars, "train", config.train_end, config.validation_end)
        scaler = _kept((bars.hash, str(stop)), lambda: features.FeatureScaler.fit(bars, raw(), stop))
    fitted = scaler
    return fitted, _kept((bars.hash, fitted.hash), lambda: features.table(bars, fitted, raw()))


def _kept(key: tuple[str, ...], make: Callable[[], Any]) -> Any:
    if key not in _cache:
        value = make()
        while len(_cache) >= CACHED:
            _cache.pop(next(iter(_cache)))
        _cache[key] = value
    return _cache[key]


def _given_scaler(config: PerpFuturesConfig) -> features.FeatureScaler | None:
    if config.scaler is None or isinstance(config.scaler, features.FeatureScaler):
        return config.scaler
    try:
        return features.FeatureScaler.from_json(json.loads(Path(config.scaler).read_text()))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"scaler={config.scaler!r} cannot be read: {error}") from error


def market_matrix(bars: Bars) -> tuple[Floats, int]:
    """Build the ``(T, M)`` matrix the kernel reads, and the first row whose trailing day is complete."""
    per_day = float(DAY / bars.interval)
    window = max(round(per_day), 24)  # one day, but enough bars for a volatility
    returns = np.diff(np.log(bars.close[:, 0]), prepend=np.log(bars.close[:1, 0]))
    with np.errstate(invalid="ignore"):
        volatility = np.sqrt(window_mean(returns * returns, window) * per_day)
        volume = window_mean(bars.volume[:, 0], window) * per_day
    marks = [bars.columns.get("mark_" + name, bars.columns[name])[:, 0] for name in ("open", "high", "low", "close")]
    asked = np.zeros(len(bars))  # leverage: the game fills it in where it is controlled
    columns = [bars.open[:, 0], bars.volume[:, 0], *marks, volatility, volume, asked, *_funding(bars)]
    return np.ascontiguousarray(np.stack(columns, axis=1)), window


def _funding(bars: Bars) -> list[Floats]:
    """Rates per bar: in the gap before it, at its open, and each later stamp inside it in a column of its own."""
    count = len(bars)
    known = bars.funding_time >= bars.time[0]
    times, rates = bars.funding_time[known], bars.funding_rate[known, 0] if known.any() else np.zeros(0)
    row = np.searchsorted(bars.time, times, side="right") - 1  # last bar that opens at or before the stamp
    in_gap, at_open = np.zeros(count), np.zeros(count)
    opened = times == bars.time[row]
    np.add.at(at_open, row[opened], rates[opened])
    late = ~opened & (times >= bars.close_time[row]) & (row + 1 < count)
    np.add.at(in_gap, row[late] + 1, rates[late])
    inside = np.flatnonzero(~opened & ~late & (times < bars.close_time[row]))
    later: list[Floats] = []
    place = np.zeros(count, int)
    for event in inside:
        bar = row[event]
        if place[bar] == len(later):
            later.append(np.zeros(count))
        later[place[bar]][bar] = rates[event]
        place[bar] += 1
    return [in_gap, at_open, *later]
