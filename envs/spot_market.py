"""How bars become what the SpotCrypto step reads: the market matrix, and the features with their fitted scaler."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from envs import spot_columns as columns
from envs.splits import split_rows
from envs.spot_config import SpotCryptoConfig
from markets import sources, spot_features
from markets.bars import YEAR, Bars
from markets.errors import ConfigError
from markets.spot_features import SpotScaler
from markets.symbols import base_assets
from markets.table import CausalTable
from markets.windows import Floats, window_mean

DAY = np.timedelta64(1, "D")
CACHED = 4  # scalers and tables of the last few markets, shared by splits and lanes

_cache: dict[tuple[str, ...], tuple[SpotScaler, CausalTable]] = {}


def bars_of(config: SpotCryptoConfig) -> Bars:
    """Return the bars of a configuration.

    Raises:
        ConfigError: two symbols price the same coin.
    """
    bars = config.bars if isinstance(config.bars, Bars) else sources.load(config.bars)
    base_assets(bars.symbols)
    return bars


def features_of(config: SpotCryptoConfig, bars: Bars) -> tuple[SpotScaler, CausalTable]:
    """Return the scaler, fitted on the training range unless given, and the served table."""
    given = _given_scaler(config)
    _, stop = split_rows(bars, "train", config.train_end, config.validation_end)
    key = (bars.hash, str(stop) if given is None else given.hash)
    if key not in _cache:
        values = spot_features.raw(bars)
        scaler = SpotScaler.fit(bars, values, stop) if given is None else given
        while len(_cache) >= CACHED:
            _cache.pop(next(iter(_cache)))
        _cache[key] = (scaler, spot_features.table(bars, scaler, values))
    return _cache[key]


def _given_scaler(config: SpotCryptoConfig) -> SpotScaler | None:
    if config.scaler is None or isinstance(config.scaler, SpotScaler):
        return config.scaler
    if not isinstance(config.scaler, str):
        raise ConfigError(f"scaler is a {type(config.scaler).__name__}; SpotCrypto needs a SpotScaler")
    try:
        return SpotScaler.from_json(json.loads(Path(config.scaler).read_text()))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"scaler={config.scaler!r} cannot be read: {error}") from error


def market_matrix(bars: Bars, participation: float) -> tuple[Floats, int]:
    """Build the ``(T, M)`` matrix the kernel reads, and the first row whose trailing day is complete.

    What a bar offers is ``participation`` of its volume at its open, in quote currency; the trailing volume of a day is
    in quote currency as well. The last column is the time between the close before and the open, in years.
    """
    per_day, count = float(DAY / bars.interval), len(bars.symbols)
    window = max(round(per_day), 24)  # one day, but enough bars for a volatility
    out = np.zeros((len(bars), columns.MARKET_BLOCKS * count + 1))
    for place in range(count):
        close, volume = np.ascontiguousarray(bars.close[:, place]), bars.volume[:, place]
        with np.errstate(invalid="ignore", divide="ignore"):
            logs = np.log(close)
            returns = np.diff(logs, prepend=logs[:1])
            volatility = np.sqrt(window_mean(returns * returns, window) * per_day)
        for block, values in (
            (columns.OPEN, bars.open[:, place]),
            (columns.CLOSE, close),
            (columns.OFFERED, participation * volume * bars.open[:, place]),
            (columns.DAILY_VOLATILITY, volatility),
            (columns.DAILY_VALUE, window_mean(volume * close, window) * per_day),
        ):
            out[:, block * count + place] = values
    out[1:, -1] = (bars.time[1:] - bars.close_time[:-1]) / YEAR
    return out, window
