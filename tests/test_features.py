"""Features: causal, warmed up as declared, the same live as in a table, finite for every legal market."""

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

from markets import features
from markets.bars import MARKS, PRICES, Bars
from markets.errors import ConfigError, DataError
from markets.features import FEATURES, NAMES, WARM_UP, FeatureScaler, FeatureStream, bounds, raw, table, warm_up
from markets.synthetic import CryptoParameters, crypto
from markets.table import CausalTable
from markets.windows import lagged, ratio, window_max, window_mean, window_min, window_sum

Floats = NDArray[np.float64]
Serve = Callable[[Bars], NDArray[np.float32]]

SEED = 17
ROWS = 900
STOP = 500  # end of the training range


@cache
def market(rows: int = ROWS, interval: str = "1h") -> Bars:
    return crypto(SEED, interval, rows)


@cache
def scaler() -> FeatureScaler:
    return FeatureScaler.fit(market(), raw(market()), STOP)


def unchecked(bars: Bars, **changes: Any) -> Bars:
    """The same bars with some arrays replaced and nothing validated."""
    values = {item.name: getattr(bars, item.name) for item in fields(Bars) if item.name != "checked"}
    return Bars.unchecked(**(values | changes))


def same_bits(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()


# --- the list ---------------------------------------------------------------------------------------------------------


def test_there_are_24_to_32_features_with_distinct_names_and_finite_bounds() -> None:
    assert 24 <= len(FEATURES) <= 32
    assert len(set(NAMES)) == len(FEATURES)
    low, high = bounds()
    assert np.isfinite(low).all()
    assert np.isfinite(high).all()
    assert (low < high).all()
    for feature in FEATURES:
        assert feature.formula
        assert feature.unit
        assert 1 <= feature.look_back <= WARM_UP - 1


def test_a_table_has_a_float32_row_per_bar_and_says_where_it_comes_from() -> None:
    served = table(market(), scaler())
    assert served.values.shape == (ROWS, len(NAMES))
    assert served.values.dtype == np.float32
    assert served.values.flags.c_contiguous
    assert served.names == NAMES
    assert served.valid_from == WARM_UP
    assert served.bars_hash == market().hash
    assert served.train_end == market().close_time[STOP - 1]


# --- hostile markets --------------------------------------------------------------------------------------------------


def hostile(kind: str) -> Bars:
    """A legal market of 700 bars that no formula likes."""
    rng = np.random.default_rng(SEED)
    rows = 700
    close, volume = np.full(rows, 100.0), np.full(rows, 5.0)
    if kind == "zero volume":
        close, volume = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, rows))), np.zeros(rows)
    elif kind == "constant price and zero volume":
        volume = np.zeros(rows)
    elif kind == "jumps of 90 %":
        close = 100.0 * np.cumprod(np.where(np.arange(rows) % 2 == 0, 1.9, 0.1) ** (rng.random(rows) < 0.2))
    elif kind == "tiny price":
        close = 1e-12 * np.exp(np.cumsum(rng.normal(0.0, 0.05, rows)))
    elif kind == "huge price":
        close = 1e12 * np.exp(np.cumsum(rng.normal(0.0, 0.05, rows)))
    elif kind == "wild volume":
        volume = np.where(np.arange(rows) % 7 == 0, 1e15, 0.0)
    elif kind == "calm, then a crash after training":
        close[500:] = 1.0
    elif kind == "last digits":
        close = np.where(rng.random(rows) < 0.5, 100.0, np.nextafter(100.0, 101.0))
    opened = np.concatenate([close[:1], close[:-1]])
    spread = 1.0 if kind in ("constant price", "constant price and zero volume", "last digits") else 1.5
    columns = {
        "open": opened, "close": close, "volume": volume,
        "high": np.maximum(opened, close) * spread, "low": np.minimum(opened, close) / spread,
    }  # fmt: skip
    return Bars(
        time=np.datetime64("2024-01-01", "ns") + np.arange(rows) * np.timedelta64(1, "h"),
        interval=np.timedelta64(3600 * 10**9, "ns"), symbols=("X",),
        **{name: value[:, None] for name, value in columns.items()},
    )  # fmt: skip


