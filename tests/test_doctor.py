"""The data doctor finds each planted defect once, at its row and column, without false alarms, and invents no price."""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from markets import cut_file, doctor, synthetic
from markets.bars import MARKS, PRICES, Bars
from markets.doctor import Finding, diagnose, repair, treat
from markets.errors import ConfigError, DataError, RegimeGymError
from markets.sources import load
from scripts import data_doctor

SEED, ROWS, NOW = 11, 240, "2030-01-01"
DATA = os.environ.get("REGIMEGYM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="REGIMEGYM_DATA names no folder of real candles")


def candles(rows: int = ROWS) -> pd.DataFrame:
    """Hours of a seeded random walk near 20 000, with marks, volumes of a few units and UTC times."""
    rng = np.random.default_rng(SEED)
    close = 20_000.0 * np.exp(np.cumsum(rng.normal(0.0, 0.004, rows)))
    opened = np.concatenate([[20_000.0], close[:-1]]) * np.exp(rng.normal(0.0, 1e-5, rows))
    table = pd.DataFrame(
        {
            "timestamp": pd.date_range("2024-01-01", periods=rows, freq="1h", tz="UTC"),
            "open": opened,
            "high": np.maximum(opened, close) * (1 + rng.uniform(0.0005, 0.003, rows)),
            "low": np.minimum(opened, close) * (1 - rng.uniform(0.0005, 0.003, rows)),
            "close": close,
            "volume": rng.lognormal(1.0, 0.5, rows),
        }
    )
    return table.assign(**{f"mark_{name}": table[name] * 1.0001 for name in PRICES})


def rates(rows: int = ROWS // 8) -> pd.DataFrame:
    stamps = pd.date_range("2024-01-01", periods=rows, freq="8h", tz="UTC") + pd.Timedelta("3ms")
    return pd.DataFrame({"timestamp": stamps, "funding_rate": np.linspace(1e-4, 6e-4, rows)})


def look(table: pd.DataFrame, **more: Any) -> list[Finding]:
    return diagnose(table, now=more.pop("now", NOW), **more)


def found(findings: list[Finding]) -> set[tuple[str, str, int, int]]:
    return {(finding.kind, finding.column, finding.first_row, finding.count) for finding in findings}


# --- planted defects --------------------------------------------------------------------------------------------------


def gap(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(index=[*range(30, 33), 100]).reset_index(drop=True)


def disorder(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[[*range(50), 51, 50, *range(52, len(table))]].reset_index(drop=True)


def duplicate(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table.iloc[:61], table.iloc[60:]], ignore_index=True)


def conflict(table: pd.DataFrame) -> pd.DataFrame:
    table = duplicate(table)
    table.loc[61, "close"] *= 1.0001
    return table


def off_grid(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[70, "timestamp"] += pd.Timedelta("7min")
    return table


def put(row: Any, column: Any, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def plant(table: pd.DataFrame) -> pd.DataFrame:
        if isinstance(value, str):
            table[column] = table[column].astype(object)
        table.loc[row, column] = value
        return table

    return plant


def times(row: Any, factor: float, column: str, of: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def plant(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row, column] = table.loc[row, of] * factor
        return table

    return plant


def swap(first: str, second: str, rows: slice = slice(None)) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def plant(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[rows, [first, second]] = table.loc[rows, [second, first]].to_numpy(copy=True)
        return table

    return plant


def frozen(volume: float | None) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def plant(table: pd.DataFrame) -> pd.DataFrame:
        for name in PRICES:
            table.loc[80:83, name] = table.loc[80, name if volume is None else "close"]
        table.loc[80:83, "volume"] = table.loc[80, "volume"] if volume is None else volume
        return table

    return plant


def still(table: pd.DataFrame) -> pd.DataFrame:
    """41 bars whose four prices stand still while volume moves."""
    for name in PRICES:
        table.loc[80:120, name] = table.loc[80, "close"]
    return table


def quote_part(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[90:169, "volume"] *= table.loc[90:169, "close"]
    return table


def quote_column(table: pd.DataFrame) -> pd.DataFrame:
    table["quote_volume"] = table["volume"] * table["close"]
    return swap("volume", "quote_volume", slice(90, 169))(table)


def zones(kind: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def plant(table: pd.DataFrame) -> pd.DataFrame:
        utc = table["timestamp"]
        if kind == "naive":
            return table.assign(timestamp=utc.dt.tz_localize(None))
        text = utc.dt.strftime("%Y-%m-%dT%H:%M:%SZ").tolist()
        text[9] = utc.dt.tz_convert("Asia/Tokyo").iloc[9].isoformat()
        return table.assign(timestamp=text)

    return plant


def unreadable(table: pd.DataFrame) -> pd.DataFrame:
    text = table["timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%SZ").tolist()
    return table.assign(timestamp=[*text[:-1], "tomorrow"])


Plant = Callable[[pd.DataFrame], pd.DataFrame]
# name: (plant, detector, what is found: kind, column, first row, count; whether it is an error)
DEFECTS: dict[str, tuple[Plant, str, tuple[str, str, int, int], bool]] = {
    "gap": (gap, "gaps", ("gap", "time", 30, 4), False),
    "disorder": (disorder, "disorder", ("disorder", "time", 51, 1), True),
    "duplicate": (duplicate, "duplicates", ("duplicate", "time", 61, 1), True),
    "conflict": (conflict, "duplicates", ("conflict", "time", 61, 1), True),
    "off grid": (off_grid, "off_grid", ("off_grid", "time", 70, 1), True),
    "one row": (lambda table: table.iloc[:1], "too_few_rows", ("too_few_rows", "", 0, 1), True),
    "no volume": (
        lambda table: table.drop(columns="volume"), "missing_column", ("missing_column", "volume", 0, ROWS), True,
    ),
    "part of marks": (
        lambda table: table.drop(columns="mark_low"), "missing_column", ("missing_column", "mark_low", 0, ROWS), True,
    ),
    "bad time": (unreadable, "unreadable_time", ("unreadable_time", "timestamp", ROWS - 1, 1), True),
    "naive": (zones("naive"), "zones", ("naive_zone", "timestamp", 0, ROWS), False),
    "mixed": (zones("mixed"), "zones", ("mixed_zones", "timestamp", 0, 1), False),
    "future": (
        put(ROWS - 1, "timestamp", pd.Timestamp("2031-01-01", tz="UTC")), "unfinished",
        ("unfinished", "time", ROWS - 1, 1), False,
    ),
    "late marks": (put(slice(0, 19), list(MARKS), np.nan), "late_marks", ("late_marks", "mark_open", 0, 20), True),
    "no marks": (put(slice(None), list(MARKS), np.nan), "late_marks", ("late_marks", "mark_open", 0, ROWS), True),
    "NaN": (put([40, 44], "close", np.nan), "not_finite", ("not_finite", "close", 40, 2), True),
    "NaN volume": (put(0, "volume", np.nan), "not_finite", ("not_finite", "volume", 0, 1), True),
    "NaN mark": (put(40, "mark_low", np.nan), "not_finite", ("not_finite", "mark_low", 40, 1), True),
    "infinite": (put(41, "high", np.inf), "not_finite", ("not_finite", "high", 41, 1), True),
    "text": (put(42, "open", "n/a"), "not_finite", ("not_finite", "open", 42, 1), True),
    "zero price": (put(43, "low", 0.0), "not_positive", ("not_positive", "low", 43, 1), True),
    "negative price": (put(43, "mark_open", -1.0), "not_positive", ("not_positive", "mark_open", 43, 1), True),
    "negative volume": (put(45, "volume", -1.0), "not_positive", ("negative_volume", "volume", 45, 1), True),
    "high below body": (times(46, 0.9999, "high", "open"), "inconsistent", ("inconsistent", "high", 46, 1), True),
    "low above body": (
        times(47, 1.01, "mark_low", "mark_open"), "inconsistent", ("inconsistent", "mark_low", 47, 1), True,
    ),
    "high and low": (
        swap("high", "low"), "swapped_columns", ("swapped_columns", "high/low", 0, ROWS), True,
    ),
    "high and low in one row": (
        swap("high", "low", slice(48, 48)), "swapped_columns", ("swapped_columns", "high/low", 48, 1), True,
    ),
    "marks' high and open": (
        swap("mark_high", "mark_open"), "swapped_columns", ("swapped_columns", "mark_high/mark_open", 0, ROWS), True,
    ),
    "low and close in a part": (
        swap("low", "close", slice(100, 139)), "swapped_columns", ("swapped_columns", "low/close", 100, 40), True,
    ),
    "open and close": (swap("open", "close"), "swapped_columns", ("swapped_columns", "open/close", 0, ROWS), False),
    "close and volume": (
        swap("close", "volume"), "swapped_columns", ("swapped_columns", "close/volume", 0, ROWS), True,
    ),
    "low and volume": (
        swap("low", "volume", slice(100, 139)), "swapped_columns", ("swapped_columns", "low/volume", 100, 40), False,
    ),
    "quote volume": (quote_part, "switched_volume", ("switched_volume", "volume", 90, 80), False),
    "quote volume beside it": (
        quote_column, "switched_volume", ("switched_volume", "volume/quote_volume", 90, 80), False,
    ),
    "frozen": (frozen(0.0), "frozen", ("frozen", "close", 80, 4), False),
    "frozen with volume": (frozen(None), "frozen", ("frozen", "close", 80, 4), False),
    "still prices": (still, "still_prices", ("still_prices", "close", 80, 41), False),
    "no trade": (put([85, 120], "volume", 0.0), "zero_volume", ("zero_volume", "volume", 85, 2), False),
    "wick up": (times(86, 1.6, "high", "close"), "wicks", ("wick", "high", 86, 1), False),
    "wick down": (times(87, 0.4, "low", "close"), "wicks", ("wick", "low", 87, 1), False),
}  # fmt: skip
ACCEPTED_WITH = {"future": {("gap", "time", ROWS - 1, 60_885)}}  # a stamp in the far future is a gap as well


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found_at_its_row_and_column_and_nothing_else_is_reported(name: str) -> None:
    plant, _, expected, error = DEFECTS[name]
    findings = look(plant(candles()))
    rest = found(findings) - {expected}
    assert expected in found(findings)
    assert {kind for kind, *_ in rest} == {kind for kind, *_ in ACCEPTED_WITH.get(name, set())}
    assert {finding.severity for finding in findings if finding.kind == expected[0]} == {
        "error" if error else "warning"
    }


@pytest.mark.parametrize("name", DEFECTS)
def test_a_detector_that_is_switched_off_misses_its_defect(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, detector, expected, _ = DEFECTS[name]
    monkeypatch.delitem(doctor.DETECTORS, detector)
    assert expected[0] not in {finding.kind for finding in look(plant(candles()))}


def test_every_detector_has_a_planted_defect() -> None:
    elsewhere = {"sessions"}  # of a market that has them: tests/test_sessions.py
    assert {detector for _, detector, _, _ in DEFECTS.values()} | elsewhere == set(doctor.DETECTORS)


@pytest.mark.parametrize("name", DEFECTS)
def test_an_error_is_reported_exactly_where_bars_refuse_the_table(name: str) -> None:
    table = DEFECTS[name][0](candles())
    try:
        Bars.from_frame(table)
        refused = False
    except DataError:
        refused = True
    assert any(finding.severity == "error" for finding in look(table)) == refused


@pytest.mark.parametrize("name", DEFECTS)
def test_a_repaired_table_has_no_repairable_defect_left_and_the_input_is_as_it_was(name: str) -> None:
    table = DEFECTS[name][0](candles())
    before = table.copy(deep=True)
    fixed, done, left = treat(table, now=NOW)
    pd.testing.assert_frame_equal(table, before)
    repairable = any(finding.repairable for finding in look(table))
    assert bool(done) == repairable
    assert not any(finding.repairable for finding in left)
    if repairable:
        assert not any(finding.severity == "error" for finding in left)
        assert len(Bars.from_frame(fixed)) == len(fixed)
    else:
        pd.testing.assert_frame_equal(fixed, before)


@pytest.mark.parametrize(
    "name", [name for name, row in DEFECTS.items() if row[2][0] in ("disorder", "duplicate", "swapped_columns")]
)
def test_sorting_dropping_duplicates_and_exchanging_columns_restore_the_original(name: str) -> None:
    pd.testing.assert_frame_equal(treat(DEFECTS[name][0](candles()), now=NOW)[0], candles())


def test_volumes_beside_quote_volumes_are_restored() -> None:
    fixed, done, _ = treat(quote_column(candles()), now=NOW)
    assert done == ["exchanged volume and quote_volume in 80 rows"]
    pd.testing.assert_frame_equal(fixed.drop(columns="quote_volume"), candles())


def test_no_repair_makes_up_a_price() -> None:
    """E40. There is no lenient mode but the data doctor's, and it fills no price."""
    whole = set(candles()[list(PRICES)].to_numpy().ravel())
    for name, (plant, *_) in DEFECTS.items():
        if name not in ("close and volume", "low and volume"):
            table = plant(candles())
            fixed, _, _ = treat(table, now=NOW)
            planted = set(pd.DataFrame(table.reindex(columns=PRICES)).to_numpy().ravel())
            assert set(fixed[list(PRICES)].to_numpy().ravel()) <= whole | planted, name


@pytest.mark.parametrize(
    ("name", "sentence", "rows"),
    [
        ("duplicate", "dropped 1 identical duplicates", ROWS),
        ("disorder", "sorted by time: 2 rows moved", ROWS),
        ("late marks", "dropped 20 rows before mark prices begin", ROWS - 20),
        ("NaN", "dropped 2 rows with a value that is NaN, infinite or no number (each leaves a gap)", ROWS - 2),
        ("future", "dropped 1 unfinished bars", ROWS - 1),
        ("bad time", "dropped 1 rows without a readable time", ROWS - 1),
        ("high and low", f"exchanged high and low in {ROWS} rows", ROWS),
    ],
)
def test_a_repair_says_what_it_did_and_to_how_many_rows(name: str, sentence: str, rows: int) -> None:
    """E40."""
    table = DEFECTS[name][0](candles())
    fixed, done = repair(table, look(table))
    assert done == [sentence]
    assert len(fixed) == rows


def test_several_defects_are_repaired_together() -> None:
    table = duplicate(swap("high", "low")(candles()))
    table.loc[20, "close"] = np.nan
    table = table.iloc[::-1].reset_index(drop=True)
    fixed, _, left = treat(table, now=NOW)
    assert {finding.kind for finding in left} == {"gap"}
    assert len(Bars.from_frame(fixed)) == ROWS - 1


def test_rows_that_contradict_each_other_are_kept() -> None:
    fixed, done, left = treat(conflict(candles()), now=NOW)
    assert (len(fixed), done, [finding.kind for finding in left]) == (ROWS + 1, [], ["conflict"])


# --- time: the end of the table and the meaning of a stamp ------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamp", "now", "count"),
    [
        ("open", "2024-01-11T00:00", 0),
        ("open", "2024-01-10T23:59", 1),
        ("open", "2024-01-10T22:30", 2),
        ("close", "2024-01-10T23:00", 0),
        ("close", "2024-01-10T22:59", 1),
    ],
)
def test_bars_that_close_later_than_now_are_unfinished(stamp: str, now: str, count: int) -> None:
    findings = look(candles(), now=now, stamp=stamp)
    assert [finding.count for finding in findings] == ([count] if count else [])
    fixed, _, left = treat(candles(), now=now, stamp=stamp)
    assert (len(fixed), left) == (ROWS - count, [])


def test_an_interval_that_is_not_the_table_s_is_reported() -> None:
    assert {finding.kind for finding in look(candles(), interval="4h")} == {"off_grid"}
    assert {finding.kind for finding in look(candles(), interval="30m")} == {"gap"}


def test_columns_are_matched_as_bars_match_them() -> None:
    table = candles().rename(columns=str.upper)
    assert look(table) == []
    assert look(candles().set_index("timestamp")) == []
    assert look(candles().assign(timestamp=np.arange(ROWS) * 3600 + 1_704_067_200)) == []
    with pytest.raises(DataError, match="no time column"):
        look(candles().drop(columns="timestamp"))


# --- funding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plant", "detector", "expected"),
    [
        (lambda f: f.drop(index=[5, 6, 15]).reset_index(drop=True), "funding_gap", ("funding_gap", "timestamp", 5, 3)),
        (lambda f: f.iloc[:-4], "funding_gap", ("funding_gap", "timestamp", 25, 4)),
        (put(7, "funding_rate", np.nan), "funding_value", ("funding_value", "funding_rate", 7, 1)),
        (put(7, "funding_rate", -1.5), "funding_value", ("funding_value", "funding_rate", 7, 1)),
        (lambda f: f.iloc[[*range(9), 10, 9, *range(11, 30)]], "funding_order", ("funding_order", "timestamp", 10, 1)),
    ],
)
def test_a_defect_of_the_funding_is_found_and_missed_without_its_detector(
    plant: Plant, detector: str, expected: tuple[str, str, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert look(candles(), funding=rates()) == []
    broken = plant(rates())
    assert found(look(candles(), funding=broken)) == {expected}
    monkeypatch.delitem(doctor.FUNDING_DETECTORS, detector)
    assert look(candles(), funding=broken) == []


def test_a_change_of_the_funding_interval_is_no_gap() -> None:
    stamps = rates()["timestamp"]
    halves = stamps[15:] + pd.Timedelta("4h")
    both = pd.DataFrame({"timestamp": pd.concat([stamps, halves]).sort_values(), "funding_rate": 1e-4})
    assert look(candles(), funding=both) == []


# --- no false alarms --------------------------------------------------------------------------------------------------


def as_table(bars: Bars) -> pd.DataFrame:
    columns = {name: value[:, 0] for name, value in bars.columns.items()}
    return pd.DataFrame({"timestamp": pd.DatetimeIndex(bars.time, tz="UTC"), **columns})


@pytest.mark.parametrize("interval", ["1m", "15m", "1h", "4h", "1d"])
@pytest.mark.parametrize("seed", range(4))
def test_a_clean_synthetic_market_is_called_clean(seed: int, interval: str) -> None:
    bars = synthetic.crypto(seed=seed, interval=interval, bars=3000)
    funding = pd.DataFrame({"timestamp": bars.funding_time, "funding_rate": bars.funding_rate[:, 0]})
    assert diagnose(as_table(bars), now="2100-01-01", funding=funding) == []


KNOWN = {  # file: kinds of findings and their counts, as the notes on the files say
    "perp_btcusdt_15m": {"frozen": 4},
    "perp_btcusdt_1h": {"late_marks": 2538, "zero_volume": 3},
    "perp_btcusdt_1m": {},
    "perp_ethusdt_1h": {"late_marks": 628, "zero_volume": 1, "wick": 1},
    "perp_ethusdt_1m": {},
    "perp_solusdt_1h": {},
    "perp_solusdt_1m": {},
    "perp_solusdt_5m": {"frozen": 3},
    "spot_btcusdt_1h": {"gap": 122, "zero_volume": 3},
    "spot_btcusdt_binanceus_1m": {"frozen": 45, "zero_volume": 658 - 45},
    "spot_ethusdt_1h": {"gap": 122, "zero_volume": 3},
    "spot_solusdt_1h": {"gap": 20, "zero_volume": 2},
    "spy_1m": {"gap": 436_770},
}


@needs_data
@pytest.mark.parametrize("name", KNOWN)
def test_the_known_defects_of_a_real_file_are_found_and_none_but_late_marks_is_an_error(name: str) -> None:
    pytest.importorskip("pyarrow")
    path = Path(str(DATA)) / f"{name}.parquet"
    if not path.is_file():
        pytest.skip(f"no {path.name} in REGIMEGYM_DATA")
    findings = diagnose(pd.read_parquet(path))
    assert {finding.kind: finding.count for finding in findings} == KNOWN[name]
    assert {finding.kind for finding in findings if finding.severity == "error"} <= {"late_marks"}
    places = {finding.kind: finding.detail for finding in findings}
    if name == "perp_btcusdt_15m":
        assert "2024-10-28T20:00" in places["frozen"]
    if name == "perp_btcusdt_1h":
        assert "begin at 2019-12-23T11:00" in places["late_marks"]
    if name == "spot_btcusdt_1h":
        assert "27 gaps" in places["gap"]


# --- the command ------------------------------------------------------------------------------------------------------


def command(*words: object) -> int:
    parser = argparse.ArgumentParser()
    data_doctor.add_arguments(parser)
    return data_doctor.run(parser.parse_args([str(word) for word in words]))


ENDINGS = ["csv", "csv.gz", "parquet"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_fixed_file_loads_as_bars_and_the_input_file_is_untouched(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    source, out = tmp_path / f"raw.{ending}", tmp_path / f"fixed.{ending}"
    table = duplicate(swap("high", "low")(candles()))
    table.to_parquet(source) if ending == "parquet" else table.to_csv(source, index=False)
    before = source.read_bytes()
    assert command(source, "--now", NOW) == 1
    assert command(source, "--now", NOW, "--fix", out) == 0
    assert "exchanged high and low in 240 rows" in capsys.readouterr().out
    assert source.read_bytes() == before
    assert command(out, "--now", NOW) == 0
    assert "clean" in capsys.readouterr().out
    kind = "parquet" if ending == "parquet" else "csv"
    assert len(load(f"{kind}:{out}")) == ROWS
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, out.name])


def test_the_exit_status_tells_errors_from_warnings(tmp_path: Path) -> None:
    for plant, status in ((gap, 0), (conflict, 1), (lambda table: table, 0)):
        file = tmp_path / "raw.csv"
        plant(candles()).to_csv(file, index=False)
        assert command(file, "--now", NOW) == status
    assert command(file, "--now", NOW, "--fix", tmp_path / "copy.csv") == 0
    assert (tmp_path / "copy.csv").read_bytes() == file.read_bytes()


def test_what_cannot_be_repaired_still_counts_after_a_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conflict(candles()).to_csv(tmp_path / "raw.csv", index=False)
    assert command(tmp_path / "raw.csv", "--now", NOW, "--fix", tmp_path / "out.csv") == 1
    assert "remains: error: conflict" in capsys.readouterr().out


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "raw.csv"
    candles().to_csv(file, index=False)
    (tmp_path / "other.csv").write_text("mine")
    for target in (file, tmp_path / "other.csv"):
        with pytest.raises(ConfigError, match="exists already"):
            command(file, "--fix", target)
    with pytest.raises(ConfigError, match="ending"):
        command(file, "--fix", tmp_path / "out.xlsx")
    assert (tmp_path / "other.csv").read_text() == "mine"


def cut_text(decimals: int | None, keep: str) -> str:
    """A CSV whose volumes have so many decimals (None: all that a float needs), cut to ``keep`` of its last number."""
    table = candles()[["timestamp", *PRICES, "volume"]]
    table["volume"] = table["volume"] * 1000 if decimals is None else (table["volume"] * 1000).round(decimals)
    text = table.astype({"volume": int} if decimals == 0 else {}).to_csv(index=False).rstrip("\n")
    head, _, last = text.rpartition(",")
    whole, _, part = last.partition(".")
    kept = {"two digits": whole[:2], "units": whole, "point": whole + ".", "tenths": f"{whole}.{part[:1]}"}
    return f"{head},{kept[keep]}"


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
@pytest.mark.parametrize(
    ("decimals", "keep"),
    [(3, "units"), (3, "point"), (3, "tenths"), (None, "tenths"), (None, "units"), (0, "two digits")],
)
def test_a_file_cut_inside_its_last_number_is_found_and_only_that_row_is_dropped(
    decimals: int | None, keep: str, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / f"raw.{ending}", tmp_path / "out.csv"
    content = cut_text(decimals, keep).encode()
    file.write_bytes(gzip.compress(content) if ending == "csv.gz" else content)
    assert len(load(f"csv:{file}")) == ROWS  # bars cannot tell
    assert command(file, "--now", NOW) == 0
    assert "cut_line (1): the file ends in the middle of a line, and its last number" in capsys.readouterr().out
    assert command(file, "--now", NOW, "--fix", out) == 0
    assert "dropped 1 rows that end in the middle of a number" in capsys.readouterr().out
    assert len(pd.read_csv(out)) == ROWS - 1
    assert command(out, "--now", NOW) == 0
    assert "clean" in capsys.readouterr().out


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("decimals", [0, 3, None])
def test_a_whole_file_is_not_called_cut_with_or_without_its_last_line_break(
    decimals: int | None, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "raw.csv"
    table = candles()[["timestamp", *PRICES, "volume"]]
    table["volume"] = table["volume"] * 1000 if decimals is None else (table["volume"] * 1000).round(decimals)
    text = table.astype({"volume": int} if decimals == 0 else {}).to_csv(index=False).rstrip("\n")
    file.write_bytes((text + end).encode())
    assert cut_file.find_cut(file, ROWS) == []
    monkeypatch.setattr(cut_file, "_shorter", lambda value, others: True)  # a mutant that suspects every such file
    assert bool(cut_file.find_cut(file, ROWS)) == (end == "")


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", b"a,b\n1,2\n"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_cannot_be_read_is_a_typed_error(ending: str, content: bytes, tmp_path: Path) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / f"raw.{ending}").write_bytes(content)
    with pytest.raises(RegimeGymError):
        command(tmp_path / f"raw.{ending}")


def test_json_has_the_findings_and_the_repairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    duplicate(candles()).rename(columns={"volume": "Vol"}).to_csv(tmp_path / "raw.csv", index=False)
    rates().to_csv(tmp_path / "rates.csv", index=False)
    words = ("--funding", tmp_path / "rates.csv", "--rename", "Vol:volume", "--now", NOW, "--interval", "1h", "--json")
    assert command(tmp_path / "raw.csv", *words, "--fix", tmp_path / "out.csv") == 0
    report = json.loads(capsys.readouterr().out)
    assert [finding["kind"] for finding in report["findings"]] == ["duplicate"]
    assert report["repairs"] == ["dropped 1 identical duplicates"]
    assert report["remaining"] == []


@pytest.mark.parametrize(("minutes", "least"), [(1, 20), (5, 5), (15, 5), (60, 5), (1440, 5)])
def test_prices_may_repeat_for_a_few_bars_and_longer_where_bars_are_short(minutes: int, least: int) -> None:
    for count in (least - 1, least):
        table = candles()
        table["timestamp"] = pd.date_range("2024-01-01", periods=len(table), freq=f"{minutes}min", tz="UTC")
        for name in PRICES:
            table.loc[80 : 80 + count - 1, name] = table.loc[80, "close"]
        kinds = {finding.kind: finding.count for finding in look(table)}
        assert kinds.get("still_prices", 0) == (count if count == least else 0)


def test_a_file_of_funding_events_is_told_where_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "rates.csv"
    file.write_text("timestamp,fundingRate\n2024-01-01T00:00:00Z,0.0001\n2024-01-01T08:00:00Z,0.0001\n")
    with pytest.raises(ConfigError, match="--funding"):
        command(file)
