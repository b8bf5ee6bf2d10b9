"""Markets whose truth is known, and a signal model that lives outside the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from encoders.signals.model import Floats, SignalModel, Votes, log_returns
from markets.bars import Bars
from markets.errors import ConfigError


def bars_of(logs: Floats, symbols: tuple[str, ...] = ("AAA",)) -> Bars:
    """Hourly bars that open where the last one closed, from log prices ``(T,)`` or ``(T, A)``."""
    close = np.exp(np.atleast_2d(logs.T).T)
    opened = np.concatenate([close[:1], close[:-1]])
    return Bars(
        time=np.datetime64("2024-01-01", "ns") + np.arange(len(close)) * np.timedelta64(1, "h"),
        interval=np.timedelta64(1, "h").astype("timedelta64[ns]"), symbols=symbols,
        open=opened, high=np.maximum(opened, close), low=np.minimum(opened, close), close=close,
        volume=np.full(close.shape, 100.0), funding_rate=np.empty((0, len(symbols))), source="toy",
    )  # fmt: skip


def cointegrated(bars: int, half_life: float, seed: int, hedge: float = 0.8) -> Bars:
    """Two prices whose spread is an AR(1) with the half-life."""
    draw = np.random.default_rng(seed)
    phi = 0.5 ** (1.0 / half_life)
    shocks, spread = draw.normal(0.0, 0.002, bars), np.zeros(bars)
    for t in range(1, bars):
        spread[t] = phi * spread[t - 1] + shocks[t]
    x = 4.0 + np.cumsum(draw.normal(0.0, 0.005, bars))
    return bars_of(np.stack([1.0 + hedge * x + spread, x], axis=1), ("YYY", "XXX"))


def garch_returns(bars: int, omega: float, alpha: float, beta: float, seed: int) -> Floats:
    """Log returns of GARCH(1,1)."""
    draw = np.random.default_rng(seed).normal(size=bars)
    out, variance = np.zeros(bars), omega / max(1.0 - alpha - beta, 0.01)
    for t in range(bars):
        out[t] = np.sqrt(variance) * draw[t]
        variance = omega + alpha * out[t] ** 2 + beta * variance
    return out


def reverting(bars: int, seed: int) -> Bars:
    """One price whose returns have an autocorrelation of -0.5: a direction that can be learned."""
    draw = np.random.default_rng(seed).normal(0.0, 0.005, bars)
    return bars_of(4.0 + np.cumsum(draw - 0.5 * np.concatenate([[0.0], draw[:-1]])))


@dataclass(eq=False)
class LastReturn(SignalModel):
    """Follows the last return: what a user's own file looks like."""

    name: ClassVar[str] = "last_return"

    sign: float = 1.0

    def learn(self, bars: Bars) -> dict[str, Any]:
        return {"scale": float(np.std(log_returns(bars)))}

    @property
    def look_back(self) -> int:
        return 1

    def votes(self, bars: Bars) -> Votes:
        with np.errstate(invalid="ignore"):
            strength = np.clip(log_returns(bars) / self._learned()["scale"] * self.sign, -1.0, 1.0)
        return Votes(strength, np.abs(strength), {})

    def check_fitted(self, data: bytes) -> None:
        if self._part("scale", float) <= 0.0:
            raise ConfigError("scale must be positive")


@dataclass(eq=False)
class NextReturn(LastReturn):
    """A planted fault: it knows the next return."""

    name: ClassVar[str] = "next_return"

    def votes(self, bars: Bars) -> Votes:
        ahead = np.roll(np.sign(log_returns(bars)), -1, axis=0)
        return Votes(ahead, np.abs(ahead), {})