KINDS = (
    "constant price", "zero volume", "constant price and zero volume", "jumps of 90 %", "tiny price", "huge price",
    "wild volume", "calm, then a crash after training", "last digits",
)  # fmt: skip


def outside(values: Floats, fit: FeatureScaler) -> list[str]:
    """Names of features that are not finite or leave their bounds once they are warmed up."""
    low, high = bounds()
    served = fit.apply(values)[WARM_UP:]
    fine = np.isfinite(values[WARM_UP:]).all(axis=0) & ((served >= low) & (served <= high)).all(axis=0)
    return [name for name, ok in zip(NAMES, fine, strict=True) if not ok]


def test_every_feature_is_finite_and_inside_its_bounds_on_a_synthetic_market() -> None:
    assert outside(raw(market()), scaler()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_feature_is_finite_and_inside_its_bounds_on_a_hostile_market(kind: str) -> None:
    """E41, E44, E45, E48."""
    bars = hostile(kind)
    values = raw(bars)
    own = FeatureScaler.fit(bars, values, 400)
    assert outside(values, own) == []
    assert outside(values, scaler()) == []
    assert len(table(bars, own)) == len(bars)  # the table's own check agrees


def test_the_bounds_check_catches_a_division_by_a_constant_window() -> None:
    """Twin of E44 and E45."""
    bars = hostile("constant price")
    values = raw(bars)
    with np.errstate(invalid="ignore", divide="ignore"):
        values[:, NAMES.index("volume_zscore_24")] = np.log(bars.volume[:, 0] - 5.0)
    assert outside(values, scaler()) == ["volume_zscore_24"]
    served = scaler().apply(raw(bars))
    served[WARM_UP + 3, 2] = np.nan
    low, high = (bound.astype(np.float32) for bound in bounds())
    with pytest.raises(DataError, match=rf"'{NAMES[2]}', row {WARM_UP + 3}"):
        CausalTable(served, NAMES, low, high, WARM_UP, bars.hash)


def test_zero_volume_gives_a_z_score_of_zero() -> None:
    """E44."""
    values = raw(hostile("zero volume"))[WARM_UP:]
    for name in ("volume_zscore_24", "volume_zscore_168", "volume_trend"):
        assert (values[:, NAMES.index(name)] == 0.0).all(), name


# --- causality --------------------------------------------------------------------------------------------------------


def honest(bars: Bars) -> NDArray[np.float32]:
    """Serve features with a scaler fitted on the training range of the very same bars."""
    values = raw(bars)
    return table(bars, FeatureScaler.fit(bars, values, STOP), values).values


def full_range_scaler(bars: Bars) -> NDArray[np.float32]:
    values = raw(bars)
    return table(bars, FeatureScaler.fit(bars, values, len(bars)), values).values


def shifted_by_one_bar(bars: Bars) -> NDArray[np.float32]:
    values = raw(bars)
    column = NAMES.index("return_1")
    values[:-1, column] = values[1:, column]
    return table(bars, FeatureScaler.fit(bars, values, STOP), values).values


def centred_window(bars: Bars) -> NDArray[np.float32]:
    values = raw(bars)
    column = NAMES.index("mean_gap_24")
    values[:-12, column] = values[12:, column]
    return table(bars, FeatureScaler.fit(bars, values, STOP), values).values


def futures_of(bars: Bars, k: int, rng: np.random.Generator) -> dict[str, Bars]:
    """The same bars with other values from row k on: noise, NaN, ten times as much, reversed, and cut off."""
    names = [name for name in (*PRICES, "volume", *MARKS) if getattr(bars, name) is not None]
    late = bars.funding_time >= bars.time[k]

    def after(change: Callable[[Floats], Floats]) -> Bars:
        columns = {name: getattr(bars, name).copy() for name in names}
        for array in columns.values():
            array[k:] = change(array[k:])
        rates = bars.funding_rate.copy()
        rates[late] = change(rates[late])
        return unchecked(bars, funding_rate=rates, **columns)

    return {
        "noise": after(lambda x: rng.lognormal(0.0, 3.0, x.shape)),
        "nan": after(lambda x: np.full_like(x, np.nan)),
        "times ten": after(lambda x: 10.0 * x),
        "reversed": after(lambda x: x[::-1].copy()),
        "cut": bars.between(0, k),
    }


def lookahead(serve: Serve, seed: int, draws: int = 20) -> list[str]:
    """Which changes of bars k.. reach a row before k, for random k after the training range."""
    rng = np.random.default_rng(seed)
    before = serve(market())
    leaks = []
    for k in rng.integers(STOP, ROWS, draws).tolist():
        for kind, bars in futures_of(market(), k, rng).items():
            if not same_bits(serve(bars)[:k], before[:k]):
                leaks.append(f"{kind} from row {k}")
    return leaks


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_no_change_and_no_cut_of_the_future_reaches_an_earlier_row() -> None:
    print(f"seed {SEED}")
    assert lookahead(honest, SEED) == []


@pytest.mark.parametrize("serve", [full_range_scaler, shifted_by_one_bar, centred_window])
def test_the_causality_check_catches_planted_lookahead(serve: Serve) -> None:
    assert lookahead(serve, SEED, draws=2) != []


def test_the_scaler_reads_training_rows_only() -> None:
    values = raw(market())
    spoiled = values.copy()
    spoiled[STOP:] = np.nan
    spoiled[:WARM_UP] = np.nan
    fit = FeatureScaler.fit(market(), spoiled, STOP)
    assert same_bits(fit.mean, scaler().mean)
    assert same_bits(fit.deviation, scaler().deviation)
    assert fit.train_end == market().close_time[STOP - 1]
    assert not np.isfinite(FeatureScaler.fit(market(), spoiled, STOP + 1).mean).all()  # one row more is seen


def test_scaled_features_have_mean_0_and_deviation_1_in_training_and_fixed_ones_keep_their_unit() -> None:
    fit, values = scaler(), raw(market())
    for column, feature in enumerate(FEATURES):
        scaled = (values[WARM_UP:STOP, column] - fit.mean[column]) / fit.deviation[column]
        if not feature.scaled:
            assert (fit.mean[column], fit.deviation[column]) == (0.0, 1.0), feature.name
        else:
            assert abs(scaled.mean()) < 1e-9, feature.name
            assert scaled.std() == pytest.approx(1.0, rel=1e-9), feature.name


# --- warm-up and look-back --------------------------------------------------------------------------------------------


def differing(left: NDArray[np.float32], right: NDArray[np.float32]) -> list[str]:
    return [name for column, name in enumerate(NAMES) if not same_bits(left[:, column].copy(), right[:, column].copy())]


def unlike_when_started_later(bars: Bars, skipped: int, warm_up: int) -> list[str]:
    """Features that differ after the warm-up when the first ``skipped`` bars were never seen."""
    whole = table(bars, scaler()).values
    late = table(bars.between(skipped, len(bars)), scaler()).values
    return differing(late[warm_up:], whole[skipped + warm_up :])


@pytest.mark.parametrize("skipped", [1, 100, 357, 700])
def test_a_later_start_gives_the_same_bits_after_the_warm_up(skipped: int) -> None:
    """E15."""
    assert unlike_when_started_later(market(), skipped, WARM_UP) == []


@pytest.mark.parametrize("interval", ["1m", "5m", "15m", "4h"])
def test_a_later_start_gives_the_same_bits_at_other_intervals(interval: str) -> None:
    bars = market(6_000, interval)
    late = bars.between(3_001, len(bars))
    declared = table(late, scaler()).valid_from
    assert declared == warm_up(bars.interval)
    assert unlike_when_started_later(bars, 3_001, declared) == []


def test_the_warm_up_check_catches_one_that_counts_bars_where_funding_counts_hours() -> None:
    assert unlike_when_started_later(market(6_000, "1m"), 3_001, WARM_UP) == ["funding_last", "funding_mean_3"]


def test_the_warm_up_check_catches_one_that_is_declared_too_short() -> None:
    """Twin of E15."""
    assert unlike_when_started_later(market(), 357, 167) != []


def read_too_far(declared: Callable[[features.Feature], int]) -> list[str]:
    """Features whose value at a row changes with bars before the declared look-back."""
    rng = np.random.default_rng(SEED)
    row, whole, found = 600, raw(market()), []
    for column, feature in enumerate(FEATURES):
        first = row - declared(feature)
        noise = {name: getattr(market(), name).copy() for name in (*PRICES, "volume", *MARKS)}
        for array in noise.values():
            array[:first] = rng.lognormal(3.0, 1.0, array[:first].shape)
        if not same_bits(raw(unchecked(market(), **noise))[row, column], whole[row, column]):
            found.append(feature.name)
    return found


def test_no_feature_reads_bars_before_its_declared_look_back() -> None:
    assert read_too_far(lambda feature: feature.look_back) == []


def test_the_look_back_check_catches_one_that_is_a_bar_short() -> None:
    short = read_too_far(lambda feature: feature.look_back - 1)
    assert {"return_24", "log_volatility_24", "autocorrelation_24"} <= set(short)


# --- the live face ----------------------------------------------------------------------------------------------------


def streamed(bars: Bars, fit: FeatureScaler, keep_events: bool = True) -> list[NDArray[np.float32] | None]:
    """Feed bars one by one, each with the funding stamps since the close of the one before."""
    stream, rows = FeatureStream(fit), []
    for row in range(len(bars)):
        bar = bars.one(row)
        empty = {"funding_time": bar.funding_time[:0], "funding_rate": bar.funding_rate[:0]}
        rows.append(stream.update(bar if keep_events else replace(bar, **empty)))
    return rows


def with_gap(bars: Bars) -> Bars:
    """The same bars without forty rows in the middle."""
    keep = np.r_[0:300, 340 : len(bars)]
    values = {name: value[keep] for name, value in bars.columns.items()}
    return replace(bars, time=bars.time[keep], labels=None, **values)


@pytest.mark.parametrize("kind", ["whole", "gap", "no marks, no funding"])
def test_a_stream_equals_the_table_bit_for_bit(kind: str) -> None:
    bars = market().between(0, 520)
    if kind == "gap":
        bars = with_gap(bars)
    elif kind == "no marks, no funding":
        none = dict.fromkeys(MARKS)
        bars = replace(bars, funding_time=bars.funding_time[:0], funding_rate=bars.funding_rate[:0], **none)
    expected = table(bars, scaler()).values
    rows = streamed(bars, scaler())
    assert all(row is None for row in rows[:WARM_UP])
    for number, row in enumerate(rows[WARM_UP:], WARM_UP):
        assert row is not None
        assert same_bits(row, expected[number]), (number, differing(row[None], expected[number][None]))


def test_the_stream_check_catches_lost_funding_stamps() -> None:
    bars = market().between(0, 260)
    rows = streamed(bars, scaler(), keep_events=False)
    row = rows[-1]
    assert row is not None
    assert differing(row[None], table(bars, scaler()).values[-1:]) == ["funding_last", "funding_mean_3"]


# --- formulas ---------------------------------------------------------------------------------------------------------


def doubling() -> Bars:
    """Every bar opens at its low and closes at twice that, its high; 200 hourly bars from a Friday midnight."""
    rows = 200
    close = 1e-20 * 2.0 ** np.arange(rows)
    volume = np.full(rows, 16.0)
    volume[190] = 81.0
    columns = {"open": close / 2, "low": close / 2, "high": close, "close": close, "volume": volume}
    stamps = np.datetime64("2024-01-05", "ns") + np.arange(25) * np.timedelta64(8, "h")
    return Bars(
        time=np.datetime64("2024-01-05", "ns") + np.arange(rows) * np.timedelta64(1, "h"),
        interval=np.timedelta64(3600 * 10**9, "ns"), symbols=("X",), funding_time=stamps,
        funding_rate=1e-5 * np.arange(1.0, 26.0)[:, None],
        **{name: value[:, None] for name, value in columns.items()},
    )  # fmt: skip


LN2 = math.log(2.0)
HAND_COMPUTED = {  # value at row 190: bar 22:00 to 23:00 on Friday the 12th, 23 stamps before its close
    "return_1": LN2,
    "return_12": 12.0 * LN2,
    "return_168": 168.0 * LN2,
    "log_volatility_24": math.log(LN2 * math.sqrt(8760.0)),
    "range_volatility_24": 1.0 / math.sqrt(4.0 * LN2),
    "range_1": LN2,
    "close_location": 1.0,
    "return_in_sigmas": 1.0,
    "mean_gap_24": math.log(24.0 / (2.0 - 2.0**-23)),
    "strength_14": 1.0,
    "channel_24": 1.0,
    "drawdown_168": 0.0,
    "autocorrelation_24": 1.0,
    "skewness_72": 1.0,
    "volume_zscore_24": math.sqrt(23.0),  # one 3 among 23 times 2
    "volume_zscore_168": math.sqrt(167.0),
    "volume_trend": math.log((2.0 + 1.0 / 24.0) / (2.0 + 1.0 / 168.0)),
    "basis": 0.0,
    "funding_last": 2.4,  # basis points; the 24th stamp, at 22:00 minus 6 h
    "funding_mean_3": 2.3,  # of 2.2, 2.3 and 2.4
    "funding_phase": 1.0 / 8.0,  # one hour to midnight
    "hour_sin": math.sin(2.0 * math.pi * 23.0 / 24.0),
    "hour_cos": math.cos(2.0 * math.pi * 23.0 / 24.0),
    "weekend": 0.0,
}


@pytest.mark.parametrize("name", HAND_COMPUTED)
def test_a_doubling_market_gives_the_values_computed_by_hand(name: str) -> None:
    found = raw(doubling())[190, NAMES.index(name)]
    assert found == pytest.approx(HAND_COMPUTED[name], rel=1e-9, abs=1e-9)


def test_a_stamp_at_the_close_is_not_known_at_the_close() -> None:
    column = raw(doubling())[:, NAMES.index("funding_last")]
    assert column[7] == pytest.approx(0.1)  # closes at 08:00, when the second stamp is charged
    assert column[8] == pytest.approx(0.2)


def test_the_weekend_is_saturday_and_sunday() -> None:
    column = raw(doubling())[:, NAMES.index("weekend")]
    assert not column[:24].any()
    assert column[24:72].all()
    assert not column[72:168].any()
    assert column[192:].all()


def test_basis_is_last_over_mark_in_basis_points() -> None:
    bars = doubling()
    marked = replace(bars, **{name: bars.columns[name[5:]] / 1.001 for name in MARKS})
    assert raw(marked)[5, NAMES.index("basis")] == pytest.approx(1e4 * math.log(1.001), rel=1e-9)


def naive(bars: Bars, t: int) -> dict[str, float]:
    """Formulas of the windows written out with plain loops, for one row."""
    c, h, low = (getattr(bars, name)[:, 0].tolist() for name in ("close", "high", "low"))
    a = [v**0.25 for v in bars.volume[:, 0].tolist()]
    r = [0.0] + [math.log(c[i] / c[i - 1]) for i in range(1, len(c))]

    def mean(x: list[float], n: int) -> float:
        return math.fsum(x[t - n + 1 : t + 1]) / n

    def rms(n: int) -> float:
        return math.sqrt(mean([x * x for x in r], n))

    def channel(n: int) -> float:
        bottom, top = min(low[t - n + 1 : t + 1]), max(h[t - n + 1 : t + 1])
        return 2.0 * (c[t] - bottom) / (top - bottom) - 1.0

    def zscore(n: int) -> float:
        window = a[t - n + 1 : t + 1]
        return float((a[t] - np.mean(window)) / np.std(window))

    return (
        {f"return_{n}": math.log(c[t] / c[t - n]) for n in (1, 4, 12, 24, 72, 168)}
        | {f"log_volatility_{n}": math.log(rms(n) * math.sqrt(bars.periods_per_year)) for n in (12, 24, 168)}
        | {f"mean_gap_{n}": math.log(c[t] / mean(c, n)) for n in (24, 168)}
        | {f"strength_{n}": mean(r, n) / mean([abs(x) for x in r], n) for n in (14, 72)}
        | {f"channel_{n}": channel(n) for n in (24, 168)}
        | {f"volume_zscore_{n}": zscore(n) for n in (24, 168)}
        | {
            "range_1": math.log(h[t] / low[t]),
            "range_volatility_24": math.sqrt(
                mean([math.log(x / y) ** 2 for x, y in zip(h, low, strict=True)], 24) / (4.0 * LN2 * rms(24) ** 2)
            ),
            "close_location": 2.0 * (c[t] - low[t]) / (h[t] - low[t]) - 1.0,
            "return_in_sigmas": r[t] / rms(168),
            "drawdown_168": math.log(c[t] / max(h[t - 167 : t + 1])),
            "autocorrelation_24": math.fsum(r[i] * r[i - 1] for i in range(t - 23, t + 1)) / 24 / rms(24) ** 2,
            "skewness_72": mean([x**3 for x in r], 72) / rms(72) ** 3,
            "volume_trend": math.log(mean(a, 24) / mean(a, 168)),
        }
    )


def test_features_equal_their_formulas_written_out() -> None:
    values = raw(market())
    for row in (WARM_UP, 333, ROWS - 1):
        for name, expected in naive(market(), row).items():
            assert values[row, NAMES.index(name)] == pytest.approx(expected, rel=1e-7, abs=1e-9), (row, name)


# --- storing a scaler -------------------------------------------------------------------------------------------------


def test_a_scaler_survives_json_to_the_last_bit() -> None:
    copy = FeatureScaler.from_json(json.loads(json.dumps(scaler().to_json())))
    assert same_bits(copy.mean, scaler().mean)
    assert same_bits(copy.deviation, scaler().deviation)
    assert copy.train_end == scaler().train_end
    assert copy.names == scaler().names
    assert copy.hash == scaler().hash
    assert same_bits(table(market(), copy).values, table(market(), scaler()).values)


def test_the_hash_of_a_scaler_sees_the_last_bit() -> None:
    mean = scaler().mean.copy()
    mean[3] = np.nextafter(mean[3], 1.0)
    assert replace(scaler(), mean=mean).hash != scaler().hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": None}, "not a feature scaler"), ({"mean": None}, "scaler"),
        ({"train_end": "soon"}, "not a feature scaler"),
        ({"names": [*NAMES[:-1], "gold"]}, "other features: gold, weekend"), ({"names": NAMES[::-1]}, "order differs"),
        ({"mean": [0.0]}, "means"), ({"deviation": [0.0] * len(NAMES)}, "deviation of 0"),
        ({"mean": [math.nan] * len(NAMES)}, "not finite"), ({"mean": ["x"] * len(NAMES)}, "not a feature scaler"),
    ],
)  # fmt: skip
def test_a_stored_scaler_that_does_not_fit_is_a_typed_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureScaler.from_json(scaler().to_json() | change)


