"""The session calendar and the sessions of bars: clock changes, early closes, nights, sessions that are not whole."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from markets import doctor, session_calendar
from markets.bars import Bars
from markets.doctor import diagnose
from markets.errors import ConfigError, DataError, UnknownNameError
from markets.session_calendar import (
    MINUTE,
    early_closes,
    holidays,
    locate,
    minute_shape,
    missing_before,
    sessions_between,
    sessions_from,
)
from markets.sessions import Sessions, previous_closes, sessions_at, sessions_of
from markets.sources import load

DATA = os.environ.get("REGIMEGYM_DATA", "")
needs_data = pytest.mark.skipif(
    not (DATA and (Path(DATA) / "spy_1m.parquet").is_file()),
    reason="REGIMEGYM_DATA is not set or holds no recorded SPY minutes",
)
LENGTH = np.timedelta64(60, "s")


def minutes_of(first: str, last: str) -> NDArray[np.datetime64]:
    """Every regular minute from one date to another, both included."""
    calendar = sessions_between(first, last)
    spans = zip(calendar.open, calendar.minutes, strict=True)
    return np.concatenate([begin + np.arange(count) * MINUTE for begin, count in spans])


def frame(times: NDArray[np.datetime64]) -> pd.DataFrame:
    close = 500 * np.exp(np.cumsum(np.random.default_rng(5).normal(0, 3e-4, len(times))))
    opened = np.concatenate([[500.0], close[:-1]])
    table = {"open": opened, "high": np.maximum(opened, close), "low": np.minimum(opened, close), "close": close}
    return pd.DataFrame(
        {"timestamp": pd.DatetimeIndex(times, tz="UTC"), **table, "volume": 1000.0 + np.arange(len(times))}
    )


def bars_of(times: NDArray[np.datetime64]) -> Bars:
    return Bars.from_frame(frame(times), market="spy", symbol="SPY")


# --- days and hours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("year", "sessions", "early"),
    [
        (2020, 253, ["2020-11-27", "2020-12-24"]), (2021, 252, ["2021-11-26"]), (2022, 251, ["2022-11-25"]),
        (2023, 250, ["2023-07-03", "2023-11-24"]), (2024, 252, ["2024-07-03", "2024-11-29", "2024-12-24"]),
        (2025, 250, ["2025-07-03", "2025-11-28", "2025-12-24"]), (2026, 251, ["2026-11-27", "2026-12-24"]),
    ],
)  # fmt: skip
def test_a_year_has_the_published_sessions_and_early_closes(year: int, sessions: int, early: list[str]) -> None:
    calendar = sessions_between(f"{year}-01-01", f"{year}-12-31")
    assert len(calendar) == sessions
    assert [str(day) for day in calendar.day[calendar.early]] == early
    assert set(calendar.minutes.tolist()) == {390, 210}
    assert not set(calendar.day[calendar.early].tolist()) & holidays(year)


def test_holidays_on_weekends_are_kept_on_the_weekday_beside_and_new_year_on_saturday_is_not() -> None:
    assert [str(day) for day in sorted(holidays(2024))] == [
        "2024-01-01", "2024-01-15", "2024-02-19", "2024-03-29", "2024-05-27", "2024-06-19", "2024-07-04", "2024-09-02",
        "2024-11-28", "2024-12-25",
    ]  # fmt: skip
    assert datetime.date(2021, 7, 5) in holidays(2021)  # the fourth was a Sunday
    assert datetime.date(2020, 7, 3) in holidays(2020)  # the fourth was a Saturday: no session, so no early close
    assert datetime.date(2020, 7, 3) not in early_closes(2020)
    assert datetime.date(2021, 12, 24) in holidays(2021)
    assert datetime.date(2021, 12, 31) not in holidays(2021)
    assert len(sessions_between("2021-12-31", "2021-12-31")) == 1
    assert len(sessions_between("2021-06-18", "2021-06-18")) == 1  # Juneteenth is a holiday since 2022
    assert not len(sessions_between("2025-01-09", "2025-01-09"))
    assert [str(session_calendar._easter(year)) for year in (2024, 2025, 2030)] == [
        "2024-03-31",
        "2025-04-20",
        "2030-04-21",
    ]


@pytest.mark.filterwarnings("ignore")  # the package's own, about the libraries it uses
def test_the_calendar_is_that_of_an_independent_package_where_it_is_installed() -> None:
    package = pytest.importorskip("exchange_calendars", reason="exchange_calendars (extra live) is not installed")
    schedule = package.get_calendar("XNYS", start="2013-01-01").schedule
    ours = sessions_between(schedule.index[0].date(), schedule.index[-1].date())
    for name, mine in (("open", ours.open), ("close", ours.close)):
        theirs = schedule[name].dt.tz_localize(None).to_numpy().astype("datetime64[ns]")
        np.testing.assert_array_equal(mine, theirs)


CHANGES = [
    ("2024-03-08", "14:30"), ("2024-03-11", "13:30"), ("2024-11-01", "13:30"), ("2024-11-04", "14:30"),
    ("2025-03-07", "14:30"), ("2025-03-10", "13:30"),
]  # fmt: skip


@pytest.mark.parametrize(("day", "hour"), CHANGES)
def test_the_opening_is_0930_in_new_york_on_both_sides_of_a_clock_change(day: str, hour: str) -> None:
    calendar = sessions_between(day, day)
    assert calendar.open[0] == np.datetime64(f"{day}T{hour}")
    assert calendar.close[0] - calendar.open[0] == np.timedelta64(390, "m")


def test_a_clock_that_forgets_the_summer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    session_calendar._sessions_of_year.cache_clear()
    monkeypatch.setattr(session_calendar, "_zone", lambda: datetime.timezone(-datetime.timedelta(hours=5)))
    wrong = [
        day for day, hour in CHANGES if sessions_between(day, day).open[0] != np.datetime64(f"{day}T{hour}")
    ]  # fmt: skip
    session_calendar._sessions_of_year.cache_clear()
    assert wrong == ["2024-03-11", "2024-11-01", "2025-03-10"]


def test_sessions_can_be_counted_from_a_day_with_or_without_early_closes() -> None:
    assert [str(day) for day in sessions_from("2024-11-27", 3).day] == ["2024-11-27", "2024-11-29", "2024-12-02"]
    assert [str(day) for day in sessions_from("2024-11-27", 2, "skip").day] == ["2024-11-27", "2024-12-02"]
    only = sessions_from("2021-01-01", 30, "only")
    assert len(only) == 30
    assert only.early.all()
    assert len(sessions_from("2020-01-02", 2_000)) == 2_000


def test_a_session_that_no_nanosecond_reaches_is_refused() -> None:
    longest = sessions_from("2020-01-02", 60_000)
    assert (np.diff(longest.open) > np.timedelta64(0)).all(), "no time has wrapped around"
    assert len(sessions_from("2261-01-03", 20)) == 20
    for count in (62_500, 10**15):
        with pytest.raises(DataError, match=f"the session calendar ends in 2261: 6[0-9]+ of {count} sessions"):
            sessions_from("2020-01-02", count)
    with pytest.raises(DataError, match="ends in 2261; 2262-01-01 lies after it"):
        sessions_between("2261-12-01", "2262-01-01")


def test_a_day_before_the_rules_hold_is_refused() -> None:
    with pytest.raises(DataError, match="begins in 2013; 2012-06-01"):
        sessions_between("2012-06-01", "2014-01-01")
    with pytest.raises(DataError, match="begins in 2013; 2012-12-31"):
        sessions_at(minutes_of("2013-01-02", "2013-01-02") - np.timedelta64(2, "D"))
    assert sessions_at(minutes_of("2013-01-02", "2013-01-02")).complete.all()


# --- the shape of a session -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [390, 210])
def test_the_shape_has_mean_square_one(minutes: int) -> None:
    assert np.mean(minute_shape(minutes) ** 2) == pytest.approx(1.0, rel=1e-12)


# --- sessions of bars -------------------------------------------------------------------------------------------------


def test_every_row_has_its_session_its_number_and_the_minutes_that_are_left() -> None:
    bars = bars_of(minutes_of("2024-11-27", "2024-12-02"))  # a whole day, an early close, a whole day
    found = sessions_of(bars)
    assert found.first.tolist() == [0, 390, 600]
    assert found.rows.tolist() == [390, 210, 390]
    assert found.complete.all()
    assert found.place.tolist() == [0] * 390 + [1] * 210 + [2] * 390
    assert found.minute[[0, 389, 390, 599, 600]].tolist() == [0, 389, 0, 209, 0]
    assert found.minutes_left[[0, 389, 390, 599, 600]].tolist() == [389, 0, 209, 0, 389]
    assert (found.outside, len(found.absent)) == (0, 0)
    assert bars.gaps == 0
    assert bars.periods_per_year == 98_280


@pytest.mark.parametrize("day", ["2024-03-08", "2024-11-01"])
def test_a_weekend_with_a_clock_change_moves_no_bar_number(day: str) -> None:
    last = np.datetime64(day) + 3
    found = sessions_at(minutes_of(day, str(last)))
    assert found.first.tolist() == [0, 390]
    assert found.minute[[389, 390]].tolist() == [389, 0]
    assert found.calendar.open[1] - found.calendar.open[0] != np.timedelta64(72, "h")


Cut = Callable[[NDArray[np.datetime64]], NDArray[np.datetime64]]
HOLES: dict[str, tuple[Cut, int, int]] = {  # what is left of three sessions, whole ones, bars that a later row misses
    "the first minute": (lambda t: np.delete(t, 390), 2, 1),
    "a minute inside": (lambda t: np.delete(t, 500), 2, 1),
    "the last minute": (lambda t: np.delete(t, 779), 2, 1),
    "an hour inside": (lambda t: np.delete(t, slice(450, 510)), 2, 60),
    "the end of the file": (lambda t: t[:-10], 2, 0),
    "a whole session": (lambda t: np.delete(t, slice(390, 780)), 2, 390),
}


@pytest.mark.parametrize("name", HOLES)
def test_a_session_that_is_not_whole_is_dropped_and_counted(name: str, caplog: pytest.LogCaptureFixture) -> None:
    cut, whole, missing = HOLES[name]
    times = cut(minutes_of("2024-06-03", "2024-06-05"))
    with caplog.at_level(logging.WARNING):
        bars = bars_of(times)
    assert len(bars) == len(times), "nothing is filled"
    assert "sessions" in caplog.text
    found = sessions_of(bars)
    kept = found.whole()
    assert len(kept) == whole == int(found.complete.sum())
    assert bars.gaps == missing
    assert (kept.place >= 0).sum() == 390 * whole
    assert (kept.minutes_left[kept.place < 0] == -1).all()
    for s, first in enumerate(kept.first):
        rows = slice(first, first + 390)
        assert (kept.place[rows] == s).all()
        assert kept.minute[rows].tolist() == list(range(390))
    if name == "an hour inside":
        assert "3 sessions, 2 whole; 1 unfinished, 60 minutes missing: 2024-06-04 330/390" in caplog.text
    if name == "a whole session":
        assert "1 sessions between have no bar, the first on 2024-06-04" in caplog.text


def test_whole_sessions_are_told_nothing_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sessions_of(bars_of(minutes_of("2024-06-27", "2024-07-08"))).whole()
    assert caplog.text == ""


def test_a_market_that_never_closes_counts_the_same_nights_as_gaps() -> None:
    times = minutes_of("2024-06-27", "2024-06-28")
    assert Bars.from_frame(frame(times)).gaps == 1050  # the mutant: SPY bars read as a market without sessions
    assert bars_of(times).gaps == 0


def test_bars_outside_the_regular_session_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    day = minutes_of("2024-06-27", "2024-06-28")
    early = day[0] - np.arange(30, 0, -1) * MINUTE
    with caplog.at_level(logging.WARNING):
        bars = bars_of(np.concatenate([early, day]))
    np.testing.assert_array_equal(bars.time, day)
    assert "30 bars outside the regular sessions are left out" in caplog.text
    with pytest.raises(DataError, match="0 of 30 bars lie in a regular session"):
        bars_of(early)


def test_nights_between_rows_outside_do_not_hide_what_is_missing() -> None:
    day = minutes_of("2024-06-27", "2024-06-28")
    evening = day[389] + np.arange(1, 60) * MINUTE
    times = np.concatenate([day[:380], evening, day[391:]])
    missing = missing_before(times, LENGTH)
    assert missing.sum() == 11
    assert missing[380 + 59] == 11
    assert (locate(times)[1] < 0).sum() == 59


def test_daily_bars_miss_days_and_not_minutes() -> None:
    days = sessions_between("2024-06-24", "2024-07-08").day.astype("datetime64[ns]")
    daily = Bars.from_frame(frame(days), market="spy", interval="1d")
    assert daily.gaps == 0
    assert daily.periods_per_year == 252
    assert Bars.from_frame(frame(np.delete(days, 4)), market="spy", interval="1d").gaps == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [({"market": "crypto"}, "market 'crypto' have no sessions"), ({"interval": "5m"}, "bars of 1m, these have")],
)
def test_bars_without_sessions_are_refused(change: dict[str, str], message: str) -> None:
    times = minutes_of("2024-06-27", "2024-06-28")[::5]
    with pytest.raises(ConfigError, match=message):
        sessions_of(Bars.from_frame(frame(times), **({"market": "spy"} | change)))


def test_a_bar_off_the_minute_is_named() -> None:
    times = minutes_of("2024-06-27", "2024-06-27").astype("datetime64[ns]")
    times[7:] += np.timedelta64(10, "s")
    with pytest.raises(DataError, match=r"row 7 .*not on a whole minute"):
        sessions_at(times)


def test_no_rows_have_no_sessions() -> None:
    empty = sessions_at(minutes_of("2024-06-27", "2024-06-27")[:2] - np.timedelta64(2, "h"))
    assert isinstance(empty, Sessions)
    assert (len(empty), empty.outside, len(empty.absent), len(empty.whole())) == (0, 2, 0, 0)
    assert empty.minutes_left.tolist() == [-1, -1]


# --- the evening before -----------------------------------------------------------------------------------------------


def evenings(first: str = "2024-06-20", last: str = "2024-07-08") -> pd.DataFrame:
    days = sessions_between(first, last).day
    return pd.DataFrame({"date": days.astype(str), "close": 10.0 + np.arange(len(days))})


def lookup_of_the_same_day(time: NDArray[np.datetime64], day: NDArray[np.datetime64], close: object) -> object:
    """The mutant: the close of a session's own day, which is known only at its end."""
    return previous_closes(time, day - 1, close)  # type: ignore[arg-type]


