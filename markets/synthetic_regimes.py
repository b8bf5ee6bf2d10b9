"""A market whose regimes have an exact answer: the causal Bayes filter of its own generator.

Returns r_t in percent, regime k_t a Markov chain with matrix P; every regime keeps a GARCH(1,1) variance of its own,
and all of them are driven by the *observed* return::

    r_t      = mu_k + phi_k r_{t-1} + sqrt(v_{k,t}) z_t,     z ~ Student t(nu_k) of unit variance
    v_{k,t+1} = s_k^2 (1 - a - b) + a r_t^2 + b v_{k,t},      a = 0.04, b = 0.88

so that no variance depends on the hidden path and ``P(k_t | r_1 .. r_t)`` is a finite recursion
(:func:`posterior`): the ceiling for every causal method. Prices are ``100 exp(cumsum(r) / 100)``; a bar opens at the
previous close and its high and low are the two, volume is constant and ample, there is no funding.

:mod:`markets.synthetic_stress` draws the same regimes under other laws, for which no exact answer exists.

Levels: ``market`` (drift a tenth of the volatility per bar: nearly invisible), ``clear`` (drift three times as large),
``vol`` (differs in volatility only). All parameters are chosen, not calibrated: a good score here says that an encoder
finds regimes of this family, and nothing about any real market.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from markets.bars import Bars, as_interval, as_time
from markets.compiled import compiled
from markets.errors import ConfigError, unknown

Floats = NDArray[np.float64]

LEVELS = ("market", "clear", "vol")
ARCH, GARCH = 0.04, 0.88
SEED_PREFIX = 7919  # of the generator's seed sequence, so that seeds here are no other market's
START_PRICE = 100.0
VOLUME = 1e6  # base units a bar: no order of the default account meets a limit
NAMES = ("bull", "bear", "sideways", "lowvol", "highvol", "crash")
_SIX: dict[str, tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]] = {
    # drift, volatility (percent a bar), autoregression
    "market": ((0.06, -0.08, 0.0, 0.01, 0.0, -0.45), (0.60, 0.85, 0.45, 0.20, 1.50, 2.40),
               (0.05, 0.05, -0.25, -0.05, 0.0, 0.10)),
    "clear": ((0.20, -0.25, 0.0, 0.01, 0.0, -0.90), (0.60, 0.85, 0.45, 0.20, 1.50, 2.40),
              (0.10, 0.10, -0.45, -0.05, 0.0, 0.10)),
    "vol": ((0.0,) * 6, (0.60, 0.60, 0.60, 0.20, 1.50, 2.40), (0.0,) * 6),
}  # fmt: skip
_SIX_DOF = (5.0, 5.0, 6.0, 6.0, 4.0, 4.0)
_SIX_DWELL = (700.0, 500.0, 600.0, 600.0, 350.0, 100.0)
_SIX_NEXT = (
    (0.0, 0.15, 0.35, 0.30, 0.15, 0.05),
    (0.20, 0.0, 0.30, 0.15, 0.25, 0.10),
    (0.35, 0.20, 0.0, 0.30, 0.10, 0.05),
    (0.35, 0.15, 0.35, 0.0, 0.10, 0.05),
    (0.25, 0.25, 0.25, 0.10, 0.0, 0.15),
    (0.15, 0.35, 0.05, 0.00, 0.45, 0.0),
)


@dataclass(frozen=True, eq=False)
class RegimeMarket:
    """Parameters of one market of r regimes; arrays are ``(r,)``, returns in percent a bar.

    Attributes:
        drift, volatility, autoregression, dof: mu, s, phi, nu of the module's formula.
        transition: ``(r, r)`` P, rows sum to 1. ``stationary``: its long-run shares.
        merged: label that a report shows for each regime (``vol`` merges what it makes equal).
        names: a name per shown label.
    """

    drift: Floats
    volatility: Floats
    autoregression: Floats
    dof: Floats
    transition: Floats
    stationary: Floats
    merged: NDArray[np.int8]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.drift)

    def spectrum(self, lag: int) -> Floats:
        """Moduli of the non-trivial eigenvalues of ``P^lag``, largest first: what an encoder of the regimes shows."""
        values = np.sort(np.abs(np.linalg.eigvals(np.linalg.matrix_power(self.transition, lag))))[::-1]
        return np.asarray(values[1 : len(self.names)])


def regime_market(level: str = "market", regimes: int = 6) -> RegimeMarket:
    """Return the parameters of a market.

    Args:
        regimes: r. 6 is the published benchmark; any other number gets volatilities spread evenly in logarithm from
            0.2 to 2.4 percent, drifts of alternating sign, and spells of 500 bars that lead anywhere.

    Raises:
        UnknownNameError: unknown level. ConfigError: fewer than 2 or more than 64 regimes.
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    if not isinstance(regimes, int | np.integer) or not 2 <= regimes <= 64:
        raise ConfigError(f"regimes={regimes!r} must be a whole number from 2 to 64")
    if regimes == 6:
        drift, volatility, autoregression = (np.array(row) for row in _SIX[level])
        dof, dwell, follow = np.array(_SIX_DOF), np.array(_SIX_DWELL), np.array(_SIX_NEXT)
        shown = (0, 0, 0, 1, 2, 3) if level == "vol" else tuple(range(6))
        names: tuple[str, ...] = ("normal", *NAMES[3:]) if level == "vol" else NAMES
    else:
        volatility = np.geomspace(0.2, 2.4, regimes)
        tilt = {"market": 0.1, "clear": 0.3, "vol": 0.0}[level]
        drift = tilt * volatility * np.where(np.arange(regimes) % 2 == 0, 1.0, -1.0)
        autoregression = np.resize([0.05, -0.25, 0.0, 0.10], regimes) * (level != "vol")
        dof, dwell = np.full(regimes, 5.0), np.full(regimes, 500.0)
        follow = (1.0 - np.eye(regimes)) / (regimes - 1)
        shown, names = tuple(range(regimes)), tuple(f"regime {k}" for k in range(regimes))
    transition = follow / dwell[:, None]
    np.fill_diagonal(transition, 1 - 1 / dwell)
    values, vectors = np.linalg.eig(transition.T)
    stationary = np.real(vectors[:, np.argmin(np.abs(values - 1))])
    stationary = stationary / stationary.sum()
    return RegimeMarket(drift, volatility, autoregression, dof, transition, stationary, np.array(shown, np.int8), names)


