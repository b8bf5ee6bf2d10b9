"""Sources: a specification names bars, unknown parts are errors with the nearest valid name, nothing is made up."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from markets import sources
from markets.bars import Bars
from markets.errors import ConfigError, DataError, RegimeGymError, UnknownNameError
from markets.sources import SOURCES, find, load, parse
from markets.sources.memory import register_bars
from markets.synthetic import CryptoParameters, crypto

SEED = 3
DATA = os.environ.get("REGIMEGYM_DATA", "")
BTC = "perp_btcusdt_1h.parquet"
needs_data = pytest.mark.skipif(
    not (DATA and (Path(DATA) / BTC).is_file()), reason="REGIMEGYM_DATA is not set or holds no recorded BTC bars"
)


def candles(rows: int = 30, level: float = 100.0) -> pd.DataFrame:
    rng = np.random.default_rng(SEED)
    close = level * np.exp(np.cumsum(rng.normal(0.0, 0.01, rows)))
    return pd.DataFrame(
        {
            "timestamp": pd.date_range("2024-01-01", periods=rows, freq="1h", tz="UTC"),
            "open": close,
            "high": close * 1.01,
            "low": close * 0.99,
            "close": close,
            "volume": rng.lognormal(2.0, 1.0, rows),
        }
    )


def funding() -> pd.DataFrame:
    stamps = pd.date_range("2024-01-01", periods=4, freq="8h", tz="UTC") + pd.Timedelta("3ms")
    return pd.DataFrame({"timestamp": stamps, "funding_rate": [1e-4, 2e-4, -1e-4, 3e-4]})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the same candles as parquet and CSV."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REGIMEGYM_DATA", raising=False)
    candles().to_csv("candles.csv", index=False)
    candles().to_csv("candles.csv.gz", index=False)
    funding().to_csv("funding.csv", index=False)
    return tmp_path


# --- the form of a specification --------------------------------------------------------------------------------------


def test_a_specification_has_kind_path_and_options() -> None:
    assert parse("csv:a/b.csv?start=2020-01-01&rename=Volume%20BTC:volume") == (
        "csv",
        "a/b.csv",
        {"start": "2020-01-01", "rename": "Volume BTC:volume"},
    )
    assert parse("synthetic:crypto") == ("synthetic", "crypto", {})
    assert parse("memory:mine?") == ("memory", "mine", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prices.csv", "kind:path"), ("", "kind:path"), ("csv:", "names no path"), ("csv:?start=1", "names no path"),
        ("csv:a?start", "not key=value"), ("csv:a?start=1&start=2", "given twice"),
    ],
)  # fmt: skip
def test_a_malformed_specification_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(text)


@pytest.mark.parametrize("value", [None, 5, b"csv:a", Path("csv:a")])
def test_a_specification_that_is_no_text_is_rejected(value: object) -> None:
    with pytest.raises(ConfigError, match="kind:path"):
        load(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("parket:a", "parquet"), ("CSV:a", "csv"), ("synthetc:crypto", "synthetic"), ("synthetic:cripto", "crypto"),
        ("synthetic:crypto?sed=1", "seed"), ("synthetic:crypto?separaton=1", "separation"),
        ("csv:candles.csv?strat=2024-01-01", "start"), ("csv:candles.csv?fundng=f.csv", "funding"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_answered_with_the_nearest_valid_one(text: str, nearest: str, folder: Path) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{nearest}'"):
        load(text)


def test_every_source_is_a_function_that_exists() -> None:
    for target in SOURCES.values():
        module, function = target.split(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))


# --- files ------------------------------------------------------------------------------------------------------------


def equal(left: Bars, right: Bars) -> bool:
    return left.hash == right.hash


@pytest.mark.parametrize("name", ["candles.csv", "candles.csv.gz"])
def test_csv_round_trip_is_exact(name: str, folder: Path) -> None:
    bars = load(f"csv:{name}")
    assert equal(bars, Bars.from_frame(candles()))
    assert bars.source == f"csv:{name}"


def test_parquet_round_trip_is_exact_with_funding_and_symbol(folder: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet needs the extra 'data'")
    candles().to_parquet("candles.parquet")
    funding().to_parquet("funding.parquet")
    expected = Bars.from_frame(candles(), funding=funding(), symbol="BTCUSDT")
    assert equal(load("parquet:candles.parquet?funding=funding.parquet&symbol=BTCUSDT"), expected)
    assert equal(load("parquet:candles.parquet?funding=funding.csv&symbol=BTCUSDT"), expected)
    assert len(expected.funding_time) == 4


def test_the_round_trip_check_sees_a_rounded_price(folder: Path) -> None:
    candles().to_csv("rounded.csv", index=False, float_format="%.6g")
    assert not equal(load("csv:rounded.csv"), Bars.from_frame(candles()))


def test_options_are_those_of_from_frame(folder: Path) -> None:
    bars = load("csv:candles.csv?start=2024-01-01T05:00&end=2024-01-01&symbol=ETHUSDT&market=spot&interval=1h")
    assert (bars.symbols, bars.market, len(bars)) == (("ETHUSDT",), "spot", 19)
    shifted = load("csv:candles.csv?stamp=close")
    assert shifted.time[0] == np.datetime64("2023-12-31T23:00")


def test_columns_can_be_renamed_in_the_specification(folder: Path) -> None:
    candles().rename(columns={"volume": "Volume BTC", "timestamp": "when"}).to_csv("odd.csv", index=False)
    assert equal(load("csv:odd.csv?rename=Volume BTC:volume,when:timestamp"), Bars.from_frame(candles()))
    assert equal(load("csv:odd.csv?rename=Volume%20BTC:volume,when:timestamp"), Bars.from_frame(candles()))
    with pytest.raises(DataError, match=r"no time column.*rename"):
        load("csv:odd.csv")
    with pytest.raises(ConfigError, match="old:new"):
        load("csv:odd.csv?rename=volume")


def test_a_missing_file_says_where_it_was_looked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no file 'nowhere\.csv'.*REGIMEGYM_DATA is not set"):
        load("csv:nowhere.csv")
    monkeypatch.setenv("REGIMEGYM_DATA", str(folder / "data"))
    with pytest.raises(ConfigError, match=r"nowhere\.csv, .*data.nowhere\.csv"):
        load("csv:nowhere.csv")
    with pytest.raises(ConfigError, match="no file"):
        load("csv:candles.csv?funding=nowhere.csv")


def test_files_are_found_in_the_working_folder_first_and_then_in_the_data_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder / "data"
    data.mkdir()
    candles(level=200.0).to_csv(data / "candles.csv", index=False)
    candles(level=300.0).to_csv(data / "other.csv", index=False)
    monkeypatch.setenv("REGIMEGYM_DATA", str(data))
    assert load("csv:candles.csv").close[0, 0] < 150.0
    assert load("csv:other.csv").close[0, 0] > 250.0
    assert load(f"csv:{data / 'candles.csv'}").close[0, 0] > 150.0
    assert find("other.csv") == data / "other.csv"


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("csv", "empty.csv", b""), ("csv", "ragged.csv", b"timestamp,open\n1,2\n1,2,3\n"),
        ("csv", "binary.csv", bytes(range(256)) * 4), ("csv", "text.csv.gz", b"not gzip"),
        ("csv", "text.csv.zip", b"not zip"), ("parquet", "text.parquet", b"not parquet at all"),
        ("parquet", "empty.parquet", b""),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_a_typed_error_with_its_name(
    kind: str, name: str, content: bytes, folder: Path
) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="parquet needs the extra 'data'")
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        load(f"{kind}:{name}")


def test_bad_content_names_specification_column_and_row(folder: Path) -> None:
    table = candles()
    table.loc[4, "close"] = -1.0
    table.to_csv("bad.csv", index=False)
    with pytest.raises(DataError, match=r"csv:bad\.csv: column 'low', row 4 |csv:bad\.csv: column 'close', row 4 "):
        load("csv:bad.csv")


def test_the_same_file_is_read_once_and_a_changed_file_again(folder: Path) -> None:
    first = load("csv:candles.csv")
    assert load("csv:candles.csv") is first
    path = folder / "candles.csv"
    before = path.stat()
    candles(level=500.0).to_csv(path, index=False)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert load("csv:candles.csv").close[0, 0] > 400.0


def test_a_changed_funding_file_is_read_again(folder: Path) -> None:
    first = load("csv:candles.csv?funding=funding.csv")
    before = (folder / "funding.csv").stat()
    funding().assign(funding_rate=5e-4).to_csv("funding.csv", index=False)
    os.utime("funding.csv", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert load("csv:candles.csv?funding=funding.csv").funding_rate.tolist() != first.funding_rate.tolist()


def test_the_change_check_catches_a_cache_that_only_knows_the_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_stamps", lambda path, options: ())
    before = load("csv:candles.csv").close[0, 0]
    candles(level=900.0).to_csv("candles.csv", index=False)
    assert load("csv:candles.csv").close[0, 0] == before  # stale: what the stamps prevent


def test_the_same_name_in_another_working_folder_is_another_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = load("csv:candles.csv")
    (folder / "sub").mkdir()
    candles(level=700.0).to_csv(folder / "sub" / "candles.csv", index=False)
    monkeypatch.chdir(folder / "sub")
    assert load("csv:candles.csv").close[0, 0] > 600.0 > here.close[0, 0]


@pytest.mark.parametrize("text", ["csv:nowhere.csv", "parquet:nowhere.parquet", "memory:nowhere", "csv:empty.csv"])
def test_nothing_falls_back_to_synthetic_data(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object, **options: object) -> Bars:
        raise AssertionError("synthetic data in place of what was asked for")

    monkeypatch.setattr("markets.synthetic.crypto", forbidden)
    (folder / "empty.csv").write_text("")
    with pytest.raises(RegimeGymError):
        load(text)


# --- memory and synthetic ---------------------------------------------------------------------------------------------


def test_registered_bars_are_found_by_name_and_the_newest_win() -> None:
    first, second = Bars.from_frame(candles()), Bars.from_frame(candles(level=400.0))
    assert register_bars("test_sources", first) == "memory:test_sources"
    assert load("memory:test_sources") is first
    register_bars("test_sources", second)
    assert load("memory:test_sources") is second
    with pytest.raises(UnknownNameError, match="Did you mean 'test_sources'"):
        load("memory:test_source")
    with pytest.raises(UnknownNameError, match="option of source 'memory'"):
        load("memory:test_sources?start=2024-01-01")


@pytest.mark.parametrize("name", ["", "a?b", "a:b", "a&b"])
def test_a_name_that_a_specification_cannot_carry_is_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match="name="):
        register_bars(name, Bars.from_frame(candles()))


def test_only_bars_can_be_registered() -> None:
    with pytest.raises(ConfigError, match="from_frame"):
        register_bars("frame", candles())  # type: ignore[arg-type]


def test_synthetic_options_are_the_generators_parameters() -> None:
    bars = load("synthetic:crypto?seed=4&interval=15m&bars=300&separation=2.5&funding_scale=0")
    expected = crypto(4, "15m", 300, CryptoParameters(separation=2.5, funding_scale=0.0))
    assert equal(bars, expected)
    assert not equal(bars, crypto(5, "15m", 300, CryptoParameters(separation=2.5, funding_scale=0.0)))
    assert bars.market == "synthetic"
    assert bars.symbols == ("BTCUSDT",)
    assert len(load("synthetic:crypto?bars=50")) == 50


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("seed=-1", "seed="), ("seed=x", "seed="), ("bars=1", "bars="), ("bars=1e3", "bars="),
        ("interval=7m", "interval="),
        ("separation=much", "separation="), ("separation=nan", "separation"),
        ("annual_volatility=-1", "annual_volatility"),
    ],
)  # fmt: skip
def test_an_impossible_synthetic_option_is_rejected_by_name(query: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(f"synthetic:crypto?bars=50&{query}" if "bars" not in query else f"synthetic:crypto?{query}")


# --- recorded bars ----------------------------------------------------------------------------------------------------


@needs_data
def test_recorded_btc_bars_without_marks_at_first_name_the_start_to_pass() -> None:
    with pytest.raises(DataError, match=r"'mark_open', row 0 .*pass start=2019-12-23T11:00$"):
        load(f"parquet:{BTC}")
    late = load(f"parquet:{BTC}?start=2019-12-23T11:00&symbol=BTCUSDT")
    assert late.time[0] == np.datetime64("2019-12-23T11:00")


@needs_data
def test_recorded_btc_bars_from_2020_have_all_bars_and_funding_events() -> None:
    bars = load(f"parquet:{BTC}?funding=perp_btcusdt_funding_8h.parquet&symbol=BTCUSDT&start=2020-01-01")
    assert len(bars) == 50_400
    assert len(bars.funding_time) == 6_300
    assert bars.mark_close is not None
    assert bars.gaps == 0
    hours = (bars.funding_time - bars.funding_time.astype("datetime64[D]")) / np.timedelta64(1, "h")
    assert set(hours.tolist()) == {0.0, 8.0, 16.0}
