"""SignalModel: what every signal is. Fitted on the training range, then one causal row per bar.

A model is a dataclass whose fields are its settings (plain values). ``fit`` keeps what it learned in ``fitted``, plain
values that JSON can hold, so that an artefact is text. ``votes`` computes rows for a whole history; each row depends on
the last ``look_back`` bars and nothing else, so that the table of a history, of a cut one and a stream agree.

Letters: T bars, A assets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from markets.bars import Bars
from markets.errors import ConfigError, DataError
from markets.table import CausalTable

Floats = NDArray[np.float64]
KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {  # of a setting: what it may be, in words
    "int": (int, "a whole number"), "float": ((int, float), "a finite number"), "str": (str, "text"),
    "bool": (bool, "true or false"),
}  # fmt: skip
EVENTS = 8  # funding events that a stream remembers


@dataclass(frozen=True)
class Signal:
    """What a model says of one asset: ``direction`` from -1 (sell) to 1 (buy), and how sure it is, 0 to 1.

    Raises:
        ConfigError: a number outside its range, or none at all.
    """

    direction: float
    confidence: float

    def __post_init__(self) -> None:
        if not -1.0 <= self.direction <= 1.0:
            raise ConfigError(f"direction={self.direction!r} must lie in [-1, 1]")
        if not 0.0 <= self.confidence <= 1.0:
            raise ConfigError(f"confidence={self.confidence!r} must lie in [0, 1]")


@dataclass(frozen=True)
class Votes:
    """Rows of a signal: ``direction`` in [-1, 1] and ``confidence`` in [0, 1], ``(T, A)`` each.

    Attributes:
        more: further columns ``(T, A)`` with their bounds: name -> (values, low, high).
    """

    direction: Floats
    confidence: Floats
    more: Mapping[str, tuple[Floats, float, float]] = field(default_factory=dict)


@dataclass(eq=False)
class SignalModel:
    """Base of all signals; subclasses are dataclasses of their settings.

    Attributes:
        name: in the table of signals, and the prefix of its columns.
        member: name of a further part of its artefact, where ``fitted`` cannot hold all.
        sessions: whether it understands bars that stop for the night; one that takes the step over a night for that of
            one bar does not, and no environment of sessions serves it.
        described: its columns, for readers: name, formula, unit, bounds, look-back in bars.
    """

    name: ClassVar[str] = "signal"
    member: ClassVar[str] = ""
    sessions: ClassVar[bool] = False
    described: ClassVar[tuple[tuple[str, str, str, str, str], ...]] = ()

    def __post_init__(self) -> None:
        self.fitted: dict[str, Any] | None = None
        self.symbols: tuple[str, ...] = ()
        self.train_end: np.datetime64 | None = None
        self._check_kinds()
        self.check()

    def check(self) -> None:
        """Raise :class:`ConfigError` for a setting that cannot work."""

    def _check_kinds(self) -> None:
        """Raise where a setting is of another kind than its field, so that ``check`` compares numbers with numbers."""
        for item in fields(self):
            value, kind = getattr(self, item.name), str(getattr(item.type, "__name__", item.type))
            if kind not in KINDS:  # of a model from elsewhere, which checks it itself
                continue
            types, words = KINDS[kind]
            fits = isinstance(value, types) and isinstance(value, bool) == (kind == "bool")
            if not fits or (isinstance(value, float) and not np.isfinite(value)):
                raise ConfigError(f"{item.name}={value!r} of signal {self.name!r} must be {words}")

    def fit(self, bars: Bars) -> Self:
        """Fit on ``bars``, all of them: pass the training range only; returns self.

        Raises:
            DataError: too few bars, or such that nothing can be fitted.
            MissingExtraError: the library it needs is not installed.
        """
        self.symbols = bars.symbols
        self.fitted = self.learn(bars)
        self.train_end = bars.close_time[-1]
        return self

    def learn(self, bars: Bars) -> dict[str, Any]:
        """Return what is fitted, as plain values; models implement this."""
        raise TypeError(f"{type(self).__name__} does not implement learn")

    @property
    def look_back(self) -> int:
        """How many bars before its own a row depends on; models implement this."""
        raise TypeError(f"{type(self).__name__} does not implement look_back")

    def votes(self, bars: Bars) -> Votes:
        """Compute the rows of a fitted model; rows before ``look_back`` may hold anything. Models implement this."""
        raise TypeError(f"{type(self).__name__} does not implement votes")

    def table(self, bars: Bars) -> CausalTable:
        """Serve the signal as a causal table: row t from bars 0..t.

        Columns ``NAME_direction`` and ``NAME_confidence``, then what the model adds; with several assets each column
        comes once per asset, ``NAME_direction_BTCUSDT``.

        Raises:
            ConfigError: not fitted, or bars of other symbols than it was fitted on.
        """
        self._check_bars(bars)
        votes = self.votes(bars)
        first = min(self.look_back, len(bars))
        columns = {"direction": (votes.direction, -1.0, 1.0), "confidence": (votes.confidence, 0.0, 1.0), **votes.more}
        values, names, low, high = [], [], [], []
        for column, (numbers, least, most) in columns.items():
            ends = [""] if len(bars.symbols) == 1 else [f"_{symbol}" for symbol in bars.symbols]
            names += [f"{self.name}_{column}{end}" for end in ends]
            with np.errstate(invalid="ignore"):
                values.append(np.clip(numbers, least, most))
            low += [least] * len(ends)
            high += [most] * len(ends)
        whole = np.ascontiguousarray(np.concatenate(values, axis=1), np.float32)
        whole[:first] = 0.0
        return CausalTable(
            values=whole, names=tuple(names), low=np.array(low, np.float32), high=np.array(high, np.float32),
            valid_from=first, bars_hash=bars.hash, train_end=self.train_end, checked=bars.checked,
        )  # fmt: skip

    def stream(self) -> SignalStream:
        """Return the live face of :meth:`table`."""
        return SignalStream(self)

    def signal(self, row: NDArray[np.float32], asset: int = 0) -> Signal:
        """Read a row of the table, ``(D,)``, for one asset.

        Raises:
            ConfigError: no such asset, or a row that is too short or holds no signal.
        """
        assets = max(len(self.symbols), 1)
        if not 0 <= asset < assets or len(row) < 2 * assets:
            raise ConfigError(f"asset {asset} of a row of {len(row)} columns: {self.name!r} knows {assets} asset(s)")
        return Signal(float(row[asset]), float(row[assets + asset]))

    def status(self) -> str:
        """Say in a sentence why the signal stays neutral, where it does; empty where it speaks."""
        return ""

    def report(self) -> dict[str, Any]:
        """Return what was fitted, for readers."""
        return dict(self._learned())

    def settings(self) -> dict[str, Any]:
        """Return the settings by name, as plain values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @property
    def hash(self) -> str:
        """SHA-256 of name, settings and all that was fitted: equal ones say the same of the same bars."""
        known = [self.name, self.settings(), self._learned(), list(self.symbols), str(self.train_end)]
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
        digest.update(self.dump() if self.member else b"")
        return digest.hexdigest()

    def outside(self) -> str:
        """Identify what it reads beside the bars (headlines, another market), as it is now; empty where nothing."""
        return ""

    def dump(self) -> bytes:
        """Return the content of ``member``; models that have one implement this."""
        raise TypeError(f"{type(self).__name__} has no member")

    def restore(self, fitted: dict[str, Any], symbols: tuple[str, ...], train_end: str | None, data: bytes) -> Self:
        """Take over what a saved model had fitted; ``data`` is the content of ``member``.

        Raises:
            ConfigError: not what this model fits.
        """
        self.symbols, self.fitted = symbols, fitted
        self.train_end = None if train_end is None else np.datetime64(train_end, "ns")
        self.check_fitted(data)
        return self

    def check_fitted(self, data: bytes) -> None:
        """Raise where ``fitted`` (and ``data``) cannot be this model's, before anything is computed with it."""

    def _learned(self) -> dict[str, Any]:
        if self.fitted is None:
            raise ConfigError(f"signal {self.name!r} is not fitted: call fit(bars) with the training range")
        return self.fitted

    def _check_bars(self, bars: Bars) -> None:
        self._learned()
        if bars.symbols != self.symbols:
            raise ConfigError(
                f"signal {self.name!r} was fitted on {', '.join(self.symbols)}; these are bars of "
                f"{', '.join(bars.symbols)}"
            )

    def _part(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """Return an entry of what a saved model had fitted, of its kind and finite."""
        value = self._learned().get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, float) and value != value):
            raise ConfigError(f"signal {self.name!r}: {name} is {value!r}")
        return value


