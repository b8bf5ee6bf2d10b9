"""Windows of prices for the Koopman encoders: channels, and pairs of context and target.

==============  ================================================================================================
``return``      ``asinh(r / s)``, as :mod:`encoders.channels`
``volatility``  standardised log running volatility, as there
``price``       ``log(p_i / p_end) / (s sqrt(W))``: log price relative to the window's last close
==============  ================================================================================================

Scales are fitted **once, on the training range**, never per window: a window standardised by itself shows the same
volatility in a calm and in a wild market, and regimes that differ in volatility become one (measured: purity .39
instead of .73). A level of price is never read, only its distance to the window's last close.
Letters: S series, T bars, B batch, C channels, W bars of a window, D bars from the end of a context to its target's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from encoders.channels import LIMIT, ChannelScaler, percent_returns
from markets.errors import ArtefactError, ConfigError, DataError, unknown

Floats = NDArray[np.float64]

KOOPMAN_CHANNELS = ("return", "volatility", "price")
PROBE_ROWS = 2048  # pairs that validation and diagnostics look at
SMALLEST = 1e-3  # percent: floor of a realised volatility


@dataclass(frozen=True)
class WindowChannels:
    """Turns prices into windows of channels, with the scales of the training range."""

    names: tuple[str, ...]
    scaler: ChannelScaler

    @classmethod
    def fit(cls, series: Sequence[Floats], names: Sequence[str] = KOOPMAN_CHANNELS) -> WindowChannels:
        """Fit on S training series of closes ``(T,)``.

        Raises:
            UnknownNameError: unknown channel. DataError: prices that are no prices, or do not move.
        """
        for name in names:
            if name not in KOOPMAN_CHANNELS:
                raise unknown("channel", name, KOOPMAN_CHANNELS)
        if len(set(names)) != len(names) or not names:
            raise ConfigError(f"channels={tuple(names)!r} must be different names, at least one")
        per_bar = [name for name in names if name != "price"]
        return cls(tuple(names), ChannelScaler.fit([percent_returns(as_prices(one)) for one in series], per_bar))

    def bars(self, prices: Floats) -> tuple[Tensor, Tensor]:
        """Return the channels that belong to a bar ``(C', T)`` float32, and ``log p / s`` ``(T,)`` float64."""
        returns = percent_returns(prices)
        level = torch.from_numpy(100.0 * np.log(prices) / self.scaler.deviation)
        if not self.scaler.names:
            return torch.empty(0, len(prices)), level
        return torch.from_numpy(np.ascontiguousarray(self.scaler.channels(returns).T)), level

    def windows(self, bars: tuple[Tensor, Tensor], ends: Tensor, window: int) -> Tensor:
        """Return ``(B, C, W)`` windows that end at the bars ``ends`` ``(B,)``; none reads a later bar."""
        per_bar, level = bars
        index = ends[:, None] + torch.arange(1 - window, 1)
        columns = per_bar[:, index].unbind(0)
        relative = (level[index] - level[ends][:, None]) / math.sqrt(window)
        place = iter(columns)
        parts = [relative.clamp(-LIMIT, LIMIT).float() if name == "price" else next(place) for name in self.names]
        return torch.stack(parts, 1)

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return {"names": list(self.names), "scaler": asdict(self.scaler)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> WindowChannels:
        """Read back; raises ``ArtefactError`` on anything else."""
        try:
            given = dict(content["scaler"])
            return cls(tuple(content["names"]), ChannelScaler(**{**given, "names": tuple(given["names"])}))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"scales of the channels: {error}") from error


def create_crypto_feature_tensor(
    prices: Any, timestamps: Any = None, *, channels: WindowChannels, window: int
) -> Tensor:
    """Return the ``(C, W)`` channels of the last ``window`` of the prices ``(T,)``.

    Raises:
        DataError: fewer prices than the window, prices that are no prices, or timestamps out of order.
    """
    closes = as_prices(prices)
    _check_times(timestamps, len(closes))
    if len(closes) < window:
        raise DataError(f"{len(closes)} prices, and the encoder reads {window}")
    return channels.windows(channels.bars(closes), torch.tensor([len(closes) - 1]), window)[0]


class CryptoPriceDataset(Dataset[dict[str, Tensor]]):
    """Pairs of a context window and a target window, from one series of closes or several.

    A context ends at bar t; its target, of the same W bars, ends at ``t + D``. With ``overlap`` (as in the paper)
    ``D = prediction_horizon``, so that 768 / 256 share 512 bars; without, D is at least W and they share none.

    Attributes:
        channels: scales, fitted on these prices unless handed over. A validation set gets the training set's
            (``channels=train.channels``): its own would know its own volatility.
        shift: D. ``ends``: last bar of each context, counted through all series.

    Args:
        prices: ``(T,)`` closes, or a list of such series; no window reaches over from one into another.
        timestamps: of the bars, ``(T,)`` or a list; pairs that reach over a gap (a step of more than 1.5 times the
            median) are left out.
        stride: bars between the starts of successive pairs.

    Raises:
        DataError: not one whole pair, prices that are not finite and positive, timestamps out of order.
        ConfigError: lengths that are no positive whole numbers.
    """

    def __init__(
        self,
        prices: Any,
        timestamps: Any = None,
        context_window: int = 768,
        prediction_horizon: int = 256,
        *,
        overlap: bool = True,
        stride: int = 1,
        channels: WindowChannels | None = None,
        names: Sequence[str] = KOOPMAN_CHANNELS,
    ) -> None:
        for name, value in (
            ("context_window", context_window), ("prediction_horizon", prediction_horizon), ("stride", stride)
        ):  # fmt: skip
            if not isinstance(value, int | np.integer) or value < 1:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
        several = isinstance(prices, list | tuple) and bool(prices) and np.ndim(prices[0]) == 1
        series = [as_prices(one) for one in (prices if several else [prices])]
        times = list(timestamps) if several and timestamps is not None else [timestamps] * len(series)
        if len(times) != len(series):
            raise DataError(f"{len(times)} rows of timestamps for {len(series)} series of prices")
        self.window, self.stride = int(context_window), int(stride)
        self.shift = int(prediction_horizon if overlap else max(prediction_horizon, context_window))
        self.channels = channels or WindowChannels.fit(series, names)
        parts = [self.channels.bars(one) for one in series]
        self._bars = (torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts]))
        self._returns = np.concatenate([percent_returns(one) for one in series])
        self._sums = torch.from_numpy(np.cumsum(self._returns))
        self._squares = torch.from_numpy(np.cumsum(self._returns**2))
        ends, first = [], 0
        for one, stamps in zip(series, times, strict=True):
            whole = np.arange(self.window - 1, len(one) - self.shift, self.stride)
            ends.append(first + whole[_unbroken(whole, stamps, len(one), self.window, self.shift)])
            first += len(one)
        self.ends = torch.from_numpy(np.concatenate(ends).astype(np.int64))
        if not len(self.ends):
            need = f"{self.window} bars and {self.shift} after them without a gap"
            raise DataError(f"no pair of {need}: the longest series has {max(len(one) for one in series)}")

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return {name: value[0] for name, value in self.batch(torch.tensor([index % len(self)])).items()}

    def batch(self, pairs: Tensor) -> dict[str, Tensor]:
        """Return the pairs ``(B,)`` at once.

        Returns:
            ``x_context``, ``x_target`` ``(B, C, W)``; ``past_return`` over the context and ``future_return`` over the D
            bars after it, percent; ``log_volatility`` of those D bars, standardised by the training range.
        """
        ends = self.ends[pairs]
        past = self._sums[ends] - self._sums[ends - self.window + 1]
        future = self._sums[ends + self.shift] - self._sums[ends]
        scaler = self.channels.scaler
        volatility = (self.future_volatility(pairs) - scaler.level) / scaler.spread
        return {
            "x_context": self.channels.windows(self._bars, ends, self.window),
            "x_target": self.channels.windows(self._bars, ends + self.shift, self.window),
            "past_return": past.float(),
            "future_return": future.float(),
            "log_volatility": volatility.float(),
        }

    def even_pairs(self, rows: int = PROBE_ROWS) -> Tensor:
        """Return at most ``rows`` pairs, spread evenly."""
        return torch.linspace(0, len(self) - 1, min(rows, len(self)), dtype=torch.float64).round().long()

    def contexts(self, pairs: Tensor) -> Tensor:
        """Return the context windows alone: ``(B, C, W)``."""
        return self.channels.windows(self._bars, self.ends[pairs], self.window)

    def targets(self, pairs: Tensor) -> Tensor:
        """Return the target windows alone: ``(B, C, W)``."""
        return self.channels.windows(self._bars, self.ends[pairs] + self.shift, self.window)

    def future_volatility(self, pairs: Tensor) -> Tensor:
        """Return the log of the realised volatility (percent) of the D bars after each context: ``(B,)`` float64."""
        ends = self.ends[pairs]
        return _log_rms(self._squares[ends + self.shift] - self._squares[ends], self.shift)

    def past_volatility(self, pairs: Tensor, bars: int) -> Tensor:
        """Return the same of the last ``bars`` bars of each context."""
        ends, bars = self.ends[pairs], min(bars, self.window - 1)
        return _log_rms(self._squares[ends] - self._squares[ends - bars], bars)


