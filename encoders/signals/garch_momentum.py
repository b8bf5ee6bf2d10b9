"""Momentum in units of the volatility that GARCH(1,1) forecasts, and silence where that is extreme.

    h_(t+1) = omega + alpha (r_t - mu)^2 + beta h_t,    alpha + beta < 1
    score_t = sum of the last n log returns / sqrt(n h_(t+1))
    direction = clip(score / full, -1, 1) where |score| >= entry, else 0
    confidence = min(|score| / full, 1), and 0 where h_(t+1) lies above its ``calm`` quantile of the training range

omega, alpha, beta and mu by maximum likelihood (normal errors) on the training range. The recursion of a row starts
512 bars before it, at the unconditional variance ``omega / (1 - alpha - beta)``, so that a row depends on no earlier
bar; at beta = 0.95 the start weighs 4e-12. Stationarity is imposed: where the fit ends at
``alpha + beta >= 0.9999``, beta is cut to that sum and omega set to keep the sample variance, and the report says so.

Sources: Bollerslev, J. Econometrics 31 (1986); Moskowitz, Ooi & Pedersen, J. Financial Economics 104 (2012) for
momentum per volatility. Extra ``models`` (arch), for fitting only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from encoders.signals.model import Floats, SignalModel, Votes, log_returns
from markets.bars import Bars
from markets.errors import ConfigError, DataError, require
from markets.windows import lagged, window_sum

MEMORY = 512  # bars of the recursion
LARGEST_SUM = 0.9999  # of alpha + beta
PERCENT = 100.0  # the likelihood is well scaled for returns in percent
FEWEST = 500  # bars to fit on
VOLATILITY_BOUND = 50.0  # a year, as a fraction
NUMBERS = ("omega", "alpha", "beta", "mu", "variance", "ceiling")


@dataclass(eq=False)
class GarchMomentum(SignalModel):
    """GARCH(1,1) momentum; see the module.

    Attributes:
        bars: n, over which momentum is measured.
        entry, full: |score| from which on it votes, and at which it votes all.
        calm: quantile of the training range's volatility forecasts above which it is silent.
    """

    name: ClassVar[str] = "garch"
    described: ClassVar[tuple[tuple[str, str, str, str, str], ...]] = (
        ("direction", "clip(score / 2, -1, 1) where |score| >= 0.5, score = sum(r, 24) / sqrt(24 h_(t+1))", "exposure",
         "-1 .. 1", "512"),
        ("confidence", "min(|score| / 2, 1) where |score| >= 0.5, 0 where h lies above its 95 % quantile of training",
         "share", "0 .. 1", "512"),
        ("volatility", "sqrt(h_(t+1) bars a year), h by GARCH(1,1)", "annual volatility", "0 .. 50", "512"),
    )  # fmt: skip

    bars: int = 24
    entry: float = 0.5
    full: float = 2.0
    calm: float = 0.95

    def check(self) -> None:
        """Raise for a setting that cannot work."""
        if not isinstance(self.bars, int) or isinstance(self.bars, bool) or not 1 <= self.bars <= MEMORY:
            raise ConfigError(f"bars={self.bars!r} must be a whole number from 1 to {MEMORY}")
        if not 0.0 <= self.entry <= self.full or not self.full > 0.0:
            raise ConfigError(f"entry={self.entry!r}, full={self.full!r}: 0 <= entry <= full and full > 0 are needed")
        if not 0.0 < self.calm <= 1.0:
            raise ConfigError(f"calm={self.calm!r} must lie in (0, 1]")

    def learn(self, bars: Bars) -> dict[str, Any]:
        """Fit each asset."""
        assets = []
        for place in range(len(bars.symbols)):
            returns = log_returns(bars)[1:, place]
            found = fit_garch(returns)
            forecasts = variance_forecast(returns[:, None], [found])[min(MEMORY, len(returns) // 2) :, 0]
            assets.append({**found, "ceiling": float(np.quantile(forecasts, self.calm))})
        return {"assets": assets}

    @property
    def look_back(self) -> int:
        """Bars of the recursion, and the one that the first return comes from."""
        return MEMORY

    def votes(self, bars: Bars) -> Votes:
        """Compute direction, confidence and the forecast volatility (annual fraction) of every bar."""
        assets = self._learned()["assets"]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # hostile values behind the checks
            returns = log_returns(bars)
            ahead = variance_forecast(returns, assets)
            total = np.stack([window_sum(np.ascontiguousarray(column), self.bars) for column in returns.T], axis=1)
            score = total / np.sqrt(self.bars * ahead)
            speaks = (np.abs(score) >= self.entry) & (ahead <= [item["ceiling"] for item in assets])
            direction = np.where(speaks, np.clip(score / self.full, -1.0, 1.0), 0.0)
            confidence = np.where(speaks, np.minimum(np.abs(score) / self.full, 1.0), 0.0)
            volatility = np.sqrt(ahead * bars.periods_per_year)
        return Votes(direction, confidence, {"volatility": (volatility, 0.0, VOLATILITY_BOUND)})

    def check_fitted(self, data: bytes) -> None:
        """Raise where an asset's numbers are missing, not finite or not stationary."""
        assets = self._part("assets", list)
        if len(assets) != len(self.symbols):
            raise ConfigError(f"signal 'garch': {len(assets)} fits for {len(self.symbols)} assets")
        for item in assets:
            values = [item[name] for name in NUMBERS]
            if not all(isinstance(value, float) and np.isfinite(value) for value in values):
                raise ConfigError(f"signal 'garch': {dict(zip(NUMBERS, values, strict=True))} are no numbers")
            if item["omega"] <= 0.0 or not is_stationary(item["alpha"], item["beta"]):
                raise ConfigError(f"signal 'garch': alpha={item['alpha']}, beta={item['beta']} is not stationary")


