"""Parameters of the synthetic BTC-like market, their defaults and what makes them impossible.

Defaults are measured on BTCUSDT perpetual bars, marks and funding, 2019-2025; :mod:`markets.synthetic` says what each
of them does in the generator's formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from markets.bars import as_time
from markets.errors import ConfigError

Floats = NDArray[np.float64]
Row = tuple[float, ...]

PER_REGIME = ("drifts", "volatility_multipliers", "duration_hours", "transitions")
POSITIVE = (
    "volatility_multipliers", "duration_hours", "duration_shape", "annual_volatility", "fast_minutes", "slow_minutes",
    "hour_factors", "weekday_factors", "volume_per_hour", "premium_fast_days", "premium_slow_days", "basis_minutes",
    "start_price", "randomise_days",
)  # fmt: skip
NOT_NEGATIVE = (
    "transitions", "separation", "fast_sd", "slow_sd", "jumps_per_day", "jump_size", "volume_noise", "basis_bps",
    "premium_fast_share", "randomise",
)  # fmt: skip
MAX_SEPARATION = 10.0  # beyond it the calm regimes stop moving at all
MAX_RANDOMISE = 10.0


@dataclass(frozen=True, kw_only=True)
class CryptoParameters:
    """Parameters of the BTC-like market; vectors are ordered as ``regimes`` (K = 4 here).

    Attributes:
        regimes: names of the K regimes.
        drifts: drift of the price per year, ``E[P(t + dt) / P(t)] = exp(drift dt)``.
        volatility_multipliers: volatility of a regime over ``annual_volatility``.
        duration_hours: mean length of a spell.
        duration_shape: shape of the gamma law of the lengths (2: no memoryless spells).
        transitions: ``(K, K)`` next regime given this one, rows sum to 1, zero diagonal.
        separation: 0 makes all regimes alike in drift and volatility, 1 is the default, more is cleaner. The mean
            drift and the mean variance over all regimes do not change with it.
        drift_scale: factor on all drifts; with 0 the price is a martingale.
        annual_volatility: volatility per square root of a year (365 days) at multiplier 1, jumps not counted.
        fast_minutes, slow_minutes: time constants of the two log-volatility factors.
        fast_sd, slow_sd: their stationary standard deviations.
        leverage: correlation of a volatility shock with the return shock before it.
        student_t_dof: degrees of freedom of the return shocks, above 2.
        jumps_per_day: mean number of jumps.
        jump_size: standard deviation of a jump in local 5-minute standard deviations.
        hour_factors: relative volatility by hour of the day, UTC (24); only ratios count.
        weekday_factors: the same by day, Monday first (7).
        volume_per_hour: median volume of an hour in an average state, base units (BTC).
        volume_sigma, volume_return, volume_noise: exponents of the local volatility and of 1 + |return| in local
            standard deviations, and the standard deviation of the log noise per base step.
        premium_z, premium_bps: quantile map from a standard normal score to the 8-hour average premium (bp).
        premium_fast_days, premium_slow_days: time constants of the two parts of the score.
        premium_fast_share: share of the fast part in their variance.
        premium_momentum: weight of the standardised return of the past seven days in the score.
        funding_scale: factor on the funding rates; 0 for none.
        basis_bps: standard deviation of log(mark / last), basis points.
        basis_minutes: its time constant.
        start_price: first open, quote currency.
        start: first open time, UTC, on a whole minute.
        randomise: r; domain randomisation by the seed. Every ``randomise_days`` volatility, drift, jump rate, length of
            spells, volume and premium get a factor of their own, log-uniform from 1 / (1 + r) to 1 + r; episodes that
            begin at random so meet many markets. 0: none.
        randomise_days: how long a set of factors lasts.

    Raises:
        ConfigError: naming the field and its value.
    """

    regimes: tuple[str, ...] = ("range", "bull", "bear", "crash")
    drifts: Row = (0.0, 1.2, -1.2, -0.5)
    volatility_multipliers: Row = (0.65, 0.90, 1.15, 1.80)
    duration_hours: Row = (72.0, 48.0, 36.0, 10.0)
    duration_shape: float = 2.0
    transitions: tuple[Row, ...] = (
        (0.0, 0.45, 0.35, 0.20),
        (0.60, 0.0, 0.30, 0.10),
        (0.50, 0.30, 0.0, 0.20),
        (0.35, 0.20, 0.45, 0.0),
    )
    separation: float = 1.0
    drift_scale: float = 1.0
    annual_volatility: float = 0.52
    fast_minutes: float = 45.0
    slow_minutes: float = 2000.0
    fast_sd: float = 0.35
    slow_sd: float = 0.26
    leverage: float = -0.08
    student_t_dof: float = 12.0
    jumps_per_day: float = 1.0
    jump_size: float = 3.0
    hour_factors: Row = (
        1.24, 1.08, 0.93, 0.79, 0.75, 0.72, 0.77, 0.83, 0.79, 0.75, 0.75, 0.75,
        0.91, 1.34, 1.61, 1.29, 1.23, 1.28, 1.13, 1.07, 1.08, 1.02, 0.99, 0.85,
    )  # fmt: skip
    weekday_factors: Row = (1.10, 1.10, 1.10, 1.08, 1.08, 0.65, 0.88)
    volume_per_hour: float = 5000.0
    volume_sigma: float = 1.1
    volume_return: float = 0.35
    volume_noise: float = 0.45
    premium_z: Row = (
        -4.0, -3.09, -2.326, -1.645, -1.143, -0.524, -0.141, 0.994, 1.282, 1.645, 2.326, 3.09, 4.0,
    )  # fmt: skip
    premium_bps: Row = (
        -25.0, -11.5, -7.0, -5.54, -5.0, -4.5, -4.0, 6.0, 7.7, 10.0, 15.8, 22.5, 40.0,
    )  # fmt: skip
    premium_fast_days: float = 2.0
    premium_slow_days: float = 60.0
    premium_fast_share: float = 0.25
    premium_momentum: float = 0.45
    funding_scale: float = 1.0
    basis_bps: float = 1.0
    basis_minutes: float = 25.0
    start_price: float = 20_000.0
    start: str = "2020-01-01"
    randomise: float = 0.0
    randomise_days: float = 90.0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def shares(self) -> Floats:
        """Long-run share of time in each regime: ``(K,)``, stationary chain weighted by mean duration."""
        matrix = np.array(self.transitions)
        equations = np.vstack([matrix.T - np.eye(len(matrix)), np.ones(len(matrix))])
        visits = np.linalg.lstsq(equations, np.append(np.zeros(len(matrix)), 1.0), rcond=None)[0]
        time = visits * np.array(self.duration_hours)
        return time / time.sum()

    @property
    def separated_drifts(self) -> Floats:
        """Drift per year of each regime after ``separation`` and ``drift_scale``: ``(K,)``."""
        drifts = np.array(self.drifts)
        mean = self.shares @ drifts
        return self.drift_scale * (mean + self.separation * (drifts - mean))

    @property
    def separated_multipliers(self) -> Floats:
        """Volatility multiplier of each regime after ``separation``: ``(K,)``, mean square unchanged."""
        multipliers = np.array(self.volatility_multipliers)
        spread = multipliers**self.separation
        return spread * np.sqrt((self.shares @ multipliers**2) / (self.shares @ spread**2))


def _check(p: CryptoParameters) -> None:
    """Raise for the first field that cannot work, naming it."""
    count = len(p.regimes)
    numbers = [item.name for item in fields(p) if item.name not in ("regimes", "start")]
    _need(p, numbers, "must be finite numbers", lambda x: bool(np.isfinite(x).all()))
    _need(p, PER_REGIME, f"must have {count} entries, one a regime", lambda x: len(x) == count)
    _need(p, ["hour_factors"], "must have 24 entries", lambda x: x.shape == (24,))
    _need(p, ["weekday_factors"], "must have 7 entries", lambda x: x.shape == (7,))
    _need(p, ["premium_bps"], "must be as long as premium_z", lambda x: len(x) == len(p.premium_z))
    _need(p, ["premium_z"], "must rise", lambda x: bool((np.diff(x) > 0).all()))
    _need(p, POSITIVE, "must be above 0", lambda x: bool((x > 0).all()))
    _need(p, NOT_NEGATIVE, "must not be negative", lambda x: bool((x >= 0).all()))
    _need(p, ["separation"], f"must be at most {MAX_SEPARATION:g}", lambda x: bool(x <= MAX_SEPARATION))
    _need(p, ["randomise"], f"must be at most {MAX_RANDOMISE:g}", lambda x: bool(x <= MAX_RANDOMISE))
    _need(p, ["leverage", "premium_momentum"], "must lie between -1 and 1", lambda x: bool(abs(x) < 1))
    _need(p, ["premium_fast_share"], "must lie in 0 .. 1", lambda x: bool(x <= 1))
    _need(p, ["student_t_dof"], "must be above 2", lambda x: bool(x > 2))
    _need(p, ["transitions"], "must be a square", lambda x: x.shape == (count, count))
    _need(p, ["transitions"], "must have rows that sum to 1", lambda x: bool(np.allclose(x.sum(axis=1), 1)))
    _need(p, ["transitions"], "must have a zero diagonal", lambda x: not np.diag(x).any())
    start = as_time(p.start, "start")
    if start != start.astype("datetime64[m]"):
        raise ConfigError(f"start={p.start!r} must be on a whole minute")


def _need(p: CryptoParameters, names: Iterable[str], text: str, good: Callable[[Any], bool]) -> None:
    for name in names:
        try:
            fine = good(np.asarray(getattr(p, name), dtype=np.float64))
        except (TypeError, ValueError):  # not a number, or rows of different lengths
            fine = False
        if not fine:
            raise ConfigError(f"{name}={getattr(p, name)!r} {text}")
