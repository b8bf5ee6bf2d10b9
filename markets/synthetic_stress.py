"""Regime markets outside the family of the belief filter: same chain and parameters, other laws, no exact answer.

A filter that shares its generator's structure shows little by finding it. These keep drift, volatility and
autoregression of :class:`~markets.synthetic_regimes.RegimeMarket` and change what the filter assumes:

* ``sv``: Gaussian shocks times a hidden volatility, ``exp(h_t)`` with h an autoregression of half-life 20 bars and
  deviation 0.38, in every regime; nothing of it is driven by the observed return. The chain is the market's.
* ``mix``: spells of gamma length (shape 3, the chain's mean), switches that blend drift, volatility and autoregression
  over 16 bars, a second autoregressive term (half the first, opposite sign), a volatility cycle of 24 bars, the hidden
  volatility of ``sv``, and on 3 % of bars a negative jump of exponential size (mean: the regime's volatility).

Returns are percent a bar. Every random part has a stream of its own, so a longer series begins with the shorter one.
All numbers are chosen, not calibrated. The label of a bar is the regime with the larger weight in it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from markets.compiled import compiled
from markets.errors import unknown
from markets.synthetic_regimes import SEED_PREFIX, RegimeMarket, _walk_chain

Floats = NDArray[np.float64]

STRESSES = ("sv", "mix")
LOG_DEVIATION = 0.38  # of the hidden log volatility
HALF_LIFE = 20.0  # bars, of the hidden log volatility
SPELL_SHAPE = 3.0  # of the gamma law: spells are less uneven than a chain's
BLEND = 16  # bars that a switch takes
SECOND_TERM = -0.5  # of the first autoregressive term
CYCLE, SWING = 24, 0.3  # bars, and share of the volatility
JUMP_CHANCE = 0.03


def simulate_stress(seed: int, bars: int, market: RegimeMarket, stress: str) -> tuple[Floats, NDArray[np.int64]]:
    """Draw T returns in percent and the regime of each, ``(T,)`` both, under the law ``stress``.

    Raises:
        UnknownNameError: neither ``sv`` nor ``mix``.
    """
    if stress not in STRESSES:
        raise unknown("stress", stress, STRESSES)
    path, shock, hidden, jump = (
        np.random.default_rng([SEED_PREFIX, int(seed), STRESSES.index(stress) + 1, part]) for part in range(4)
    )
    size = _hidden_volatility(hidden, bars) * shock.standard_normal(bars)
    if stress == "sv":
        regime = np.empty(bars, np.int64)
        first = int(path.choice(len(market), p=market.stationary))
        _walk_chain(first, path.random(bars), market.transition.cumsum(axis=1), regime)
        weight = np.eye(len(market))[regime]
        second = jumps = np.zeros(bars)
    else:
        weight = _blended(_gamma_spells(path, bars, market), len(market))
        regime = weight.argmax(axis=1)
        size = size * (1.0 + SWING * np.sin(2.0 * np.pi * np.arange(bars) / CYCLE))
        second = SECOND_TERM * (weight @ market.autoregression)
        happens = jump.random((bars, 2))  # whether, and how far
        jumps = np.where(happens[:, 0] < JUMP_CHANCE, np.log1p(-happens[:, 1]), 0.0) * (weight @ market.volatility)
    pushed = weight @ market.drift + (weight @ market.volatility) * size + jumps
    returns = np.empty(bars)
    _autoregress(pushed, weight @ market.autoregression, second, returns)
    return returns, regime


def _hidden_volatility(rng: np.random.Generator, bars: int) -> Floats:
    """Return ``(T,)`` factors whose squares have mean 1."""
    keep = 0.5 ** (1.0 / HALF_LIFE)
    drawn = rng.standard_normal(bars) * LOG_DEVIATION * np.sqrt(1.0 - keep**2)
    drawn[0] /= np.sqrt(1.0 - keep**2)
    level = np.empty(bars)
    _autoregress(drawn, np.full(bars, keep), np.zeros(bars), level)
    return np.asarray(np.exp(level - LOG_DEVIATION**2))


def _gamma_spells(rng: np.random.Generator, bars: int, market: RegimeMarket) -> NDArray[np.int64]:
    """Return ``(T,)`` regimes whose spells are gamma distributed with the chain's means, one bar at least."""
    stay = np.diag(market.transition)
    follow = (market.transition - np.diag(stay)) / (1.0 - stay)[:, None]
    regime = np.empty(bars, np.int64)
    state, bar = int(rng.choice(len(market), p=market.stationary)), 0
    while bar < bars:
        length = max(round(rng.gamma(SPELL_SHAPE, 1.0 / (1.0 - stay[state]) / SPELL_SHAPE)), 1)
        regime[bar : bar + length] = state
        bar += length
        state = int(rng.choice(len(market), p=follow[state] / follow[state].sum()))
    return regime


def _blended(regime: NDArray[np.int64], count: int) -> Floats:
    """Return ``(T, r)`` weights: the mean over the last 16 bars of which regime each was."""
    total = np.cumsum(np.eye(count)[regime], axis=0)
    before = np.concatenate([np.zeros((min(BLEND, len(total)), count)), total[:-BLEND]])
    weight = total - before
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


@compiled
def _autoregress(pushed: Floats, first: Floats, second: Floats, out: Floats) -> None:
    before = earlier = 0.0
    for t in range(pushed.shape[0]):
        value = pushed[t] + first[t] * before + second[t] * earlier
        earlier = before
        before = value
        out[t] = value
