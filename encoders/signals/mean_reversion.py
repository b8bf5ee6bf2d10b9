"""Mean reversion of a cointegrated pair: buy the spread when it is low, sell it when it is high.

    spread_t = ln y_t - a - b ln x_t                     (a, b by least squares on the training range)
    phi      = lag-one coefficient of the spread, with Kendall's correction (1 + 3 phi) / n for its bias
    half-life = ln 0.5 / ln phi                          (bars until half of a deviation is expected to be gone)
    z_t      = (spread_t - mean) / deviation             (over the last ``window`` half-lives)
    direction of y = -clip(z / full, -1, 1) where |z| >= entry, else 0; of x the opposite, times b

Whether there is a pair at all is asked by the Engle-Granger test: an augmented Dickey-Fuller test of the residuals with
MacKinnon's critical values, lags by BIC. Where its p value is not below ``level``, the signal is neutral with
confidence 0 and says so. Confidence is ``min(|z| / (2 entry), 1)``.

The two prices are two assets of the bars, or one of them is the ``companion``, bars named by a specification, of which
a row sees what has closed by its own close; none within a bar's length, and the row is neutral.

Sources: Engle & Granger, Econometrica 55 (1987); MacKinnon, "Critical values for cointegration tests" (2010);
Kendall, Biometrika 41 (1954). Extra ``models`` (statsmodels), for fitting only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from encoders.signals.model import Floats, SignalModel, Votes
from markets import sources
from markets.bars import Bars
from markets.errors import ConfigError, DataError, require
from markets.windows import window_mean

FEWEST = 100  # bars to fit on
SHORTEST, LONGEST = 24, 2000  # bars of the window of z
Z_BOUND = 10.0


@dataclass(eq=False)
class MeanReversion(SignalModel):
    """Engle-Granger spread of two prices; see the module.

    Attributes:
        companion: specification of the bars of x, where the bars that are traded hold y alone.
        level: p value below which two prices count as cointegrated.
        entry, full: |z| from which on it trades, and at which it trades all.
        window: length of the window of z in half-lives, kept between 24 and 2,000 bars.
        lags: most lags of the test, which chooses by BIC.
    """

    name: ClassVar[str] = "mean_reversion"
    described: ClassVar[tuple[tuple[str, str, str, str, str], ...]] = (
        ("direction", "-clip(z / 3, -1, 1) where |z| >= 1.5 and the pair is cointegrated; the other leg times -b",
         "exposure", "-1 .. 1", "4 half-lives, 24 .. 2,000"),
        ("confidence", "min(|z| / 3, 1) where the pair votes", "share", "0 .. 1", "4 half-lives, 24 .. 2,000"),
        ("z", "(spread - mean) / deviation of the spread ln y - a - b ln x", "deviations", "-10 .. 10",
         "4 half-lives, 24 .. 2,000"),
    )  # fmt: skip

    companion: str = ""
    level: float = 0.05
    entry: float = 1.5
    full: float = 3.0
    window: float = 4.0
    lags: int = 24

    def check(self) -> None:
        """Raise for a setting that cannot work."""
        if not 0.0 < self.level <= 1.0:
            raise ConfigError(f"level={self.level!r} must lie in (0, 1]")
        if not 0.0 < self.entry <= self.full:
            raise ConfigError(f"entry={self.entry!r}, full={self.full!r}: 0 < entry <= full is needed")
        if not self.window > 0.0 or not isinstance(self.lags, int) or self.lags < 0:
            raise ConfigError(f"window={self.window!r} must be positive and lags={self.lags!r} a whole number from 0")

    def learn(self, bars: Bars) -> dict[str, Any]:
        """Fit hedge ratio, test and half-life."""
        y, x, there = self._pair(bars)
        return engle_granger(y[there], x[there], self.lags)

    @property
    def look_back(self) -> int:
        """Bars of the window of z, less the present one."""
        return self._window - 1

    @property
    def _window(self) -> int:
        life = self._learned()["half_life"]
        return LONGEST if life is None else int(np.clip(round(self.window * life), SHORTEST, LONGEST))

    def votes(self, bars: Bars) -> Votes:
        """Compute direction, confidence and z of every bar."""
        learned = self._learned()
        y, x, there = self._pair(bars)
        spread = y - learned["intercept"] - learned["hedge_ratio"] * x
        mean = window_mean(spread, self._window)
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = window_mean(spread * spread, self._window) - mean * mean
            z = np.where(variance > 1e-18, (spread - mean) / np.sqrt(np.maximum(variance, 1e-18)), 0.0)
            trades = there & (np.abs(z) >= self.entry) & self._cointegrated
            leg = np.where(trades, -np.clip(z / self.full, -1.0, 1.0), 0.0)
            confidence = np.where(trades, np.minimum(np.abs(z) / (2.0 * self.entry), 1.0), 0.0)
        weights = np.zeros(len(bars.symbols))
        weights[0] = 1.0
        if len(weights) > 1:
            weights[1] = -learned["hedge_ratio"]
        weights = weights / np.abs(weights).max()
        return Votes(
            leg[:, None] * weights,
            confidence[:, None] * (weights != 0.0),
            {"z": (np.repeat(z[:, None], len(weights), axis=1), -Z_BOUND, Z_BOUND)},
        )

    @property
    def _cointegrated(self) -> bool:
        learned = self._learned()
        return bool(learned["p_value"] < self.level and learned["half_life"] is not None)

    def status(self) -> str:
        """Say that there is no pair, where there is none."""
        if self._cointegrated:
            return ""
        return (
            f"no cointegration in the training range (p = {self._learned()['p_value']:.4f}, level {self.level}): "
            "neutral with confidence 0"
        )

    def outside(self) -> str:
        """Identify the companion's bars."""
        return sources.load(self.companion).hash if self.companion else ""

    def check_fitted(self, data: bytes) -> None:
        """Raise where an entry is missing or of another kind."""
        for name in ("intercept", "hedge_ratio", "p_value"):
            self._part(name, float)
        self._part("half_life", (float, type(None)))

    def _pair(self, bars: Bars) -> tuple[Floats, Floats, Any]:
        """Return ln y, ln x and where both are known: ``(T,)`` each."""
        logs = np.log(bars.close)
        if self.companion:
            other = sources.load(self.companion)
            row = np.searchsorted(other.close_time, bars.close_time, side="right") - 1
            fresh = (row >= 0) & (bars.close_time - other.close_time[np.maximum(row, 0)] < bars.interval)
            return logs[:, 0], np.log(other.close[np.maximum(row, 0), 0]), fresh
        if len(bars.symbols) < 2:
            raise ConfigError(
                f"mean_reversion needs two prices, and these bars hold {bars.symbols[0]} alone: name the bars of the "
                "other one with companion=SPEC"
            )
        return logs[:, 0], logs[:, 1], np.ones(len(bars), bool)


