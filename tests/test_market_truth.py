"""The acceptance bands of the synthetic market can fail: each is shown a market, or a measurement, that it must refuse.

The bands themselves are in ``test_synthetic.py`` (rows 1 to 8 are refused to geometric Brownian motion there).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_synthetic import DEFAULT, ROWS, SEED, autocorrelation, daily, excess_kurtosis, log_returns, market, spells

from markets.bars import Bars
from markets.synthetic import CryptoParameters, crypto

Floats = np.ndarray[Any, Any]


def thins_out(returns: Floats) -> bool:
    """Row 9: excess kurtosis of 48-bar sums is below that of bars."""
    sums = returns[: len(returns) // 48 * 48].reshape(-1, 48).sum(axis=1)
    return excess_kurtosis(sums) < excess_kurtosis(returns)


def test_row_9_refuses_moves_that_last_for_hours() -> None:
    random = np.random.default_rng(SEED)
    lasting = np.repeat(random.standard_t(4, ROWS // 48 + 1), 48)[:ROWS] + 3.0 * random.standard_normal(ROWS)
    assert thins_out(log_returns(market()))
    assert not thins_out(lasting)


def clusters_until_shuffled(returns: Floats, shuffled: Floats) -> bool:
    """Row 10: clustering is there, shuffling kills it, and the tails stay."""
    before, after = (autocorrelation(np.abs(values), 1) for values in (returns, shuffled))
    return before > 0.05 > abs(after) and np.isclose(excess_kurtosis(returns), excess_kurtosis(shuffled), rtol=1e-9)


def test_row_10_refuses_independent_returns_and_an_order_that_was_kept() -> None:
    random, returns = np.random.default_rng(SEED), log_returns(market())
    independent = random.standard_t(4, ROWS)
    assert clusters_until_shuffled(returns, random.permutation(returns))
    assert not clusters_until_shuffled(independent, random.permutation(independent))
    assert not clusters_until_shuffled(returns, np.roll(returns, 1_000))


def has_busy_hours(bars: Bars) -> bool:
    """Row 12: the busiest hour moves 1.4 to 2.6 times as much as the quietest."""
    mean = pd.Series(np.abs(log_returns(bars))).groupby(pd.DatetimeIndex(bars.time).hour).mean()
    return bool(1.4 <= mean.max() / mean.min() <= 2.6)


@pytest.mark.parametrize("factors", [(1.0,) * 24, (1.0,) * 12 + (4.0,) * 12], ids=["flat", "too steep"])
def test_row_12_refuses_a_flat_day_and_one_that_is_too_steep(factors: tuple[float, ...]) -> None:
    assert has_busy_hours(market())
    assert not has_busy_hours(crypto(SEED, "5m", ROWS, replace(DEFAULT, hour_factors=factors)))


@cache
def has_true_funding(parameters: CryptoParameters) -> bool:
    """Row 14: share exactly 1 bp 0.1 .. 0.6, negative 0.03 .. 0.25, daily autocorrelation above 0.5."""
    rates = crypto(SEED, "1h", 60_000, parameters).funding_rate[:, 0]
    exact, negative = np.mean(rates == 0.0001), np.mean(rates < 0)
    return bool(0.1 <= exact <= 0.6 and 0.03 <= negative <= 0.25 and autocorrelation(daily(rates), 1) > 0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"funding_scale": 1.01},
        {"premium_bps": tuple(value + 8.0 for value in DEFAULT.premium_bps)},
        {"premium_fast_days": 0.05, "premium_slow_days": 0.05, "premium_momentum": 0.0},
    ],
    ids=["no atom", "never negative", "no memory"],
)
def test_row_14_refuses_funding_without_its_atom_its_sign_or_its_memory(changes: dict[str, Any]) -> None:
    assert has_true_funding(DEFAULT)
    assert not has_true_funding(replace(DEFAULT, **changes))


def keeps_its_spells(parameters: CryptoParameters, requested: CryptoParameters) -> bool:
    """Row 16: shares and mean durations of the regimes over more than 500 spells, within 20 % of those requested."""
    labels = crypto(SEED, "1h", 60_000, parameters).labels
    assert labels is not None
    regime, length = spells(labels)
    assert len(regime) > 500
    shares = np.bincount(labels, minlength=4) / len(labels)
    hours = np.array([length[regime == k].mean() for k in range(4)])
    return bool(
        np.allclose(shares, requested.shares, rtol=0.2) and np.allclose(hours, requested.duration_hours, rtol=0.2)
    )


def test_row_16_refuses_spells_of_another_length() -> None:
    assert keeps_its_spells(DEFAULT, DEFAULT)
    assert not keeps_its_spells(replace(DEFAULT, duration_hours=(72.0, 48.0, 36.0, 14.0)), DEFAULT)
