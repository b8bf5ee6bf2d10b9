"""Tables as files: exact round trips in three formats, and long tables of several assets."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import regimegym
from markets.bars import Bars
from markets.errors import ConfigError, DataError, MissingExtraError, UnknownNameError
from markets.sources import load
from markets.sources.tables import encode, read_table

COINS = {"BTCUSDT": 30_000.0, "ETHUSDT": 2_000.0, "SOLUSDT": 60.0}
HOURS, MISSING = 729 * 24, 100
FORMATS = ("candles.parquet", "candles.npz", "candles.csv", "candles.csv.gz")


def candles(symbol: str, rows: int = 300) -> pd.DataFrame:
    level = COINS[symbol]
    draw = np.random.default_rng([5, rows, list(COINS).index(symbol)])
    close = level * np.exp(np.cumsum(draw.normal(0.0, 0.005, rows)))
    first = np.concatenate([[level], close[:-1]])
    return pd.DataFrame({
        "timestamp": pd.date_range("2022-11-01", periods=rows, freq="1h", tz="UTC"), "symbol": symbol, "open": first,
        "high": np.maximum(first, close) * 1.001, "low": np.minimum(first, close) * 0.999, "close": close,
        "volume": 5e8 / level * draw.lognormal(0.0, 0.3, rows),
    })  # fmt: skip


def long_table(rows: int = HOURS, missing: int = MISSING) -> pd.DataFrame:
    """Two years of hours of three coins, one under the other, with hours missing here and there (never at the ends)."""
    whole = pd.concat([candles(symbol, rows) for symbol in COINS], ignore_index=True)
    inner = np.flatnonzero((whole.index % rows > 0) & (whole.index % rows < rows - 1))
    return whole.drop(index=np.random.default_rng(1).choice(inner, missing, replace=False)).reset_index(drop=True)


def written(frame: pd.DataFrame, file: Path) -> Path:
    file.write_bytes(encode(frame, file.name))
    return file


@pytest.fixture(scope="module")
def two_years(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(long_table(), tmp_path_factory.mktemp("long") / "coins.npz")


# Round trips


def check_round_trip(name: str, folder: Path, frame: pd.DataFrame) -> None:
    bars = load(f"{name.split('.')[1]}:{written(frame, folder / name)}?symbol=ETHUSDT")
    assert bars.hash == Bars.from_frame(candles("ETHUSDT"), symbol="ETHUSDT").hash


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_back_the_bars_bit_for_bit(name: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="parquet needs the extra 'data'")
    check_round_trip(name, tmp_path, candles("ETHUSDT"))
    check_round_trip(name, tmp_path, candles("ETHUSDT").set_index("timestamp"))
    off = candles("ETHUSDT").assign(volume=lambda rows: rows.volume.astype(np.float32))
    with pytest.raises(AssertionError):  # half of the digits is not exact
        check_round_trip(name, tmp_path, off)


def test_without_pyarrow_parquet_names_the_extra_and_npz_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="data"):
        encode(candles("ETHUSDT"), "candles.parquet")
    check_round_trip("candles.npz", tmp_path, candles("ETHUSDT"))


def test_an_npz_that_is_none_or_holds_objects_is_a_typed_error(tmp_path: Path) -> None:
    pickled, single = io.BytesIO(), io.BytesIO()
    np.savez(pickled, open=np.array([{}], object))
    np.save(single, np.zeros(3))
    cut = encode(candles("ETHUSDT"), "x.npz")[:-2000]
    for content in (b"", b"nothing", pickled.getvalue(), single.getvalue(), cut):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as npz"):
            read_table(tmp_path / "bad.npz")


def test_the_doctor_prints_sizes_and_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, target = written(candles("ETHUSDT"), tmp_path / "candles.csv"), tmp_path / "candles.npz"
    assert regimegym.main(["data-doctor", str(place), "--fix", str(target), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["bytes"], found["bytes_written"]) == (place.stat().st_size, target.stat().st_size)
    assert found["bytes_written"] < found["bytes"]
    assert load(f"npz:{target}").hash == load(f"csv:{place}").hash
    assert regimegym.main(["data-doctor", str(place)]) == 0
    assert f"300 rows, {place.stat().st_size / 1e6:.2f} MB" in capsys.readouterr().out


# Long tables


def test_two_years_of_three_coins_in_one_file_are_read_with_a_report_of_their_gaps(
    two_years: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(read_table(two_years)) == 3 * HOURS - MISSING == 52_388
    with caplog.at_level(logging.WARNING):
        parts = [load(f"npz:{two_years}?symbol={symbol}") for symbol in COINS]
        basket = load(f"npz:{two_years}?symbols={','.join(COINS)}")
    lacking = [HOURS - len(bars) for bars in parts]
    assert sum(lacking) == sum(bars.gaps for bars in parts) == MISSING
    for symbol, lacks in zip(COINS, lacking, strict=True):
        assert f"{lacks} bars are missing" in caplog.text
        assert f"{symbol} lacks {lacks}" in caplog.text
    assert basket.symbols == tuple(COINS)
    whole = long_table(missing=0)
    assert len(basket) == HOURS - len({*whole.timestamp[~_rows(whole).isin(_rows(long_table()))]})
    assert np.array_equal(parts[1].close[:5], load(f"npz:{two_years}?symbols=ETHUSDT").close[:5])


def _rows(frame: pd.DataFrame) -> Any:
    return frame.symbol + frame.timestamp.astype(str)


def test_a_file_of_several_assets_is_not_read_as_one(two_years: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"holds 3 assets .BTCUSDT, ETHUSDT, SOLUSDT.: name one"):
        load(f"npz:{two_years}")
    with pytest.raises(UnknownNameError, match="'SOLUSDT'"):
        load(f"npz:{two_years}?symbol=SOLUSD")
    assert regimegym.main(["data-doctor", str(two_years)]) == 2
    assert "holds 3 assets" in capsys.readouterr().err


def test_swapped_volumes_of_one_coin_are_found_and_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.concat([candles(symbol, 600) for symbol in COINS], ignore_index=True)
    frame["quote_volume"] = frame.volume * frame.close
    file = written(frame, tmp_path / "coins.csv")
    swap = (frame.symbol == "ETHUSDT") & (np.arange(len(frame)) % 600 >= 400)
    frame.loc[swap, ["volume", "quote_volume"]] = frame.loc[swap, ["quote_volume", "volume"]].to_numpy()
    swapped, fixed = written(frame, tmp_path / "swapped.csv"), tmp_path / "fixed.csv"
    for symbol, kinds in (("BTCUSDT", set()), ("ETHUSDT", {"switched_volume"})):
        regimegym.main(["data-doctor", str(swapped), "--symbol", symbol, "--json"])
        found = json.loads(capsys.readouterr().out)["findings"]
        assert {finding["kind"] for finding in found if "volume" in finding["kind"]} == kinds
    assert regimegym.main(["data-doctor", str(swapped), "--symbol", "ETHUSDT", "--fix", str(fixed)]) == 0
    assert load(f"csv:{fixed}?symbol=ETHUSDT").hash == load(f"csv:{file}?symbol=ETHUSDT").hash
    assert load(f"csv:{swapped}?symbol=ETHUSDT").hash != load(f"csv:{file}?symbol=ETHUSDT").hash


def test_a_table_out_of_order_is_told_no_number_of_gaps(caplog: pytest.LogCaptureFixture) -> None:
    frame = candles("ETHUSDT").iloc[[*range(100, 300), *range(100)]].reset_index(drop=True)
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="earlier than the row before"):
        Bars.from_frame(frame)
    assert "missing" not in caplog.text
