"""Scores of an equity curve: pure functions, numpy only. How sure they are: :mod:`agents.bootstrap`.

Letters: T bars, ``equity (T+1,)`` float64 in account currency at each bar's close with ``equity[0]`` the start,
``returns (T,)`` simple returns per bar, N runs. ``periods_per_year`` is the stated annualisation: how many bars the
market's calendar has in a year (8760 for hourly bars of a market open at all hours), given by the caller.

Three conventions hold for every score and keep it finite:

- *Ruin is final.* The curve is ``v_t = E_t / E_0``; from the first bar with ``v_t <= 1e-6`` it stays at 1e-6, the floor
  that the log reward uses. A debt therefore counts as ruin, not as a loss of more than everything.
- *A ratio to nothing is 0.* A ratio whose denominator is within rounding of zero (an idle account, a single bar, a
  curve without one loss) is 0.0: undefined, neither an infinite score nor NaN. Read ``total_return`` beside it.
- *A yearly rate is capped* at a log growth of 100 (a factor e^100) before it leaves the logarithm.

Sources: Sharpe, J. Portfolio Management 21 (1994); Sortino & Price, J. Investing 3 (1994); Young, Futures 20 (1991);
Martin & McCann, The Investor's Guide to Fidelity Funds (1989); Politis & Romano, JASA 89 (1994); Agarwal et al.,
NeurIPS 34 (2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from markets.errors import ConfigError

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Evaluator = Callable[[Integers, Integers], Array]  # (starts, sizes) of blocks, both (draws, blocks) -> (draws,)

RUIN = 1e-6  # fraction of the start
RESOLUTION = 1e-14  # of a simple return: what rounding of the curve can produce by itself
LARGEST_LOG_GROWTH = 100.0  # nats a year
LARGEST_RETURN = 1e50  # of one bar; more is a broken curve
TAIL = 20  # the worst 1 in 20 bars: 5 %
CHUNK = 2**20  # resampled bars in memory at once


def simple_returns(equity: npt.ArrayLike) -> Array:
    """Return of each bar, ``r_t = v_{t+1} / v_t - 1`` on the floored curve; (T+1,) -> (T,), fraction.

    Raises:
        ConfigError: fewer than two values, one not finite, a start that is not positive, a bar above 1e50.
    """
    curve = growth_curve(equity)
    return curve[1:] / curve[:-1] - 1.0


def total_return(equity: npt.ArrayLike) -> float:
    """Gain of the whole curve, ``v_T - 1``; fraction, no annualisation; ruin is -0.999999."""
    return float(growth_curve(equity)[-1] - 1.0)


def log_growth_per_year(equity: npt.ArrayLike, periods_per_year: float) -> float:
    """Log growth at the rate of the curve, ``ln(v_T) * periods_per_year / T``; nats a year.

    ``periods_per_year`` is the number of bars in the calendar's year. Raises ConfigError where it is not positive.
    """
    curve = growth_curve(equity)
    return math.log(curve[-1]) * positive("periods_per_year", periods_per_year) / (len(curve) - 1)


def annual_return(equity: npt.ArrayLike, periods_per_year: float) -> float:
    """Geometric return a year, ``v_T^(periods_per_year / T) - 1``; fraction, capped at e^100 - 1.

    ``periods_per_year`` is the number of bars in the calendar's year. A few bars extrapolate wildly: compare short
    curves by log growth.
    """
    return math.expm1(min(log_growth_per_year(equity, periods_per_year), LARGEST_LOG_GROWTH))


def annual_volatility(equity: npt.ArrayLike, periods_per_year: float) -> float:
    """Spread of simple returns, ``std(r, ddof=1) * sqrt(periods_per_year)``; fraction a year, 0 for one bar.

    ``periods_per_year`` is the number of bars in the calendar's year; bars are taken as uncorrelated.
    """
    return _spread(simple_returns(equity)) * math.sqrt(positive("periods_per_year", periods_per_year))


def sharpe(equity: npt.ArrayLike, periods_per_year: float) -> float:
    """Sharpe ratio, ``mean(r) / std(r, ddof=1) * sqrt(periods_per_year)``, risk-free rate zero.

    ``periods_per_year`` is the number of bars in the calendar's year. An idle account, one bar or a constant return
    have no spread and score 0.0, so that what never traded and what cannot be judged do not win a ranking.
    """
    returns = simple_returns(equity)
    return _ratio(returns.mean(), _spread(returns)) * math.sqrt(positive("periods_per_year", periods_per_year))


def sortino(equity: npt.ArrayLike, periods_per_year: float) -> float:
    """Sortino ratio, ``mean(r) / sqrt(mean(min(r, 0)^2)) * sqrt(periods_per_year)``, target zero.

    ``periods_per_year`` is the number of bars in the calendar's year. The downside is averaged over all T bars
    (Sortino & Price), not over the losing ones; a curve without a losing bar scores 0.0.
    """
    returns = simple_returns(equity)
    downside = math.sqrt(np.mean(np.minimum(returns, 0.0) ** 2))
    return _ratio(returns.mean(), downside) * math.sqrt(positive("periods_per_year", periods_per_year))


def max_drawdown(equity: npt.ArrayLike) -> float:
    """Deepest fall from a peak, ``max_t (1 - v_t / max_{s<=t} v_s)``; positive fraction of the peak."""
    return float(_drawdowns(equity).max())


def calmar(equity: npt.ArrayLike, periods_per_year: float) -> float:
    """Return a year per deepest fall, ``annual_return / max_drawdown``; 0.0 for a curve that never fell.

    ``periods_per_year`` is the number of bars in the calendar's year. Over the whole curve, not Young's 36 months.
    """
    return _ratio(annual_return(equity, periods_per_year), max_drawdown(equity))


def ulcer_index(equity: npt.ArrayLike) -> float:
    """Depth and length of falls in one, ``sqrt(mean_{t=1..T} drawdown_t^2)``; fraction (the source uses percent)."""
    return math.sqrt(np.mean(_drawdowns(equity)[1:] ** 2))


def longest_drawdown_bars(equity: npt.ArrayLike) -> int:
    """Longest run of consecutive bars that close below the highest close so far; bars, an unhealed run included."""
    fallen = _drawdowns(equity)
    bars = np.arange(len(fallen))
    return int((bars - np.maximum.accumulate(np.where(fallen > 0.0, 0, bars))).max())


def hit_rate(equity: npt.ArrayLike) -> float:
    """Share of gaining bars among bars that moved, ``#(r > 0) / #(r != 0)``; 0.0 if none moved."""
    returns = simple_returns(equity)
    moved = int(np.count_nonzero(returns))
    return int(np.count_nonzero(returns > 0.0)) / moved if moved else 0.0


