"""Parameters of the synthetic SPY sessions, their defaults and what makes them impossible.

Defaults are measured on SPY minute bars of 256 sessions, March 2024 to April 2025, the previous closes of the VIX and
the option mids of the same days; :mod:`markets.synthetic_spy` says what each of them does in the generator's formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from markets.errors import ConfigError, unknown

Floats = NDArray[np.float64]
Row = tuple[float, ...]

EARLY = ("keep", "skip", "only")
MAX_SEPARATION = 10.0
PER_REGIME = ("drifts", "volatility_multipliers", "duration_sessions", "transitions")
POSITIVE = (
    "volatility_multipliers", "duration_sessions", "duration_shape", "annual_volatility", "fast_minutes",
    "slow_sessions", "volume_per_minute", "volume_shape", "implied_ratio", "start_price",
)  # fmt: skip
NOT_NEGATIVE = (
    "transitions", "separation", "fast_sd", "slow_sd", "jumps_per_session", "jump_size", "seasonality", "overnight",
    "volume_noise", "vix_noise",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SPYParameters:
    """Parameters of the SPY-like market; vectors are ordered as ``regimes`` (K = 3 here).

    Attributes:
        regimes: names of the K regimes.
        drifts: drift of the price per year of sessions.
        volatility_multipliers: volatility of a regime over ``annual_volatility``.
        duration_sessions: mean length of a spell, in sessions of 390 minutes.
        duration_shape: shape of the gamma law of the lengths.
        transitions: ``(K, K)`` next regime given this one, rows sum to 1, zero diagonal.
        separation: 0 makes all regimes alike in drift and volatility, 1 is the default, more is cleaner.
        annual_volatility: volatility from open to close per square root of a year of 98,280 trading minutes, at
            multiplier 1, jumps and nights not counted.
        fast_minutes, fast_sd: time constant and deviation of the log volatility within a session.
        slow_sessions, slow_sd: the same from session to session.
        leverage: correlation of a shock of the log volatility with the return shock before it.
        student_t_dof: degrees of freedom of the return shocks, above 2.
        jumps_per_session: mean number of jumps in 390 minutes.
        jump_size: standard deviation of a jump in local one-minute standard deviations.
        seasonality: exponent of the shapes of volatility and volume over the session; 0 for flat ones.
        overnight: standard deviation of the gap to the next opening, in those of a session.
        overnight_dof: degrees of freedom of its Student t law, above 2.
        volume_per_minute: median volume of a minute in an average state, shares.
        volume_shape: relative volume at the middle of each of 13 half-hours (of a full session).
        volume_open, volume_close: factors of the first and the last minute, the auctions.
        volume_sigma, volume_return, volume_noise: exponents of the local volatility and of 1 + |return| in local
            standard deviations, and the standard deviation of the log noise per minute.
        implied_ratio: at-the-money implied volatility of a session over the index's close the evening before.
        vix_noise: deviation of the log of a session's volatility around what that index says: news of the night.
        start_price: the close before the first session, USD.

    Raises:
        ConfigError: naming the field and its value.
    """

    regimes: tuple[str, ...] = ("calm", "normal", "turbulent")
    drifts: Row = (0.14, 0.06, -0.25)
    volatility_multipliers: Row = (0.80, 1.00, 1.75)
    duration_sessions: Row = (14.0, 9.0, 4.0)
    duration_shape: float = 2.0
    transitions: tuple[Row, ...] = ((0.0, 0.85, 0.15), (0.70, 0.0, 0.30), (0.15, 0.85, 0.0))
    separation: float = 1.0
    annual_volatility: float = 0.100
    fast_minutes: float = 28.0
    fast_sd: float = 0.34
    slow_sessions: float = 7.0
    slow_sd: float = 0.12
    leverage: float = -0.65
    student_t_dof: float = 12.0
    jumps_per_session: float = 0.4
    jump_size: float = 4.5
    seasonality: float = 1.0
    overnight: float = 0.75
    overnight_dof: float = 4.0
    volume_per_minute: float = 65_000.0
    volume_shape: Row = (1.46, 1.12, 0.92, 0.84, 0.71, 0.64, 0.63, 0.64, 0.64, 0.79, 0.81, 0.98, 2.24)
    volume_open: float = 4.0
    volume_close: float = 8.0
    volume_sigma: float = 1.0
    volume_return: float = 0.35
    volume_noise: float = 0.35
    implied_ratio: float = 1.29
    vix_noise: float = 0.18
    start_price: float = 500.0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def shares(self) -> Floats:
        """Long-run share of time in each regime: ``(K,)``, stationary chain weighted by mean duration."""
        matrix = np.array(self.transitions)
        equations = np.vstack([matrix.T - np.eye(len(matrix)), np.ones(len(matrix))])
        visits = np.linalg.lstsq(equations, np.append(np.zeros(len(matrix)), 1.0), rcond=None)[0]
        time = visits * np.array(self.duration_sessions)
        return np.asarray(time / time.sum())

    @property
    def separated_drifts(self) -> Floats:
        """Drift per year of each regime after ``separation``: ``(K,)``, mean unchanged."""
        drifts = np.array(self.drifts)
        mean = self.shares @ drifts
        return np.asarray(mean + self.separation * (drifts - mean))

    @property
    def separated_multipliers(self) -> Floats:
        """Volatility multiplier of each regime after ``separation``: ``(K,)``, mean square unchanged."""
        multipliers = np.array(self.volatility_multipliers)
        spread = multipliers**self.separation
        return np.asarray(spread * np.sqrt((self.shares @ multipliers**2) / (self.shares @ spread**2)))


def check_early(value: str) -> str:
    """Return a valid choice of what happens to early-close days.

    Raises:
        UnknownNameError: with the nearest valid one.
    """
    if value not in EARLY:
        raise unknown("early_close", value, EARLY)
    return value


def _check(p: SPYParameters) -> None:
    """Raise for the first field that cannot work, naming it."""
    count = len(p.regimes)
    numbers = [item.name for item in fields(p) if item.name != "regimes"]
    _need(p, numbers, "must be finite numbers", lambda x: np.isfinite(x).all())
    _need(p, PER_REGIME, f"must have {count} entries, one a regime", lambda x: len(x) == count)
    _need(p, ["volume_shape"], "must have 13 entries, one a half-hour", lambda x: x.shape == (13,))
    _need(p, POSITIVE, "must be above 0", lambda x: (x > 0).all())
    _need(p, NOT_NEGATIVE, "must not be negative", lambda x: (x >= 0).all())
    _need(p, ["separation"], f"must be at most {MAX_SEPARATION:g}", lambda x: x <= MAX_SEPARATION)
    _need(p, ["leverage"], "must lie between -1 and 1", lambda x: abs(x) < 1)
    _need(p, ["student_t_dof", "overnight_dof"], "must be above 2", lambda x: x > 2)
    _need(p, ["volume_open", "volume_close"], "must be at least 1", lambda x: x >= 1)
    _need(p, ["transitions"], "must be a square", lambda x: x.shape == (count, count))
    _need(p, ["transitions"], "must have rows that sum to 1", lambda x: np.allclose(x.sum(axis=1), 1))
    _need(p, ["transitions"], "must have a zero diagonal", lambda x: not np.diag(x).any())


def _need(p: SPYParameters, names: Iterable[str], text: str, good: Callable[[Any], Any]) -> None:
    for name in names:
        try:
            fine = bool(good(np.asarray(getattr(p, name), dtype=np.float64)))
        except (TypeError, ValueError):  # not a number, or rows of different lengths
            fine = False
        if not fine:
            raise ConfigError(f"{name}={getattr(p, name)!r} {text}")
