"""FEATURES: what the market looked like at the close of a bar, from bars 0..t only.

Every feature has an exact, finite look-back, so a whole history, a cut one and a live stream agree bit for bit after
the warm-up. *Fixed* features have natural bounds and are served as they are (agents may read their units); *scaled*
ones are standardised with mean and standard deviation of the training range and clipped to five deviations.

Look-backs count bars. With ``c`` close, ``h`` high, ``l`` low, ``v`` volume, ``r_t = ln(c_t / c_{t-1})``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from markets.bars import Bars
from markets.errors import ConfigError, DataError
from markets.table import CausalTable
from markets.windows import Floats, lagged, ratio, window_max, window_mean, window_min, window_sum

CLIP = 5.0  # standard deviations at which scaled features are cut
WARM_UP = 169  # bars: the longest look-back, plus the bar before it; see also warm_up
EVENTS = 3  # settled funding rates that are averaged
SMALLEST = 1e-12
DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class Feature:
    """One column: its formula, unit, look-back in bars, how it is served, and the function that computes it."""

    name: str
    formula: str
    unit: str
    look_back: int
    compute: Callable[[Any], Floats]  # of a history of bars
    low: float = -CLIP
    high: float = CLIP
    scaled: bool = True


class _History:
    """The arrays that several features share, computed once for a set of bars (first asset)."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.open, self.high, self.low, self.close, self.volume = (
            np.ascontiguousarray(getattr(bars, name)[:, 0]) for name in ("open", "high", "low", "close", "volume")
        )
        self.log_close = np.log(self.close)
        self.returns = np.diff(self.log_close, prepend=self.log_close[:1])
        self.activity = np.sqrt(np.sqrt(self.volume))  # tames the tail as a logarithm does, and takes a zero

    def change(self, bars: int) -> Floats:
        """Log return over ``bars``."""
        out = self.log_close - lagged(self.log_close, bars)
        out[:bars] = 0.0
        return out

    @cached_property
    def squares(self) -> Floats:
        return self.returns * self.returns

    @cached_property
    def variances(self) -> dict[int, Floats]:
        return {length: window_mean(self.squares, length) for length in (12, 24, 168)}

    def log_volatility(self, length: int) -> Floats:
        annual = np.sqrt(self.variances[length] * self.bars.periods_per_year)
        return np.log(np.maximum(annual, 1e-3))

    def mean_gap(self, length: int) -> Floats:
        mean = window_mean(self.close, length)
        return np.log(ratio(self.close, mean, 1.0))

    @cached_property
    def ranges(self) -> dict[int, tuple[Floats, Floats]]:
        return {length: (window_min(self.low, length), window_max(self.high, length)) for length in (24, 168)}

    def channel(self, length: int) -> Floats:
        low, high = self.ranges[length]
        return ratio(2.0 * (self.close - low), high - low, 1.0) - 1.0

    def strength(self, length: int) -> Floats:
        total = window_sum(np.abs(self.returns), length)
        return ratio(window_sum(self.returns, length), total)

    def autocorrelation(self, length: int) -> Floats:
        return ratio(window_mean(self.returns * lagged(self.returns, 1), length), self.variances[length])

    def skewness(self, length: int) -> Floats:
        spread = np.maximum(window_mean(self.squares, length), 0.0)
        return ratio(window_mean(self.squares * self.returns, length), spread * np.sqrt(spread))

    def activity_zscore(self, length: int) -> Floats:
        mean = window_mean(self.activity, length)
        variance = window_mean(self.activity * self.activity, length) - mean * mean
        variance[variance <= SMALLEST * mean * mean] = 0.0  # a constant window leaves only rounding
        return ratio(self.activity - mean, np.sqrt(variance))

    def activity_trend(self) -> Floats:
        short, long = window_mean(self.activity, 24), window_mean(self.activity, 168)
        return np.log(np.maximum(ratio(short, long, 1.0), 1e-3))

    def basis(self) -> Floats:
        if self.bars.mark_close is None:
            return np.zeros(len(self.close))
        return 1e4 * (self.log_close - np.log(self.bars.mark_close[:, 0]))

    def settled(self) -> NDArray[np.int64]:
        """How many funding stamps lie strictly before each bar's close: what was surely known by then."""
        return np.searchsorted(self.bars.funding_time, self.bars.close_time, side="left")

    def funding_mean(self, events: int) -> Floats:
        """Mean of the last ``events`` settled rates, of those there are; in basis points."""
        rates = np.ascontiguousarray(self.bars.funding_rate[:, 0]) if len(self.bars.funding_time) else np.zeros(0)
        count = self.settled()
        total = np.zeros(len(count))
        seen = np.zeros(len(count))
        for back in range(events, 0, -1):  # oldest first, as a stream would add them
            known = count >= back
            total[known] += rates[count[known] - back]
            seen += known
        return 1e4 * ratio(total, seen)

    def funding_phase(self) -> Floats:
        """Time to the next stamp as a share of 8 hours; stamps are at 00:00, 08:00 and 16:00 UTC."""
        hours = (self.bars.close_time - self.bars.close_time.astype("datetime64[D]")) / np.timedelta64(1, "h")
        return 1.0 - (hours % 8.0) / 8.0

    def day_angle(self) -> Floats:
        times = self.bars.close_time
        return 2.0 * np.pi * ((times - times.astype("datetime64[D]")) / DAY)

    def weekend(self) -> Floats:
        days = self.bars.time.astype("datetime64[D]").view(np.int64)  # day 0 was a Thursday
        return ((days + 3) % 7 >= 5).astype(np.float64)