class SignalStream:
    """Feed bars as they close, get the row that the table would hold; only the look-back is kept."""

    def __init__(self, model: SignalModel) -> None:
        self._model = model
        self._tail: Bars | None = None
        self._seen = 0

    def update(self, bar: Bars) -> NDArray[np.float32] | None:
        """Add one closed bar (``Bars.one``) and return its ``(D,)`` row; None until the warm-up is over."""
        keep = self._model.look_back + 1
        self._tail = bar if self._tail is None else _append(self._tail, bar, keep)
        self._seen += 1
        if self._seen < keep:
            return None
        return np.array(self._model.table(self._tail).values[-1])


def _append(tail: Bars, bar: Bars, keep: int) -> Bars:
    joined = {name: np.concatenate([tail.columns[name], bar.columns[name]])[-keep:] for name in tail.columns}
    return Bars.unchecked(
        time=np.concatenate([tail.time, bar.time])[-keep:], interval=tail.interval, symbols=tail.symbols,
        funding_time=np.concatenate([tail.funding_time, bar.funding_time])[-EVENTS:],
        funding_rate=np.concatenate([tail.funding_rate, bar.funding_rate])[-EVENTS:],
        market=tail.market, source=tail.source, **joined,
    )  # fmt: skip


def log_returns(bars: Bars) -> Floats:
    """Log returns close to close, ``(T, A)``; 0 in the first row."""
    logs = np.log(bars.close)
    return np.diff(logs, axis=0, prepend=logs[:1])


