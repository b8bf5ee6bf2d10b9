"""The belief filter: exact odds, the same from a table and from a stream, blind to the future; and how it is trained.

The filter and its training are compared with sums over every path of a chain short enough to write them all down.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.belief import BeliefConfig, BeliefFilter, BeliefParameters, running_means
from encoders.belief_training import BeliefTraining, Smoothed, fit_belief, smooth
from encoders.odds import describe, log_likelihood
from markets.errors import ArtefactError, ConfigError, DataError
from markets.synthetic_regimes import posterior, regime_market, simulate

Floats = NDArray[np.float64]
Table = Callable[[Floats], Floats]

SEED = 11
QUICK = BeliefTraining(iterations=25, moves=0, last=0)


def hand_made(regimes: int = 3) -> BeliefParameters:
    """A filter that nobody fitted, every number of it different, its regimes out of order."""
    rng = np.random.default_rng(SEED)
    chain = rng.dirichlet(np.ones(regimes), regimes) * 0.1 + 0.9 * np.eye(regimes)
    return BeliefParameters(
        base=np.array([1.5, 0.1, 0.5, 0.8])[:regimes],
        location=np.array([-0.1, 0.05, 0.02, 0.0])[:regimes],
        autoregression=np.array([0.1, -0.3, 0.05, 0.2])[:regimes],
        dof=np.array([4.0, 6.5, 5.0, 3.0])[:regimes],
        bank=rng.uniform(0.02, 0.1, (regimes, 3)),
        decay=0.5 ** (1.0 / np.array([2.0, 6.0, 20.0])),
        transition=chain,
        variance=0.7,
    )


def some_returns(bars: int = 400) -> Floats:
    return np.random.default_rng(SEED + 1).standard_t(4, bars) * 0.6


@cache
def two_regimes() -> tuple[Floats, NDArray[np.int64], BeliefParameters, Smoothed, tuple[float, ...]]:
    """A quiet and a wild regime, and the filter found in them: returns, labels, filter, smoothed, progress."""
    returns, labels = simulate(SEED, 4000, regime_market("market", 2))
    seen: list[float] = []
    config, training = BeliefConfig(regimes=2), replace(QUICK, iterations=40)
    parameters, smoothed = fit_belief([returns], config, training, lambda step, total, value: seen.append(value))
    return returns, labels, parameters, smoothed, tuple(seen)


# --- what is served ---------------------------------------------------------------------------------------------------


def density(p: BeliefParameters, returns: Floats) -> Floats:
    """p(r_t | regime, past), written as the formula of the module stands: ``(T, K)``."""
    out = np.empty((len(returns), len(p)))
    for k in range(len(p)):
        means, before, nu = np.full(len(p.decay), p.variance), 0.0, p.dof[k]
        for t, value in enumerate(returns):
            variance = p.base[k] + float(p.bank[k] @ means)
            z = (value - p.location[k] - p.autoregression[k] * before) / math.sqrt(variance)
            normal = math.gamma((nu + 1) / 2) / math.gamma(nu / 2) / math.sqrt((nu - 2) * math.pi)
            out[t, k] = normal / math.sqrt(variance) * (1.0 + z * z / (nu - 2)) ** (-(nu + 1) / 2)
            means, before = p.decay * means + (1.0 - p.decay) * value**2, value
    return out


def enumerated(weights: Floats, chain: Floats, start: Floats) -> tuple[Floats, Floats, float]:
    """Posterior ``(T, K)``, expected moves ``(K, K)`` and likelihood, as sums over every path."""
    bars, count = weights.shape
    posterior_sum, moves, total = np.zeros((bars, count)), np.zeros((count, count)), 0.0
    for path in itertools.product(range(count), repeat=bars):
        chance = float(start[path[0]])
        for t, k in enumerate(path):
            chance *= (chain[path[t - 1], k] if t else 1.0) * weights[t, k]
        total += chance
        for t, k in enumerate(path):
            posterior_sum[t, k] += chance
            if t:
                moves[path[t - 1], k] += chance
    return posterior_sum / total, moves / total, total


def assert_exact(p: BeliefParameters, table: Table) -> None:
    """Row t is the last row of the posterior of every path over returns 0..t."""
    returns = some_returns(7)
    found, weights = table(returns), density(p, returns)
    for t in range(len(returns)):
        expected = enumerated(weights[: t + 1], p.transition, p.stationary)[0][-1]
        np.testing.assert_allclose(found[t], expected, rtol=1e-12)


def test_odds_are_the_sum_over_every_path() -> None:
    assert_exact(hand_made(), BeliefFilter(hand_made()).table)


def test_the_enumeration_catches_a_transposed_chain() -> None:
    p = hand_made()
    transposed = p.transition.T / p.transition.T.sum(axis=1, keepdims=True)
    with pytest.raises(AssertionError):
        assert_exact(p, BeliefFilter(replace(p, transition=transposed)).table)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dof", np.full(3, 2.0)), ("dof", np.full(2, 4.0)), ("base", np.array([1.0, -0.1, 2.0])),
        ("decay", np.full(3, 1.0)), ("bank", np.ones((3, 2))), ("variance", 0.0),
        ("transition", np.full((3, 3), 0.5)), ("transition", np.full((2, 2), 0.5)),
        ("transition", np.array([[1.5, -0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])),
    ],
)  # fmt: skip
def test_numbers_that_no_training_gives_are_refused(name: str, value: Any) -> None:
    """C08. A filter of them would serve odds all the same, or read beside its arrays."""
    p = hand_made()
    with pytest.raises(ArtefactError, match=name):
        replace(p, **{name: value})
    assert replace(p, **{name: getattr(p, name)}).ordered().volatility.tolist() == p.ordered().volatility.tolist()


def test_table_and_stream_are_equal_bit_for_bit() -> None:
    served, returns = BeliefFilter(hand_made()), some_returns()
    state = served.begin()
    streamed = np.array([served.update(state, float(value)).copy() for value in returns])
    assert np.array_equal(streamed, served.table(returns))


def test_a_stream_goes_on_from_a_copied_state() -> None:
    served, returns = BeliefFilter(hand_made()), some_returns()
    state = served.begin()
    for value in returns[:200]:
        served.update(state, float(value))
    resumed = state.copy()
    rest = np.array([served.update(resumed, float(value)).copy() for value in returns[200:]])
    assert np.array_equal(rest, served.table(returns)[200:])


def assert_blind(table: Table, cut: int = 250) -> None:
    """Rows up to ``cut - 1`` are the same bits under another future, and without one."""
    returns, other = some_returns(), some_returns()
    other[cut:] = -3.0 * other[cut:] + 1.0
    whole = table(returns)
    assert np.array_equal(whole[:cut], table(other)[:cut])
    assert np.array_equal(whole[:cut], table(returns[:cut]))
    assert not np.array_equal(whole[cut:], table(other)[cut:])


def test_no_row_knows_a_later_return() -> None:
    assert_blind(BeliefFilter(hand_made()).table)


@pytest.mark.parametrize("fault", ["sees the next return", "smooths", "starts at the mean square of the whole"])
def test_the_check_catches_a_filter_that_looks_ahead(fault: str) -> None:
    p = hand_made()

    def leaky(returns: Floats) -> Floats:
        if fault == "sees the next return":
            return BeliefFilter(p).table(np.append(returns[1:], 0.0))
        if fault == "smooths":
            return smooth(np.log(density(p, returns)), p.transition, np.zeros(1, np.int64)).posterior
        return BeliefFilter(replace(p, variance=float(np.mean(returns**2)))).table(returns)

    with pytest.raises(AssertionError):
        assert_blind(leaky)


@pytest.mark.parametrize("hostile", ["none", "a price 1e600 times lower", "a market that stands still"])
def test_odds_are_odds_whatever_the_returns(hostile: str) -> None:
    returns = some_returns(3000)
    if hostile != "none":
        returns[500:2500] = 0.0 if "still" in hostile else returns[500:2500]
        returns[1000] = -100.0 * 600.0 * math.log(10.0) if "price" in hostile else 0.0
    odds = BeliefFilter(hand_made()).table(returns)
    np.testing.assert_allclose(odds.sum(axis=1), 1.0, atol=1e-12)
    assert (odds >= 0.0).all()


@pytest.mark.parametrize("bars", [1, 2, 64])
def test_the_forecast_is_the_chain_taken_bar_by_bar(bars: int) -> None:
    p = hand_made()
    odds = BeliefFilter(p).table(some_returns(5))
    ahead = odds
    for _ in range(bars):
        ahead = np.array([[sum(row[j] * p.transition[j, k] for j in range(3)) for k in range(3)] for row in ahead])
    served = BeliefFilter(p).forecast(odds, bars)
    np.testing.assert_allclose(served, ahead, rtol=1e-12)
    np.testing.assert_allclose(served.sum(axis=1), 1.0)
    assert BeliefFilter(p).forecast(odds[0], bars).shape == (3,)


def test_far_ahead_the_forecast_is_the_long_run_share() -> None:
    p = hand_made()
    np.testing.assert_allclose(p.stationary @ p.transition, p.stationary, rtol=1e-10)
    np.testing.assert_allclose(BeliefFilter(p).forecast(np.array([1.0, 0.0, 0.0]), 100_000), p.stationary, rtol=1e-8)


def test_the_likelihood_is_the_sum_over_every_path() -> None:
    p, returns = hand_made(), some_returns(6)
    total = enumerated(density(p, returns), p.transition, p.stationary)[2]
    assert log_likelihood(p, returns) == pytest.approx(math.log(total) / 6, rel=1e-12)


def test_running_means_know_the_returns_before_the_bar_only() -> None:
    means = running_means(np.array([2.0, 0.0, 1.0]), np.array([0.5]), 1.0)
    assert means[:, 0].tolist() == [1.0, 2.5, 1.25]


def test_ordered_sorts_by_volatility_and_moves_every_number_with_its_regime() -> None:
    p = hand_made(4)
    q = p.ordered()
    assert (np.diff(p.volatility) < 0).any()
    assert (np.diff(q.volatility) > 0).all()
    order = [int(np.flatnonzero(p.base == base)[0]) for base in q.base]
    assert sorted(order) == [0, 1, 2, 3]
    returns = some_returns()
    np.testing.assert_allclose(BeliefFilter(q).table(returns), BeliefFilter(p).table(returns)[:, order], rtol=1e-9)
    assert log_likelihood(q, returns) == pytest.approx(log_likelihood(p, returns), rel=1e-12)


@pytest.mark.parametrize("name", ["base", "location", "autoregression", "dof", "bank", "transition"])
def test_the_order_check_catches_a_number_left_behind(name: str) -> None:
    p = hand_made(4)
    q = replace(p.ordered(), **{name: getattr(p, name)})
    assert log_likelihood(q, some_returns()) != pytest.approx(log_likelihood(p, some_returns()), rel=1e-12)


def test_arrays_rebuild_the_same_filter() -> None:
    p = hand_made()
    q = BeliefParameters.from_arrays(p.arrays())
    assert np.array_equal(BeliefFilter(q).table(some_returns()), BeliefFilter(p).table(some_returns()))
    lacking = {name: value for name, value in p.arrays().items() if name != "dof"}
    with pytest.raises((KeyError, TypeError), match="dof"):
        BeliefParameters.from_arrays(lacking)


def test_the_card_has_a_row_a_regime_in_natural_units() -> None:
    p = hand_made()
    rows = describe(p)
    assert [row["regime"] for row in rows] == [0, 1, 2]
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    assert rows[1]["mean_spell_bars"] == pytest.approx(1.0 / (1.0 - p.transition[1, 1]))
    assert rows[0]["volatility"] == pytest.approx(math.sqrt(1.5 / (1.0 - p.bank[0].sum())))


def test_a_return_that_is_not_finite_is_named_and_leaves_the_state_alone() -> None:
    served, returns = BeliefFilter(hand_made()), some_returns(10)
    returns[7] = np.nan
    with pytest.raises(DataError, match="row 7"):
        served.table(returns)
    with pytest.raises(DataError, match=r"\(5, 2\)"):
        served.table(np.zeros((5, 2)))
    state = served.begin()
    before = state.copy()
    for value in (math.nan, math.inf):
        with pytest.raises(DataError, match=str(value)):
            served.update(state, value)
    assert np.array_equal(state, before)


# --- training ---------------------------------------------------------------------------------------------------------


def assert_smooths(run: Callable[[Floats, Floats, NDArray[np.int64]], Smoothed]) -> None:
    """Two series of 6 and 4 bars, two regimes: posterior, moves and likelihood as sums over every path."""
    rng = np.random.default_rng(SEED)
    log_density, chain = rng.normal(-1.0, 2.0, (10, 2)), np.array([[0.8, 0.2], [0.35, 0.65]])
    found = run(log_density, chain, np.array([0, 6]))
    parts = [enumerated(np.exp(part), chain, np.full(2, 0.5)) for part in (log_density[:6], log_density[6:])]
    np.testing.assert_allclose(found.posterior, np.concatenate([part[0] for part in parts]), rtol=1e-12)
    np.testing.assert_allclose(found.moves, parts[0][1] + parts[1][1], rtol=1e-12)
    assert found.log_likelihood == pytest.approx(sum(math.log(part[2]) for part in parts) / 10, rel=1e-12)
    for first, t in ((0, 3), (6, 8)):  # what the bars before say of bar t
        before = enumerated(np.exp(log_density[first:t]), chain, np.full(2, 0.5))[0][-1]
        np.testing.assert_allclose(found.predictive[t], before @ chain, rtol=1e-12)


def test_forward_backward_is_the_sum_over_every_path_of_every_series() -> None:
    assert_smooths(smooth)


def test_the_enumeration_catches_a_backward_pass_over_the_transposed_chain_and_series_that_are_joined() -> None:
    with pytest.raises(AssertionError):
        assert_smooths(lambda density, chain, starts: smooth(density, np.ascontiguousarray(chain.T), starts))
    with pytest.raises(AssertionError):
        assert_smooths(lambda density, chain, starts: smooth(density, chain, starts[:1]))


def test_forward_backward_survives_densities_that_no_number_can_hold() -> None:
    log_density = np.array([[-1e5, -2e5], [-3.0, -2000.0], [4e3, 0.0]])
    found = smooth(log_density, np.array([[0.9, 0.1], [0.1, 0.9]]), np.zeros(1, np.int64))
    assert np.isfinite(found.posterior).all()
    np.testing.assert_allclose(found.posterior.sum(axis=1), 1.0)
    assert found.log_likelihood == pytest.approx((-1e5 - 3.0 + 4e3 + math.log(0.5 * 0.9 * 0.9)) / 3, rel=1e-9)


def test_training_raises_the_likelihood_and_tells_its_progress() -> None:
    returns, _, parameters, smoothed, seen = two_regimes()
    assert len(seen) == 40
    assert smoothed.log_likelihood > seen[-1] > seen[0] + 0.005
    assert log_likelihood(parameters, returns) == pytest.approx(smoothed.log_likelihood, abs=1e-3)


def test_a_planted_market_of_two_regimes_is_found() -> None:
    returns, labels, parameters, smoothed, _ = two_regimes()
    market = regime_market("market", 2)
    right = float(np.mean(BeliefFilter(parameters).table(returns).argmax(axis=1) == labels))
    assert right > np.mean(posterior(returns, market).argmax(axis=1) == labels) - 0.01
    assert right > 0.97
    assert np.mean(smoothed.posterior.argmax(axis=1) == labels) > 0.98
    np.testing.assert_allclose(parameters.volatility, market.volatility, rtol=0.35)


def test_the_same_seed_finds_the_same_filter_and_another_seed_starts_elsewhere() -> None:
    returns = two_regimes()[0][:1500]
    config = BeliefConfig(regimes=3)
    first, again, other = (
        fit_belief([returns], config, replace(QUICK, iterations=3, seed=seed))[0] for seed in (5, 5, 6)
    )
    assert all(np.array_equal(value, again.arrays()[name]) for name, value in first.arrays().items())
    assert not np.array_equal(first.base, other.base)


def test_moves_are_kept_only_where_the_likelihood_rises(caplog: pytest.LogCaptureFixture) -> None:
    returns = two_regimes()[0][:1500]
    config, training = BeliefConfig(regimes=3), replace(QUICK, iterations=8)
    plain = fit_belief([returns], config, training)[1].log_likelihood
    with caplog.at_level("DEBUG", "encoders.belief_training"):
        moved = fit_belief([returns], config, replace(training, moves=4, refit=6))[1].log_likelihood
    verdicts = [record.getMessage().split()[-1] for record in caplog.records]
    assert len(verdicts) == 4
    assert moved > plain if "kept" in verdicts else moved == pytest.approx(plain, rel=1e-12)


def test_several_series_are_not_joined_at_their_ends() -> None:
    returns = two_regimes()[0][:2000]
    config, training = BeliefConfig(regimes=2), replace(QUICK, iterations=2)
    both = fit_belief([returns, returns[::-1]], config, training)[1].log_likelihood
    swapped = fit_belief([returns[::-1], returns], config, training)[1].log_likelihood
    assert both == pytest.approx(swapped, rel=1e-9)


@pytest.mark.parametrize("cap", [0.5, 0.0])
def test_the_cap_is_the_total_weight_of_the_running_means(cap: float) -> None:
    returns = two_regimes()[0][:1500]
    free = fit_belief([returns], BeliefConfig(regimes=2), replace(QUICK, iterations=5))[0]
    held = fit_belief([returns], BeliefConfig(regimes=2, bank_cap=cap), replace(QUICK, iterations=5))[0]
    np.testing.assert_allclose(held.bank.sum(axis=1), cap, atol=1e-12)
    assert not np.allclose(free.bank.sum(axis=1), cap, atol=1e-3)


@pytest.mark.parametrize("floor", [1.0, 64.0, 2000.0])
def test_no_mean_spell_is_shorter_than_the_floor(floor: float) -> None:
    returns = some_returns(1500)  # without regimes: nothing holds a spell but the floor
    found = fit_belief([returns], BeliefConfig(regimes=3, dwell_floor=floor), replace(QUICK, iterations=10))[0]
    assert (1.0 / (1.0 - np.diag(found.transition)) >= floor * (1.0 - 1e-9)).all()
    np.testing.assert_allclose(found.transition.sum(axis=1), 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regimes": 1}, "regimes=1"), ({"regimes": 33}, "regimes=33"), ({"regimes": 2.0}, "regimes=2.0"),
        ({"regimes": True}, "regimes=True"), ({"half_lives": ()}, "half_lives"),
        ({"half_lives": (2.0, 0.0)}, "half_lives"),
        ({"half_lives": (math.inf,)}, "half_lives"), ({"dwell_floor": 0.5}, "dwell_floor=0.5"),
        ({"dwell_floor": math.nan}, "dwell_floor=nan"), ({"dwell_floor": math.inf}, "dwell_floor=inf"),
        ({"bank_cap": 1.0}, "bank_cap=1.0"), ({"bank_cap": -0.1}, "bank_cap=-0.1"),
        ({"bank_cap": math.nan}, "bank_cap=nan"),
    ],
)  # fmt: skip
def test_a_structure_that_cannot_work_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BeliefConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations=0"), ({"moves": -1}, "moves=-1"), ({"refit": 1.5}, "refit=1.5"),
        ({"last": -3}, "last=-3"), ({"seed": -1}, "seed=-1"), ({"rate": 0.0}, "rate=0.0"),
        ({"refit_rate": math.nan}, "refit_rate=nan"), ({"last_rate": math.inf}, "last_rate=inf"),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_work_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BeliefTraining(**settings)


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ([np.zeros(500)], "do not move"), ([some_returns(99)], "99 returns"), ([], "0 returns"),
        ([some_returns(), np.array([0.1, np.nan])], "series 1, row 1"), ([some_returns(), np.empty(0)], "series 1"),
        ([np.ones((300, 2))], r"series 0 has shape \(300, 2\)"),
    ],
)  # fmt: skip
def test_returns_that_cannot_be_fitted_are_refused(series: list[Floats], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_belief(series, BeliefConfig(regimes=2), QUICK)