def engle_granger(y: Floats, x: Floats, lags: int = 24) -> dict[str, Any]:
    """Test whether ``y - a - b x`` is stationary, ``(T,)`` each; returns a, b, statistic, p value and half-life.

    The half-life is in steps, and None where the spread does not revert; 0 where nothing of a deviation outlives one.

    Raises:
        DataError: fewer than 100 values, or one of the two is constant.
        MissingExtraError: statsmodels (extra ``models``) is not installed.
    """
    if len(y) < FEWEST:
        raise DataError(f"{len(y)} bars with both prices; a pair is fitted on at least {FEWEST}")
    if not np.std(x) > 0.0 or not np.std(y) > 0.0:
        raise DataError("a price of the pair is constant: there is no spread to fit")
    require("statsmodels", "models")
    from statsmodels.tsa.stattools import coint

    statistic, p_value, _ = coint(y, x, trend="c", maxlag=min(lags, len(y) // 4), autolag="bic")
    hedge = float(np.cov(x, y, ddof=0)[0, 1] / np.var(x))
    spread = y - hedge * x
    intercept = float(spread.mean())
    phi = autoregression(spread - intercept)
    life = None if phi >= 1.0 else 0.0 if phi <= 0.0 else float(np.log(0.5) / np.log(phi))
    return {
        "intercept": intercept, "hedge_ratio": hedge, "statistic": float(statistic), "p_value": float(p_value),
        "half_life": life, "bars": len(y),
    }  # fmt: skip


def autoregression(values: Floats) -> float:
    """Lag-one coefficient of ``(T,)`` values, least squares with intercept and Kendall's correction of its bias."""
    past, present = values[:-1] - values[:-1].mean(), values[1:] - values[1:].mean()
    phi = float(past @ present / (past @ past))
    return phi + (1.0 + 3.0 * phi) / len(past)