def asset(bars: Bars, place: int) -> Bars:
    """Return one asset of several, with its own funding."""
    if len(bars.symbols) == 1:
        return bars
    rates = bars.funding_rate[:, place : place + 1] if bars.funding_rate.shape[1] > 1 else bars.funding_rate
    return Bars.unchecked(
        time=bars.time, interval=bars.interval, symbols=(bars.symbols[place],), funding_time=bars.funding_time,
        funding_rate=rates, market=bars.market, source=bars.source,
        **{name: column[:, place : place + 1] for name, column in bars.columns.items()},
    )  # fmt: skip


def side_by_side(parts: list[Bars]) -> Bars:
    """Put bars of single assets side by side, on the times that all of them have; funding is left out.

    Raises:
        ConfigError: different intervals, a symbol twice.
        DataError: fewer than two common times.
    """
    first = parts[0]
    symbols = tuple(symbol for part in parts for symbol in part.symbols)
    if len(set(symbols)) != len(symbols):
        raise ConfigError(f"bars hold a symbol twice: {', '.join(symbols)}; name each with symbol=")
    if any(part.interval != first.interval for part in parts):
        raise ConfigError(f"bars of different intervals: {', '.join(str(part.interval) for part in parts)}")
    times = first.time
    for part in parts[1:]:
        times = np.intersect1d(times, part.time)
    if len(times) < 2:
        raise DataError(f"the bars of {', '.join(symbols)} have {len(times)} times in common")
    rows = [np.searchsorted(part.time, times) for part in parts]
    columns: dict[str, Any] = {
        name: np.concatenate([part.columns[name][row] for part, row in zip(parts, rows, strict=True)], axis=1)
        for name in ("open", "high", "low", "close", "volume")
    }
    return Bars(
        time=times, interval=first.interval, symbols=symbols, market=first.market,
        source=" + ".join(part.source for part in parts), funding_rate=np.empty((0, len(symbols))), **columns,
    )  # fmt: skip
