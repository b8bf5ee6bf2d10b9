"""Sharpe ratios that know how often somebody looked: probabilistic, deflated, and the length a backtest needs.

Letters: T returns, SR a Sharpe ratio *per period* (no annualisation), N trials, Z the standard normal distribution,
g = 0.5772.. (Euler-Mascheroni). Skewness and kurtosis are those of the returns; kurtosis is 3 for a normal one.

Returns are taken as independent over time, as in the sources; of autocorrelated ones the probabilities are too sure,
which is what the interval of :mod:`agents.bootstrap` beside them is for. N counts trials as if they were independent;
near-copies of one strategy make it too strict.

Sources: Bailey & Lopez de Prado, "The Sharpe Ratio Efficient Frontier", J. Risk 15 (2012); Bailey & Lopez de Prado,
"The Deflated Sharpe Ratio", J. Portfolio Management 40 (2014); Bailey, Borwein, Lopez de Prado & Zhu,
"Pseudo-Mathematics and Financial Charlatanism", Notices of the AMS 61 (2014).
"""

from __future__ import annotations

import math
from statistics import NormalDist

from agents.metrics import positive
from markets.errors import ConfigError

EULER = 0.5772156649015329
_normal = NormalDist()


def probabilistic_sharpe(
    sharpe: float, observations: int, skewness: float = 0.0, kurtosis: float = 3.0, benchmark: float = 0.0
) -> float:
    """Probability that the true Sharpe ratio is above ``benchmark``; both per period, 0..1.

    ``Z[(SR - SR*) sqrt(T - 1) / sqrt(1 - skewness SR + (kurtosis - 1) / 4 SR^2)]`` (2012, equation 11).

    Raises:
        ConfigError: fewer than 2 observations, a number that is not finite, or moments no distribution has
            (kurtosis below 1 + skewness^2).
    """
    for name, value in (
        ("sharpe", sharpe), ("benchmark", benchmark), ("skewness", skewness), ("kurtosis", kurtosis),
    ):  # fmt: skip
        if not math.isfinite(value):
            raise ConfigError(f"{name}={value!r} must be finite")
    if observations < 2:
        raise ConfigError(f"observations={observations!r} must be at least 2")
    if kurtosis < (1.0 + skewness**2) * (1.0 - 1e-9):
        raise ConfigError(f"kurtosis={kurtosis!r} is below 1 + skewness^2 = {1.0 + skewness**2:.6g}; 3 is the normal's")
    # with kurtosis >= 1 + skewness^2 this is at least (1 - skewness SR / 2)^2, which is 0 for two-valued returns only
    variance = max(1.0 - skewness * sharpe + (kurtosis - 1.0) / 4.0 * sharpe**2, 1e-12)
    return _normal.cdf((sharpe - benchmark) * math.sqrt(observations - 1.0) / math.sqrt(variance))


def expected_maximum(trials: int) -> float:
    """Expected largest of N independent standard normal numbers: ``(1 - g) Z^-1[1 - 1/N] + g Z^-1[1 - 1/(N e)]``.

    An approximation for large N (2014, AMS, equation 4): 1.57 of 10 trials, where the exact value is 1.54. One trial
    has nothing to choose from and gives 0.

    Raises:
        ConfigError: ``trials`` is no whole number from 1.
    """
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise ConfigError(f"trials={trials!r} must be a whole number from 1")
    if trials == 1:
        return 0.0
    return (1.0 - EULER) * _normal.inv_cdf(1.0 - 1.0 / trials) + EULER * _normal.inv_cdf(1.0 - 1.0 / (trials * math.e))


def expected_maximum_sharpe(trials: int, deviation: float) -> float:
    """Sharpe ratio SR0 that the best of N trials without skill is expected to show: ``deviation * expected_maximum``.

    ``deviation`` is the standard deviation of the trials' Sharpe ratios, in the same unit as the result.
    """
    if not (math.isfinite(deviation) and deviation >= 0.0):
        raise ConfigError(f"deviation={deviation!r} must be finite and not negative")
    return deviation * expected_maximum(trials)


def deflated_sharpe(
    sharpe: float, observations: int, skewness: float, kurtosis: float, trials: int, deviation: float
) -> float:
    """Probability that a Sharpe ratio, the best of N trials, is above what luck alone shows: PSR with benchmark SR0.

    ``sharpe`` and ``deviation`` (over the trials) per period. With one trial it is ``probabilistic_sharpe`` against 0.
    """
    benchmark = expected_maximum_sharpe(trials, deviation)
    return probabilistic_sharpe(sharpe, observations, skewness, kurtosis, benchmark)


def minimum_backtest_years(trials: int, sharpe: float = 1.0) -> float:
    """Years of backtest below which N trials without skill are expected to show an annual ``sharpe`` in sample.

    ``(expected_maximum(N) / sharpe)^2`` (2014, AMS, theorem 3): 45 trials reach a Sharpe ratio of 1 within 5 years.
    """
    return (expected_maximum(trials) / positive("sharpe", sharpe)) ** 2