def as_prices(prices: Any) -> Floats:
    """Return closes ``(T,)`` float64.

    Raises:
        DataError: not one number a bar, fewer than 2, or one that is not finite and positive (the first is named).
    """
    closes = np.asarray(prices, np.float64)
    if closes.ndim != 1 or len(closes) < 2:
        raise DataError(f"prices of shape {closes.shape}, expected (T,), T at least 2")
    good = np.isfinite(closes) & (closes > 0.0)
    if not good.all():
        row = int(np.argmin(good))
        raise DataError(f"prices: row {row} is {closes[row]!r}, not a finite positive number")
    return closes


def _log_rms(total: Tensor, bars: int) -> Tensor:
    return 0.5 * torch.log((total / bars).clamp_min(SMALLEST**2))


def _check_times(timestamps: Any, count: int) -> NDArray[np.float64] | None:
    """Return the steps between timestamps in their own unit."""
    if timestamps is None:
        return None
    steps = np.diff(np.asarray(timestamps)).astype(np.float64)
    if np.shape(timestamps) != (count,):
        raise DataError(f"timestamps of shape {np.shape(timestamps)} for {count} prices")
    if not (steps > 0.0).all():
        raise DataError(f"timestamps: row {int(np.argmin(steps > 0.0)) + 1} does not come after the one before")
    return steps


def _unbroken(ends: NDArray[np.int64], timestamps: Any, count: int, window: int, shift: int) -> NDArray[np.bool_]:
    """Which pairs see no gap, from the first bar of the context to the last of the target."""
    steps = _check_times(timestamps, count)
    if steps is None or not len(ends):
        return np.ones(len(ends), bool)
    gaps = np.concatenate([[0], np.cumsum(steps > 1.5 * np.median(steps))])  # gaps up to each bar
    unbroken: NDArray[np.bool_] = gaps[ends + shift] == gaps[ends - window + 1]
    return unbroken
