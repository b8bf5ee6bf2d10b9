"""Hostile market data, up to the environment: refused with column and row when it is made, or played to the end.

What bars themselves refuse is in ``test_bars.py``, what features do with it in ``test_features.py``.
"""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from registered import HOUR, IDS, candles, family, make_on
from test_perp_env import FEE_ONLY, Kernel, bar, continuous, environment, flat, mutant, play, script

from markets.bars import PRICES, Bars
from markets.errors import ConfigError, DataError, RegimeGymError

SEED = 71
ROWS = 3_000


# ---- refused when an environment is made ------------------------------------------------------------------------


def spoilt(name: str, defect: str) -> tuple[pd.DataFrame, str]:
    """Candles with one defect, and what the error must name."""
    table = family(name).candles(family(name).many)
    row = 200
    if defect in ("nan", "inf", "-inf", "0", "-1"):
        table.loc[row, "close"] = float(defect)
        return table, f"'close', row {row} "
    if defect == "high below low":
        table.loc[row, ["high", "low"]] = table.loc[row, ["low", "high"]].to_numpy() * [0.99, 1.01]
        return table, f"'high', row {row} "
    if defect == "close above high":
        table.loc[row, "close"] = table.loc[row, "high"] * 1.01
        return table, f"'high', row {row} "
    if defect == "duplicate":
        return pd.concat([table[: row + 1], table[row:]], ignore_index=True), f"'time', row {row + 1} "
    if defect == "unsorted":
        table.loc[[row, row + 1]] = table.loc[[row + 1, row]].to_numpy()
        return table.astype({"timestamp": "datetime64[ns, UTC]"}), f"'time', row {row + 1} "
    if defect == "text":
        table = table.astype({"close": object})
        table.loc[row, "close"] = "n/a!"
        return table, f"'close', row {row}: 'n/a!'"
    return table.iloc[:1] if defect == "single bar" else table.iloc[:0], "bars"


DEFECTS = (
    "nan", "inf", "-inf", "0", "-1", "high below low", "close above high", "duplicate", "unsorted", "text",
    "single bar", "empty",
)  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("name", IDS)
def test_no_environment_is_made_of_data_that_violate_the_schema(name: str, defect: str, tmp_path: Path) -> None:
    """E40, E41, E42, E43, E46, E47. A typed error with column and row, from one env and from many."""
    table, text = spoilt(name, defect)
    file = tmp_path / "candles.csv"
    table.to_csv(file, index=False)
    for made in (gym.make, lambda *args, **more: gym.make_vec(*args, num_envs=2, **more)):
        with pytest.raises(DataError) as raised:
            made(name, bars=f"csv:{file}{family(name).query}")
        assert text in str(raised.value)


@pytest.mark.parametrize("name", IDS)
def test_the_same_candles_without_a_defect_make_an_environment(name: str, tmp_path: Path) -> None:
    """Twin of E40, E41, E42, E43, E46 and E47."""
    file = tmp_path / "candles.csv"
    family(name).candles(family(name).many).to_csv(file, index=False)
    env = gym.make(name, bars=f"csv:{file}{family(name).query}", **family(name).short(10))
    assert np.isfinite(env.reset(seed=SEED)[0]).all()


@pytest.mark.parametrize("name", IDS)
def test_too_few_bars_for_the_warm_up_are_a_clear_error(name: str, tmp_path: Path) -> None:
    """E46. From two bars on; the least number that suffices plays its episode."""
    kind = family(name)

    def made(rows: int) -> Any:
        table, options = kind.candles(rows), dict(pair.split("=") for pair in kind.query[1:].split("&") if pair)
        return make_on(name, Bars.from_frame(table, **options), **kind.short(5))

    refused, suffices = 1, kind.many
    for rows in (2, 3, 17, 168, 169, 170):
        with pytest.raises(RegimeGymError, match=r"bars|session"):
            made(rows)
    while suffices - refused > 1:
        rows = (refused + suffices) // 2
        try:
            made(rows)
            suffices = rows
        except RegimeGymError:
            refused = rows
    env = made(suffices)
    env.reset(seed=SEED)
    for _ in range(390):
        *_, terminated, truncated, _ = env.step(np.resize(kind.idle, env.action_space.shape))
        if terminated or truncated:
            break
    assert (terminated, truncated) == (kind.ends == "terminated", kind.ends == "truncated")