def simulate(seed: int, bars: int, market: RegimeMarket) -> tuple[Floats, NDArray[np.int64]]:
    """Draw T returns in percent and the regime of each, ``(T,)``; the path depends on T (shocks come by regime)."""
    rng = np.random.default_rng([SEED_PREFIX, int(seed)])
    count = len(market)
    first = int(rng.choice(count, p=market.stationary))
    regime = np.empty(bars, np.int64)
    _walk_chain(first, rng.random(bars), market.transition.cumsum(axis=1), regime)
    shocks = np.empty(bars)
    for k in range(count):
        here = regime == k
        dof = market.dof[k]
        shocks[here] = rng.standard_t(dof, here.sum()) * np.sqrt((dof - 2) / dof)
    level = market.volatility**2
    returns = np.empty(bars)
    floor = level * (1 - ARCH - GARCH)
    _recurse(regime, shocks, market.drift, market.autoregression, floor, level.copy(), returns, 2.0)
    return returns, regime


@compiled
def _walk_chain(first: int, uniforms: Floats, cumulative: Floats, regime: NDArray[np.int64]) -> None:
    state = first
    regime[0] = state
    last = cumulative.shape[0] - 1
    for t in range(1, len(uniforms)):
        place = 0
        while place < last and cumulative[state, place] < uniforms[t]:
            place += 1
        state = place
        regime[t] = state


