"""The market with a known answer: the benchmark's numbers, an exact posterior, and laws outside its family."""

from __future__ import annotations

import itertools
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

import envs  # noqa: F401  registers the environments
from encoders.probes import scored_rows
from markets import synthetic_stress
from markets.errors import ConfigError, UnknownNameError
from markets.sources import load
from markets.synthetic_regimes import NAMES, RegimeMarket, posterior, regime_market, regimes, simulate
from markets.synthetic_stress import STRESSES, simulate_stress

Floats = NDArray[np.float64]

MARKET = regime_market()
# the published benchmark's returns of seed 1, 32,768 bars, level market, as it prints them
FIRST = [0.5651612459313, -0.9540373146011182, -0.0074286135387903185]
LAST = [-0.08706842902346423, -0.15710099920425916, -0.18285862300646186]
SHARES = [9909, 4443, 10598, 6767, 877, 174]  # bars of each regime


def log_returns(bars: Any) -> Floats:
    return np.asarray(100.0 * np.log(bars.close[:, 0] / bars.open[:, 0]))


# --- the benchmark's series -------------------------------------------------------------------------------------------


def test_returns_and_prices_of_seed_1_are_the_published_ones() -> None:
    returns, labels = simulate(1, 32_768, MARKET)
    np.testing.assert_allclose(returns[:3], FIRST, rtol=1e-12)
    np.testing.assert_allclose(returns[-3:], LAST, rtol=1e-12)
    bars = load("synthetic:regimes?seed=1")
    assert bars.close[-1, 0] == pytest.approx(612.3887379976568, rel=1e-12)
    np.testing.assert_allclose(log_returns(bars), returns, rtol=1e-9, atol=1e-9)
    assert np.array_equal(bars.labels, labels)
    assert np.bincount(labels).tolist() == SHARES