def skewness(equity: npt.ArrayLike) -> float:
    """Asymmetry of returns, ``m_3 / m_2^1.5`` with central population moments; 0.0 without spread."""
    return float(np.mean(_standardised(equity) ** 3))


def excess_kurtosis(equity: npt.ArrayLike) -> float:
    """Tail weight of returns beyond the normal, ``m_4 / m_2^2 - 3`` with population moments; 0.0 without spread."""
    scores = _standardised(equity)
    return float(np.mean(scores**4) - 3.0) if scores.any() else 0.0


def value_at_risk(equity: npt.ArrayLike) -> float:
    """Loss of the k-th worst bar, ``-r_(k)`` with ``k = ceil(T / 20)`` (5 %); fraction, negative if even that gained.

    An order statistic, not an interpolated quantile, so that it never exceeds the expected shortfall.
    """
    return float(-_worst(equity).max())


def expected_shortfall(equity: npt.ArrayLike) -> float:
    """Mean loss of the k worst bars, ``-mean(r_(1..k))`` with ``k = ceil(T / 20)`` (5 %); fraction per bar."""
    return float(-_worst(equity).mean())


def summary(equity: npt.ArrayLike, periods_per_year: float) -> dict[str, float]:
    """Every score above by name, each finite for every valid curve; units as stated there.

    ``periods_per_year`` is the number of bars in the calendar's year.

    Raises:
        ConfigError: fewer than two values, one not finite, a start or an annualisation that is not positive.
    """
    yearly = (annual_return, log_growth_per_year, annual_volatility, sharpe, sortino, calmar)
    plain = (total_return, max_drawdown, ulcer_index, longest_drawdown_bars, hit_rate, skewness, excess_kurtosis)
    tails = (value_at_risk, expected_shortfall)
    scores = {score.__name__: float(score(equity, periods_per_year)) for score in yearly}
    return scores | {score.__name__: float(score(equity)) for score in plain + tails}


def growth_curve(equity: npt.ArrayLike) -> Array:
    """Return equity over its start, (T,) -> (T,): :data:`RUIN` from the first value on that is at or below it.

    Raises:
        ConfigError: as :func:`simple_returns`.
    """
    values = vector("equity", equity, least=2)
    if values[0] <= 0.0:
        raise ConfigError(f"equity[0]={values[0]!r} must be positive")
    with np.errstate(over="ignore", invalid="ignore"):
        curve = np.where(np.minimum.accumulate(values / values[0]) > RUIN, values / values[0], RUIN)
        wild = np.flatnonzero(~(curve[1:] / curve[:-1] < LARGEST_RETURN))
    if len(wild):
        raise ConfigError(f"equity[{wild[0] + 1}]={values[wild[0] + 1]!r} is over 1e50 times the bar before")
    return curve


def _drawdowns(equity: npt.ArrayLike) -> Array:
    curve = growth_curve(equity)
    return 1.0 - curve / np.maximum.accumulate(curve)


def _spread(returns: Array, ddof: int = 1) -> float:
    spread = float(returns.std(ddof=ddof)) if len(returns) > 1 else 0.0
    return spread if spread > RESOLUTION * (1.0 + np.abs(returns).max()) else 0.0


def _standardised(equity: npt.ArrayLike) -> Array:
    returns = simple_returns(equity)
    spread = _spread(returns, ddof=0)
    return (returns - returns.mean()) / spread if spread else np.zeros_like(returns)


def _worst(equity: npt.ArrayLike) -> Array:
    returns = simple_returns(equity)
    return np.sort(returns)[: -(-len(returns) // TAIL)]


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > RESOLUTION else 0.0


def vector(name: str, values: npt.ArrayLike, least: int = 1) -> Array:
    """Return ``values`` as a finite float64 vector of at least ``least`` numbers, or say which one is not."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}={values!r} must be numbers in one dimension") from error
    if array.ndim != 1 or len(array) < least:
        raise ConfigError(f"{name} has shape {array.shape}, expected one dimension of at least {least}")
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise ConfigError(f"{name}[{wrong[0]}]={array[wrong[0]]} is not finite")
    return array


def positive(name: str, value: float) -> float:
    """Return ``value`` where it is positive and finite, or say what it is."""
    if not (math.isfinite(value) and value > 0.0):
        raise ConfigError(f"{name}={value!r} must be positive and finite")
    return float(value)
