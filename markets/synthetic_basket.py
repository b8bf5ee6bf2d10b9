"""A seeded basket of correlated coins: one common market, and what every coin has of its own.

The log return of coin i in a base step is::

    r_i = beta_i r + e_i - (beta_i^2 - beta_i) s^2 dt / 2

with r and s return and local volatility of the BTC-like market of :mod:`markets.synthetic` and e_i the return of a
market of its own: the same generator without drift and regimes, at the coin's own volatility. The last term makes
beta_i times the market's drift the drift of the price. The first coin has beta 1 and nothing of its own: it is the
market ``synthetic:crypto`` of the same seed, bit for bit. The regimes of the common market are the labels.

Betas and own volatilities are those of hourly ETHUSDT and SOLUSDT on BTCUSDT spot bars, medians of the years 2021 to
2025 (correlation with BTC 0.83 and 0.74); those of further coins are round numbers in their neighbourhood.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from markets.bars import Bars
from markets.errors import ConfigError
from markets.synthetic import YEAR_MINUTES, Floats, base_steps, frame_of, last_prices, volumes
from markets.synthetic_parameters import CryptoParameters

ASSETS = 3


@dataclass(frozen=True)
class Coin:
    """One coin of the basket.

    Attributes:
        symbol: name. beta: on the common market. own_volatility: per square root of a year.
        start_price: first open. volume_per_hour: median volume of an hour, coins.
    """

    symbol: str
    beta: float
    own_volatility: float
    start_price: float
    volume_per_hour: float


COINS = (
    Coin("BTCUSDT", 1.0, 0.0, 20_000.0, 5_000.0),
    Coin("ETHUSDT", 1.06, 0.38, 1_500.0, 15_000.0),
    Coin("SOLUSDT", 1.44, 0.70, 100.0, 120_000.0),
    Coin("XRPUSDT", 1.1, 0.60, 0.5, 15_000_000.0),
    Coin("ADAUSDT", 1.2, 0.65, 0.4, 12_000_000.0),
    Coin("DOGEUSDT", 1.3, 0.85, 0.08, 60_000_000.0),
    Coin("AVAXUSDT", 1.4, 0.75, 20.0, 200_000.0),
    Coin("LINKUSDT", 1.25, 0.65, 7.0, 400_000.0),
)


def basket(
    seed: int = 0,
    interval: str = "1h",
    bars: int = 40_000,
    assets: int = ASSETS,
    own: float = 1.0,
    parameters: CryptoParameters | None = None,
) -> Bars:
    """Return a basket of the first ``assets`` coins of ``COINS``, spot bars without marks and funding.

    Args:
        seed, interval, bars: as of :func:`markets.synthetic.crypto`.
        assets: 1 to 8. own: factor on the volatilities of their own; 0 leaves the common market alone.
        parameters: of the common market, defaults where absent. Start price and volume are each coin's own.

    Raises:
        ConfigError: naming the argument and the nearest valid value.
    """
    p = CryptoParameters() if parameters is None else parameters
    if not isinstance(assets, int | np.integer) or not 1 <= assets <= len(COINS):
        raise ConfigError(f"assets={assets!r} must be a whole number from 1 to {len(COINS)}")
    if not 0.0 <= own <= 10.0:
        raise ConfigError(f"own={own!r} must be a number from 0 to 10")
    minutes, base, steps, start = frame_of(seed, interval, bars, p)
    common = base_steps(np.random.SeedSequence(int(seed)), steps, base, start, p)
    shape = (int(bars), minutes // base)
    coins = [_coin(place, own, int(seed), common, steps, base, start, shape, p) for place in range(int(assets))]
    columns: dict[str, Any] = {name: np.stack([values[name] for values in coins], axis=1) for name in coins[0]}
    length = np.timedelta64(minutes * 60 * 10**9, "ns")
    return Bars(
        time=start + np.arange(int(bars)) * length,
        interval=length,
        symbols=tuple(coin.symbol for coin in COINS[: int(assets)]),
        **columns,
        labels=common[2][shape[1] - 1 :: shape[1]].copy(),
        label_names=p.regimes,
        market="synthetic",
        source=_source(seed, interval, bars, assets, own, p),
    )


def _coin(
    place: int,
    own: float,
    seed: int,
    common: Any,
    steps: int,
    base: int,
    start: np.datetime64,
    shape: tuple[int, int],
    p: CryptoParameters,
) -> dict[str, Floats]:
    """Return open, high, low, close and volume of one coin, ``(T,)`` each."""
    coin = COINS[place]
    rng, world, _, sigma, returns = common
    p = replace(p, start_price=coin.start_price if place else p.start_price, volume_per_hour=coin.volume_per_hour)
    if place:
        years = base / YEAR_MINUTES
        returns = coin.beta * returns - (coin.beta**2 - coin.beta) * sigma**2 * years / 2
        sigma = coin.beta * sigma
        seeds = np.random.SeedSequence([seed, place])
        scale = own * coin.own_volatility
        alone = replace(p, annual_volatility=scale or 1.0, separation=0.0, drift_scale=0.0, randomise=0.0)
        rng, _, _, own_sigma, own_returns = base_steps(seeds, steps, base, start, alone)
        if scale > 0.0:
            returns, sigma = returns + own_returns, np.hypot(sigma, own_sigma)
        p = replace(p, annual_volatility=float(np.hypot(coin.beta * p.annual_volatility, scale)))
    path = np.log(p.start_price) + np.concatenate([[0.0], np.cumsum(returns)])
    columns = last_prices(rng["bridge"], path, returns, sigma * np.sqrt(base / YEAR_MINUTES), shape, p)
    return {**columns, "volume": volumes(rng["volume"], returns, sigma, base, shape, p, world)}


def _source(seed: int, interval: str, bars: int, assets: int, own: float, p: CryptoParameters) -> str:
    """Write the specification, with every parameter that is not the default."""
    default = CryptoParameters()
    values: dict[str, Any] = {"seed": seed, "interval": interval, "bars": bars, "assets": assets}
    values |= {} if own == 1.0 else {"own": own}
    names = (item.name for item in fields(p))
    values |= {name: getattr(p, name) for name in names if getattr(p, name) != getattr(default, name)}
    return "synthetic:basket?" + "&".join(f"{name}={value}".replace(" ", "") for name, value in values.items())
