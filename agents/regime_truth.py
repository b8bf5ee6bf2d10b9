"""What the generator of ``synthetic:regimes`` knows, as columns: exact filter odds, true regimes, best exposures.

The exact filter (:func:`markets.synthetic_regimes.posterior`) knows the true parameters and the past only. With its
odds ``b (r,)`` at the close of bar t, transition P, drift mu, autoregression phi and the conditional variances
``s2 (r,)`` of the next bar, which the past determines, the next log return has::

    b' = b P        m_k = mu_k + phi_k r_t        m = sum_k b'_k m_k        v = sum_k b'_k (s2_k + m_k^2) - m^2

and an exposure f held for one bar grows log wealth by ``f (m + v / 2) - f^2 v / 2`` to the second order. Against a
proportional cost c of a change of exposure the best move from x is the one to the nearest end of a band::

    low = (m - c) / v + 1/2,    high = (m + c) / v + 1/2,    f = clip(x, low, high), cut to -L .. L

Kelly's fraction (J. Kelly, Bell System Technical Journal 35, 1956) with the myopic no-trade band of proportional costs:
it looks one bar ahead, so it is a closed form and no optimum of the whole episode.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from agents.agent import Agent, Observation
from markets.bars import Bars
from markets.errors import ConfigError
from markets.synthetic_regimes import ARCH, GARCH, RegimeMarket, posterior, regime_market
from markets.table import CausalTable

Floats = NDArray[np.float64]

FILTER, TRUTH = "exact_", "true_"  # prefixes of the columns, followed by the name of a regime
LOW, HIGH = "best_exposure_low", "best_exposure_high"
KEPT = 4  # tables per process; one takes a second for 60,000 bars

_tables: OrderedDict[tuple[Any, ...], CausalTable] = OrderedDict()


def market_of(bars: Bars) -> RegimeMarket:
    """Return the parameters of generated bars.

    Raises:
        ConfigError: bars of another source, or of a law (``stress=``) for which no exact answer exists.
    """
    kind, _, query = bars.source.partition("?")
    given = dict(parse_qsl(query))
    if kind != "synthetic:regimes" or "stress" in given:
        raise ConfigError(f"bars={bars.source!r}: the exact filter exists for synthetic:regimes without stress= only")
    return regime_market(given["level"], int(given["regimes"]))


def returns_of(bars: Bars) -> Floats:
    """Return log returns in percent ``(T,)``; a bar opens where the last one closed."""
    return np.asarray(100.0 * np.log(bars.close[:, 0] / bars.open[:, 0]))


def next_bar(returns: Floats, market: RegimeMarket) -> tuple[Floats, Floats]:
    """Return mean and variance of the next log return given the past and the true parameters, in percent: ``(T,)``."""
    merged = len(market.names) < len(market)
    if merged:
        raise ConfigError("a market that merges regimes (level='vol') has nothing to expect of the next return")
    ahead = posterior(returns, market) @ market.transition
    mean = market.drift + market.autoregression * returns[:, None]
    variance = _variances(returns, market) + mean**2
    expected = (ahead * mean).sum(axis=1)
    return expected, (ahead * variance).sum(axis=1) - expected**2


def _variances(returns: Floats, market: RegimeMarket) -> Floats:
    """Conditional variance of the bar after t in each regime, ``(T, r)``: s2 <- s^2 (1 - a - g) + a r^2 + g s2."""
    level = market.volatility**2
    out, state = np.empty((len(returns), len(market))), level.copy()
    for t, value in enumerate(returns):
        state = out[t] = level * (1 - ARCH - GARCH) + ARCH * value**2 + GARCH * state
    return out


def exposure_band(mean: Floats, variance: Floats, cost: float) -> tuple[Floats, Floats]:
    """Return ends of the no-trade band, in units of equity, for mean and variance in percent: ``(T,)`` each.

    Args:
        cost: of a change of exposure by 1, a share (0.0001 is 1 bp).
    """
    shift, wide = mean / 100.0 + 0.5 * variance / 1e4, variance / 1e4
    return (shift - cost) / wide, (shift + cost) / wide


def truth(bars: Bars, config: Any) -> CausalTable:
    """Return the columns: filter odds, one-hot true regimes, ends of the best exposures: ``(T, 2 r + 2)``.

    The true regime is that of the bar that has just closed. Exposures are in units of the leverage, cut to -1 .. 1, for
    the taker fee of ``config``.

    Raises:
        ConfigError: bars without an exact filter, or a configuration without a fee of its own.
    """
    market = market_of(bars)
    if getattr(config, "taker_fee", None) is None:
        raise ConfigError("taker_fee=None: the best exposure needs the fee of a trade, such as taker_fee=0.0001")
    cost, leverage = config.taker_fee * config.cost_scale, config.leverage
    key = (bars.hash, bars.source, cost, leverage)
    if key not in _tables:
        _tables[key] = _truth(bars, market, cost, leverage)
        while len(_tables) > KEPT:
            _tables.popitem(last=False)
    return _tables[key]


def _truth(bars: Bars, market: RegimeMarket, cost: float, leverage: float) -> CausalTable:
    returns = returns_of(bars)
    odds = posterior(returns, market)
    assert bars.labels is not None
    known = np.eye(len(market.names))[bars.labels]
    band = [np.clip(end / leverage, -1.0, 1.0) for end in exposure_band(*next_bar(returns, market), cost)]
    names = (*(FILTER + name for name in market.names), *(TRUTH + name for name in market.names), LOW, HIGH)
    low = np.zeros(len(names), np.float32)
    low[-2:] = -1.0
    values = np.concatenate([np.clip(odds, 0.0, 1.0), known, np.stack(band, axis=1)], axis=1)
    return CausalTable(
        np.ascontiguousarray(values, np.float32), names, low, np.ones(len(names), np.float32), 0, bars.hash
    )


class BestExposure(Agent):
    """Moves to the nearest end of the band of best exposures, and stays where it is within it."""

    name = "best exposure on the exact filter"
    reads = ("exposure", LOW, HIGH)

    @classmethod
    def of(cls, names: Sequence[str]) -> Agent:
        """Return one that is bound to an environment's columns."""
        return cls().bind(names)

    def act(
        self, columns: Observation, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return the exposure in units of the leverage."""
        return np.clip(columns[:, 0], columns[:, 1], columns[:, 2])[:, None], state