@pytest.mark.parametrize(("lookup", "caught"), [(previous_closes, False), (lookup_of_the_same_day, True)])
def test_a_session_sees_the_index_of_the_evening_before_only(lookup: Callable[..., object], caught: bool) -> None:
    table = evenings()
    day, close = table["date"].to_numpy().astype("datetime64[D]"), table["close"].to_numpy()
    times = minutes_of("2024-06-27", "2024-07-01")
    before = lookup(times, day, close)
    changed = close.copy()
    changed[day >= np.datetime64("2024-06-27")] += 5.0
    after = lookup(times, day, changed)
    same = np.asarray(before)[:390].tobytes() == np.asarray(after)[:390].tobytes()
    assert same != caught


def test_bars_carry_the_index_of_the_evening_before() -> None:
    bars = Bars.from_frame(frame(minutes_of("2024-06-27", "2024-07-01")), market="spy", vix=evenings())
    assert bars.previous_vix is not None
    assert bars.previous_vix[[0, 389, 390, 780], 0].tolist() == [14.0, 14.0, 15.0, 16.0]
    assert bars.one(400).previous_vix is not None
    assert bars.between(390, 800).previous_vix[0, 0] == 15.0  # type: ignore[index]


@pytest.mark.parametrize(
    ("table", "market", "message"),
    [
        (evenings("2024-06-27"), "spy", "no close in the 6 days before 2024-06-27"),
        (evenings(last="2024-06-20"), "spy", "no close in the 6 days before 2024-06-27"),
        (evenings().rename(columns={"close": "last"}), "spy", "column 'close' is missing"),
        (evenings().iloc[::-1], "spy", "not later than the row before"),
        (evenings(), "crypto", "vix= is for markets with sessions"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_is_refused(table: pd.DataFrame, market: str, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        Bars.from_frame(frame(minutes_of("2024-06-27", "2024-07-01")), market=market, vix=table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bid": 499.0}, None), ({"bid": 499.0, "ask": 498.0}, "column 'bid', row 0 .*lies above the ask"),
        ({"bid_size": -1.0, "ask_size": 1.0}, "column 'bid_size', row 0 .*is negative"),
        ({"previous_vix": np.nan}, "column 'previous_vix', row 0 .*is not finite"),
    ],
)  # fmt: skip
def test_quotes_are_checked_and_a_half_one_is_left_out(change: dict[str, float], message: str | None) -> None:
    table = frame(minutes_of("2024-06-27", "2024-06-27")).assign(**change)
    if message is None:
        assert Bars.from_frame(table, market="spy").bid is None
    else:
        with pytest.raises(DataError, match=message):
            Bars.from_frame(table, market="spy")


# --- the source and the doctor ----------------------------------------------------------------------------------------


def test_the_source_reads_spy_minutes_with_the_index_beside_them(tmp_path: Path) -> None:
    frame(minutes_of("2024-06-27", "2024-07-01")).to_csv(tmp_path / "spy.csv", index=False)
    evenings().to_csv(tmp_path / "vix.csv", index=False)
    source = f"csv:{tmp_path}/spy.csv?market=spy&symbol=SPY&vix={tmp_path}/vix.csv"
    bars = load(source)
    assert (bars.market, bars.symbols, bars.interval, bars.gaps) == ("spy", ("SPY",), LENGTH, 0)
    assert bars.previous_vix is not None
    table = evenings()
    table["close"] += 1.0
    table.to_csv(tmp_path / "vix.csv", index=False)
    os.utime(tmp_path / "vix.csv", ns=(1, 1))
    assert load(source).previous_vix[0, 0] == bars.previous_vix[0, 0] + 1.0, "a changed file is read again"  # type: ignore[index]
    with pytest.raises(UnknownNameError, match="Did you mean 'vix'"):
        load(f"csv:{tmp_path}/spy.csv?market=spy&vx=1")


def findings(times: NDArray[np.datetime64], **more: str) -> dict[str, int]:
    return {finding.kind: finding.count for finding in diagnose(frame(times), now="2026-01-01", **more)}  # type: ignore[arg-type]


def test_the_doctor_is_silent_about_nights_and_finds_what_is_missing_inside_sessions() -> None:
    whole = minutes_of("2024-07-02", "2024-07-08")
    assert findings(whole, market="spy") == {}
    assert findings(whole)["gap"] > 4_000  # the mutant: a market that never closes
    assert findings(np.delete(whole, 100), market="spy") == {"gap": 1, "unfinished_session": 1}
    assert findings(whole[:-5], market="spy") == {"unfinished_session": 1}
    evening = np.concatenate([whole[:390], whole[389] + np.arange(1, 4) * MINUTE, whole[390:]])
    assert findings(evening, market="spy") == {"outside_session": 3}
    closing = whole + MINUTE
    assert findings(closing, market="spy", stamp="close") == {}


def test_the_detector_of_sessions_switched_off_misses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(doctor.DETECTORS, "sessions")
    assert findings(minutes_of("2024-07-02", "2024-07-08")[:-5], market="spy") == {}


@needs_data
def test_recorded_spy_minutes_are_255_whole_sessions_and_one_that_is_dropped() -> None:
    pytest.importorskip("pyarrow")
    bars = load("parquet:spy_1m.parquet?market=spy&symbol=SPY&vix=vix_daily.parquet")
    found = sessions_of(bars)
    kept = found.whole()
    print(f"{len(found)} sessions, {len(kept)} whole, {kept.calendar.early.sum()} close early, {bars.gaps} gaps")
    assert (len(found), len(kept), int(kept.calendar.early.sum()), bars.gaps) == (256, 255, 3, 0)
    assert str(found.calendar.day[~found.complete][0]) == "2025-04-02"
    assert len(found.absent) == 0
    raw = pd.read_parquet(Path(DATA) / "spy_1m.parquet")
    assert {finding.kind for finding in diagnose(raw, market="spy")} == {"unfinished_session"}


@pytest.mark.parametrize(
    "stamps",
    [
        lambda days: days,
        lambda days: days.tz_localize("America/New_York"),
        lambda days: days.tz_localize("America/Chicago"),
        lambda days: days.tz_localize("Europe/Berlin"),
        lambda days: days.tz_localize("Asia/Tokyo"),
        lambda days: [stamp.isoformat() for stamp in days.tz_localize("Europe/Berlin")],
        lambda days: [str(stamp.date()) for stamp in days],
        lambda days: (days + pd.Timedelta("20:15:00")).tz_localize("America/New_York"),
        lambda days: (days + pd.Timedelta("16:15:00")).tz_localize("America/New_York").tz_convert("UTC"),
    ],
    ids=["naive", "New York", "Chicago", "Berlin", "Tokyo", "Berlin as text", "dates", "evenings", "evenings in UTC"],
)
def test_a_daily_close_belongs_to_its_day_in_whatever_zone_it_is_written(stamps: Callable[..., object]) -> None:
    """A session never sees the close of its own day, nor one that is a day too old."""
    days = pd.DatetimeIndex(evenings()["date"])
    table = pd.DataFrame({"date": stamps(days), "close": evenings()["close"].to_numpy()})
    bars = Bars.from_frame(frame(minutes_of("2024-06-27", "2024-07-01")), market="spy", vix=table)
    assert bars.previous_vix is not None
    assert bars.previous_vix[[0, 389, 390, 780], 0].tolist() == [14.0, 14.0, 15.0, 16.0]


def test_an_empty_daily_table_is_named() -> None:
    with pytest.raises(DataError, match="vix: the table is empty"):
        Bars.from_frame(frame(minutes_of("2024-06-27", "2024-07-01")), market="spy", vix=evenings()[:0])
