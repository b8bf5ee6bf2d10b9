"""The 11 session features: order and formulas, nothing from the future or from another session, the same live."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agents import counterfactual
from markets import session_features
from markets.bars import Bars
from markets.errors import ConfigError, DataError
from markets.features import FeatureScaler
from markets.session_features import FEATURES, NAMES, SessionFeatureStream, SessionScaler, raw, table
from markets.sessions import sessions_of
from markets.synthetic import crypto
from markets.synthetic_spy import spy
from markets.table import CausalTable

Floats = NDArray[np.float64]
Compute = Callable[[Bars], Floats]

SEED = 11
STARTS = {"early close": "2024-11-27", "spring": "2024-03-08", "autumn": "2024-11-01"}


@cache
def market(start: str = "early close", sessions: int = 4) -> Bars:
    return spy(SEED, sessions, STARTS[start])


@cache
def scaler() -> SessionScaler:
    bars = market()
    return SessionScaler.fit(bars, raw(bars), len(bars))


def unchecked(bars: Bars, **changes: Any) -> Bars:
    values = {item.name: getattr(bars, item.name) for item in fields(Bars) if item.name != "checked"}
    return Bars.unchecked(**(values | changes))


def without(bars: Bars, rows: NDArray[np.int64] | slice) -> Bars:
    """The same bars with some rows missing."""
    keep = np.delete(np.arange(len(bars)), rows)
    columns = {name: value[keep] for name, value in bars.columns.items()}
    return replace(bars, time=bars.time[keep], labels=None, **columns)


# --- the list ---------------------------------------------------------------------------------------------------------


def test_the_order_is_the_specified_one() -> None:
    """S3."""
    assert NAMES == (
        "open", "high", "low", "close", "volume", "log_return", "volume_zscore", "imbalance", "hours_to_close",
        "session_sin", "session_cos",
    )  # fmt: skip
    assert all(feature.formula and feature.unit and feature.look_back >= 1 for feature in FEATURES)


def by_hand(bars: Bars, row: int) -> list[float]:
    """The formulas, one at a time, in plain Python."""
    found = sessions_of(bars)
    s = int(found.place[row])
    first, length, m = int(found.first[s]), int(found.calendar.minutes[s]), int(found.minute[row])
    opened, high, low, close, volume = (bars.columns[name][:, 0] for name in ("open", "high", "low", "close", "volume"))
    window = volume[max(first, row - 29) : row + 1].tolist()
    mean = math.fsum(window) / len(window)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in window) / len(window))
    before = opened[row] if row == first else close[row - 1]
    sizes = (0.0, 0.0)
    if bars.bid_size is not None and bars.ask_size is not None:
        sizes = (float(bars.bid_size[row, 0]), float(bars.ask_size[row, 0]))
    return [
        *(math.log(price[row] / opened[first]) for price in (opened, high, low, close)),
        volume[row] ** 0.25,
        math.log(close[row] / before),
        (volume[row] - mean) / deviation if deviation > 0 else 0.0,
        (sizes[0] - sizes[1]) / sum(sizes) if sum(sizes) else 0.0,
        (length - 1 - m) / 60 / 6.5,
        math.sin(2 * math.pi * (m + 1) / length),
        math.cos(2 * math.pi * (m + 1) / length),
    ]


@pytest.mark.parametrize("start", STARTS)
def test_every_number_is_its_formula(start: str) -> None:
    bars = market(start)
    values = raw(bars)
    rows = [0, 1, 2, 28, 29, 30, 200, 389, 390, 391, 420, 599, 600, 601, len(bars) - 1]
    np.testing.assert_allclose(values[rows], [by_hand(bars, row) for row in rows], rtol=1e-9, atol=1e-12)


def test_the_clock_of_an_early_close_ends_at_its_own_bell() -> None:
    bars = market()
    left = raw(bars)[:, NAMES.index("hours_to_close")]
    assert left[[0, 389]].tolist() == [389 / 390, 0.0]
    assert left[[390, 599]].tolist() == [209 / 390, 0.0]  # 2024-11-29
    assert left[600] == 389 / 390


@pytest.mark.parametrize("start", ["spring", "autumn"])
def test_the_clock_is_new_york_s_on_both_sides_of_a_clock_change(start: str) -> None:
    bars = market(start)
    assert bars.time[390] - bars.time[0] != np.timedelta64(72, "h")
    clock = raw(bars)[:, -3:]
    assert clock[:390].tobytes() == clock[390:780].tobytes()
    utc = (bars.close_time - bars.close_time.astype("datetime64[D]")) / np.timedelta64(1, "D")
    assert (utc[:390] != utc[390:780]).all(), "the mutant: a clock in UTC differs in every row"


def test_first_rows_are_finite_and_served() -> None:
    """S4."""
    found = table(market(), scaler())
    assert isinstance(found, CausalTable)
    assert found.valid_from == 0
    assert found.values.shape == (len(market()), 11)
    assert found.values.dtype == np.float32
    assert np.isfinite(found.values).all()
    assert (found.values >= found.low).all()
    assert (found.values <= found.high).all()


def test_no_level_of_price_is_in_it() -> None:
    bars = market()
    prices = ("open", "high", "low", "close")
    doubled = replace(bars, bid=None, ask=None, **{name: 2 * bars.columns[name] for name in prices})
    np.testing.assert_allclose(raw(doubled), raw(bars), rtol=0, atol=1e-12)


def test_without_sizes_or_with_none_quoted_the_imbalance_is_0() -> None:
    bars = market()
    column = NAMES.index("imbalance")
    assert not raw(replace(bars, bid_size=None, ask_size=None))[:, column].any()
    zero = np.zeros_like(bars.close)
    assert not raw(replace(bars, bid_size=zero, ask_size=zero))[:, column].any()
    assert (np.abs(raw(bars)[:, column]) <= 1).all()
    assert raw(replace(bars, ask_size=zero, bid_size=zero + 5))[:, column].tolist() == [1.0] * len(bars)


def test_a_constant_volume_has_zscore_0() -> None:
    bars = market()
    still = replace(bars, volume=np.full_like(bars.volume, 0.1))
    assert not raw(still)[:, NAMES.index("volume_zscore")].any()


# --- nothing from the future, nothing from another session ------------------------------------------------------------


def noise_after(bars: Bars, row: int, kind: str) -> Bars:
    """Replace bars ``row ..`` by other numbers, or by what is no number."""
    rng = np.random.default_rng(row)
    late = np.arange(len(bars))[:, None] >= row
    other = {
        name: np.where(late, np.nan if kind == "nan" else value * rng.uniform(0.5, 2.0, value.shape), value)
        for name, value in bars.columns.items()
    }
    return unchecked(bars, **other)


def leaks(
    compute: Compute, kind: str = "noise", cuts: tuple[int, ...] = (1, 200, 389, 390, 395, 600, 700)
) -> list[int]:
    bars = market()
    before = compute(bars)
    return [row for row in cuts if compute(noise_after(bars, row, kind))[:row].tobytes() != before[:row].tobytes()]


def served(bars: Bars) -> Floats:
    return table(bars, scaler()).values.astype(np.float64)


def fitted_on_everything(bars: Bars) -> Floats:
    """The mutant: a scaler of the whole history."""
    values = raw(bars)
    return table(bars, SessionScaler.fit(bars, values, len(bars)), values).values.astype(np.float64)


def from_the_close_of_the_session(bars: Bars) -> Floats:
    """The mutant: prices relative to where the session will end."""
    found = sessions_of(bars)
    last = (found.first + found.rows - 1)[found.place]
    return raw(bars) - np.log(bars.close[last] / bars.open[found.first[found.place]])


@pytest.mark.parametrize("kind", ["noise", "nan"])
@pytest.mark.parametrize("compute", [raw, served])
def test_what_comes_later_changes_no_bit_before(compute: Compute, kind: str) -> None:
    assert leaks(compute, kind) == []


@pytest.mark.parametrize("mutant", [fitted_on_everything, from_the_close_of_the_session])
def test_a_table_that_looks_ahead_is_caught(mutant: Compute) -> None:
    assert leaks(mutant) != []


def test_bars_that_never_come_change_no_bit_before() -> None:
    bars = market()
    whole = raw(bars)
    for stop in (2, 100, 389, 391, 610):
        assert raw(bars.between(0, stop)).tobytes() == whole[:stop].tobytes()


def crossing(bars: Bars) -> Floats:
    """The mutant: a volume window that runs through the night."""
    found = sessions_of(bars)
    joined = replace(found, place=np.zeros_like(found.place), first=found.first[:1])
    session = session_features._Session(bars, joined)
    values = raw(bars)
    values[:, NAMES.index("volume_zscore")] = session.zscore()
    return values


@pytest.mark.parametrize(("compute", "caught"), [(raw, False), (crossing, True)])
def test_a_session_is_the_same_wherever_it_stands(compute: Compute, caught: bool) -> None:
    bars = market()
    alone = raw(bars.between(600, 990))
    assert (compute(bars)[600:990].tobytes() != alone.tobytes()) == caught


def test_an_unfinished_session_keeps_the_clock_and_touches_no_other() -> None:
    bars = market()
    holed = without(bars, slice(50, 60))
    values, whole = raw(holed), raw(bars)
    assert sessions_of(holed).complete.tolist() == [False, True, True, True]
    assert values[380:].tobytes() == whole[390:].tobytes()
    assert values[50:, -3:].tobytes() == whole[60:, -3:].tobytes()
    assert values[50, 5] == pytest.approx(math.log(bars.close[60, 0] / bars.close[49, 0]))


@pytest.mark.parametrize("how", ["noise", "x10", "reversed", "nan", "cut"])
def test_the_instrument_that_looks_for_leaks_takes_sessions_with_quotes(how: str) -> None:
    bars = market()
    other = counterfactual.changed(bars, 500, how, seed=SEED)
    assert raw(other)[:500].tobytes() == raw(bars)[:500].tobytes()
    if how == "noise":
        assert other.bid is not None
        assert bars.bid is not None
        assert (other.bid[500:] != bars.bid[500:]).all()


# --- scaling ----------------------------------------------------------------------------------------------------------


def test_the_scaler_reads_whole_training_sessions_only() -> None:
    bars = market()
    values = raw(bars)
    fit = SessionScaler.fit(bars, values, 700)  # 100 minutes into the third session
    spoiled = values.copy()
    spoiled[600:] = np.nan
    assert SessionScaler.fit(bars, spoiled, 700).mean.tobytes() == fit.mean.tobytes()
    assert fit.train_end == bars.close_time[599]
    np.testing.assert_allclose(fit.mean[:6], values[:600, :6].mean(axis=0))
    assert np.isnan(SessionScaler.fit(bars, spoiled, 990).mean[0])  # one session more is seen
    holed = without(bars, slice(50, 60))
    np.testing.assert_allclose(SessionScaler.fit(holed, raw(holed), 700).mean[:6], values[390:600, :6].mean(axis=0))
    with pytest.raises(DataError, match="no whole session ends before row 380"):
        SessionScaler.fit(bars, values, 380)


def test_fixed_columns_are_served_in_their_own_unit() -> None:
    fixed = [column for column, feature in enumerate(FEATURES) if not feature.scaled]
    assert [NAMES[column] for column in fixed] == list(NAMES[6:])
    np.testing.assert_array_equal(
        table(market(), scaler()).values[:, fixed], raw(market())[:, fixed].astype(np.float32)
    )


def test_a_scaler_survives_json_and_is_refused_for_other_features() -> None:
    copy = SessionScaler.from_json(json.loads(json.dumps(scaler().to_json())))
    assert isinstance(copy, SessionScaler)
    assert copy.hash == scaler().hash
    with pytest.raises(ConfigError, match="other features"):
        FeatureScaler.from_json(scaler().to_json())


def test_bars_of_a_market_that_never_closes_have_none() -> None:
    with pytest.raises(ConfigError, match="'synthetic' have no sessions"):
        raw(crypto(1, "1m", 100))


# --- the live face ----------------------------------------------------------------------------------------------------


def streamed(bars: Bars, fit: SessionScaler) -> NDArray[np.float32]:
    stream = SessionFeatureStream(fit)
    return np.array([stream.update(bars.one(row)) for row in range(len(bars))])


@pytest.mark.parametrize("start", ["early close", "spring"])
def test_a_stream_is_the_table_bit_for_bit(start: str) -> None:
    bars = market(start).between(360, 700)
    assert streamed(bars, scaler()).tobytes() == table(bars, scaler()).values.tobytes()


def test_a_stream_that_begins_in_mid_history_is_the_table_from_the_next_opening_on() -> None:
    bars = market()
    live = streamed(bars.between(380, 460), scaler())
    assert live[10:].tobytes() == table(bars, scaler()).values[390:460].tobytes()
    assert live[:10].tobytes() != table(bars, scaler()).values[380:390].tobytes()  # it never saw that opening


def test_bars_between_two_sessions_leave_a_stream_as_it_was() -> None:
    bars = market().between(300, 420)
    evening = unchecked(bars, time=bars.time + np.timedelta64(4, "h")).one(89)
    stream = SessionFeatureStream(scaler())
    rows = []
    for row in range(len(bars)):
        if row == 90:
            between = stream.update(evening)
            assert between[NAMES.index("hours_to_close")] == 0
        rows.append(stream.update(bars.one(row)))
    assert np.array(rows).tobytes() == table(bars, scaler()).values.tobytes()


def test_a_stream_keeps_one_session_only() -> None:
    bars = market().between(380, 620)
    stream = SessionFeatureStream(scaler())
    for row in range(len(bars)):
        stream.update(bars.one(row))
    assert stream._tail is not None
    assert len(stream._tail) == 20