@pytest.mark.parametrize("key", ["names", "mean", "deviation", "train_end"])
def test_a_stored_scaler_without_a_part_is_a_typed_error(key: str) -> None:
    content = scaler().to_json()
    del content[key]
    with pytest.raises(ConfigError, match=key):
        FeatureScaler.from_json(content)


def test_a_training_range_shorter_than_the_warm_up_is_a_typed_error() -> None:
    with pytest.raises(DataError, match="too few bars"):
        FeatureScaler.fit(market(), raw(market()), WARM_UP + 1)
    assert FeatureScaler.fit(market(), raw(market()), WARM_UP + 2).mean.shape == (len(NAMES),)


# --- windows ----------------------------------------------------------------------------------------------------------

LENGTHS = (1, 2, 7, 24, 72, 168, 169)


def traces(window: Callable[[Floats, int], Floats], seed: int) -> list[str]:
    """Where a window of a cut history, or one that an outlier has left, has other bits than before."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0.0, 1.0, 20_000)
    found = []
    for length in LENGTHS:
        whole = window(values, length)
        for cut in (1, 13, 8_192, 19_000):
            if not same_bits(window(values[cut:], length)[length - 1 :], whole[cut + length - 1 :]):
                found.append(f"cut at {cut}, length {length}")
        for outlier in (1e300, np.nan, np.inf):
            spoiled = values.copy()
            spoiled[100] = outlier
            if not same_bits(window(spoiled, length)[100 + length :], whole[100 + length :]):
                found.append(f"{outlier} before, length {length}")
    return found


@pytest.mark.parametrize("window", [window_sum, window_max, window_min, window_mean])
def test_a_window_depends_on_nothing_but_its_own_values(window: Callable[[Floats, int], Floats]) -> None:
    print(f"seed {SEED}")
    assert traces(window, SEED) == []


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_the_trace_check_catches_a_running_sum() -> None:
    def running(values: Floats, length: int) -> Floats:
        total = np.cumsum(values)
        total[length:] = total[length:] - total[:-length]
        return total

    assert len(traces(running, SEED)) > len(LENGTHS)


@pytest.mark.parametrize("length", LENGTHS)
def test_windows_equal_brute_force(length: int) -> None:
    rng = np.random.default_rng(SEED)
    values = rng.normal(0.0, 1.0, 500)
    total, top, bottom, mean = (f(values, length) for f in (window_sum, window_max, window_min, window_mean))
    for array in (total, top, bottom, mean):
        assert (array[: length - 1] == 0.0).all()
    for row in range(length - 1, len(values)):
        part = values[row - length + 1 : row + 1]
        assert top[row] == part.max()
        assert bottom[row] == part.min()
        assert total[row] == pytest.approx(math.fsum(part), rel=0, abs=1e-12 * np.abs(part).sum())
        assert mean[row] == total[row] / length


def test_a_window_longer_than_the_history_is_empty() -> None:
    assert (window_sum(np.ones(5), 24) == 0.0).all()
    assert (window_max(np.ones(23), 24) == 0.0).all()


def test_lags_and_ratios() -> None:
    values = np.array([1.0, 2.0, 3.0])
    assert lagged(values, 1).tolist() == [0.0, 1.0, 2.0]
    assert ratio(values, np.array([0.0, -1.0, 2.0]), 7.0).tolist() == [7.0, 7.0, 1.5]
    assert np.isnan(ratio(values, np.array([np.nan, 1.0, 1.0]))[0])  # not hidden


def test_a_synthetic_market_without_funding_serves_zeros_for_it() -> None:
    quiet = crypto(SEED, "1h", 300, CryptoParameters(funding_scale=0.0))
    assert (raw(quiet)[WARM_UP:, NAMES.index("funding_last")] == 0.0).all()
