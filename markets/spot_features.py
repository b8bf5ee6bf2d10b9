"""Features of a basket of A coins, each known at the close of its bar: those of every coin, how it stands to the
basket, and the clock.

A chosen dozen of :mod:`markets.features` a coin (without what only a perpetual has: basis and funding), named
``BTC_return_1`` and so on; then its return less the mean return of the basket, and its correlation with that mean.
Every look-back is exact and finite, so that a whole history, a cut one and a live stream agree bit for bit. One scaler
serves all columns, fitted on the training range only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from markets import features
from markets.bars import Bars
from markets.errors import ConfigError, DataError
from markets.features import Feature, FeatureScaler, FeatureStream, bounds, warm_up
from markets.symbols import base_assets
from markets.table import CausalTable
from markets.windows import Floats, ratio, window_mean, window_sum

CHOSEN = (
    "return_1", "return_4", "return_24", "return_168", "log_volatility_24", "log_volatility_168", "return_in_sigmas",
    "mean_gap_168", "strength_14", "channel_168", "drawdown_168", "volume_zscore_24",
)  # fmt: skip
CLOCK = ("hour_sin", "hour_cos", "weekend")
STRENGTHS = (24, 168)
CORRELATION = 168
_BY_NAME = {feature.name: feature for feature in features.FEATURES}


def _no_formula(history: Any) -> Floats:
    raise ConfigError("a column of the basket is computed with all others, by raw()")


CROSS = (
    *(
        Feature(f"strength_vs_basket_{n}", f"return_{n} - its mean over the coins", "log return", n, _no_formula)
        for n in STRENGTHS
    ),
    Feature(
        f"correlation_{CORRELATION}", "mean(r m) / sqrt(mean(r^2) mean(m^2)) over 168 bars, m mean return of the coins",
        "correlation", CORRELATION, _no_formula, -1, 1, False,
    ),
)  # fmt: skip


def features_of(assets: Sequence[str]) -> tuple[Feature, ...]:
    """Describe the F columns of a basket of ``assets``."""
    columns = [
        replace(feature, name=f"{asset}_{feature.name}")
        for asset in assets
        for feature in (*(_BY_NAME[name] for name in CHOSEN), *CROSS)
    ]
    return (*columns, *(_BY_NAME[name] for name in CLOCK))


def raw(bars: Bars) -> Floats:
    """Compute every column in its own unit: ``(T, F)`` float64; rows before ``warm_up`` are partly empty.

    Block by block, as :func:`markets.features.raw` does, with the same bits.
    """
    out = np.empty((len(bars), len(bars.symbols) * (len(CHOSEN) + len(CROSS)) + len(CLOCK)))
    size = features.BLOCK - features.WARM_UP
    for first in range(0, len(bars), size):
        start = max(first - features.WARM_UP, 0)
        part = features.part_of(bars, start, min(first + size, len(bars)))
        _fill(part, first - start, out[first : first + size])
    return out


def _fill(bars: Bars, skip: int, out: Floats) -> None:
    """Write the columns of ``bars``, without its first ``skip`` rows."""
    count, chosen = len(bars.symbols), [_BY_NAME[name] for name in CHOSEN]
    coins = [bars.asset(place) for place in range(count)]
    with np.errstate(invalid="ignore", divide="ignore"):  # hostile values behind the checks must not warn
        logs = np.log(bars.close)
        returns = np.diff(logs, axis=0, prepend=logs[:1])
        mean = returns.sum(axis=1) / count
        column = 0
        for place in range(count):
            out[:, column : column + len(chosen)] = features.raw(coins[place], chosen)[skip:]
            column += len(chosen)
            for values in _against(np.ascontiguousarray(returns[:, place]), mean):
                out[:, column] = values[skip:]
                column += 1
        out[:, column:] = features.raw(coins[0], [_BY_NAME[name] for name in CLOCK])[skip:]


def _against(returns: Floats, mean: Floats) -> list[Floats]:
    strengths = [window_sum(returns - mean, length) for length in STRENGTHS]
    product = window_mean(returns * mean, CORRELATION)
    size = np.sqrt(window_mean(returns * returns, CORRELATION) * window_mean(mean * mean, CORRELATION))
    return [*strengths, ratio(product, size)]


@dataclass(frozen=True, eq=False)
class SpotScaler(FeatureScaler):
    """Scaler of the columns of a basket; ``assets`` are its coins, in their order."""

    assets: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[Feature, ...]:  # type: ignore[override]
        """The F columns it scales."""
        return features_of(self.assets)

    @classmethod
    def fit(cls, bars: Bars, values: Floats, stop: int) -> Self:
        """Fit on rows ``warm_up..stop-1`` of ``values = raw(bars)``.

        Raises:
            DataError: fewer than two such rows.
        """
        first = warm_up(bars.interval)
        if stop - first < 2:
            raise DataError(f"too few bars: the training range ends at row {stop}, features need {first + 2}")
        assets = base_assets(bars.symbols)
        plain = _plain(assets).of_rows(values[first:stop], bars.close_time[stop - 1])
        return cls(plain.mean, plain.deviation, plain.train_end, assets)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Rebuild a scaler that ``to_json`` wrote; its coins are read from its names.

        Raises:
            ConfigError: made for other features, or not a scaler.
        """
        names = content.get("names") if isinstance(content, dict) else None
        words = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        ending = "_" + CHOSEN[0]
        assets = tuple(name.removesuffix(ending) for name in words if name.endswith(ending))
        plain = _plain(assets).from_json(content)
        return cls(plain.mean, plain.deviation, plain.train_end, assets)


def _plain(assets: tuple[str, ...]) -> type[FeatureScaler]:
    return type("_Scaler", (FeatureScaler,), {"features": features_of(assets)})


def table(bars: Bars, scaler: SpotScaler, values: Floats | None = None) -> CausalTable:
    """Serve the features of ``bars`` as a causal table; ``values`` may pass ``raw(bars)`` where it is at hand.

    Raises:
        ConfigError: the scaler was fitted on other coins.
    """
    assets = base_assets(bars.symbols)
    if scaler.assets != assets:
        raise ConfigError(f"the scaler was made for {', '.join(scaler.assets)}, and the bars hold {', '.join(assets)}")
    low, high = bounds(scaler.features)
    return CausalTable(
        values=np.ascontiguousarray(scaler.apply(raw(bars) if values is None else values)),
        names=scaler.names,
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        valid_from=warm_up(bars.interval),
        bars_hash=bars.hash,
        train_end=scaler.train_end,
        checked=bars.checked,
    )


def stream(scaler: SpotScaler) -> FeatureStream:
    """Return the live face of :func:`table`: feed bars as they close, get the row that the table would hold."""
    return FeatureStream(scaler, raw)