@compiled
def _recurse(
    regime: NDArray[np.int64],
    shocks: Floats,
    drift: Floats,
    autoregression: Floats,
    floor: Floats,
    variance: Floats,
    returns: Floats,
    two: float,
) -> None:
    """Fill in ``returns``; ``variance (r,)`` is the state and is overwritten.

    ``two`` is 2, as an argument: a constant would be compiled to a product, which is not the library's power to the
    last bit, and the benchmark's numbers are made with that.
    """
    before = 0.0
    for t in range(len(shocks)):
        k = regime[t]
        shock = np.sqrt(variance[k]) * shocks[t]
        returns[t] = drift[k] + autoregression[k] * before + shock
        before = returns[t]
        for j in range(len(variance)):
            variance[j] = floor[j] + ARCH * before**two + GARCH * variance[j]


def posterior(returns: Floats, market: RegimeMarket) -> Floats:
    """Exact ``P(regime_t | r_1 .. r_t)`` with the true parameters, causal: ``(T, r)``, merged labels added up.

    Args:
        returns: ``(T,)`` log returns in percent.
    """
    log_density = np.empty((len(returns), len(market)))
    level = market.volatility**2
    normal = _t_constant(market.dof)
    variance, before = level.copy(), 0.0
    floor = level * (1 - ARCH - GARCH)
    for t, value in enumerate(returns):
        surprise = value - market.drift - market.autoregression * before
        tail = np.log1p(surprise * surprise / variance / (market.dof - 2))
        log_density[t] = normal - 0.5 * np.log(variance) - (market.dof + 1) / 2 * tail
        before = value
        variance = floor + ARCH * value**2 + GARCH * variance
    belief, out = market.stationary.copy(), np.empty_like(log_density)
    for t, row in enumerate(log_density):
        belief = (belief @ market.transition if t else belief) * np.exp(row - row.max())
        belief /= belief.sum()
        out[t] = belief
    shown = np.zeros((len(returns), len(market.names)))
    for k, label in enumerate(market.merged):
        shown[:, label] += out[:, k]
    return shown


def _t_constant(dof: Floats) -> Floats:
    """Logarithm of the normalising constant of a unit-variance Student t."""
    from math import lgamma

    return np.array([lgamma((nu + 1) / 2) - lgamma(nu / 2) - 0.5 * np.log((nu - 2) * np.pi) for nu in dof])


def regimes(
    seed: int = 0,
    interval: str = "1h",
    bars: int = 32_768,
    level: str = "market",
    regimes: int = 6,
    start: str = "2020-01-01",
    stress: str | None = None,
) -> Bars:
    """Return bars of a regime market with true labels; the returns are those of the published benchmark bit for bit.

    Args:
        stress: a law outside the family, ``"sv"`` or ``"mix"`` of :mod:`markets.synthetic_stress`.

    Raises:
        ConfigError: naming the argument and what it must be.
    """
    for name, value, least in (("seed", seed, 0), ("bars", bars, 2)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
    market = regime_market(level, regimes)
    length = as_interval(interval)
    if stress is None:
        returns, labels = simulate(seed, int(bars), market)
    else:
        from markets.synthetic_stress import simulate_stress

        returns, labels = simulate_stress(seed, int(bars), market, stress)
    close = START_PRICE * np.exp(np.cumsum(returns) / 100)
    opened = np.concatenate([[START_PRICE], close[:-1]])
    prices: dict[str, Any] = {
        "open": opened, "high": np.maximum(opened, close), "low": np.minimum(opened, close), "close": close,
        "volume": np.full(len(close), VOLUME),
    }  # fmt: skip
    given = {"seed": seed, "interval": interval, "bars": bars, "level": level, "regimes": regimes, "start": start}
    given |= {} if stress is None else {"stress": stress}
    return Bars(
        time=as_time(start, "start") + np.arange(len(close)) * length,
        interval=length,
        symbols=("REGIME",),
        **{name: column.reshape(-1, 1) for name, column in prices.items()},
        labels=market.merged[labels],
        label_names=market.names,
        market="regimes",
        source="synthetic:regimes?" + "&".join(f"{name}={value}" for name, value in given.items()),
    )