def _returns() -> tuple[Feature, ...]:
    return tuple(
        Feature(f"return_{n}", f"ln(c_t / c_(t-{n}))", "log return", n, lambda h, n=n: h.change(n))  # type: ignore[misc]
        for n in (1, 4, 12, 24, 72, 168)
    )


FEATURES: tuple[Feature, ...] = (
    *_returns(),
    Feature("log_volatility_12", "ln(rms(r, 12) sqrt(bars a year))", "ln of annual volatility", 12, lambda h: h.log_volatility(12), -7, 5, False),
    Feature("log_volatility_24", "ln(rms(r, 24) sqrt(bars a year))", "ln of annual volatility", 24, lambda h: h.log_volatility(24), -7, 5, False),
    Feature("log_volatility_168", "ln(rms(r, 168) sqrt(bars a year))", "ln of annual volatility", 168, lambda h: h.log_volatility(168), -7, 5, False),
    Feature("range_volatility_24", "sqrt(mean(ln(h/l)^2, 24) / (4 ln 2 mean(r^2, 24)))", "ratio", 24, lambda h: np.sqrt(ratio(window_mean(np.log(h.high / h.low) ** 2, 24), 4.0 * np.log(2.0) * h.variances[24], 1.0))),
    Feature("range_1", "ln(h / l)", "log return", 1, lambda h: np.log(h.high / h.low)),
    Feature("close_location", "2 (c - l) / (h - l) - 1", "share of the bar", 1, lambda h: ratio(2.0 * (h.close - h.low), h.high - h.low, 1.0) - 1.0, -1, 1, False),
    Feature("return_in_sigmas", "r / rms(r, 168)", "deviations", 168, lambda h: ratio(h.returns, np.sqrt(h.variances[168]))),
    Feature("mean_gap_24", "ln(c / mean(c, 24))", "log return", 24, lambda h: h.mean_gap(24)),
    Feature("mean_gap_168", "ln(c / mean(c, 168))", "log return", 168, lambda h: h.mean_gap(168)),
    Feature("strength_14", "sum(r, 14) / sum(|r|, 14)", "share", 14, lambda h: h.strength(14), -1, 1, False),
    Feature("strength_72", "sum(r, 72) / sum(|r|, 72)", "share", 72, lambda h: h.strength(72), -1, 1, False),
    Feature("channel_24", "2 (c - min(l, 24)) / (max(h, 24) - min(l, 24)) - 1", "share of the range", 24, lambda h: h.channel(24), -1, 1, False),
    Feature("channel_168", "2 (c - min(l, 168)) / (max(h, 168) - min(l, 168)) - 1", "share of the range", 168, lambda h: h.channel(168), -1, 1, False),
    Feature("drawdown_168", "ln(c / max(h, 168))", "log return", 168, lambda h: np.log(ratio(h.close, h.ranges[168][1], 1.0))),
    Feature("autocorrelation_24", "mean(r_t r_(t-1), 24) / mean(r^2, 24)", "correlation", 25, lambda h: h.autocorrelation(24)),
    Feature("skewness_72", "mean(r^3, 72) / mean(r^2, 72)^1.5", "1", 72, lambda h: h.skewness(72)),
    Feature("volume_zscore_24", "(a - mean(a, 24)) / sd(a, 24), a = v^(1/4)", "deviations", 24, lambda h: h.activity_zscore(24)),
    Feature("volume_zscore_168", "(a - mean(a, 168)) / sd(a, 168), a = v^(1/4)", "deviations", 168, lambda h: h.activity_zscore(168)),
    Feature("volume_trend", "ln(mean(a, 24) / mean(a, 168)), a = v^(1/4)", "log ratio", 168, lambda h: h.activity_trend()),
    Feature("basis", "1e4 ln(c / mark close), 0 without mark prices", "basis points", 1, lambda h: h.basis()),
    Feature("funding_last", "last settled rate (stamp before the close)", "basis points", 1, lambda h: h.funding_mean(1)),
    Feature("funding_mean_3", "mean of the last 3 settled rates", "basis points", 1, lambda h: h.funding_mean(EVENTS)),
    Feature("funding_phase", "time to the next 8-hour stamp / 8 h", "share", 1, lambda h: h.funding_phase(), 0, 1, False),
    Feature("hour_sin", "sin(2 pi time of day)", "1", 1, lambda h: np.sin(h.day_angle()), -1, 1, False),
    Feature("hour_cos", "cos(2 pi time of day)", "1", 1, lambda h: np.cos(h.day_angle()), -1, 1, False),
    Feature("weekend", "1 on Saturday and Sunday (UTC), else 0", "flag", 1, lambda h: h.weekend(), 0, 1, False),
)  # fmt: skip
NAMES = tuple(feature.name for feature in FEATURES)
BLOCK = 16_384  # rows worked on at once: what they need stays in the processor's cache


