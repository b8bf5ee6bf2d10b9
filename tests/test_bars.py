"""Bars reject what violates the schema, naming column and row, and never change what they were given."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from envs.splits import split_rows
from markets import synthetic
from markets.bars import MARKS, PRICES, Bars, as_bound, as_interval, as_time
from markets.errors import ConfigError, DataError, RegimeGymError, UnknownNameError

SEED = 5
ROWS = 48
COLUMNS = (*PRICES, "volume")


def frame(rows: int = ROWS, start: str = "2024-01-01", step: str = "1h") -> pd.DataFrame:
    """Candles of a seeded random walk with a UTC time column."""
    rng = np.random.default_rng(SEED)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, rows)))
    opened = np.concatenate([[100.0], close[:-1]])
    return pd.DataFrame(
        {
            "timestamp": pd.date_range(start, periods=rows, freq=step, tz="UTC"),
            "open": opened,
            "high": np.maximum(opened, close) * 1.002,
            "low": np.minimum(opened, close) * 0.998,
            "close": close,
            "volume": rng.lognormal(2.0, 1.0, rows),
        }
    )


def with_marks(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{f"mark_{name}": table[name] * 1.0001 for name in PRICES})


def funding(rows: int = 6, start: str = "2024-01-01", late: str = "0ms") -> pd.DataFrame:
    stamps = pd.date_range(start, periods=rows, freq="8h", tz="UTC") + pd.Timedelta(late)
    return pd.DataFrame({"timestamp": stamps, "funding_rate": np.linspace(1e-4, 6e-4, rows)})


def same(left: Bars, right: Bars) -> bool:
    """Equal content, array by array."""
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        for a, b in ((getattr(left, item.name), getattr(right, item.name)) for item in fields(Bars))
        if not (a is None and b is None)
    )


# --- values -----------------------------------------------------------------------------------------------------------


def rejected_cells(read: Callable[[pd.DataFrame], object], value: float) -> set[tuple[str, int]]:
    """Which cells, holding ``value``, are rejected with an error that names their column and row."""
    found = set()
    for column in (*COLUMNS, *MARKS):
        for row in (0, ROWS // 2, ROWS - 1):
            table = with_marks(frame())
            table.loc[row, column] = value
            try:
                read(table)
            except DataError as error:
                if f"'{column}'" in str(error) and f"row {row} " in str(error):
                    found.add((column, row))
    return found


EVERY_CELL = {(column, row) for column in (*COLUMNS, *MARKS) for row in (0, ROWS // 2, ROWS - 1)}
PRICE_CELLS = {cell for cell in EVERY_CELL if cell[0] != "volume"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_rejected_with_column_and_row(value: float) -> None:
    """E40."""
    assert rejected_cells(Bars.from_frame, value) == EVERY_CELL


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_price_of_zero_or_less_is_rejected_with_column_and_row(value: float) -> None:
    """E41."""
    assert rejected_cells(Bars.from_frame, value) >= PRICE_CELLS


def test_the_cell_check_catches_a_reader_that_fills_holes() -> None:
    """Twin of E40."""

    def lenient(table: pd.DataFrame) -> Bars:
        return Bars.from_frame(table.ffill().bfill())

    assert ("volume", 0) not in rejected_cells(lenient, np.nan)
    assert rejected_cells(lambda table: None, np.inf) == set()


def test_zero_volume_is_legal_and_a_negative_one_is_not() -> None:
    table = frame()
    table.loc[3, "volume"] = 0.0
    assert Bars.from_frame(table).volume[3, 0] == 0.0
    table.loc[3, "volume"] = -1.0
    with pytest.raises(DataError, match=r"'volume', row 3 .*-1\.0"):
        Bars.from_frame(table)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_extreme_price_levels_are_legal(scale: float) -> None:
    """E41."""
    table = frame()
    table[list(PRICES)] *= scale
    assert np.isfinite(Bars.from_frame(table).close).all()


@pytest.mark.parametrize("prefix", ["", "mark_"])
@pytest.mark.parametrize(("column", "factor"), [("high", 0.9), ("low", 1.1)])
def test_a_high_below_or_a_low_above_the_body_is_rejected(prefix: str, column: str, factor: float) -> None:
    """E43."""
    table = with_marks(frame())
    table.loc[7, prefix + column] = table.loc[7, prefix + "close"] * factor
    with pytest.raises(DataError, match=f"'{prefix}{column}', row 7 .*open or close"):
        Bars.from_frame(table)


def test_a_close_outside_high_and_low_is_rejected() -> None:
    """E43."""
    for factor, column in ((1.5, "high"), (0.5, "low")):
        table = frame()
        table.loc[9, "close"] *= factor
        with pytest.raises(DataError, match=f"'{column}', row 9 "):
            Bars.from_frame(table)


def test_several_wrong_rows_are_counted_and_the_first_is_named() -> None:
    table = frame()
    table.loc[[4, 8, 20], "close"] = np.nan
    with pytest.raises(DataError, match=r"'close', row 4 \(2024-01-01T04.*\(3 such rows\)"):
        Bars.from_frame(table)


def test_part_of_the_mark_prices_is_rejected() -> None:
    with pytest.raises(DataError, match="mark_open, mark_high, mark_low, mark_close"):
        Bars.from_frame(with_marks(frame()).drop(columns="mark_low"))


def test_mark_prices_that_begin_late_say_which_start_to_pass() -> None:
    table = with_marks(frame())
    table.loc[:9, list(MARKS)] = np.nan
    with pytest.raises(DataError, match=r"'mark_open', row 0 .*pass start=2024-01-01T10:00"):
        Bars.from_frame(table)
    assert len(Bars.from_frame(table, start="2024-01-01T10:00")) == ROWS - 10


# --- time -------------------------------------------------------------------------------------------------------------


def disordered(kind: str) -> pd.DataFrame:
    table = frame()
    if kind == "duplicate":
        return pd.concat([table.iloc[:10], table.iloc[9:]], ignore_index=True)
    if kind == "unsorted":
        return table.iloc[[*range(9), 10, 9, *range(11, ROWS)]].reset_index(drop=True)
    if kind == "off the grid":
        table.loc[10:, "timestamp"] += pd.Timedelta("7min")
    return table


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("duplicate", "repeats the row before"),
        ("unsorted", "earlier than the row before"),
        ("off the grid", "60-minute grid"),
    ],
)
def test_disorder_in_time_is_rejected_with_the_row(kind: str, text: str) -> None:
    """E42."""
    with pytest.raises(DataError, match=rf"'time', row 10 \(2024-01-01T\d\d.*{text}"):
        Bars.from_frame(disordered(kind))
    assert len(Bars.from_frame(disordered("none"))) == ROWS


def test_a_reversed_frame_is_rejected() -> None:
    with pytest.raises(DataError, match="no row is later"):
        Bars.from_frame(frame().iloc[::-1])
    with pytest.raises(DataError, match=r"row 1 .*sort the rows"):
        Bars.from_frame(frame().iloc[::-1], interval="1h")


@pytest.mark.parametrize("missing", [1, 10, 40])
def test_gaps_of_whole_bars_are_legal_and_counted(missing: int) -> None:
    """E42."""
    table = frame().drop(index=range(3, 3 + missing))
    bars = Bars.from_frame(table)
    assert bars.gaps == missing
    assert len(bars) == ROWS - missing
    assert bars.interval == np.timedelta64(1, "h")


def test_a_gap_of_ten_thousand_bars_is_counted() -> None:
    """E42."""
    table = frame()
    table.loc[24:, "timestamp"] += pd.Timedelta(10_000, "h")
    assert Bars.from_frame(table).gaps == 10_000


def test_a_hole_in_the_time_column_is_rejected_with_its_row() -> None:
    table = frame()
    table.loc[5, "timestamp"] = pd.NaT
    with pytest.raises(DataError, match="'timestamp', row 5"):
        Bars.from_frame(table)
    numbers = frame().assign(timestamp=np.arange(ROWS) * 3_600.0 + 1.7e9)
    numbers.loc[5, "timestamp"] = np.nan
    with pytest.raises(DataError, match="'timestamp', row 5"):
        Bars.from_frame(numbers)


def test_too_few_rows_are_a_clear_error() -> None:
    """E46."""
    for rows in (0, 1):
        with pytest.raises(DataError, match=f"{rows} rows: at least 2"):
            Bars.from_frame(frame().iloc[:rows])
    whole = Bars.from_frame(frame())
    with pytest.raises(DataError, match="1 bars: at least 2"):
        whole.between(3, 4)
    with pytest.raises(DataError, match="empty"):
        whole.between(4, 4)


# --- what a user's frame may look like --------------------------------------------------------------------------------


def spellings() -> dict[str, pd.DataFrame]:
    """The same candles in the shapes that users have them in."""
    table = frame()
    seconds = table["timestamp"].astype("int64") // (10**9 if "ns" in str(table["timestamp"].dtype) else 10**6)
    naive = table["timestamp"].dt.tz_localize(None)
    berlin = table["timestamp"].dt.tz_convert("Europe/Berlin")
    values = table[list(COLUMNS)]
    return {
        "aware index": values.set_index(pd.DatetimeIndex(table["timestamp"])),
        "naive index": values.set_index(pd.DatetimeIndex(naive)),
        "unnamed index": values.set_index(pd.DatetimeIndex(naive.to_numpy())),
        "other zone": table.assign(timestamp=berlin),
        "epoch seconds": table.assign(timestamp=seconds),
        "epoch milliseconds": table.assign(timestamp=seconds * 1_000),
        "epoch microseconds": table.assign(timestamp=seconds * 10**6),
        "epoch nanoseconds": table.assign(timestamp=seconds * 10**9),
        "text": table.assign(timestamp=table["timestamp"].astype(str)),
        "column case": table.rename(columns=str.upper),
        "open_time": table.rename(columns={"timestamp": "Open_Time"}),
        "date": table.rename(columns={"timestamp": "Date"}),
        "extra column": table.assign(trades=1),
        "float32 is not read as float64 garbage": table.astype({name: "float64" for name in COLUMNS}),
        "text numbers": table.assign(close=table["close"].map(repr)),
        "shuffled columns": table[["volume", "close", "timestamp", "low", "high", "open"]],
    }


@pytest.mark.parametrize("name", spellings())
def test_the_same_candles_are_read_from_every_usual_frame(name: str) -> None:
    """E42, E47."""
    assert same(Bars.from_frame(spellings()[name]), Bars.from_frame(frame()))


def test_the_comparison_of_bars_sees_one_changed_bit() -> None:
    table = frame()
    table.loc[5, "volume"] = np.nextafter(table.loc[5, "volume"], 1e9)
    assert not same(Bars.from_frame(table), Bars.from_frame(frame()))


def test_closing_stamps_are_moved_to_the_opening() -> None:
    closing = frame()
    closing["timestamp"] += pd.Timedelta("1h")
    assert same(Bars.from_frame(closing, stamp="close"), Bars.from_frame(frame()))
    assert not same(Bars.from_frame(closing), Bars.from_frame(frame()))
    with pytest.raises(UnknownNameError, match="Did you mean 'close'"):
        Bars.from_frame(closing, stamp="closed")


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_narrow_and_whole_numbers_become_float64(dtype: str) -> None:
    """E47."""
    table = frame()
    table[list(PRICES)] = np.array([[10, 12, 9, 11]] * ROWS)
    bars = Bars.from_frame(table.astype({name: dtype for name in PRICES}))
    assert bars.close.dtype == np.float64
    assert (bars.close == 11.0).all()


def test_text_that_is_no_number_is_rejected_with_column_and_row() -> None:
    """E47."""
    table = frame().astype({"close": object})
    table.loc[6, "close"] = "n/a!"
    with pytest.raises(DataError, match=r"'close', row 6: 'n/a!' is not a number"):
        Bars.from_frame(table)


def test_text_that_is_no_time_is_rejected_with_column_and_row() -> None:
    table = frame().astype({"timestamp": str}).astype({"timestamp": object})
    table.loc[6, "timestamp"] = "yesterday"
    with pytest.raises(DataError, match=r"'timestamp', row 6: 'yesterday' is not a time"):
        Bars.from_frame(table)


def test_missing_columns_say_what_is_there_and_how_to_rename() -> None:
    with pytest.raises(DataError, match=r"'volume' is missing.*timestamp, open, high, low, close, vol\..*rename"):
        Bars.from_frame(frame().rename(columns={"volume": "vol"}))
    with pytest.raises(DataError, match=r"no time column.*DatetimeIndex.*rename"):
        Bars.from_frame(frame().drop(columns="timestamp"))


def test_cuts_are_made_before_validation() -> None:
    table = frame()
    table.loc[:4, "close"] = np.nan
    table.loc[40:, "low"] = -1.0
    bars = Bars.from_frame(table, start="2024-01-01T05:00", end="2024-01-02T16:00")
    assert bars.time[0] == np.datetime64("2024-01-01T05:00")
    assert bars.close_time[-1] == np.datetime64("2024-01-02T16:00")
    with pytest.raises(DataError):
        Bars.from_frame(table, start="2024-01-01T04:00", end="2024-01-02T16:00")
    with pytest.raises(DataError):
        Bars.from_frame(table, start="2024-01-01T05:00", end="2024-01-02T17:00")


def test_text_outside_the_cut_does_not_matter_either() -> None:
    table = frame().astype({"close": object})
    table.loc[0, "close"] = "n/a!"
    assert len(Bars.from_frame(table, start="2024-01-01T01:00")) == ROWS - 1


def test_an_end_that_is_only_a_date_includes_its_day() -> None:
    day = Bars.from_frame(frame(), end="2024-01-01")
    assert len(day) == 24
    assert len(Bars.from_frame(frame(), end="2024-01-01T12:00")) == 12
    assert len(Bars.from_frame(frame(), start="2024-01-02")) == 24
    whole = Bars.from_frame(frame())
    assert whole.rows_closed_by("2024-01-01") == 24
    assert whole.rows_closed_by("2024-01-01T12:30") == 12
    assert whole.row_at("2024-01-01T12:30") == 13
    assert as_bound("2024-01-01", "end") == as_time("2024-01-02", "end")


def test_cuts_that_leave_nothing_name_the_range_of_the_data() -> None:
    with pytest.raises(ConfigError, match=r"leave 0 bars; the data runs from 2024-01-01"):
        Bars.from_frame(frame(), start="2025-01-01")
    with pytest.raises(ConfigError, match="start='soon' is not a date"):
        Bars.from_frame(frame(), start="soon")


def test_years_that_nanoseconds_cannot_hold_are_rejected_and_do_not_wrap_around() -> None:
    with pytest.raises(ConfigError, match="start='9999-01-01'"):
        Bars.from_frame(frame(), start="9999-01-01")
    ancient = np.datetime64("1500-01-01", "s") + 3_600 * np.arange(ROWS)
    with pytest.raises(DataError, match="'timestamp'"):
        Bars.from_frame(frame().assign(timestamp=ancient))
    for text in (ancient.astype(str), ["9999-01-01T00:00"] * ROWS):
        with pytest.raises(DataError, match="'timestamp'"):
            Bars.from_frame(frame().assign(timestamp=text))


@pytest.mark.parametrize(
    ("text", "seconds"), [("1m", 60), ("15m", 900), ("1h", 3_600), ("4H", 14_400), ("1d", 86_400), ("30min", 1_800)]
)
def test_intervals_are_read_as_traders_write_them(text: str, seconds: int) -> None:
    assert as_interval(text) == np.timedelta64(seconds, "s")


@pytest.mark.parametrize("text", ["", "0h", "-1h", "fast", "NaT"])
def test_an_interval_that_is_no_length_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match="interval="):
        as_interval(text)


# --- funding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", ["0ms", "3ms", "17ms", "4s"])
def test_funding_stamps_that_come_a_little_late_belong_to_their_minute(late: str) -> None:
    bars = Bars.from_frame(frame(), funding=funding(late=late))
    assert bars.funding_time.tolist() == Bars.from_frame(frame(), funding=funding()).funding_time.tolist()
    assert bars.funding_rate[:, 0] == pytest.approx(np.linspace(1e-4, 6e-4, 6), rel=1e-15)


def test_funding_outside_the_bars_is_left_out() -> None:
    events = funding(rows=30, start="2023-12-29")
    bars = Bars.from_frame(frame(), funding=events)
    assert bars.funding_time[0] == np.datetime64("2024-01-01T00:00")
    assert bars.funding_time[-1] == np.datetime64("2024-01-02T16:00")
    assert len(bars.funding_time) == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.0, -2.0])
def test_a_funding_rate_that_is_no_fraction_is_rejected_with_its_row(value: float) -> None:
    events = funding()
    events.loc[2, "funding_rate"] = value
    with pytest.raises(DataError, match=r"'funding_rate', row 2 .*not a fraction"):
        Bars.from_frame(frame(), funding=events)


def test_funding_stamps_must_rise() -> None:
    with pytest.raises(DataError, match=r"'funding_time', row 3 .*not later"):
        Bars.from_frame(frame(), funding=funding().iloc[[0, 1, 2, 2, 4]])
    with pytest.raises(DataError, match="funding: column 'funding_rate' is missing"):
        Bars.from_frame(frame(), funding=funding().rename(columns={"funding_rate": "fee"}))


# --- ownership and identity -------------------------------------------------------------------------------------------


def changed_by(read: Callable[[pd.DataFrame, pd.DataFrame], object]) -> bool:
    """True when reading two tables changes either of them."""
    table, events = with_marks(frame()), funding()
    before = (table.copy(deep=True), events.copy(deep=True))
    read(table, events)
    return not (table.equals(before[0]) and events.equals(before[1]) and list(table) == list(before[0]))


def test_reading_a_frame_changes_neither_the_frame_nor_the_funding() -> None:
    """E47."""
    assert not changed_by(lambda table, events: Bars.from_frame(table, funding=events, start="2024-01-01T05:00"))


def test_the_change_check_catches_a_reader_that_scales_or_adds_in_place() -> None:
    """Twin of E47."""
    assert changed_by(lambda table, events: table.insert(0, "row", range(len(table))))

    def scale(table: pd.DataFrame, events: pd.DataFrame) -> None:
        events["funding_rate"] *= 2.0

    assert changed_by(scale)


def test_bars_own_read_only_copies_of_the_arrays_they_were_given() -> None:
    table = frame()
    values = {name: table[name].to_numpy(copy=True)[:, None] for name in COLUMNS}
    times = table["timestamp"].dt.tz_localize(None).to_numpy().astype("datetime64[ns]").copy()
    bars = Bars(time=times, interval=np.timedelta64(1, "h"), symbols=("X",), **values)
    for name, value in values.items():
        kept = getattr(bars, name).copy()
        value[:] = -1.0
        assert np.array_equal(getattr(bars, name), kept), name
    for item in fields(Bars):
        array = getattr(bars, item.name)
        if isinstance(array, np.ndarray):
            assert not array.flags.writeable, item.name
            with pytest.raises(ValueError, match="read-only"):
                array[...] = array
    with pytest.raises(AttributeError):
        bars.symbols = ("Y",)  # type: ignore[misc]


def test_strided_and_read_only_arrays_are_accepted() -> None:
    """E47."""
    plain = Bars.from_frame(frame())
    wide = {name: np.repeat(getattr(plain, name), 2, axis=0)[::2] for name in COLUMNS}
    for array in wide.values():
        array.flags.writeable = False
    bars = Bars(time=plain.time[::1], interval=plain.interval, symbols=plain.symbols, **wide)
    assert same(bars, plain)
    assert all(getattr(bars, name).flags.c_contiguous for name in COLUMNS)


def test_arrays_of_the_wrong_shape_or_kind_are_rejected_by_name() -> None:
    plain = Bars.from_frame(frame())
    with pytest.raises(DataError, match=r"'close' is float64 \(47, 1\)"):
        replace(plain, close=plain.close[:-1])
    with pytest.raises(DataError, match=r"'close' is float32"):
        replace(plain, close=plain.close.astype(np.float32))
    with pytest.raises(DataError, match="'labels' has 3 rows"):
        replace(plain, labels=np.zeros(3, np.int8))
    with pytest.raises(DataError, match="'funding_rate' is"):
        replace(plain, funding_rate=np.zeros((3, 1)))


def test_the_hash_depends_on_content_and_not_on_the_name() -> None:
    plain = Bars.from_frame(with_marks(frame()), funding=funding(), symbol="X")
    assert plain.hash == Bars.from_frame(with_marks(frame()), funding=funding(), symbol="X", source="elsewhere").hash
    others: list[dict[str, Any]] = [
        {"symbols": ("Y",)},
        {"market": "spy"},
        {"interval": np.timedelta64(30, "m")},
        {"volume": plain.volume * 2.0},
        {"mark_low": plain.mark_low * 0.999},  # type: ignore[operator]
        {"funding_rate": plain.funding_rate * 2.0},
        {"funding_time": plain.funding_time + np.timedelta64(60, "s")},
        {"time": plain.time + np.timedelta64(1, "h")},
        {"labels": np.zeros(ROWS, np.int8)},
    ]
    hashes = {replace(plain, **other).hash for other in others}
    assert len(hashes | {plain.hash}) == len(others) + 1


def test_a_slice_keeps_the_funding_inside_it_and_the_labels() -> None:
    bars = replace(Bars.from_frame(with_marks(frame()), funding=funding()), labels=np.arange(ROWS).astype(np.int8))
    part = bars.between(5, 17)
    assert len(part) == 12
    assert part.funding_time.tolist() == bars.funding_time[1:3].tolist()
    assert part.labels is not None
    assert part.labels.tolist() == list(range(5, 17))
    assert part.mark_open is not None
    assert len(bars.between(40, 1_000)) == 8


def test_unchecked_bars_carry_what_the_schema_would_reject() -> None:
    plain = Bars.from_frame(frame())
    close = plain.close.copy()
    close[-1] = np.nan
    values = {item.name: getattr(plain, item.name) for item in fields(Bars) if item.name != "checked"}
    assert np.isnan(Bars.unchecked(**(values | {"close": close})).close[-1, 0])
    with pytest.raises(DataError):
        Bars(**(values | {"close": close}))


def test_every_error_of_bad_data_is_a_value_error() -> None:
    assert issubclass(DataError, RegimeGymError)
    assert issubclass(RegimeGymError, ValueError)


def test_gaps_are_told_at_loading_with_their_number_and_a_whole_file_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    frame = pd.DataFrame(
        {name: 100.0 for name in ("open", "high", "low", "close", "volume")},
        index=pd.date_range("2024-01-01", periods=50, freq="h"),
    )
    Bars.from_frame(frame, symbol="BTCUSDT")
    assert not caplog.records
    Bars.from_frame(frame.drop(frame.index[[10, 11, 12, 30]]), symbol="BTCUSDT")
    (record,) = caplog.records
    assert "2 gaps, 4 bars are missing (longest gap 3 bars)" in record.getMessage()
    caplog.clear()
    with pytest.raises(DataError, match="sort the rows by time"):
        Bars.from_frame(frame.iloc[[*range(10), 11, 10, *range(12, 50)]], symbol="BTCUSDT")
    assert not caplog.records, "what is not in order has no gaps to count"


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (("2023-06-31", "2024-01-01"), "train_end='2023-06-31' is not a date"),
        (("2020-02-01", "2020-13-01"), "validation_end='2020-13-01' is not a date"),
        (("2020-03-01", "2020-02-01"), "train_end='2020-03-01' must come before validation_end='2020-02-01'"),
    ],
)
def test_impossible_split_dates_are_named(ends: tuple[str, str], message: str) -> None:
    bars = synthetic.crypto(1, "1h", 3000)
    with pytest.raises(ConfigError, match=re.escape(message)):
        split_rows(bars, "train", *ends)
