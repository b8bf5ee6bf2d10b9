"""References: rows that every table of encoders shows beside them, so that a score means something.

Features without training (:data:`FEATURES`) and small models fitted on training returns (:func:`references`): moving
averages that any encoder must beat, the exact oracle that none can, and a constant that shows what a score gives away.
All causal: row t knows returns 0..t, and the first rows are over what there is. Returns are percent a bar, ``(T,)``.

Sources: B. Horvath, Z. Issa and A. Muguruza (2021), "Clustering Market Regimes using the Wasserstein Distance" (in one
dimension the distance of two windows is that of their quantile functions); F. Corsi (2009) for log volatilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from encoders.probes import scored_rows
from encoders.reference_models import GaussianHMM, JumpModel
from markets.errors import DataError
from markets.synthetic_regimes import RegimeMarket, posterior

Floats = NDArray[np.float64]
Embed = Callable[[Floats], Floats]

WINDOWS, HALF_LIVES = (16, 64, 256), (8, 32, 128)  # bars
LEAST = 4  # bars in a window before it says anything, or a quarter of it
TINY = 1e-6  # percent: keeps a still market finite
HORIZON = 64  # bars that the ridge forecasts
PENALTY = 10.0  # of the ridge, on standardised columns
FURTHEST = 8.0  # deviations at which its columns are cut
QUANTILES = 16
CHUNK = 4096  # windows sorted at a time
STEP = 8  # bars between the points of the jump model
JUMP_PENALTY = 10.0


@dataclass(frozen=True)
class Reference:
    """One row: ``embed`` maps ``(T,)`` returns to ``(T, D)``.

    Attributes:
        odds: the columns are odds of regimes (or a one-hot state), whose largest is the cluster: no k-means needed.
        whiten: standardise before k-means; False where distances mean something as they are.
    """

    name: str
    embed: Embed
    odds: bool = False
    whiten: bool = True


def rolling_moments(returns: Floats, windows: Sequence[int] = WINDOWS) -> Floats:
    """Return scaled mean and log deviation of the last ``windows`` bars: ``(T, 2 * windows)``."""
    columns = []
    for window in windows:
        mean, deviation = _moments(pd.Series(returns), window)
        columns += [mean * np.sqrt(window) / deviation, np.log(deviation)]
    return _table(columns)


def rolling_shape(returns: Floats, windows: Sequence[int] = WINDOWS) -> Floats:
    """Return six statistics a window: :func:`rolling_moments`, lag-1 autocorrelation, log mean size, log extremes."""
    series = pd.Series(returns)
    lagged = series * series.shift(1)
    columns = []
    for window in windows:
        least = max(LEAST, window // 4)
        mean, deviation = _moments(series, window)
        size = series.abs().rolling(window, min_periods=least).mean()
        rise = series.rolling(window, min_periods=least).max().clip(lower=1e-3)
        fall = (-series.rolling(window, min_periods=least).min()).clip(lower=1e-3)
        columns += [
            mean * np.sqrt(window) / deviation,
            np.log(deviation),
            lagged.rolling(window, min_periods=least).mean() / deviation**2,
            np.log(size / deviation + TINY),
            np.log(rise / deviation),
            np.log(fall / deviation),
        ]
    return _table(columns)


def exponential_moments(returns: Floats, half_lives: Sequence[int] = HALF_LIVES) -> Floats:
    """Return scaled mean, log downside deviation and log deviation under exponential weights: three a half-life."""
    series = pd.Series(returns)
    columns = []
    for half_life in half_lives:
        mean = series.ewm(halflife=half_life).mean()
        down = np.sqrt((series.clip(upper=0.0) ** 2).ewm(halflife=half_life).mean()) + TINY
        both = np.sqrt((series**2).ewm(halflife=half_life).mean()) + TINY
        columns += [mean / both * np.sqrt(half_life), np.log(down), np.log(both)]
    return _table(columns)


def hand_features(returns: Floats) -> Floats:
    """Return 27 columns: :func:`rolling_shape` (18) and :func:`exponential_moments` (9)."""
    return np.column_stack([rolling_shape(returns), exponential_moments(returns)])


def wasserstein(returns: Floats, window: int = 64, quantiles: int = QUANTILES) -> Floats:
    """Return quantiles of the last ``window`` returns: ``(T, quantiles)``; before the first bar stands its return."""
    padded = np.concatenate([np.full(window - 1, returns[0]), returns])
    places = ((np.arange(quantiles) + 0.5) / quantiles * window).astype(int)
    out = np.empty((len(returns), quantiles))
    views = sliding_window_view(padded, window)
    for first in range(0, len(returns), CHUNK):
        out[first : first + CHUNK] = np.sort(views[first : first + CHUNK], axis=1)[:, places]
    return out


def constant(returns: Floats) -> Floats:
    """Return one column of ones: what a score gives for nothing."""
    return np.ones((len(returns), 1))


def future_statistics(returns: Floats, horizon: int = HORIZON) -> Floats:
    """Return log deviation, twice drift and twice lag-1 autocorrelation, in deviations, of bars t+1 .. t+horizon.

    ``(T, 3)``, NaN in the last ``horizon`` rows: the future, for training targets only.
    """
    series = pd.Series(returns)
    deviation = series.rolling(horizon).std().shift(-horizon) + 1e-3
    drift = series.rolling(horizon).mean().shift(-horizon) / deviation
    memory = (series * series.shift(1)).rolling(horizon).mean().shift(-horizon) / deviation**2
    return np.column_stack([np.log(deviation), 2.0 * drift, 2.0 * memory])


class RidgeForecast:
    """Forecast of :func:`future_statistics` from the 27 hand features, in closed form and without labels."""

    def __init__(self, series: Sequence[Floats]) -> None:
        """Fit on scored rows of S series; raises ``DataError`` where none has its future inside the series."""
        columns, targets = [], []
        for returns in series:
            rows = scored_rows(len(returns))
            columns.append(hand_features(returns)[rows])
            targets.append(future_statistics(returns)[rows])
        given, target = np.concatenate(columns), np.concatenate(targets)
        self._mean, self._deviation = given.mean(axis=0), given.std(axis=0) + 1e-9
        known = np.isfinite(target).all(axis=1)
        if not known.any():
            raise DataError(f"no scored row has {HORIZON} bars after it: the series are too short")
        scaled = self._scaled(given)[known]
        normal = scaled.T @ scaled + PENALTY * np.eye(scaled.shape[1])
        self._weights = np.linalg.solve(normal, scaled.T @ target[known])

    def __call__(self, returns: Floats) -> Floats:
        """Return the forecast after each bar: ``(T, 3)``."""
        # not a matrix product: its last bits depend on how many rows there are
        return np.asarray(np.einsum("td,dk->tk", self._scaled(hand_features(returns)), self._weights))

    def _scaled(self, columns: Floats) -> Floats:
        cut = np.clip((columns - self._mean) / self._deviation, -FURTHEST, FURTHEST)
        return np.column_stack([cut, np.ones(len(cut))])


FEATURES = (
    Reference("constant", constant),
    Reference("rolling 64 mean and volatility", lambda returns: rolling_moments(returns, (64,))),
    Reference("27 hand features", hand_features),
    Reference("wasserstein 64", wasserstein, whiten=False),
)


def oracle(market: RegimeMarket) -> Reference:
    """Return the exact posterior of a market under its true parameters: the ceiling of every causal method."""
    return Reference("oracle", lambda returns: posterior(returns, market), odds=True)


def ridge(series: Sequence[Floats], regimes: int, seed: int) -> Reference:
    """Return the ridge forecast; neither regimes nor seed matter to it."""
    return Reference("ridge forecast of the next 64 bars", RidgeForecast(series))


def hidden_markov(series: Sequence[Floats], regimes: int, seed: int) -> Reference:
    """Return a Gaussian hidden Markov model of the returns."""
    model = GaussianHMM([_column(one) for one in series], regimes, seed)
    return Reference("Gaussian HMM on returns", lambda returns: model.filter(_column(returns)), odds=True)


def slow_hidden_markov(series: Sequence[Floats], regimes: int, seed: int) -> Reference:
    """Return the same of a running mean and volatility, on every fourth bar."""
    model = GaussianHMM([_fast_and_slow(one)[::4] for one in series], regimes, seed)
    return Reference(
        "Gaussian HMM on running mean and volatility",
        lambda returns: _held(model.filter(_fast_and_slow(returns)[::4]), 4, len(returns)),
        odds=True,
    )


def jump_model(series: Sequence[Floats], regimes: int, seed: int) -> Reference:
    """Return a jump model of running means and volatilities, on every eighth bar."""
    model = JumpModel([_jump_rows(one)[::STEP] for one in series], regimes, JUMP_PENALTY, seed)
    return Reference(
        "jump model", lambda returns: _held(model.states(_jump_rows(returns)[::STEP]), STEP, len(returns)), odds=True
    )


FITTED = (ridge, hidden_markov, slow_hidden_markov, jump_model)  # references that are fitted on training returns


def references(
    series: Sequence[Floats], regimes: int, seed: int = 0, market: RegimeMarket | None = None
) -> list[Reference]:
    """Fit the references that need fitting on S training series and return every row, the oracle first if it exists.

    Args:
        regimes: states of the hidden Markov and the jump model.
        market: whose returns these are, None where there is no exact answer.
    """
    fitted = [fit(series, regimes, seed) for fit in FITTED]
    return [*([oracle(market)] if market is not None else []), *FEATURES, *fitted]


def _column(returns: Floats) -> Floats:
    return np.asarray(returns, np.float64).reshape(-1, 1)


def _fast_and_slow(returns: Floats) -> Floats:
    """Return a scaled mean over half-life 32 and a log deviation over 16: ``(T, 2)``."""
    return np.column_stack([exponential_moments(returns, (32,))[:, 0], exponential_moments(returns, (16,))[:, 2]])


def _jump_rows(returns: Floats) -> Floats:
    return exponential_moments(returns, (16, 64))


def _held(rows: Floats, step: int, bars: int) -> Floats:
    """Return rows made on bars 0, step, 2 step, ... as a row a bar, each held until the next."""
    return np.repeat(rows, step, axis=0)[:bars]


def _moments(series: pd.Series[float], window: int) -> tuple[pd.Series[float], pd.Series[float]]:
    least = max(LEAST, window // 4)
    rolled = series.rolling(window, min_periods=least)
    return rolled.mean(), rolled.std() + TINY


def _table(columns: Sequence[pd.Series[float]]) -> Floats:
    """Return the columns side by side; a statistic that is not known yet is 0."""
    return np.nan_to_num(np.column_stack([column.to_numpy() for column in columns]))