def warm_up(interval: np.timedelta64) -> int:
    """Rows before the first that can be served: the longest look-back, and a day for the funding stamps."""
    return max(WARM_UP, int(np.ceil(DAY / interval)))


def raw(bars: Bars, chosen: Sequence[Feature] = FEATURES) -> Floats:
    """Compute every chosen feature in its own unit: ``(T, F)`` float64; rows before ``warm_up`` are partly empty.

    Block by block, since the look-back is finite: what is worked on stays small, and a row has the same bits as in one
    pass or in a stream.
    """
    out = np.empty((len(bars), len(chosen)))
    for first in range(0, len(bars), BLOCK):
        start = max(first - WARM_UP, 0)
        history = _History(part_of(bars, start, min(first + BLOCK, len(bars))))
        rows = out[first : first + BLOCK]
        with np.errstate(invalid="ignore", divide="ignore"):  # hostile values behind the checks must not warn
            for column, feature in enumerate(chosen):
                rows[:, column] = feature.compute(history)[first - start :]
    return out


def part_of(bars: Bars, start: int, stop: int) -> Bars:
    """Rows ``start .. stop-1`` with the funding events that their features average, some older than the rows."""
    early = max(int(np.searchsorted(bars.funding_time, bars.time[start])) - EVENTS, 0)
    late = int(np.searchsorted(bars.funding_time, bars.close_time[stop - 1]))
    return Bars.unchecked(
        time=bars.time[start:stop], interval=bars.interval, symbols=bars.symbols,
        funding_time=bars.funding_time[early:late], funding_rate=bars.funding_rate[early:late],
        market=bars.market, source=bars.source,
        **{name: column[start:stop] for name, column in bars.columns.items()},
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class FeatureScaler:
    """Mean and deviation of the training range, ``(F,)`` each; fixed features have 0 and 1.

    A subclass scales another list of ``features``.

    Attributes:
        train_end: close of the last bar that was read.
    """

    features: ClassVar[tuple[Feature, ...]] = FEATURES

    mean: Floats
    deviation: Floats
    train_end: np.datetime64

    @property
    def names(self) -> tuple[str, ...]:
        """F names."""
        return tuple(feature.name for feature in self.features)

    @classmethod
    def fit(cls, bars: Bars, values: Floats, stop: int) -> Self:
        """Fit on rows ``warm_up..stop-1`` of ``values = raw(bars)``.

        Raises:
            DataError: fewer than two such rows.
        """
        first = warm_up(bars.interval)
        if stop - first < 2:
            raise DataError(f"too few bars: the training range ends at row {stop}, features need {first + 2}")
        return cls.of_rows(values[first:stop], bars.close_time[stop - 1])

    @classmethod
    def of_rows(cls, rows: Floats, train_end: np.datetime64) -> Self:
        """Fit on ``rows (n, F)``, the last of which closed by ``train_end``."""
        mean, deviation = rows.mean(axis=0), rows.std(axis=0)
        for column, feature in enumerate(cls.features):
            if not feature.scaled:
                mean[column], deviation[column] = 0.0, 1.0
            elif not deviation[column] > 1e-9 * max(1.0, abs(mean[column])):
                deviation[column] = 1.0  # constant in training: served as the difference from that constant
        return cls(mean, deviation, train_end)

    def apply(self, values: Floats) -> NDArray[np.float32]:
        """Scale and clip ``(T, F)`` values to float32 within the bounds of ``FEATURES``."""
        low, high = bounds(self.features)
        out = np.empty(values.shape, np.float32)
        for first in range(0, len(values), BLOCK):  # a long history is never held twice in float64
            rows = slice(first, first + BLOCK)
            out[rows] = np.clip((values[rows] - self.mean) / self.deviation, low, high)
        return out

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and names, exact to the last bit."""
        return {
            "names": list(self.names),
            "mean": self.mean.tolist(),
            "deviation": self.deviation.tolist(),
            "train_end": str(self.train_end),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Rebuild a scaler that ``to_json`` wrote.

        Raises:
            ConfigError: made for other features, or not a scaler.
        """
        try:
            names = tuple(content["names"])
            mean, deviation = (np.array(content[key], np.float64) for key in ("mean", "deviation"))
            end = np.datetime64(content["train_end"], "ns")
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a feature scaler: {error!r}") from error
        wanted = tuple(feature.name for feature in cls.features)
        if names != wanted:
            wrong = sorted(set(names) ^ set(wanted)) or ["the order differs"]
            raise ConfigError(f"the scaler was made for other features: {', '.join(wrong)}")
        if mean.shape != (len(wanted),) or deviation.shape != mean.shape:
            raise ConfigError(
                f"the scaler has {mean.shape} means and {deviation.shape} deviations, expected {(len(wanted),)}"
            )
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation > 0).all()):
            raise ConfigError("the scaler holds a number that is not finite, or a deviation of 0")
        return cls(mean, deviation, end)

    @property
    def hash(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def bounds(features: tuple[Feature, ...] = FEATURES) -> tuple[Floats, Floats]:
    """Lowest and highest served value of each feature, ``(F,)`` each."""
    return np.array([f.low for f in features], float), np.array([f.high for f in features], float)


def table(bars: Bars, scaler: FeatureScaler, values: Floats | None = None) -> CausalTable:
    """Serve the features of ``bars`` as a causal table; ``values`` may pass ``raw(bars)`` where it is at hand."""
    low, high = bounds()
    return CausalTable(
        values=np.ascontiguousarray(scaler.apply(raw(bars) if values is None else values)),
        names=NAMES,
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        valid_from=warm_up(bars.interval),
        bars_hash=bars.hash,
        train_end=scaler.train_end,
        checked=bars.checked,
    )


class FeatureStream:
    """The live face of :func:`table`: feed bars as they close, get the row that the table would hold.

    Costs the same for every bar, however long the stream runs: only the look-back is kept.
    """

    def __init__(self, scaler: FeatureScaler, compute: Callable[[Bars], Floats] = raw) -> None:
        self._scaler = scaler
        self._compute = compute
        self._tail: Bars | None = None
        self._seen = 0

    def update(self, bar: Bars) -> NDArray[np.float32] | None:
        """Add one closed bar (``Bars`` of one row, with the funding stamps inside it) and return its ``(F,)`` row.

        Returns:
            None until the warm-up is over.
        """
        self._tail = bar if self._tail is None else _append(self._tail, bar, WARM_UP + 1)
        self._seen += 1
        if self._seen <= warm_up(bar.interval):
            return None
        return self._scaler.apply(self._compute(self._tail)[-1:])[0]


def _append(tail: Bars, bar: Bars, keep: int) -> Bars:
    """Join two sets of bars and keep the last ``keep`` rows and the funding events that features average."""
    joined = {name: np.concatenate([tail.columns[name], bar.columns[name]])[-keep:] for name in tail.columns}
    times = np.concatenate([tail.funding_time, bar.funding_time])[-EVENTS:]
    rates = np.concatenate([tail.funding_rate, bar.funding_rate])[-EVENTS:]
    return Bars.unchecked(
        time=np.concatenate([tail.time, bar.time])[-keep:], interval=tail.interval, symbols=tail.symbols,
        funding_time=times, funding_rate=rates, market=tail.market, source=tail.source, **joined,
    )  # fmt: skip