# ---- forms that are accepted or refused, and never changed ------------------------------------------------------


FORMS: dict[str, Callable[[pd.Series], Any]] = {
    "float32": lambda column: column.astype("float32"),
    "float16": lambda column: column.astype("float16"),
    "int64": lambda column: column.round().astype("int64"),
    "uint8": lambda column: column.clip(1, 200).round().astype("uint8"),
    "nullable float": lambda column: column.astype("Float64"),
    "nullable float with a hole": lambda column: column.astype("Float64").mask(column.index == 3),
    "objects": lambda column: column.astype(object),
    "objects with None": lambda column: column.astype(object).mask(column.index == 3, None),
    "decimals": lambda column: column.map(lambda value: Decimal(repr(float(value)))),
    "text numbers": lambda column: column.map(repr),
    "string dtype": lambda column: column.map(repr).astype("string"),
    "bytes": lambda column: column.map(lambda value: repr(value).encode()),
    "category": lambda column: column.astype("category"),
    "complex": lambda column: column.astype(complex),
    "booleans": lambda column: column > 0,
    "dates": lambda column: pd.to_datetime(column.round(), unit="D"),
    "lists": lambda column: column.map(lambda value: [value]),
    "thousands separators": lambda column: column.map(lambda value: f"{value * 1e4:,.2f}"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_column_of_any_kind_is_read_as_its_numbers_or_refused_by_name_and_never_changed(form: str) -> None:
    """E47. What is accepted equals the numbers that the column shows."""
    table = candles(ROWS)
    for name in (*PRICES, "volume"):
        table[name] = FORMS[form](table[name])
    before = table.copy(deep=True)
    if form in ACCEPTED:
        bars = Bars.from_frame(table)
        for name in (*PRICES, "volume"):
            np.testing.assert_array_equal(getattr(bars, name)[:, 0], [float(value) for value in table[name]])
    else:
        with pytest.raises(DataError, match="'open'"):
            Bars.from_frame(table)
    pd.testing.assert_frame_equal(table, before)


ACCEPTED = (
    "float32", "float16", "int64", "uint8", "nullable float", "objects", "decimals", "text numbers", "string dtype",
    "bytes", "category", "booleans",
)  # fmt: skip


@pytest.mark.parametrize(
    "stamps",
    [
        lambda times: times.tz_convert("America/New_York"),
        lambda times: times.tz_localize(None),
        lambda times: [t.isoformat() if i % 2 else t.tz_convert("Asia/Tokyo").isoformat() for i, t in enumerate(times)],
        lambda times: [t.isoformat().replace("+00:00", "Z" if i % 2 else "") for i, t in enumerate(times)],
        lambda times: [t if i % 2 else t.tz_convert("Europe/Berlin") for i, t in enumerate(times)],
        lambda times: [t.to_pydatetime() for t in times.tz_convert("Europe/Berlin")],
    ],
    ids=["one other zone", "no zone", "mixed offsets", "with and without Z", "mixed zones", "datetime objects"],
)
def test_stamps_of_any_zone_are_read_as_the_same_instants(stamps: Callable[[Any], Any]) -> None:
    """E42. Over a change of the clocks; a stamp without a zone is UTC."""
    times = pd.date_range("2024-10-26", periods=ROWS, freq="1h", tz="UTC")
    bars = Bars.from_frame(candles(ROWS).assign(timestamp=stamps(times)))
    np.testing.assert_array_equal(bars.time, times.tz_localize(None).to_numpy().astype("datetime64[ns]"))


# ---- played to the end ------------------------------------------------------------------------------------------


def check_items(before: dict[str, Any], after: dict[str, Any]) -> None:
    """The items add up to the change of equity, to the last digits of the largest of them."""
    items = [after["market_pnl"], after["cover"]]
    items += [-after[name] for name in ("fee", "spread_cost", "impact_cost", "funding", "clearance")]
    scale = max(before["equity"], after["equity"], *map(abs, items), abs(before["position"]) * after["mark"], 1.0)
    assert abs(after["equity"] - before["equity"] - sum(items)) <= 1e-9 * scale


def check_market(bars: Bars, kernel: Kernel | None = None, steps: int = 300, **settings: Any) -> list[dict[str, Any]]:
    """Random targets: finite observations inside the space, finite rewards, books that add up, no debt."""
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    env = environment(bars, kernel, continue_after_liquidation=True, ruin=1e-6, **settings)
    _, before = env.reset(seed=SEED)
    infos = [before]
    for _ in range(steps):
        obs, reward, terminated, truncated, info = env.step([random.uniform(-1.0, 1.0)])
        assert np.isfinite(obs).all()
        assert env.observation_space.contains(obs)
        assert math.isfinite(reward)
        assert all(np.isfinite(value) for value in info.values() if isinstance(value, float))
        assert info["equity"] >= 0.0
        check_items(before, info)
        before = info
        infos.append(info)
        if terminated or truncated:
            break
    return infos


@pytest.mark.parametrize("symbol", [None, "BTCUSDT"])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_prices_of_any_size_are_played_without_overflow(scale: float, symbol: str | None) -> None:
    """E41. A contract that fits the price trades; one whose tick is larger than the price refuses every order."""
    table = candles(1_500)
    table[list(PRICES)] *= scale
    table["volume"] *= 1e6 / scale
    infos = check_market(Bars.from_frame(table), symbol=symbol)
    trades = sum(info["fill_quantity"] != 0.0 for info in infos[1:])
    assert trades > 100 or symbol is not None


@pytest.mark.parametrize("row", [400, 600])
def test_a_price_that_leaps_to_a_trillion_and_back_is_played_without_overflow(row: int) -> None:
    """E41, E48. One bar at 1e12, one at 1e-12, between ordinary ones."""
    close = candles(1_500)["close"].to_numpy(copy=True)
    close[row], close[row + 2] = 1e12, 1e-12
    for leverage in (1.0, 20.0):
        check_market(continuous(close), leverage=leverage, episode_bars=400, random_start=False)


def test_mutant_a_number_that_is_not_finite_is_found() -> None:
    """Twin of E41, E44, E45, E48 and E63."""
    fault = mutant(("a[MARGIN_RATIO] = needed / balance if balance > needed else 1.0", "a[MARGIN_RATIO] = math.nan"))
    with pytest.raises(AssertionError):
        check_market(Bars.from_frame(candles(1_500)), fault)


def gap_run(missing: int, kernel: Kernel | None = None, side: float = 1.0) -> list[dict[str, Any]]:
    """Hold 1 BTC over a gap of ``missing`` bars with a stamp every eighth hour; close at the open after it."""
    rows = [flat(50_000.0), flat(50_000.0), bar(51_000.0, 51_000.0, 50_500.0, 50_500.0, skip=missing), flat(50_500.0)]
    stamps = [(hour + 0.5, 1e-6) for hour in range(0, missing + 3, 8)]
    bars = script(rows, stamps)
    assert bars.gaps == missing
    infos = play(bars, (side * 0.5, side * 0.5, 0.0), kernel, leverage=10.0, **FEE_ONLY)
    opens = set(bars.open[:, 0])
    assert all(info["fill_quantity"] == 0.0 or info["fill_price"] in opens for info in infos[1:])
    return infos


@pytest.mark.parametrize("missing", [1, 10, 10_000])
def test_nothing_fills_in_a_gap_and_every_stamp_in_it_is_charged(missing: int) -> None:
    """E42. The order of the last bar waits for the market to reopen; stamps of missing hours use the last mark."""
    infos = gap_run(missing)
    before, after = infos[2], infos[3]
    assert after["time"] - before["time"] == (missing + 1) * HOUR
    assert after["fill_price"] == 51_000.0
    assert after["fill_quantity"] == -1.0
    stamps = np.arange(0.5, missing + 3, 8.0)  # hours after the opening of the first scripted bar
    inside = stamps[(stamps > 2.0) & (stamps < 2.0 + missing)]
    assert after["funding"] == pytest.approx(len(inside) * 50_000.0 * 1e-6, rel=1e-9, abs=1e-12)
    paid = sum(info["funding"] for info in infos[1:])
    assert paid == pytest.approx((1 + len(inside)) * 50_000.0 * 1e-6, rel=1e-9)


def test_mutant_stamps_of_a_gap_that_nobody_pays_are_found() -> None:
    """Twin of E42."""
    fault = mutant(("charge_funding(a, market[row + 1, FUNDING_IN_GAP], mark, contract, tiers)", "pass"))
    assert gap_run(10)[3]["funding"] > 0.0
    assert gap_run(10, fault)[3]["funding"] == 0.0


def test_a_position_is_not_liquidated_inside_a_gap_but_at_the_open_after_it() -> None:
    """E42. Whatever the market did meanwhile, nobody traded in it."""
    for skip in (1, 10, 10_000):
        rows = [flat(50_000.0), bar(44_000.0, 46_000.0, 43_000.0, 45_000.0, skip=skip), flat(45_000.0)]
        infos = play(script(rows), (0.5, 0.5), leverage=10.0, **FEE_ONLY)
        assert infos[2]["liquidated_at"] == 44_000.0
        assert infos[2]["time"] - infos[1]["time"] == (skip + 1) * HOUR


def constant(volume: float = 1e9) -> Bars:
    return continuous(np.full(1_500, 50_000.0), volume)


def test_a_constant_price_pays_a_differential_sharpe_ratio_of_zero() -> None:
    """E45. Also while trading, where trading costs nothing."""
    env = environment(constant(), reward="differential_sharpe", cost_scale=0.0, tick_size=0.0)
    env.reset(seed=SEED)
    random, fills = np.random.default_rng(SEED), 0
    for _ in range(300):
        _, reward, _, _, info = env.step([random.uniform(-1.0, 1.0)])
        assert reward == 0.0
        fills += info["fill_quantity"] != 0.0
    assert fills > 100


def test_mutant_a_sharpe_ratio_without_a_floor_of_the_variance_is_found() -> None:
    """Twin of E45."""
    step = mutant()

    def bare(value: float, mean: float, square: float, rate: float) -> tuple[float, float, float]:
        variance = square - mean * mean
        return float(np.float64(value - mean) / np.float64(variance)), mean, square

    step.__globals__["differential_sharpe"] = bare  # type: ignore[attr-defined]
    env = environment(constant(), step, reward="differential_sharpe")
    env.reset(seed=SEED)
    with np.errstate(invalid="ignore"):
        assert env.step([0.0])[1] != 0.0


# ---- size -------------------------------------------------------------------------------------------------------


def cost_of_construction(rows: int, build: Callable[..., Any] = Bars) -> tuple[float, float]:
    """CPU seconds that bars of ``rows`` arrays take, and the memory it takes beside them, in units of their size."""
    random = np.random.default_rng(SEED)
    close = 20_000.0 * np.exp(np.cumsum(random.normal(0.0, 1e-4, rows)))
    opened = np.concatenate([close[:1], close[:-1]])
    minute = np.timedelta64(60 * 10**9, "ns")
    arrays = {
        "time": np.datetime64("2000-01-01", "ns") + np.arange(rows) * minute, "open": opened[:, None],
        "high": np.maximum(opened, close)[:, None], "low": np.minimum(opened, close)[:, None],
        "close": close[:, None], "volume": np.ones((rows, 1)),
    }  # fmt: skip
    size = sum(array.nbytes for array in arrays.values())
    tracemalloc.start()
    try:
        began = time.process_time()
        bars = build(interval=minute, symbols=("X",), **arrays)
        seconds = time.process_time() - began
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(bars) == rows
    return seconds, peak / size


def check_size(rows: int, build: Callable[..., Any] = Bars) -> None:
    seconds, memory = cost_of_construction(rows, build)
    print(f"{rows} rows: {seconds:.2f} s of CPU, {memory:.2f} times the arrays")
    assert seconds < 10.0 * rows / 10_000_000 + 1.0
    assert memory < 2.0


def test_half_a_million_rows_are_checked_in_their_share_of_ten_seconds_and_of_twice_their_memory() -> None:
    """E49. Scaled down; the memory is a ratio and does not depend on the number of rows."""
    check_size(500_000)


@pytest.mark.slow
def test_ten_million_rows_are_checked_in_ten_seconds_and_less_than_twice_their_memory() -> None:
    """E49."""
    check_size(10_000_000)


def test_mutant_bars_that_keep_a_second_copy_are_found() -> None:
    """Twin of E49."""
    kept: list[Any] = []

    def twice(**values: Any) -> Bars:
        kept.append({name: np.array(value) for name, value in values.items() if isinstance(value, np.ndarray)})
        return Bars(**values)

    with pytest.raises(AssertionError):
        check_size(100_000, twice)


def test_every_error_of_hostile_data_is_one_of_ours() -> None:
    assert issubclass(DataError, RegimeGymError)
    with pytest.raises(ConfigError):
        Bars.from_frame([1, 2, 3])  # type: ignore[arg-type]
