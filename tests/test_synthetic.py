"""The synthetic BTC market shows the measured statistical facts, is reproducible, and tells its true regimes.

Rows are those of the acceptance table for one run of 20,000 five-minute bars; the bands are as wide as disjoint
blocks of real bars differ from each other.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from markets.bars import Bars
from markets.errors import ConfigError
from markets.synthetic import WORLD, YEAR_MINUTES, CryptoParameters, _funding, crypto, crypto_arrays, funding_rate

Floats = NDArray[np.float64]

SEED = 7
ROWS = 20_000
DEFAULT = CryptoParameters()
PER_BAR = (
    "time", "open", "high", "low", "close", "volume", "mark_open", "mark_high", "mark_low", "mark_close", "labels",
)  # fmt: skip
INTERVALS = ("1m", "5m", "1h", "1d")


def excess_kurtosis(values: Floats) -> float:
    """Fourth central moment over the squared variance, minus 3."""
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
    """Share of absolute returns above ``sigmas`` times median / 0.6745 of the ``window`` absolute returns before."""
    size = pd.Series(np.abs(returns))
    local = size.rolling(window).median().shift(1) / 0.6745
    return float((size > sigmas * local)[window:].mean())


def stylised_rows(returns: Floats, volume: Floats) -> dict[int, bool]:
    """Which of the rows 1 to 8 hold."""
    size = np.abs(returns)
    abs_1, abs_20, abs_100 = (autocorrelation(size, lag) for lag in (1, 20, 100))
    return {
        1: 3 <= excess_kurtosis(returns) <= 40,
        2: 2.2 <= tail_index(returns) <= 4.0,
        3: abs(autocorrelation(returns, 1)) <= 0.06,
        4: 0.15 <= abs_1 <= 0.40,
        5: 0.06 <= abs_20 <= 0.25 and 0.01 <= abs_100 <= 0.20,
        6: abs_1 > abs_20 > abs_100 > 0,
        7: 0.35 <= np.corrcoef(np.log(volume), size)[0, 1] <= 0.65,
        8: 0.004 <= share_above_local_sigmas(returns) <= 0.020,
    }


def log_returns(bars: Bars) -> Floats:
    return np.log(bars.close[:, 0] / bars.open[:, 0])


def daily(rates: Floats) -> Floats:
    return rates[: len(rates) // 3 * 3].reshape(-1, 3).mean(axis=1)


def spells(labels: NDArray[np.int8]) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Regime and length (bars) of every complete spell."""
    starts = np.flatnonzero(np.diff(labels)) + 1
    return labels[starts[:-1]], np.diff(starts)


@cache
def market(seed: int = SEED, interval: str = "5m", bars: int = ROWS, **changes: float) -> Bars:
    return crypto(seed, interval, bars, replace(DEFAULT, **changes))  # type: ignore[arg-type]


@cache
def long_market() -> Bars:
    return crypto(SEED, "5m", 1_000_000)


def test_five_minute_bars_have_the_measured_facts() -> None:
    bars = market()
    rows = stylised_rows(log_returns(bars), bars.volume[:, 0])
    assert all(rows.values()), f"seed {SEED}: {rows}"


@pytest.mark.slow
def test_at_least_18_of_20_seeds_have_the_measured_facts() -> None:
    passed = []
    for seed in range(20):
        bars = crypto(seed, "5m", ROWS)
        rows = stylised_rows(log_returns(bars), bars.volume[:, 0])
        print(seed, rows)
        passed.append(all(rows.values()))
    assert sum(passed) >= 18, passed


def test_geometric_brownian_motion_fails_at_least_five_rows() -> None:
    rng = np.random.default_rng(SEED)
    rows = stylised_rows(0.0015 * rng.standard_normal(ROWS), np.exp(rng.standard_normal(ROWS)))
    assert sum(rows.values()) <= 3, f"seed {SEED}: {rows}"