def test_variance_is_driven_by_the_observed_return_in_every_regime() -> None:
    """The shocks that the recursion implies, over all bars, have variance 1 and forget their size."""
    returns, labels = simulate(5, 60_000, MARKET)
    variance, before, shocks = MARKET.volatility**2, 0.0, np.empty(len(returns))
    floor = variance * (1 - 0.04 - 0.88)
    for t, (value, k) in enumerate(zip(returns, labels, strict=True)):
        shocks[t] = (value - MARKET.drift[k] - MARKET.autoregression[k] * before) / math.sqrt(variance[k])
        variance, before = floor + 0.04 * value**2 + 0.88 * variance, value
    assert np.var(shocks) == pytest.approx(1.0, abs=0.05)
    size = np.minimum(np.abs(shocks), 4.0)
    assert abs(np.corrcoef(size[1:], size[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(shocks[1:], shocks[:-1])[0, 1]) < 0.02


def test_the_chain_moves_as_its_matrix_says() -> None:
    labels = simulate(6, 400_000, MARKET)[1]
    moves = np.zeros((6, 6))
    np.add.at(moves, (labels[:-1], labels[1:]), 1)
    spells = moves.sum(axis=1) / (moves.sum(axis=1) - np.diag(moves))
    np.testing.assert_allclose(spells, [700, 500, 600, 600, 350, 100], rtol=0.25)
    np.testing.assert_allclose(np.bincount(labels) / len(labels), MARKET.stationary, atol=0.03)
    np.testing.assert_allclose(MARKET.stationary @ MARKET.transition, MARKET.stationary, rtol=1e-9)
    assert moves[3, 5] > 0 == moves[5, 3]  # a crash is never followed by a quiet market


def test_the_spectrum_is_that_of_the_chain() -> None:
    assert MARKET.spectrum(64).tolist() == pytest.approx(
        [0.88525269, 0.87820653, 0.86489069, 0.81980244, 0.51469847], abs=1e-8
    )
    np.testing.assert_allclose(MARKET.spectrum(128), MARKET.spectrum(64) ** 2, rtol=1e-9)


# --- the exact posterior ----------------------------------------------------------------------------------------------


def assert_exact(answer: Any) -> None:
    """Row t is the sum over every path of regimes up to t, from formulas written here: 3 regimes, 6 bars."""
    market = regime_market("clear", 3)
    returns = simulate(2, 6, market)[0]
    variance, before, weights = market.volatility**2, 0.0, np.empty((6, 3))
    floor = variance * (1 - 0.04 - 0.88)
    for t, value in enumerate(returns):
        for k, nu in enumerate(market.dof):
            z = (value - market.drift[k] - market.autoregression[k] * before) / math.sqrt(variance[k])
            normal = math.gamma((nu + 1) / 2) / math.gamma(nu / 2) / math.sqrt((nu - 2) * math.pi * variance[k])
            weights[t, k] = normal * (1 + z * z / (nu - 2)) ** (-(nu + 1) / 2)
        variance, before = floor + 0.04 * value**2 + 0.88 * variance, value
    found = answer(returns, market)
    for last in range(6):
        total = np.zeros(3)
        for path in itertools.product(range(3), repeat=last + 1):
            chance = market.stationary[path[0]] * weights[0, path[0]]
            for t in range(1, last + 1):
                chance *= market.transition[path[t - 1], path[t]] * weights[t, path[t]]
            total[path[-1]] += chance
        np.testing.assert_allclose(found[last], total / total.sum(), rtol=1e-10)


def test_the_posterior_is_the_sum_over_every_path() -> None:
    assert_exact(posterior)


@pytest.mark.parametrize(
    "fault",
    [
        lambda returns, market: posterior(np.append(returns[1:], 0.0), market),
        lambda returns, market: posterior(returns, regime_market("market", 3)),
        lambda returns, market: posterior(returns / 100, market),
    ],
    ids=["next return", "another market", "fractions"],
)
def test_the_enumeration_catches_another_posterior(fault: Any) -> None:
    with pytest.raises(AssertionError):
        assert_exact(fault)


def test_the_posterior_is_as_often_right_as_published_and_no_row_knows_the_future() -> None:
    """0.913 on the published test series; 0.921 with a standard error of 0.0024 over 20 others."""
    rows, right = scored_rows(32_768), []
    for seed in (101, 102, 103, 104):
        returns, labels = simulate(seed, 32_768, MARKET)
        odds = posterior(returns, MARKET)
        np.testing.assert_allclose(odds.sum(axis=1), 1.0, atol=1e-12)
        right.append(np.mean(odds.argmax(axis=1)[rows] == labels[rows]))
    assert np.mean(right) == pytest.approx(0.9132, abs=2e-4)
    other = returns[:3000].copy()
    other[2000:] *= -5.0
    assert np.array_equal(posterior(other, MARKET)[:2000], odds[:2000])


@pytest.mark.parametrize("level", ["market", "clear", "vol"])
def test_the_chance_it_gives_is_how_often_it_is_right(level: str) -> None:
    """Calibration, which no filter but the exact one keeps: mean confidence is the share of right answers."""
    market = regime_market(level)
    returns, labels = simulate(7, 30_000, market)
    odds = posterior(returns, market)
    assert odds.shape == (30_000, len(market.names))
    right = odds.argmax(axis=1) == market.merged[labels]
    assert odds.max(axis=1).mean() == pytest.approx(right.mean(), abs=0.015)


# --- as a source ------------------------------------------------------------------------------------------------------


def test_a_bar_opens_at_the_close_before_it_and_nothing_else_happens_in_it() -> None:
    bars = load("synthetic:regimes?seed=3&bars=500&interval=15m&start=2021-06-01")
    assert len(bars) == 500
    assert bars.time[0] == np.datetime64("2021-06-01")
    assert bars.interval == np.timedelta64(15, "m")
    assert bars.open[0, 0] == 100.0
    assert np.array_equal(bars.open[1:], bars.close[:-1])
    assert np.array_equal(bars.high, np.maximum(bars.open, bars.close))
    assert np.array_equal(bars.low, np.minimum(bars.open, bars.close))
    assert np.unique(bars.volume).tolist() == [1e6]
    assert len(bars.funding_time) == 0
    assert bars.label_names == NAMES
    assert bars.market == "regimes"


def test_the_source_names_the_same_bars_again() -> None:
    for text in ("synthetic:regimes?seed=3&bars=300&level=vol", "synthetic:regimes?seed=3&bars=300&stress=mix"):
        bars = load(text)
        assert load(bars.source).hash == bars.hash
        assert load(text.replace("seed=3", "seed=4")).hash != bars.hash
    assert "stress" not in load("synthetic:regimes?seed=3&bars=300").source


@pytest.mark.parametrize("count", [2, 4, 8, 18])
@pytest.mark.parametrize("stress", ["", "&stress=sv", "&stress=mix"])
def test_any_number_of_regimes_makes_a_market(count: int, stress: str) -> None:
    bars = load(f"synthetic:regimes?seed=1&bars=60000&regimes={count}{stress}")
    assert set(np.unique(bars.labels)) == set(range(count))
    assert len(bars.label_names) == count
    size = [float(np.abs(log_returns(bars)[bars.labels == k]).mean()) for k in range(count)]
    assert np.corrcoef(size, np.geomspace(0.2, 2.4, count))[0, 1] > 0.95


def test_the_level_vol_shows_four_regimes_and_adds_their_odds_up() -> None:
    bars = load("synthetic:regimes?seed=1&bars=20000&level=vol")
    assert bars.label_names == ("normal", "lowvol", "highvol", "crash")
    assert bars.labels is not None
    assert bars.labels.max() == 3


@pytest.mark.parametrize(
    ("query", "kind", "message"),
    [
        ("seed=-1", ConfigError, "seed='-1'"), ("seed=1.5", ConfigError, "seed='1.5'"),
        ("bars=1", ConfigError, "bars='1'"), ("bars=many", ConfigError, "bars='many'"),
        ("regimes=1", ConfigError, "regimes='1'"), ("regimes=65", ConfigError, "regimes=65"),
        ("interval=7m&bars=9", None, ""), ("interval=hourly", ConfigError, "interval='hourly'"),
        ("start=soon", ConfigError, "start='soon'"), ("level=markt", UnknownNameError, "Did you mean 'market'"),
        ("stress=vs", UnknownNameError, "unknown stress 'vs'.*sv, mix"), ("stress=", UnknownNameError, "sv, mix"),
        ("sead=1", UnknownNameError, "Did you mean 'seed'"), ("separation=2", UnknownNameError, "synthetic:regimes"),
    ],
)  # fmt: skip
def test_an_impossible_option_is_rejected_by_name(query: str, kind: Any, message: str) -> None:
    if kind is None:
        assert len(load(f"synthetic:regimes?{query}")) == 9
        return
    with pytest.raises(kind, match=message):
        load(f"synthetic:regimes?{query}")


def test_arguments_of_the_function_are_checked_as_those_of_the_source() -> None:
    for wrong in ({"seed": -1}, {"seed": 0.5}, {"bars": 1}, {"bars": "9"}, {"regimes": 2.0}, {"regimes": 1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            regimes(**wrong)  # type: ignore[arg-type]


def test_an_environment_runs_on_it_and_shows_the_label_in_info_only() -> None:
    env = gym.make("PerpFutures-v0", bars="synthetic:regimes?seed=3&bars=8000")
    bars = load("synthetic:regimes?seed=3&bars=8000")
    observation, info = env.reset(seed=0)
    labels = [int(info["label"])]
    env.action_space.seed(0)
    for _ in range(300):
        observation, _, terminated, truncated, info = env.step(env.action_space.sample())
        labels.append(int(info["label"]))
        assert np.isfinite(observation).all()
        if terminated or truncated:
            break
    whole = bars.labels
    assert whole is not None
    assert any(np.array_equal(whole[t : t + len(labels)], labels) for t in range(len(whole) - len(labels)))
    assert len(labels) > 50
    unlabelled = gym.make("PerpFutures-v0", bars="synthetic:regimes?seed=3&bars=8000").reset(seed=0)[0]
    assert unlabelled.shape == env.observation_space.shape


# --- other laws -------------------------------------------------------------------------------------------------------


def implied(stress: str, seed: int = 1, bars: int = 60_000) -> tuple[Floats, NDArray[np.int64]]:
    """Shocks over each regime's volatility, without drift and autoregression; and the labels."""
    returns, labels = simulate_stress(seed, bars, MARKET, stress)
    before = np.append(0.0, returns[:-1])
    centred = returns - MARKET.drift[labels] - MARKET.autoregression[labels] * before
    return centred / MARKET.volatility[labels], labels


def test_hidden_volatility_is_as_described_and_returns_do_not_drive_it() -> None:
    """Variance 1; log size of deviation .38 beyond a Gaussian's 1.11, remembered with a half-life of 20 bars."""
    shocks, _ = implied("sv")
    assert np.var(shocks) == pytest.approx(1.0, abs=0.05)
    log_size = np.log(np.abs(shocks))
    assert np.std(log_size) == pytest.approx(math.sqrt(math.pi**2 / 8 + 0.38**2), rel=0.02)
    memory = [np.mean((log_size[lag:] - log_size.mean()) * (log_size[:-lag] - log_size.mean())) for lag in (1, 20)]
    assert memory[0] == pytest.approx(0.38**2 * 0.5 ** (1 / 20), rel=0.15)
    assert memory[1] == pytest.approx(0.38**2 * 0.5, rel=0.25)
    gaussian = shocks / np.abs(shocks).mean()
    assert 3.5 < np.mean(gaussian**4) / np.mean(gaussian**2) ** 2 < 7.0  # 3 exp(4 x .38^2) = 5.3


def test_the_check_of_hidden_volatility_catches_the_family_itself() -> None:
    """Twin: in the family, size is remembered through the observed return, with another memory and other tails."""
    returns, labels = simulate(1, 60_000, MARKET)
    before = np.append(0.0, returns[:-1])
    shocks = (returns - MARKET.drift[labels] - MARKET.autoregression[labels] * before) / MARKET.volatility[labels]
    log_size = np.log(np.abs(shocks))
    memory = np.mean((log_size[1:] - log_size.mean()) * (log_size[:-1] - log_size.mean()))
    assert memory != pytest.approx(0.38**2 * 0.5 ** (1 / 20), rel=0.15)


def test_sv_has_the_chain_of_the_market_and_mix_spells_that_are_less_uneven() -> None:
    """A geometric spell deviates by its own mean, a gamma spell of shape 3 by 0.58 of it."""
    spread = {}
    for stress in STRESSES:
        lengths: list[float] = []
        for seed in range(20):
            labels = simulate_stress(seed, 60_000, MARKET, stress)[1]
            ends = np.flatnonzero(np.diff(labels)) + 1
            mean = 1.0 / (1.0 - np.diag(MARKET.transition))
            lengths += (np.diff(ends) / mean[labels[ends[:-1]]]).tolist()
        assert np.mean(lengths) == pytest.approx(1.0, abs=0.1)
        spread[stress] = float(np.std(lengths))
    assert spread["sv"] == pytest.approx(1.0, abs=0.12)
    assert spread["mix"] == pytest.approx(3.0**-0.5, abs=0.08)


def test_mix_jumps_down_cycles_and_remembers_two_bars() -> None:
    returns, labels = simulate_stress(2, 200_000, MARKET, "mix")
    quiet = np.flatnonzero(labels == NAMES.index("sideways"))
    quiet = quiet[(quiet > 30) & (labels[quiet - 20] == labels[quiet])]  # clear of a switch
    here = returns[quiet]
    # what jumps take from the mean, after the echo of two autoregressive terms: 6 standard errors
    assert np.mean(here) == pytest.approx(-0.03 * 0.45 / (1 + 0.25 - 0.125), abs=0.006)
    phase = quiet % 24
    busy, calm = (np.abs(here[phase == hour]).mean() for hour in (6, 18))
    assert busy / calm == pytest.approx(1.3 / 0.7, rel=0.15)
    design = np.column_stack([returns[quiet - 1], returns[quiet - 2], np.ones(len(quiet))])
    first, second, _ = np.linalg.lstsq(design, here, rcond=None)[0]
    assert first == pytest.approx(-0.25, abs=0.03)
    assert second == pytest.approx(0.125, abs=0.03)


def test_a_switch_takes_16_bars_and_the_label_changes_in_its_middle() -> None:
    weight = synthetic_stress._blended(np.repeat([0, 1], [50, 50]), 2)
    assert weight[49].tolist() == [1.0, 0.0]
    assert weight[57].tolist() == [0.5, 0.5]
    assert weight[50:66, 1].tolist() == [(bar + 1) / 16 for bar in range(16)]
    assert weight[65].tolist() == [0.0, 1.0]
    assert int(weight.argmax(axis=1).argmax()) == 58


@pytest.mark.parametrize("stress", STRESSES)
def test_a_longer_series_begins_with_the_shorter_one(stress: str) -> None:
    long, labels = simulate_stress(4, 3000, MARKET, stress)
    for bars in (2, 15, 1000):
        returns, short = simulate_stress(4, bars, MARKET, stress)
        assert np.array_equal(returns, long[:bars])
        assert np.array_equal(short, labels[:bars])
    assert not np.array_equal(simulate_stress(5, 3000, MARKET, stress)[0], long)


def test_an_unknown_law_and_a_market_of_no_level_are_answered_with_what_exists() -> None:
    with pytest.raises(UnknownNameError, match="sv, mix"):
        simulate_stress(0, 100, MARKET, "garch")
    with pytest.raises(UnknownNameError, match="market, clear, vol"):
        regime_market("none")
    assert isinstance(regime_market("clear", 64), RegimeMarket)
