"""Deflated Sharpe ratio, length of a backtest, overfitting, coverage of the bootstrap: published numbers, oracles."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from agents import bootstrap
from agents.deflated_sharpe import (
    deflated_sharpe,
    expected_maximum,
    expected_maximum_sharpe,
    minimum_backtest_years,
    probabilistic_sharpe,
)
from agents.overfitting import blocks_for, probability_of_overfitting
from markets.errors import ConfigError

SEED = 20261127
DAYS = 250  # a year, in the worked example of the source


# The deflated Sharpe ratio


def example(trials: int = 100) -> tuple[float, float]:
    """SR0 and DSR of the source's example: annual SR 2.5 over 1,250 days, V = 1/2 a year, skewness -3, kurtosis 10."""
    deviation = math.sqrt(0.5 / DAYS)
    chance = expected_maximum_sharpe(trials, deviation)
    return chance, deflated_sharpe(2.5 / math.sqrt(DAYS), 1250, -3.0, 10.0, trials, deviation)


def test_the_published_example_is_reproduced() -> None:
    chance, deflated = example()
    assert round(chance, 4) == 0.1132
    assert round(deflated, 4) == 0.9004


def test_the_published_example_with_fewer_trials_passes_the_usual_level() -> None:
    """The source: with 46 trials instead of 100 the same record would have been significant at 95 %."""
    assert round(example(46)[1], 4) == 0.9505


@pytest.mark.parametrize(
    "change", [{"skewness": 3.0}, {"kurtosis": 13.0}, {"observations": 1249 * 4 + 1}, {"trials": 99}], ids=str
)
def test_another_input_does_not_give_the_published_number(change: dict[str, Any]) -> None:
    """Twin: what a wrong sign of the skewness, excess kurtosis read as kurtosis and the like would give."""
    inputs = {"sharpe": 2.5 / math.sqrt(DAYS), "observations": 1250, "skewness": -3.0, "kurtosis": 10.0, "trials": 100}
    assert round(deflated_sharpe(deviation=math.sqrt(0.5 / DAYS), **{**inputs, **change}), 4) != 0.9004


def test_the_expected_maximum_of_ten_trials_and_the_length_for_forty_five() -> None:
    assert round(expected_maximum(10), 2) == 1.57
    assert round(minimum_backtest_years(45), 1) == 5.0
    assert minimum_backtest_years(45, 2.0) == pytest.approx(minimum_backtest_years(45) / 4.0)
    assert expected_maximum(1) == 0.0
    assert minimum_backtest_years(1) == 0.0


@pytest.mark.parametrize("trials", [10, 45, 100, 1000])
def test_the_expected_maximum_is_that_of_drawn_numbers(trials: int) -> None:
    drawn = np.random.default_rng(SEED).standard_normal((4000, trials)).max(axis=1)
    assert expected_maximum(trials) == pytest.approx(drawn.mean(), abs=0.06)


def test_the_probability_says_how_often_a_record_without_skill_looks_better() -> None:
    """Under the null the probability is uniform: 5 % of skill-free records are above 95 %."""
    print(f"seed {SEED}")
    returns = np.random.default_rng(SEED).standard_t(6, (2000, 500))
    scores = (returns - returns.mean(axis=1, keepdims=True)) / returns.std(axis=1, keepdims=True)
    found = [
        probabilistic_sharpe(row.mean() / row.std(ddof=1), 500, float((z**3).mean()), float((z**4).mean()))
        for row, z in zip(returns, scores, strict=True)
    ]
    assert np.mean(np.array(found) > 0.95) == pytest.approx(0.05, abs=0.015)