def test_tails_get_thinner_over_four_hours() -> None:
    returns = log_returns(market())
    sums = returns[: len(returns) // 48 * 48].reshape(-1, 48).sum(axis=1)
    assert excess_kurtosis(sums) < excess_kurtosis(returns)


def test_shuffling_returns_kills_clustering_and_keeps_the_tails() -> None:
    returns = log_returns(market())
    shuffled = np.random.default_rng(SEED).permutation(returns)
    assert abs(autocorrelation(np.abs(shuffled), 1)) < 0.05
    assert excess_kurtosis(shuffled) == pytest.approx(excess_kurtosis(returns), rel=1e-9)


def test_busiest_hour_moves_about_twice_as_much_as_the_quietest() -> None:
    bars = market()
    hour = pd.DatetimeIndex(bars.time).hour
    mean = pd.Series(np.abs(log_returns(bars))).groupby(hour).mean()
    assert 1.4 <= mean.max() / mean.min() <= 2.6
    assert mean.idxmax() in (13, 14, 15)


@pytest.mark.parametrize("seed", range(3))
def test_funding_has_its_atom_its_negative_days_and_its_memory(seed: int) -> None:
    rates = crypto(seed, "1h", 60_000).funding_rate[:, 0]
    assert 0.1 <= np.mean(rates == 0.0001) <= 0.6  # exactly: no tolerance
    assert 0.03 <= np.mean(rates < 0) <= 0.25
    assert autocorrelation(daily(rates), 1) > 0.5
    assert 0.5e-4 < rates.mean() < 2e-4
    assert np.abs(rates).max() <= 0.003
    assert (rates != crypto(seed + 1, "1h", 60_000).funding_rate[:, 0]).mean() > 0.5


def test_funding_follows_past_returns_and_does_not_foretell_the_next_day() -> None:
    bars = market(interval="1h", bars=60_000)
    price, rates = np.log(bars.close[:, 0]), bars.funding_rate[:, 0]
    last = np.searchsorted(bars.time, bars.funding_time) - 1  # the bar that closes at the stamp
    use = (last >= 168) & (last + 24 < len(price))
    week, tomorrow = price[last] - price[last - 168], price[np.minimum(last + 24, len(price) - 1)] - price[last]
    assert 0.2 < np.corrcoef(rates[use], week[use])[0, 1] < 0.55
    assert abs(np.corrcoef(rates[use], tomorrow[use])[0, 1]) < 0.06


@pytest.mark.parametrize(
    ("premium", "rate"),
    [
        (0.0, 0.0001), (0.0003, 0.0001), (0.0006, 0.0001), (0.00061, 0.00011), (0.0010, 0.0005), (-0.0004, 0.0001),
        (-0.00041, 0.00009), (-0.0010, -0.0005), (0.0200, 0.003), (-0.0200, -0.003),
    ],
)  # fmt: skip
def test_funding_formula_gives_the_venue_examples(premium: float, rate: float) -> None:
    assert funding_rate(np.array([premium]))[0] == pytest.approx(rate, rel=1e-8)


def funding_on(path: Floats, lead: int = 0) -> Floats:
    """Rates of a 5-minute path; ``lead`` plants the fault of seeing that many steps ahead."""
    rng = {name: np.random.default_rng(number) for number, name in enumerate(("premium_fast", "premium_slow"))}
    seen = np.concatenate([path[lead:], np.full(lead, path[-1])])
    world = dict.fromkeys(WORLD, np.ones(len(path) - 1))
    return _funding(rng, seen, np.datetime64("2020-01-01", "ns"), 5, DEFAULT, world)[1]


@pytest.mark.parametrize(("lead", "caught"), [(0, False), (1, True)])
def test_funding_at_a_stamp_knows_nothing_after_it(lead: int, caught: bool) -> None:
    path = np.cumsum(0.001 * np.random.default_rng(SEED).standard_normal(5_000))
    stamp = 96 * 30  # steps; event number 30
    changed = path.copy()
    changed[stamp + 1 :] += 0.5
    before, after = funding_on(path, lead)[:31], funding_on(changed, lead)[:31]
    assert (before.tobytes() != after.tobytes()) == caught


def test_funding_stamps_are_every_eight_hours_inside_the_bars() -> None:
    bars = crypto(SEED, "15m", 500, replace(DEFAULT, start="2021-03-04T05:10"))
    assert bars.funding_time[0] == np.datetime64("2021-03-04T08:00")
    assert (np.diff(bars.funding_time) == np.timedelta64(8, "h")).all()
    assert bars.close_time[-1] - bars.funding_time[-1] <= np.timedelta64(8, "h")
    assert bars.time[0] <= bars.funding_time[0]
    assert bars.funding_time[-1] < bars.close_time[-1]


def test_funding_scale_multiplies_the_rates_and_nothing_else() -> None:
    plain, none, double = (market(funding_scale=scale) for scale in (1.0, 0.0, 2.0))
    assert not none.funding_rate.any()
    assert none.funding_time.tobytes() == plain.funding_time.tobytes()
    np.testing.assert_array_equal(double.funding_rate, 2 * plain.funding_rate)
    for name in PER_BAR:
        assert getattr(none, name).tobytes() == getattr(plain, name).tobytes(), name


@pytest.mark.parametrize("interval", INTERVALS)
def test_same_seed_is_the_same_market_and_another_seed_is_not(interval: str) -> None:
    first, again, other = (crypto(seed, interval, 300) for seed in (SEED, SEED, SEED + 1))
    assert first.hash == again.hash
    for name in (*PER_BAR, "funding_time", "funding_rate"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes(), name
    for name in ("close", "high", "volume", "mark_close"):
        assert (getattr(first, name)[1:] != getattr(other, name)[1:]).any(), name


@pytest.mark.parametrize(
    ("interval", "short", "full"), [("1m", 999, 5_003), ("5m", 20_001, 70_001), ("1h", 777, 7_001), ("1h", 2, 50)]
)
def test_fewer_bars_are_a_prefix_of_more_bars(interval: str, short: int, full: int) -> None:
    few, many = crypto(SEED, interval, short), crypto(SEED, interval, full)
    for name in PER_BAR:
        assert getattr(few, name).tobytes() == getattr(many, name)[:short].tobytes(), name
    events = len(few.funding_time)
    assert few.funding_time.tobytes() == many.funding_time[:events].tobytes()
    assert few.funding_rate.tobytes() == many.funding_rate[:events].tobytes()
    assert many.funding_time[events] >= few.close_time[-1]


@pytest.mark.parametrize(("interval", "ratio"), [("15m", 3), ("1h", 12), ("1d", 288)])
def test_longer_bars_are_the_same_market_as_five_minute_bars(interval: str, ratio: int) -> None:
    fine, coarse = market(bars=2_880 * 4), crypto(SEED, interval, 2_880 * 4 // ratio)
    for name in ("close", "mark_close", "labels"):
        np.testing.assert_array_equal(getattr(coarse, name), getattr(fine, name)[ratio - 1 :: ratio], err_msg=name)
    for name in ("open", "mark_open", "time"):
        np.testing.assert_array_equal(getattr(coarse, name), getattr(fine, name)[::ratio], err_msg=name)
    for name, reduce in (("high", np.max), ("low", np.min), ("mark_high", np.max), ("mark_low", np.min)):
        grouped = reduce(getattr(fine, name).reshape(-1, ratio), axis=1)
        np.testing.assert_allclose(getattr(coarse, name)[:, 0], grouped, rtol=1e-14, err_msg=name)
    np.testing.assert_allclose(coarse.volume[:, 0], fine.volume.reshape(-1, ratio).sum(axis=1), rtol=1e-12)
    assert coarse.funding_rate.tobytes() == fine.funding_rate.tobytes()


@pytest.mark.parametrize("interval", INTERVALS)
def test_bars_are_valid_and_continuous(interval: str) -> None:
    bars = crypto(SEED, interval, 400)
    for prefix in ("", "mark_"):
        opened, high, low, close = (bars.columns[prefix + name] for name in ("open", "high", "low", "close"))
        assert (low > 0).all()
        assert (high >= np.maximum(opened, close)).all()
        assert (low <= np.minimum(opened, close)).all()
        np.testing.assert_array_equal(opened[1:], close[:-1])
    assert (bars.volume > 0).all()
    assert bars.volume.dtype == np.float64
    assert bars.volume.flags.c_contiguous
    assert bars.labels is not None
    assert bars.labels.dtype == np.int8
    assert bars.time[0] == np.datetime64("2020-01-01")
    assert bars.gaps == 0
    assert bars.market == "synthetic"
    assert bars.label_names == ("range", "bull", "bear", "crash")


def test_mark_follows_last_closely_and_its_wicks_not_at_all() -> None:
    bars = market()
    assert bars.mark_open is not None
    assert bars.mark_low is not None
    assert bars.mark_close is not None
    assert np.std(np.log(bars.mark_close / bars.close)) * 1e4 == pytest.approx(1.0, abs=0.1)
    np.testing.assert_array_equal(bars.mark_low, np.minimum(bars.mark_open, bars.mark_close))
    assert (np.log(bars.mark_low / bars.low) * 1e4 > 20).sum() > 10  # wicks of more than 20 bp that mark ignores


def test_volume_of_an_hour_is_a_few_thousand_coins() -> None:
    assert 2_000 < np.median(market(interval="1h").volume) < 9_000


def test_regimes_have_the_requested_shares_and_durations() -> None:
    labels = long_market().labels
    assert labels is not None
    shares = np.bincount(labels) / len(labels)
    np.testing.assert_allclose(shares, DEFAULT.shares, rtol=0.2)
    regime, length = spells(labels)
    assert len(regime) >= 500
    hours = np.array([length[regime == k].mean() * 5 / 60 for k in range(4)])
    np.testing.assert_allclose(hours, DEFAULT.duration_hours, rtol=0.2)


def test_regimes_move_as_much_as_their_multipliers_say() -> None:
    bars = long_market()
    returns = log_returns(bars)
    size = np.array([np.mean(np.abs(returns[bars.labels == k])) for k in range(4)])
    wanted = np.array(DEFAULT.volatility_multipliers)
    np.testing.assert_allclose(size / size[0], wanted / wanted[0], rtol=0.1)


def crash_over_range(separation: float) -> float:
    bars = market(interval="15m", bars=100_000, separation=separation)
    size = np.abs(log_returns(bars))
    return float(size[bars.labels == 3].mean() / size[bars.labels == 0].mean())


def test_separation_zero_makes_all_regimes_alike_and_two_makes_them_clearer() -> None:
    alike, plain, clearer = (replace(DEFAULT, separation=value) for value in (0.0, 1.0, 2.0))
    np.testing.assert_allclose(alike.separated_drifts, alike.separated_drifts[0], rtol=1e-12)
    np.testing.assert_array_equal(alike.separated_multipliers, alike.separated_multipliers[0])
    np.testing.assert_allclose(plain.separated_drifts, plain.drifts, rtol=0, atol=1e-12)
    np.testing.assert_allclose(plain.separated_multipliers, plain.volatility_multipliers, rtol=1e-12)
    for p in (alike, plain, clearer):  # neither the mean drift nor the mean variance moves
        assert p.shares @ p.separated_drifts == pytest.approx(plain.shares @ np.array(plain.drifts))
        assert p.shares @ p.separated_multipliers**2 == pytest.approx(plain.shares @ plain.separated_multipliers**2)
    assert crash_over_range(0.0) == pytest.approx(1.0, abs=0.15)
    assert crash_over_range(0.0) < crash_over_range(1.0) / 2 < crash_over_range(2.0) / 4
    assert market(separation=0.0).labels is not None


def test_drift_scale_zero_removes_exactly_the_drift_of_the_regimes() -> None:
    drifting, still = market(), market(drift_scale=0.0)
    assert not replace(DEFAULT, drift_scale=0.0).separated_drifts.any()
    drift = np.cumsum(DEFAULT.separated_drifts[drifting.labels]) * 5 / YEAR_MINUTES
    np.testing.assert_allclose(np.log(drifting.close / still.close)[:, 0], drift, atol=1e-10)
    assert np.abs(drift).max() > 0.01


def test_price_is_a_martingale_without_drift() -> None:
    growth = [crypto(seed, "1d", 60, replace(DEFAULT, drift_scale=0.0)).close[-1, 0] / 20_000 for seed in range(200)]
    error = np.std(growth) / np.sqrt(len(growth))
    assert np.mean(growth) == pytest.approx(1.0, abs=3 * error)


@pytest.mark.parametrize(("interval", "minutes"), [("1m", 1), ("3m", 3), ("5m", 5)])
def test_volatility_does_not_depend_on_the_length_of_the_base_step(interval: str, minutes: int) -> None:
    returns = log_returns(crypto(SEED, interval, 1_000_000 // minutes))
    jumps = DEFAULT.jumps_per_day * DEFAULT.jump_size**2 / 288
    wanted = DEFAULT.annual_volatility * np.sqrt(DEFAULT.shares @ DEFAULT.separated_multipliers**2 * (1 + jumps))
    assert np.std(returns) * np.sqrt(YEAR_MINUTES / minutes) == pytest.approx(wanted, rel=0.12)


def test_jumps_do_not_disturb_any_other_stream() -> None:
    plain, smooth = market(), market(jumps_per_day=0.0)
    assert plain.labels is not None
    assert smooth.labels is not None
    assert plain.labels.tobytes() == smooth.labels.tobytes()
    sizes = np.abs(log_returns(plain) - log_returns(smooth))
    assert 0.6 <= (sizes > 1e-5).sum() / (ROWS / 288) <= 1.4  # one bar a day differs: the others are untouched


def test_source_records_what_differs_from_the_default() -> None:
    assert market(bars=50).source == f"synthetic:crypto?seed={SEED}&interval=5m&bars=50"
    assert market(bars=50, separation=0.5).source.endswith("&bars=50&separation=0.5")


@pytest.mark.parametrize(
    ("interval", "nearest"), [("7m", "5m"), ("8m", "10m"), ("58m", "1h"), ("90s", "2m"), ("1s", "1m"), ("1439m", "1d")]
)
def test_interval_off_the_grid_is_refused_with_the_nearest_valid_one(interval: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"interval='{interval}'.*nearest is '{nearest}'"):
        crypto(SEED, interval, 100)


@pytest.mark.parametrize("changes", [{"seed": -1}, {"seed": 1.5}, {"bars": 1}, {"interval": "soon"}])
def test_bad_argument_is_named_with_its_value(changes: dict[str, Any]) -> None:
    name, value = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        crypto(**changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("annual_volatility", 0.0), ("annual_volatility", float("nan")), ("drifts", (0.0, 1.0)), ("leverage", -1.0),
        ("separation", -0.1), ("student_t_dof", 2.0), ("hour_factors", (1.0,) * 23), ("weekday_factors", (1.0,) * 8),
        ("transitions", ((0.5, 0.5, 0.0, 0.0),) * 4), ("transitions", ((0.0, 1.0), (1.0,))), ("fast_sd", -0.1),
        ("premium_z", (1.0,) * 13), ("premium_bps", (1.0,)), ("jumps_per_day", "many"), ("start", "someday"),
        ("start", "2020-01-01T00:00:30"), ("premium_fast_share", 1.1),
    ],
)  # fmt: skip
def test_parameter_that_cannot_work_is_named_with_its_value(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}="):
        CryptoParameters(**{name: value})


def test_arrays_need_no_bars_object() -> None:
    arrays = crypto_arrays(SEED, "2h", 10, DEFAULT)
    assert arrays["interval"] == np.timedelta64(2, "h")
    assert {arrays[name].shape for name in ("open", "volume", "mark_close")} == {(10, 1)}
    assert arrays["funding_rate"].shape == (len(arrays["funding_time"]), 1)
