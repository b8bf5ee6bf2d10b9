"""Synthetic SPY sessions show the measured facts, keep the calendar, are reproducible and tell no session its own end.

Bands are those of the acceptance table for 50,000 minute bars, with the share of large returns, the night's gap and the
spread of the daily variance as measured on 256 recorded sessions in blocks of 20.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from encoders.encoder import Provenance
from encoders.jepa_training import provenance_of
from encoders.unseen import bars_for
from markets import synthetic_spy
from markets.bars import Bars
from markets.errors import ConfigError, RegimeGymError, UnknownNameError
from markets.session_calendar import MINUTES, YEAR_MINUTES
from markets.sessions import sessions_of
from markets.sources import load
from markets.synthetic_spy import spy
from markets.synthetic_spy_parameters import SPYParameters

Floats = NDArray[np.float64]

SEED = 7
SESSIONS = 129  # 50,310 bars
DEFAULT = SPYParameters()
BROWNIAN = replace(
    DEFAULT, separation=0.0, fast_sd=0.0, slow_sd=0.0, jumps_per_session=0.0, student_t_dof=1e6, leverage=0.0,
    seasonality=0.0, volume_sigma=0.0, volume_return=0.0, vix_noise=0.0,
)  # fmt: skip
COLUMNS = (
    "time", "open", "high", "low", "close", "volume", "bid", "ask", "bid_size", "ask_size", "previous_vix", "labels",
)  # fmt: skip
DATA = os.environ.get("REGIMEGYM_DATA", "")
needs_data = pytest.mark.skipif(
    not (DATA and (Path(DATA) / "spy_1m.parquet").is_file()),
    reason="REGIMEGYM_DATA is not set or holds no recorded SPY minutes",
)


def excess_kurtosis(values: Floats) -> float:
    centred = values - values.mean()
    return float(np.mean(centred**4) / np.mean(centred**2) ** 2 - 3)


def autocorrelation(values: Floats, lag: int) -> float:
    return float(np.corrcoef(values[:-lag], values[lag:])[0, 1])


def tail_index(returns: Floats, share: float = 0.05) -> float:
    """Hill estimator on the largest ``share`` of absolute returns."""
    ordered = np.sort(np.abs(returns))[::-1]
    count = int(share * len(ordered))
    return float(1 / np.mean(np.log(ordered[:count] / ordered[count])))


def share_above_local_sigmas(returns: Floats, sigmas: float = 5.0, window: int = 100) -> float:
    size = pd.Series(np.abs(returns))
    local = size.rolling(window).median().shift(1) / 0.6745
    return float((size > sigmas * local)[window:].mean())


def whole(bars: Bars, name: str) -> Floats:
    """One column of the full-length sessions: ``(S, 390)``."""
    found = sessions_of(bars)
    first = found.first[found.complete & ~found.calendar.early]
    return np.asarray(getattr(bars, name)[first[:, None] + np.arange(MINUTES), 0])


def returns_of(bars: Bars) -> Floats:
    close, opened = whole(bars, "close"), whole(bars, "open")
    return np.diff(np.log(close), axis=1, prepend=np.log(opened[:, :1]))


def facts(bars: Bars) -> dict[str, float]:
    """The statistics that the bands are about."""
    sessions = returns_of(bars)
    returns = sessions.ravel()
    size = np.abs(returns)
    halves = np.sqrt(np.mean(sessions.reshape(len(sessions), 13, 30) ** 2, axis=(0, 2)))
    gaps = np.log(whole(bars, "open")[1:, 0] / whole(bars, "close")[:-1, -1])
    return {
        "kurtosis": excess_kurtosis(returns),
        "tail": tail_index(returns),
        "acf_1": autocorrelation(returns, 1),
        "abs_1": autocorrelation(size, 1),
        "abs_20": autocorrelation(size, 20),
        "abs_100": autocorrelation(size, 100),
        "volume": float(np.corrcoef(np.log(whole(bars, "volume").ravel() + 1), size)[0, 1]),
        "large": share_above_local_sigmas(returns),
        "kurtosis_195": excess_kurtosis(sessions.reshape(-1, 195).sum(axis=1)),
        "leverage": float(np.corrcoef(returns[:-1], returns[1:] ** 2)[0, 1]),
        "first": float(halves[0] / halves[6]),
        "last": float(halves[-1] / halves[6]),
        "first_min": float(halves[0] / halves.min()),
        "first_5": float(np.sqrt(np.mean(sessions[:, :5] ** 2) / np.mean(sessions**2))),
        "log_variance": float(np.std(np.log(np.sum(sessions**2, axis=1)))),
        "gap_bp": float(np.mean(np.abs(gaps)) * 1e4),
    }


def bands(found: dict[str, float]) -> dict[str, bool]:
    """Which rows of the acceptance table hold."""
    return {
        "1 excess kurtosis": 3 <= found["kurtosis"] <= 40,
        "2 tail index": 2.2 <= found["tail"] <= 4.0,
        "3 no memory of the sign": abs(found["acf_1"]) <= 0.06,
        "4 abs-1": 0.15 <= found["abs_1"] <= 0.40,
        "5 abs-20 and abs-100": 0.06 <= found["abs_20"] <= 0.25 and 0.01 <= found["abs_100"] <= 0.20,
        "6 memory decays": found["abs_1"] > found["abs_20"] > found["abs_100"] > 0,
        "7 volume": 0.35 <= found["volume"] <= 0.65,
        "8 large returns": 0.0025 <= found["large"] <= 0.012,
        "9 sums are thinner": found["kurtosis_195"] < found["kurtosis"],
        "11 leverage": found["leverage"] < -0.02,
        "13 day shape": found["first"] > 1 and found["last"] > 1 and 1.3 <= found["first_min"] <= 2.5,
        "first five minutes": 1.3 <= found["first_5"] <= 2.2,
        "daily variance": 0.35 <= found["log_variance"] <= 1.0,
        "gap": 15 <= found["gap_bp"] <= 60,
    }


@cache
def market(seed: int = SEED, sessions: int = SESSIONS, **changes: Any) -> Bars:
    return spy(seed, sessions, early_close="skip", parameters=replace(DEFAULT, **changes))


# --- the facts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_every_one_of_20_seeds_has_the_measured_facts(seed: int) -> None:
    found = facts(spy(seed, SESSIONS, early_close="skip"))
    rows = bands(found)
    assert all(rows.values()), ([name for name, good in rows.items() if not good], found)


def test_geometric_brownian_motion_fails_where_it_should() -> None:
    rows = bands(facts(spy(SEED, SESSIONS, early_close="skip", parameters=BROWNIAN)))
    failed = {name for name, good in rows.items() if not good}
    assert sum(name[:2] in {f"{row} " for row in range(1, 9)} for name in failed) >= 5, rows
    assert {"11 leverage", "13 day shape", "daily variance", "first five minutes"} <= failed


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"leverage": 0.0}, "11 leverage"), ({"seasonality": 0.0}, "13 day shape"), ({"overnight": 0.0}, "gap"),
        ({"separation": 0.0, "slow_sd": 0.0, "vix_noise": 0.0}, "daily variance"), ({"volume_noise": 4.0}, "7 volume"),
    ],
)  # fmt: skip
def test_a_generator_without_a_part_misses_its_band(changes: dict[str, float], lost: str) -> None:
    assert not bands(facts(market(**changes)))[lost]


def test_shuffling_kills_the_clustering_and_keeps_the_tails() -> None:
    returns = returns_of(market()).ravel()
    shuffled = np.random.default_rng(SEED).permutation(returns)
    assert abs(autocorrelation(np.abs(shuffled), 1)) < 0.05
    assert excess_kurtosis(shuffled) == pytest.approx(excess_kurtosis(returns), rel=1e-9)


def test_annual_volatility_is_the_parameter_where_nothing_moves_it() -> None:
    """S2: within 5 % over 250 sessions."""
    returns = returns_of(spy(SEED, 250, early_close="skip", parameters=BROWNIAN))
    mean_square = DEFAULT.shares @ DEFAULT.separated_multipliers**2
    wanted = DEFAULT.annual_volatility * np.sqrt(mean_square)
    assert np.sqrt(np.mean(returns**2) * YEAR_MINUTES) == pytest.approx(wanted, rel=0.05)


def test_volume_is_u_shaped_and_flat_without_seasonality() -> None:
    for bars, low in ((market(), 1.5), (market(seasonality=0.0), 0.0)):
        halves = np.median(whole(bars, "volume").reshape(-1, 13, 30), axis=(0, 2))
        ratio = min(halves[0], halves[-1]) / halves[6]
        assert ratio > low
        assert low > 0 or ratio == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_at_the_money_straddle_at_the_index_is_about_fair(seed: int) -> None:
    """Mean payoff over price and spread of the realised move, over 2,000 sessions held to the close."""
    bars = spy(seed, 2_000, start="2014-01-02", early_close="skip")
    move = np.log(whole(bars, "close")[:, -1] / whole(bars, "open")[:, 0])
    implied = 1.29 * whole(bars, "previous_vix")[:, 0] / 100 * np.sqrt(MINUTES / 525_600)
    z = move / implied
    print(f"seed {seed}: payoff / price {np.mean(np.abs(z)) / 0.797885:.3f}, spread {z.std():.3f}")
    assert 0.92 <= np.mean(np.abs(z)) / 0.797885 <= 1.04
    assert 1.0 <= z.std() <= 1.2


@pytest.mark.parametrize(("error", "caught"), [(0.0, False), (0.22, True)])
def test_what_straddles_cost_is_what_they_pay(error: float, caught: bool) -> None:
    """Sum of payoffs over sum of prices. The mutant: an index with an error of its own, whose dear days overpay."""
    paid = cost = 0.0
    for seed in range(5):
        bars = spy(seed, 500, start="2014-01-02", early_close="skip")
        move = whole(bars, "close")[:, -1] / whole(bars, "open")[:, 0] - 1.0
        implied = 1.29 * whole(bars, "previous_vix")[:, 0] / 100 * np.sqrt(MINUTES / 525_600)
        noise = np.exp(error * np.random.default_rng(SEED + seed).standard_normal(500) + error**2 / 2)
        paid += float(np.abs(move).sum())
        cost += float((0.797885 * implied * noise).sum())
    print(f"seed {SEED}: payoffs / prices {paid / cost:.3f}")
    assert (abs(paid / cost - 1.0) > 0.02) == caught


def test_price_is_a_martingale_without_drift() -> None:
    still = replace(DEFAULT, drifts=(0.0, 0.0, 0.0), start_price=50_000.0)  # far above the cent
    growth = [spy(seed, 10, parameters=still).close[-1, 0] / 50_000 for seed in range(300)]
    assert np.mean(growth) == pytest.approx(1.0, abs=3 * np.std(growth) / np.sqrt(len(growth)))


# --- regimes ----------------------------------------------------------------------------------------------------------


def test_regimes_have_the_requested_shares_and_durations() -> None:
    labels = synthetic_spy._regimes(np.random.default_rng(SEED), 20_000, DEFAULT).ravel()
    np.testing.assert_allclose(np.bincount(labels) / len(labels), DEFAULT.shares, rtol=0.2)
    starts = np.flatnonzero(np.diff(labels)) + 1
    lengths, regime = np.diff(starts) / MINUTES, labels[starts[:-1]]
    assert len(lengths) >= 500
    found = [lengths[regime == k].mean() for k in range(3)]
    np.testing.assert_allclose(found, DEFAULT.duration_sessions, rtol=0.2)


def test_labels_move_as_much_as_their_multipliers_say() -> None:
    bars = spy(SEED, 1_000, early_close="skip")
    assert bars.labels is not None
    size = np.abs(np.log(bars.close / bars.open)[:, 0])
    means = np.array([size[bars.labels == k].mean() for k in range(3)])
    wanted = np.array(DEFAULT.volatility_multipliers)
    np.testing.assert_allclose(means / means[1], wanted / wanted[1], rtol=0.15)
    assert bars.label_names == ("calm", "normal", "turbulent")


def test_separation_zero_makes_all_regimes_alike() -> None:
    alike = replace(DEFAULT, separation=0.0)
    np.testing.assert_allclose(alike.separated_multipliers, alike.separated_multipliers[0])
    np.testing.assert_allclose(alike.separated_drifts, alike.separated_drifts[0])
    mean_square = DEFAULT.shares @ DEFAULT.separated_multipliers**2
    assert alike.separated_multipliers[0] ** 2 == pytest.approx(mean_square)


# --- bars -------------------------------------------------------------------------------------------------------------


def test_bars_are_valid_on_the_cent_and_continuous_within_a_session() -> None:
    bars = spy(SEED, 12, start="2024-06-27")  # an early close among them
    found = sessions_of(bars)
    assert (len(found), int(found.calendar.early.sum()), bars.gaps) == (12, 1, 0)
    assert found.complete.all()
    inside = np.flatnonzero(found.minute > 0)
    np.testing.assert_array_equal(bars.open[inside], bars.close[inside - 1])
    for name in ("open", "high", "low", "close", "bid", "ask"):
        np.testing.assert_allclose(bars.columns[name] * 100, np.round(bars.columns[name] * 100), atol=1e-6)
    assert (bars.market, bars.symbols, bars.periods_per_year) == ("spy", ("SPY",), 98_280)
    assert (bars.volume > 0).all()


def test_the_quote_holds_the_last_trade_and_its_imbalance_foretells_nothing() -> None:
    bars = market()
    assert bars.bid is not None
    assert bars.ask is not None
    assert bars.bid_size is not None
    assert bars.ask_size is not None
    middle = (bars.bid + bars.ask) / 2
    assert ((bars.bid <= middle) & (middle <= bars.ask)).all()
    np.testing.assert_allclose(bars.ask - bars.bid, 0.01, atol=1e-9)
    assert (np.minimum(np.abs(bars.close - bars.bid), np.abs(bars.close - bars.ask)) < 1e-9).all()
    total = bars.bid_size + bars.ask_size
    imbalance = ((bars.bid_size - bars.ask_size) / np.maximum(total, 1))[:, 0]
    returns = np.log(bars.close / bars.open)[:, 0]
    assert abs(np.corrcoef(imbalance[:-1], returns[1:])[0, 1]) < 0.015
    assert imbalance.std() == pytest.approx(0.586, abs=0.03)  # measured


def test_same_seed_is_the_same_market_and_another_seed_is_not() -> None:
    first, again, other = (spy(seed, 4) for seed in (SEED, SEED, SEED + 1))
    assert first.hash == again.hash
    for name in ("close", "high", "volume", "bid_size", "previous_vix"):
        assert (getattr(first, name) != getattr(other, name)).any(), name


@pytest.mark.parametrize(("few", "many", "start"), [(1, 3, "2020-01-02"), (70, 150, "2024-06-03")])
def test_fewer_sessions_are_a_prefix_of_more(few: int, many: int, start: str) -> None:
    short, full = spy(SEED, few, start), spy(SEED, many, start)
    for name in COLUMNS:
        assert getattr(short, name).tobytes() == getattr(full, name)[: len(short)].tobytes(), name


def test_early_closes_stand_in_their_place_or_are_left_out_or_alone() -> None:
    kept, skipped, only = (sessions_of(spy(SEED, 3, "2024-11-27", early)) for early in ("keep", "skip", "only"))
    assert kept.rows.tolist() == [390, 210, 390]
    assert skipped.rows.tolist() == [390, 390, 390]
    assert only.rows.tolist() == [210, 210, 210]
    assert [str(day) for day in only.calendar.day] == ["2024-11-29", "2024-12-24", "2025-07-03"]


def test_an_early_close_has_the_whole_shape_in_210_minutes() -> None:
    sessions = spy(SEED, 400, early_close="only").close
    returns = np.diff(np.log(sessions.reshape(-1, 210)), axis=1)
    thirds = np.sqrt(np.mean(returns[:, :207].reshape(len(returns), -1, 23) ** 2, axis=(0, 2)))
    assert thirds[0] > thirds[4] < thirds[-1]


def test_the_evening_before_knows_nothing_of_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = synthetic_spy._unit_student_t

    def shaken(rng: np.random.Generator, shape: tuple[int, ...], dof: float) -> Floats:
        drawn = draw(rng, shape, dof)
        if len(shape) == 2:
            drawn[2] += 0.5
        return drawn

    calm = spy(SEED, 5, early_close="skip")
    monkeypatch.setattr(synthetic_spy, "_unit_student_t", shaken)
    other = spy(SEED, 5, early_close="skip")
    before, after = (whole(bars, "previous_vix")[:, 0] for bars in (calm, other))
    assert (whole(calm, "close")[2] != whole(other, "close")[2]).any()
    assert (before != after).tolist() == [False, False, False, True, True]  # it falls with a rise, one evening later
    assert after[3] < before[3]


# --- the specification ------------------------------------------------------------------------------------------------


def test_the_source_is_written_so_that_it_makes_the_same_bars() -> None:
    bars = spy(3, 5, "2024-11-25", "skip", replace(DEFAULT, leverage=-0.2))
    assert bars.source == "synthetic:spy?seed=3&sessions=5&start=2024-11-25&early_close=skip&leverage=-0.2"
    assert load(bars.source).hash == bars.hash
    assert load("synthetic:spy?sessions=2").source == "synthetic:spy?seed=0&sessions=2&start=2020-01-02"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sessions=0", "sessions='0'"), ("seed=-1", "seed='-1'"), ("early_close=kepp", "Did you mean 'keep'"),
        ("sesions=3", "Did you mean 'sessions'"), ("bars=3", "unknown option"), ("leverage=-1", "leverage=-1.0"),
        ("start=someday", "start='someday'"), ("start=2010-01-04", "begins in 2013"), ("fast_sd=x", "fast_sd='x'"),
    ],
)  # fmt: skip
def test_an_option_that_cannot_work_is_named(text: str, message: str) -> None:
    with pytest.raises(RegimeGymError, match=message):
        load(f"synthetic:spy?{text}")
    with pytest.raises(UnknownNameError, match="Did you mean 'spy'"):
        load("synthetic:spx")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("annual_volatility", 0.0), ("drifts", (0.0, 1.0)), ("separation", -0.1), ("student_t_dof", 2.0),
        ("overnight_dof", 1.0), ("volume_shape", (1.0,) * 12), ("transitions", ((0.5, 0.5, 0.0),) * 3),
        ("jumps_per_session", float("nan")), ("volume_open", 0.5), ("vix_noise", "much"), ("separation", 11.0),
    ],
)  # fmt: skip
def test_a_parameter_that_cannot_work_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}="):
        SPYParameters(**{name: value})


# --- what an encoder may have seen ------------------------------------------------------------------------------------


def recorded(bars: Bars) -> Bars:
    return replace(bars, source="parquet:spy.parquet?market=spy")


def test_generated_spy_bars_go_by_seed_and_recorded_ones_by_date() -> None:
    bars, other = spy(5, 3), spy(6, 3)
    generated = provenance_of([bars])
    assert (generated.market, generated.seeds, generated.has_real) == ("spy", (5,), False)
    assert generated.fitted_until(bars) == bars.close_time[-1]
    assert generated.fitted_until(other) is None
    assert generated.fitted_until(recorded(bars)) is None
    real = provenance_of([recorded(bars)])
    assert (real.seeds, real.has_real) == ((), True)
    assert real.fitted_until(recorded(other)) == bars.close_time[-1]
    assert real.fitted_until(bars) is None  # the mutant: the kind of market alone would give the date here


def test_an_encoder_of_both_kinds_has_seen_each_by_its_own_rule() -> None:
    late, history = spy(5, 3, "2029-06-01"), recorded(spy(1, 3, "2024-03-26"))
    both = provenance_of([late, history])
    assert both.train_end == str(history.close_time[-1])  # dates of generated bars mean nothing
    assert both.fitted_until(history) == history.close_time[-1]
    assert both.fitted_until(late) == late.close_time[-1]
    assert both.fitted_until(spy(6, 3, "2029-06-01")) is None


def test_unseen_sessions_are_made_for_an_encoder_of_generated_ones() -> None:
    made = bars_for(
        Provenance("spy", "1m", "2024-01-01T00:00:00", ("synthetic:spy?seed=4&sessions=900",), (4, 8)), None, 800
    )
    assert made.source == "synthetic:spy?seed=9&sessions=3&start=2020-01-02"


# --- recorded minutes -------------------------------------------------------------------------------------------------


@needs_data
def test_recorded_minutes_are_measured_against_the_same_bands() -> None:
    pytest.importorskip("pyarrow")
    bars = load("parquet:spy_1m.parquet?market=spy&symbol=SPY&end=2025-03-31")
    found = facts(bars)
    rows = bands(found)
    print({name: round(value, 3) for name, value in found.items()})
    print("missed:", [name for name, good in rows.items() if not good])
    assert all(rows.values()), rows