def test_one_trial_is_judged_against_zero_and_more_trials_weigh_more() -> None:
    inputs = (0.1, 500, 0.0, 3.0)
    values = [deflated_sharpe(*inputs, trials, 0.03) for trials in (1, 2, 10, 100)]
    assert values[0] == probabilistic_sharpe(0.1, 500)
    assert values == sorted(values, reverse=True)
    assert values[0] - values[-1] > 0.1


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: expected_maximum(0), "trials=0"), (lambda: expected_maximum(True), "trials=True"),
        (lambda: probabilistic_sharpe(0.1, 1), "observations=1"),
        (lambda: probabilistic_sharpe(math.nan, 10), "sharpe=nan"),
        (lambda: probabilistic_sharpe(0.1, 10, 2.0, 3.0), r"kurtosis=3\.0 is below"),
        (lambda: expected_maximum_sharpe(3, -1.0), r"deviation=-1\.0"),
        (lambda: minimum_backtest_years(3, 0.0), r"sharpe=0\.0"),
        (lambda: probability_of_overfitting(np.zeros((50, 1))), r"shape \(50, 1\)"),
        (lambda: probability_of_overfitting(np.zeros((50, 3)), 5), "blocks=5"),
        (lambda: probability_of_overfitting(np.zeros((50, 3)), 4.0), "blocks=4.0"),  # type: ignore[arg-type]
        (lambda: probability_of_overfitting(np.zeros((20, 3)), 16), "blocks=16: 20 rows"),
        (lambda: probability_of_overfitting(np.full((50, 3), np.nan), 4), r"returns\[0, 0\]=nan"),
    ],
)  # fmt: skip
def test_bad_numbers_are_named(call: Callable[[], Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        call()


# Overfitting


def by_hand(returns: Any, blocks: int) -> float:
    """The source's recipe step by step, for tables without ties."""
    parts = np.array_split(returns, blocks)
    below = []
    for chosen in combinations(range(blocks), blocks // 2):
        inside = np.concatenate([parts[k] for k in chosen])
        outside = np.concatenate([parts[k] for k in range(blocks) if k not in chosen])
        best = int(np.argmax(inside.mean(axis=0) / inside.std(axis=0, ddof=1)))
        later = outside.mean(axis=0) / outside.std(axis=0, ddof=1)
        rank = int((later <= later[best]).sum())
        below.append(rank / (returns.shape[1] + 1) < 0.5)
    return float(np.mean(below))


@pytest.mark.parametrize("skill", [0.0, 0.05])
def test_the_probability_is_that_of_the_recipe_step_by_step(skill: float) -> None:
    returns = 0.01 * np.random.default_rng(SEED).standard_normal((240, 8)) + 0.003
    returns[:, 2] += 0.01 * skill
    assert probability_of_overfitting(returns, 8).probability == pytest.approx(by_hand(returns, 8), abs=1e-12)


def test_strategies_without_skill_are_overfitted_half_of_the_time() -> None:
    print(f"seed {SEED}")
    generator = np.random.default_rng(SEED)
    found = [probability_of_overfitting(generator.standard_normal((480, 40)), 10).probability for _ in range(50)]
    assert 0.4 <= np.mean(found) <= 0.6


def test_a_strategy_with_skill_is_not_overfitted_and_one_that_turns_is() -> None:
    returns = np.random.default_rng(SEED).standard_normal((480, 40))
    skilled, turning = returns.copy(), returns.copy()
    skilled[:, 7] += 0.5
    turning -= turning.mean(axis=0)  # what was earned in one half is lost in the other
    assert probability_of_overfitting(skilled, 10).probability == 0.0
    assert probability_of_overfitting(turning, 10).probability > 0.9


@pytest.mark.parametrize("count", [2, 3, 5])
def test_equal_strategies_give_one_half(count: int) -> None:
    """Ties and the median itself: the source counts a logit of zero as overfitted, and would say 1 here."""
    one = np.random.default_rng(SEED).standard_normal((100, 1))
    found = probability_of_overfitting(np.tile(one, count), 4)
    assert found.probability == pytest.approx(0.5)
    assert np.allclose(found.logits, 0.0)
    assert probability_of_overfitting(np.zeros((100, count)), 4).probability == pytest.approx(0.5)


@pytest.mark.parametrize(("rows", "blocks"), [(5, 0), (19, 0), (20, 2), (45, 4), (160, 16), (10_000, 16)])
def test_the_number_of_blocks_leaves_ten_rows_each(rows: int, blocks: int) -> None:
    assert blocks_for(rows) == blocks


# Coverage of the stationary bootstrap


def coverage(mean_block: float, runs: int = 1000, bars: int = 1000) -> float:
    """Share of AR(1) records, coefficient 0.3, whose 95 % interval holds the true Sharpe ratio."""
    slope, sharpe = 0.3, 0.05
    noise = np.random.default_rng(SEED).standard_normal((bars + 50, runs))
    for row in range(1, bars + 50):
        noise[row] += slope * noise[row - 1]
    returns = 0.01 * (sharpe + noise[50:] * math.sqrt(1.0 - slope**2))
    inside = 0
    for run in range(runs):
        low, high = bootstrap.confidence_interval(returns[:, run], mean_block=mean_block, draws=400, seed=run)
        inside += low <= sharpe <= high
    return inside / runs


def test_intervals_of_autocorrelated_returns_hold_the_truth_as_often_as_they_say() -> None:
    """1,000 bars in 50 blocks, and what an evaluation does with a quarter of hourly bars: 13 blocks of a week."""
    print(f"seed {SEED}")
    for mean_block, bars in ((20.0, 1000), (168.0, 2190)):
        found = coverage(mean_block, bars=bars)
        print(f"{bars} bars, blocks of {mean_block:g}: coverage {found:.3f} of nominal 0.95")
        assert abs(found - 0.95) <= 0.03


@pytest.mark.parametrize(("blocks", "expected"), [(13, 1.19), (78, 1.03), (1e6, 1.0)])
def test_intervals_from_few_blocks_are_wider(blocks: float, expected: float) -> None:
    assert bootstrap.widening(100_000, 100_000 / blocks) == pytest.approx(expected, abs=0.005)


def test_percentiles_that_are_not_widened_miss_the_truth_of_few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin."""
    monkeypatch.setattr(bootstrap, "WIDENED", ())
    assert coverage(168.0, bars=2190) < 0.92


def test_intervals_that_take_bars_as_independent_do_not() -> None:
    """Twin: such records with blocks of one bar, nearly."""
    assert coverage(1.2, 150) < 0.92