def is_stationary(alpha: float, beta: float) -> bool:
    """Say whether alpha and beta are not negative, and their sum is below 1."""
    return alpha >= 0.0 and beta >= 0.0 and alpha + beta < 1.0


def fit_garch(returns: Floats) -> dict[str, Any]:
    """Fit GARCH(1,1) with a constant mean to ``(T,)`` log returns.

    Returns:
        omega, mu, variance in units of the returns; alpha, beta, ``intervals`` (95 %, of alpha and beta), persistence,
        whether beta was cut, and whether the optimiser converged.

    Raises:
        DataError: fewer than 500 returns, or constant ones.
        MissingExtraError: arch (extra ``models``) is not installed.
    """
    if len(returns) < FEWEST or not np.std(returns) > 0.0:
        raise DataError(f"{len(returns)} returns of deviation {np.std(returns):g}: GARCH needs {FEWEST} that vary")
    model = require("arch", "models").arch_model(
        PERCENT * returns, mean="Constant", vol="GARCH", p=1, q=1, dist="normal", rescale=False
    )
    result = model.fit(disp="off", show_warning=False)
    values, interval = result.params, result.conf_int()
    alpha, beta, omega = float(values["alpha[1]"]), float(values["beta[1]"]), float(values["omega"]) / PERCENT**2
    variance = float(np.var(returns))
    cut = alpha + beta >= LARGEST_SUM
    if cut:
        alpha = min(alpha, LARGEST_SUM)
        beta = LARGEST_SUM - alpha
        omega = variance * (1.0 - LARGEST_SUM)
    return {
        "omega": omega, "alpha": alpha, "beta": beta, "mu": float(values["mu"]) / PERCENT, "variance": variance,
        "persistence": alpha + beta, "cut": cut, "converged": bool(result.convergence_flag == 0),
        "intervals": {
            name: [float(interval.loc[f"{name}[1]", end]) for end in ("lower", "upper")] for name in ("alpha", "beta")
        },
        "bars": len(returns),
    }  # fmt: skip


def variance_forecast(returns: Floats, assets: list[dict[str, Any]]) -> Floats:
    """Return ``h_(t+1)`` for ``(T, A)`` returns, each row from its last 512 returns: ``(T, A)``."""
    out = np.empty_like(returns)
    for place, item in enumerate(assets):
        shocks = item["alpha"] * (returns[:, place] - item["mu"]) ** 2
        ahead = np.full(len(shocks), item["omega"] / (1.0 - item["alpha"] - item["beta"]))
        for back in range(MEMORY - 1, -1, -1):  # oldest first
            ahead = item["omega"] + (lagged(shocks, back) if back else shocks) + item["beta"] * ahead
        out[:, place] = ahead
    return out
