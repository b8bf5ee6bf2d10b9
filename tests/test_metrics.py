"""Scores against hand-computed values, curves that end badly, and intervals that must cover what they claim."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from agents import bootstrap, metrics
from markets.errors import ConfigError, UnknownNameError

CURVE = np.array([100.0, 110.0, 99.0, 99.0, 118.8])  # returns 0.1, -0.1, 0, 0.2
YEAR = 4.0  # bars a year, so that the curve lasts one year
SERIES, BARS, DRAWS = 200, 1000, 300  # of a coverage test

HAND = {
    "total_return": 0.188,
    "annual_return": 0.188,
    "log_growth_per_year": math.log(1.188),
    "annual_volatility": 2.0 * math.sqrt(0.05 / 3.0),  # deviations .05, -.15, -.05, .15 from the mean .05
    "sharpe": 0.05 / math.sqrt(0.05 / 3.0) * 2.0,
    "sortino": 0.05 / math.sqrt(0.01 / 4.0) * 2.0,
    "calmar": 0.188 / 0.1,
    "max_drawdown": 0.1,
    "ulcer_index": math.sqrt(0.02 / 4.0),
    "longest_drawdown_bars": 2.0,
    "hit_rate": 2.0 / 3.0,
    "skewness": 0.0,
    "excess_kurtosis": (2 * 0.05**4 + 2 * 0.15**4) / 4.0 / 0.0125**2 - 3.0,
    "value_at_risk": 0.1,
    "expected_shortfall": 0.1,
}


# ---- one curve -------------------------------------------------------------------------------------------------


def test_summary_holds_every_score_and_equals_the_hand_computed_values() -> None:
    scores = metrics.summary(CURVE, YEAR)
    assert set(scores) == set(HAND)
    assert scores == pytest.approx(HAND, rel=1e-12, abs=1e-12)
    assert all(type(value) is float for value in scores.values())


def test_yearly_scores_scale_with_the_stated_number_of_bars_a_year() -> None:
    assert metrics.annual_return(CURVE, 2 * YEAR) == pytest.approx(1.188**2 - 1.0)
    assert metrics.log_growth_per_year(CURVE, 2 * YEAR) == pytest.approx(2 * math.log(1.188))
    for score in (metrics.annual_volatility, metrics.sharpe, metrics.sortino):
        assert score(CURVE, 4 * YEAR) == pytest.approx(2.0 * score(CURVE, YEAR))


def test_scores_do_not_depend_on_the_currency_of_the_account() -> None:
    assert metrics.summary(CURVE * 1e-9, YEAR) == pytest.approx(metrics.summary(CURVE * 1e9, YEAR), abs=1e-12)


def test_tail_losses_are_of_the_worst_twentieth_of_the_bars_rounded_up() -> None:
    returns = np.zeros(41)
    returns[[3, 17, 30, 8]] = [-0.1, -0.2, -0.3, -0.05]  # ceil(41 / 20) = 3 worst bars
    equity = np.cumprod(np.append(1.0, 1.0 + returns))
    assert metrics.value_at_risk(equity) == pytest.approx(0.1)
    assert metrics.expected_shortfall(equity) == pytest.approx(0.2)
    assert metrics.value_at_risk(equity[:-1]) == pytest.approx(0.2)  # 40 bars: the 2 worst


def test_skewness_and_kurtosis_of_one_jump_in_five_bars_equal_the_two_point_formula() -> None:
    equity = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 2.0])  # a Bernoulli of p = 1/5
    p, q = 0.2, 0.8
    assert metrics.skewness(equity) == pytest.approx((q - p) / math.sqrt(p * q))
    assert metrics.excess_kurtosis(equity) == pytest.approx((1.0 - 6.0 * p * q) / (p * q))


def test_longest_drawdown_counts_bars_below_the_peak_and_an_unhealed_end() -> None:
    assert metrics.longest_drawdown_bars([1, 2, 1, 2, 1, 1, 2, 3]) == 2
    assert metrics.longest_drawdown_bars([5, 4, 4.5, 4, 3]) == 4
    assert metrics.longest_drawdown_bars([1, 2, 3]) == 0


@pytest.mark.parametrize(
    "equity",
    [
        [7.0, 7.0, 7.0, 7.0],
        [1.0, 1.0],
        [1.0, 1.01],
        [1.0, 0.0],
        [1.0, 2.0, 0.0, 0.0, 0.0],
        [1.0, 0.5, 1e-6],
        [1.0, 0.5, -0.3, 4.0],
        [1.0, 1e9, 1e-9],
        [5e-324, 5e-324, 5e-324],
        1.001 ** np.arange(500.0),
        0.999 ** np.arange(500.0),
        1.5 ** np.arange(1500.0),
    ],
    ids=[
        "idle",
        "one idle bar",
        "one gain",
        "one ruin",
        "ruin held",
        "ruin floor",
        "debt and revival",
        "huge bars",
        "subnormal start",
        "steady gain",
        "steady loss",
        "runaway",
    ],
)
@pytest.mark.parametrize("periods_per_year", [1.0, 8760.0, 525_600.0])
def test_every_score_is_finite_on_degenerate_curves(equity: list[float], periods_per_year: float) -> None:
    scores = metrics.summary(equity, periods_per_year)
    assert all(math.isfinite(value) for value in scores.values()), scores
    assert 0.0 <= scores["max_drawdown"] <= 1.0
    assert scores["expected_shortfall"] >= scores["value_at_risk"] - 1e-12


def test_idle_account_scores_zero_everywhere() -> None:
    assert set(metrics.summary(np.full(100, 1e4), 8760.0).values()) == {0.0}


def test_constant_growth_has_no_spread_and_therefore_no_ratio() -> None:
    scores = metrics.summary(1.001 ** np.arange(1000.0), 8760.0)
    assert [scores[name] for name in ("sharpe", "sortino", "calmar", "annual_volatility", "skewness")] == [0.0] * 5
    assert scores["total_return"] == pytest.approx(1.001**999 - 1.0)


def test_ruin_is_final_even_where_the_curve_revives_or_owes() -> None:
    dead = metrics.summary([1.0, 0.5, 0.0, 0.0], 1.0)
    assert dead == metrics.summary([1.0, 0.5, -0.3, 4.0], 1.0) == metrics.summary([1.0, 0.5, 1e-6, 1e-7], 1.0)
    assert dead["total_return"] == pytest.approx(-1.0 + 1e-6)
    assert dead["log_growth_per_year"] == pytest.approx(math.log(1e-6) / 3.0)
    assert dead["sharpe"] < 0.0


@pytest.mark.parametrize(
    ("equity", "names"),
    [
        ([], "equity"),
        ([1.0], "equity"),
        ([[1.0, 2.0]], "equity"),
        (["a", "b"], "equity"),
        ([1.0, math.nan], r"equity\[1\]=nan"),
        ([1.0, 2.0, math.inf], r"equity\[2\]=inf"),
        ([0.0, 1.0], r"equity\[0\]"),
        ([-1.0, 1.0], r"equity\[0\]"),
        ([1.0, 1e60], r"equity\[1\]"),
        ([1e-300, 1e300], r"equity\[1\]"),
    ],
)
def test_broken_curve_is_named_with_its_row(equity: list[float], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        metrics.summary(equity, 8760.0)


@pytest.mark.parametrize("periods_per_year", [0.0, -1.0, math.nan, math.inf])
def test_annualisation_must_be_positive(periods_per_year: float) -> None:
    with pytest.raises(ConfigError, match="periods_per_year"):
        metrics.summary(CURVE, periods_per_year)


# ---- the stationary bootstrap ----------------------------------------------------------------------------------


def test_blocks_have_geometric_lengths_wrap_around_and_draw_every_bar_alike() -> None:
    rows = bootstrap.stationary_bootstrap_indices(50, 5.0, 4000, np.random.default_rng(3))
    assert rows.shape == (4000, 50)
    assert rows.min() == 0
    assert rows.max() == 49
    follows = (np.diff(rows, axis=1) % 50) == 1
    assert follows.mean() == pytest.approx(0.8 + 0.2 / 50, abs=0.005)  # a new block may follow by chance
    wraps = rows[:, :-1] == 49
    assert (rows[:, 1:][wraps] == 0).mean() == pytest.approx(0.8 + 0.2 / 50, abs=0.02)
    assert np.bincount(rows.ravel()) / rows.size == pytest.approx(np.full(50, 0.02), abs=0.002)


def test_block_length_one_is_the_independent_bootstrap() -> None:
    rows = bootstrap.stationary_bootstrap_indices(40, 1.0, 4000, np.random.default_rng(3))
    assert ((np.diff(rows, axis=1) % 40) == 1).mean() == pytest.approx(1 / 40, abs=0.003)


@pytest.mark.parametrize("mean_block", [1.0, 7.5, 60.0])
@pytest.mark.parametrize(
    ("name", "by_bar"),
    [
        ("mean", lambda paths: paths.mean(axis=1)),
        ("sharpe", lambda paths: paths.mean(axis=1) / paths.std(axis=1, ddof=1)),
        ("log_growth", lambda paths: np.log1p(paths).sum(axis=1)),
        ("max_drawdown", lambda paths: [metrics.max_drawdown(np.cumprod([1.0, *(1.0 + path)])) for path in paths]),
    ],
)
def test_sums_over_blocks_equal_the_statistic_of_the_resampled_bars(
    name: str, by_bar: Callable[[metrics.Array], metrics.Array], mean_block: float
) -> None:
    returns = 0.01 * np.random.default_rng(1).standard_t(4, 300) + 0.001
    fast = bootstrap.bootstrap_statistic(returns, name, mean_block=mean_block, draws=200, seed=5)
    slow = bootstrap.bootstrap_statistic(returns, by_bar, mean_block=mean_block, draws=200, seed=5)
    assert fast == pytest.approx(slow, rel=1e-9, abs=1e-12)


def test_same_seed_gives_the_same_interval_and_another_seed_a_near_one() -> None:
    returns = 0.01 * np.random.default_rng(2).standard_normal(500)
    low, high = bootstrap.confidence_interval(returns, mean_block=10.0, seed=4)
    assert (low, high) == bootstrap.confidence_interval(returns, mean_block=10.0, seed=4)
    other = bootstrap.confidence_interval(returns, mean_block=10.0, seed=5)
    assert other != (low, high)
    assert other == pytest.approx((low, high), abs=0.15 * (high - low))


def test_interval_widens_with_the_level_and_sharpe_scales_with_the_year() -> None:
    returns = 0.01 * np.random.default_rng(2).standard_normal(500)
    narrow = bootstrap.confidence_interval(returns, mean_block=10.0, level=0.5)
    wide = bootstrap.confidence_interval(returns, mean_block=10.0, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    yearly = bootstrap.confidence_interval(returns, mean_block=10.0, level=0.5, periods_per_year=8760.0)
    assert yearly == pytest.approx(tuple(math.sqrt(8760.0) * end for end in narrow))


def test_idle_returns_have_the_interval_zero_for_every_statistic() -> None:
    for name in bootstrap.STATISTICS:
        assert bootstrap.confidence_interval(np.zeros(100), name, mean_block=5.0, draws=50) == (0.0, 0.0)


def test_resamples_without_spread_have_no_sharpe() -> None:
    assert bootstrap.confidence_interval(np.full(100, 0.001), mean_block=5.0, draws=50) == (0.0, 0.0)
    values = bootstrap.bootstrap_statistic(np.append(np.zeros(99), 0.01), mean_block=5.0, draws=500)
    assert 0.25 < (values == 0.0).mean() < 0.75  # about 1/e of the resamples miss the one bar that moved, or more
    assert values.max() < 1.0


def test_ruined_returns_have_finite_intervals() -> None:
    returns = metrics.simple_returns([1.0, 1.1, 1.2, 0.0, 0.0, 0.0, 0.0, 0.0])
    for name in bootstrap.STATISTICS:
        assert np.isfinite(bootstrap.confidence_interval(returns, name, mean_block=2.0, draws=500)).all()
        assert np.isfinite(bootstrap.confidence_interval([0.0, -1.0, -1.0, 0.1], name, mean_block=2.0)).all()


def coverage(persistence: float, mean_block: float) -> float:
    """Share of AR(1) series with mean 0 whose 95 % interval of the mean contains 0."""
    print("seed 11")
    noise = np.random.default_rng(11).standard_normal((BARS + 200, SERIES)) * 0.001
    for row in range(1, len(noise)):
        noise[row] += persistence * noise[row - 1]
    hits = 0
    for seed, returns in enumerate(noise[200:].T):
        low, high = bootstrap.confidence_interval(returns, "mean", mean_block=mean_block, draws=DRAWS, seed=seed)
        hits += low <= 0.0 <= high
    return hits / SERIES


def test_interval_of_the_mean_covers_the_truth_of_independent_returns() -> None:
    assert 0.90 <= coverage(0.0, 10.0) <= 0.99


def test_interval_of_the_mean_covers_the_truth_of_autocorrelated_returns() -> None:
    assert 0.90 <= coverage(0.6, 25.0) <= 0.99


def test_mutant_that_resamples_single_bars_misses_the_truth_of_autocorrelated_returns() -> None:
    assert coverage(0.6, 1.0) < 0.80


def test_paired_difference_cancels_the_market_that_both_series_share() -> None:
    generator = np.random.default_rng(6)
    market, edge = 0.01 * generator.standard_normal(2000), 0.0005 + 0.001 * generator.standard_normal(2000)
    low, high = bootstrap.paired_difference_interval(market + edge, market, "mean", mean_block=20.0)
    alone = bootstrap.confidence_interval(market + edge, "mean", mean_block=20.0)
    assert 0.0 < low < 0.0005 < high
    assert high - low < 0.2 * (alone[1] - alone[0])
    assert bootstrap.paired_difference_interval(market, market, mean_block=20.0) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"returns": []}, "returns"),
        ({"returns": [0.1, math.nan, 0.1, 0.1]}, r"returns\[1\]=nan"),
        ({"returns": [0.1, 0.1, -1.5, 0.1]}, r"returns\[2\]=-1.5"),
        ({"mean_block": 0.5}, "mean_block=0.5"),
        ({"mean_block": math.nan}, "mean_block=nan"),
        ({"mean_block": 51.0}, "mean_block=51.0 .* 100 bars"),
        ({"draws": 0}, "draws=0"),
        ({"draws": 10.5}, "draws=10.5"),
        ({"level": 95}, "level=95"),
        ({"seed": -1}, "seed=-1"),
        ({"periods_per_year": 0.0}, "periods_per_year=0.0"),
    ],
)
def test_bootstrap_refuses_what_it_cannot_answer(changes: dict[str, object], names: str) -> None:
    arguments: dict[str, object] = {"returns": np.full(100, 0.01), "mean_block": 5.0} | changes
    with pytest.raises(ConfigError, match=names):
        bootstrap.confidence_interval(**arguments)  # type: ignore[arg-type]


def test_unknown_statistic_suggests_the_nearest_and_unequal_pairs_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'sharpe'"):
        bootstrap.confidence_interval(np.zeros(100), "sharp", mean_block=5.0)
    with pytest.raises(ConfigError, match=r"\[100, 99\]"):
        bootstrap.paired_difference_interval(np.zeros(100), np.zeros(99), mean_block=5.0)
    with pytest.raises(ConfigError, match=r"statistic returned shape \(\)"):
        bootstrap.confidence_interval(np.zeros(100), np.mean, mean_block=5.0)


# ---- runs and costs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5.0], 5.0),
        ([1.0, 2.0, 6.0], 3.0),  # nothing to cut below 4 runs
        ([100.0, 1.0, 2.0, -50.0], 1.5),
        ([1.0, 2.0, 3.0, 4.0, 100.0], 3.0),
        ([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -7.0], 3.5),
        ([0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0], 31.0 / 5.0),  # floor(7 / 4) = 1 at each end
    ],
)
def test_interquartile_mean_equals_the_hand_value(values: list[float], expected: float) -> None:
    assert bootstrap.interquartile_mean(values) == pytest.approx(expected)


def test_interquartile_mean_interval_is_reproducible_and_ignores_one_wild_run() -> None:
    runs = np.append(np.random.default_rng(8).normal(1.0, 0.1, 31), 1000.0)
    low, high = bootstrap.interquartile_mean_interval(runs, seed=2)
    assert (low, high) == bootstrap.interquartile_mean_interval(runs, seed=2)
    assert 0.9 < low < bootstrap.interquartile_mean(runs) < high < 1.1
    assert bootstrap.run_interval(runs, "mean")[1] > 30.0
    assert bootstrap.run_interval(runs, "median")[1] < 1.1
    assert bootstrap.interquartile_mean_interval([3.0] * 5) == (3.0, 3.0)


def test_run_interval_refuses_unknown_aggregates_and_missing_runs() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'median'"):
        bootstrap.run_interval([1.0, 2.0], "medain")
    for values in ([], [1.0, math.nan]):
        with pytest.raises(ConfigError, match="values"):
            bootstrap.interquartile_mean_interval(values)


@pytest.mark.parametrize(
    ("growths", "expected"),
    [
        ([0.6, 0.4, 0.2, -0.4], 3.0),  # a straight line 0.6 - 0.2 * scale
        ([0.1, -0.1, 0.3, 0.5], 0.5),  # the first zero counts
        ([0.4, 0.3, 0.0, -0.9], 2.0),
        ([0.6, 0.5, 0.4, 0.1], math.inf),
        ([-0.1, 0.2, 0.3, 0.4], 0.0),
        ([0.0, 0.0, 0.0, 0.0], 0.0),
    ],
)
def test_break_even_cost_is_the_first_zero_of_the_measured_line(growths: list[float], expected: float) -> None:
    assert bootstrap.break_even_cost_scale([0.0, 1.0, 2.0, 5.0], growths) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scales", "growths"),
    [
        ([0.0], [1.0]),
        ([0.0, 1.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0], [0.1, 0.0]),
        ([0.0, 1.0, 1.0], [0.1, 0.0, 0.0]),
        ([0.0, 1.0], [math.nan, 0.0]),
    ],
)
def test_break_even_cost_refuses_scales_that_do_not_begin_at_zero_and_rise(
    scales: list[float], growths: list[float]
) -> None:
    with pytest.raises(ConfigError, match=r"scales|growths"):
        bootstrap.break_even_cost_scale(scales, growths)
