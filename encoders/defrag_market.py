"""The defragmentation encoder of bars: what ``PerpFutures-Defrag-v0`` sees; numpy only.

Channels of each bar (:mod:`encoders.channels`) are the ticks; the block of the last L bars is embedded at every bar
(:mod:`encoders.defrag_dense`), and so is a longer past, the mean over this block and the three before it. A row is

============================  ========================================================================================
``block_return_mean`` ..      moments of the block, a column each: mean, log deviation and lag-1 autocorrelation of a
``long_return_mean`` ..       channel; and of the longer past. Standardised on the training range
``defrag_00`` ..              principal components of the learned embedding of block and longer past, standardised
``recall_return``             what followed the remembered blocks most like this one in the next H bars: mean of their
``recall_volatility``         returns and of their log volatilities, in deviations of the training range, and the
``recall_error``              standard error of the first (:mod:`encoders.defrag_recall`)
``familiarity``               share of training blocks at least as far from the others as this one
``regime_0`` ..               odds of K regimes, ordered by volatility
============================  ========================================================================================

clipped to five deviations. The regimes are k-means clusters of the moments of both pasts, each times its persistence:
what does not outlast a block says nothing of a regime. Blocks that end at successive bars share their ticks, so a bar
brings little evidence of its own; the odds are those of a forward filter that counts each for a half (``evidence``)::

    q_t = softmax(-|p_t - c_k|^2 / (2 h^2)),    b_t ~ (b_{t-1} P) q_t^(1/2)

with P counted from the clusters of the training range. Trained by :mod:`encoders.defrag_pretrain`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from encoders.change_odds import recent_change, usual_window
from encoders.channels import ChannelScaler, bar_returns
from encoders.defrag_dense import DenseBlocks
from encoders.defrag_encoder import RegimeEncoder
from encoders.defrag_numbers import CLIP, STATISTICS, VOICES, Numbers, Settings, width_of
from encoders.defrag_past import Past, filtered, points_of
from encoders.defrag_recall import OUTCOMES, Kept, Own, recall
from encoders.encoder import Arrays, Encoder, Provenance, is_generated
from encoders.regimes import names_of
from encoders.volatility_probes import future_log_volatility
from markets.bars import Bars
from markets.errors import ArtefactError, unknown

if TYPE_CHECKING:
    from encoders.defrag_stream import DefragStream

Array = NDArray[np.float32]
Floats = NDArray[np.float64]

RECALLED = ("recall_return", "recall_volatility", "recall_error", "familiarity")


class DefragEncoder(Encoder):
    """Moments, learned components, recalled outcomes and regime odds of one symbol's bars."""

    kind = "defrag"
    described = (
        ("block_CHANNEL_mean, _deviation, _memory", "mean, log deviation, lag-1 autocorrelation of a channel (return, "
         "volatility, volume) over the last L bars, in deviations of the training range", "-5 .. 5"),
        ("long_CHANNEL_..", "mean of the same over this block and the three before it, in deviations", "-5 .. 5"),
        ("defrag_00 ..", "principal components of the learned embedding of both pasts, in deviations", "-5 .. 5"),
        ("recall_return", "sum of the H returns behind the remembered blocks most like this one, weighted by likeness, "
         "in deviations of such a sum", "-5 .. 5"),
        ("recall_volatility", "log volatility of those H bars, in units of the channel", "-5 .. 5"),
        ("recall_error", "standard error of recall_return", "-5 .. 5"),
        ("familiarity", "share of training blocks at least as far from the others as this one", "0 .. 1"),
    )  # fmt: skip

    def __init__(
        self, numbers: Numbers, settings: Settings, provenance: Provenance, facts: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(provenance, facts)
        self.numbers, self.settings = numbers, settings
        rows, real = numbers.kept.rows, numbers.kept.visible_from[numbers.kept.real]
        if rows.shape[1] != (width := width_of(numbers, settings)):
            raise ArtefactError(f"memory.rows has shape {rows.shape}, expected {(len(rows), width)}")
        if len(real) and real.max() > nanoseconds(np.array([provenance.train_end], "datetime64[ns]"))[0]:
            raise ArtefactError(f"memory.visible_from: a row is later than train_end={provenance.train_end}")
        kinds = {not is_generated(provenance.market, source) for source in provenance.sources}
        if not set(numbers.kept.real.tolist()) <= kinds:
            raise ArtefactError(f"memory.real: rows are not of the kind of the sources {provenance.sources}")
        block = RegimeEncoder(numbers.weights, numbers.moments, settings.moments_weight)
        self.dense = DenseBlocks(numbers.blocks, block, settings.block_len)
        self.regimes, self.warm_up = len(numbers.chain), settings.warm_up
        columns = [f"{channel}_{statistic}" for statistic in STATISTICS for channel in numbers.scaler.names]
        self.names = (
            *(f"{past}_{name}" for past in ("block", "long") for name in columns),
            *(f"defrag_{d:02d}" for d in range(len(numbers.components))), *RECALLED, *names_of(self.regimes),
        )  # fmt: skip
        wide = len(self.names) - self.regimes - 1
        self.low = np.concatenate([np.full(wide, -CLIP), np.zeros(1 + self.regimes)]).astype(np.float32)
        self.high = np.concatenate([np.full(wide, CLIP), np.ones(1 + self.regimes)]).astype(np.float32)

    def speaking(self, voice: str) -> DefragEncoder:
        """Return the same encoder with another voice for its odds.

        Raises:
            UnknownNameError: neither ``belief`` nor ``kmeans``.
        """
        settings = Settings(**{**asdict(self.settings), "voice": voice})
        return DefragEncoder(self.numbers, settings, self.provenance, self.facts)

    # ---- the whole history ------------------------------------------------------------------------------------------

    def encode(self, bars: Bars) -> Array:
        """Return ``(T, D)`` rows."""
        past = self.past(bars)
        odds = self.filtered(past) if self.settings.voice == "belief" else self.evidence(past)
        return self._rows(past, self._recalled(bars, past), odds)

    def past(self, bars: Bars) -> Past:
        """Return what is said of every bar's block and longer past."""
        learned, moments = self.dense.embed(self.numbers.scaler.of_bars(bars))
        return Past(learned, moments, self.numbers.moments, self.settings)

    def odds(self, bars: Bars, voice: str | None = None) -> Floats:
        """Return the odds of a voice (its own where None): ``(T, K)``.

        Raises:
            UnknownNameError: neither ``belief`` nor ``kmeans``.
        """
        chosen = self.settings.voice if voice is None else voice
        if chosen not in VOICES:
            raise unknown("voice of a defrag encoder", chosen, VOICES)
        past = self.past(bars)
        return self.filtered(past) if chosen == "belief" else self.evidence(past)

    @property
    def chain(self) -> Floats:
        """P of the filter, ``(K, K)``, for :mod:`encoders.change_odds`."""
        return self.numbers.chain

    def change_odds(self, bars: Bars, within: int | None = None) -> Floats:
        """Return the probability that the regime changed in the last ``within`` bars, ``(T,)``; row t knows bars 0..t.

        It is the filter's whatever voice is served, defined in :mod:`encoders.change_odds`.
        """
        return recent_change(self.odds(bars, "belief"), self.numbers.chain, within)

    @property
    def change_bars(self) -> int:
        """What is recent where nobody says how many bars."""
        return usual_window(self.numbers.chain)

    def evidence(self, past: Past) -> Floats:
        """Return the odds of each bar by itself, ``(T, K)``, not yet filtered."""
        return self.evidence_of(past.moments)

    def evidence_of(self, moments: Array) -> Floats:
        """Return :meth:`evidence` of ``(n, 6 F)`` moments of block and longer past."""
        return self.numbers.head.odds(points_of(moments, self.numbers.moments))

    def filtered(self, past: Past) -> Floats:
        """Return the odds of the forward filter, ``(T, K)``."""
        return filtered(self.evidence(past), self.numbers.chain, self.settings.evidence)

    def _recalled(self, bars: Bars, past: Past) -> Floats:
        """Return ``(T, 4)``: what was recalled, and the familiarity."""
        settings, numbers = self.settings, self.numbers
        ends = np.flatnonzero(remembered(bars, settings.block_len))
        own = Own(
            past.z[ends], outcomes_of(bar_returns(bars), ends, numbers.scaler, settings.horizon), ends,
            settings.horizon, settings.own_blocks * settings.block_len,
        )  # fmt: skip
        found = recall(past.z, nanoseconds(bars.close_time), self.kept(bars), own, settings.neighbours)
        first = past.moments[:, : past.moments.shape[1] // 2]
        return np.column_stack([found[:, :3], numbers.novelty.familiarity(first)])

    def kept(self, bars: Bars) -> Kept:
        """Return the rows of the training range in the order in which these bars may see them."""
        generated = is_generated(bars.market, bars.source)
        return self.numbers.kept.seen_by(
            generated=generated, in_sample=self.provenance.fitted_until(bars) is not None
        )  # fmt: skip

    def served(self, moments: Array, components: Floats) -> Floats:
        """Return the columns before the recalled ones, standardised, of ``(n, 6 F)`` and ``(n, P)``."""
        return self.numbers.scale.apply(np.concatenate([moments, components], axis=1))

    def _rows(self, past: Past, recalled: Floats, odds: Floats) -> Array:
        return np.concatenate(
            [
                self.served(past.moments, past.components(self.numbers.components)),
                np.clip(recalled, -CLIP, CLIP),
                np.clip(odds, 0.0, 1.0),
            ],
            axis=1,
        ).astype(np.float32)

    # ---- live, and files --------------------------------------------------------------------------------------------

    def stream(self) -> DefragStream:
        """Return the live face."""
        from encoders.defrag_stream import DefragStream

        return DefragStream(self)

    def config(self) -> dict[str, Any]:
        """Return the structure as plain values."""
        scaler = {**asdict(self.numbers.scaler), "names": list(self.numbers.scaler.names)}
        return {"scaler": scaler, **asdict(self.settings)}

    def arrays(self) -> Arrays:
        """Return every number by name."""
        return self.numbers.arrays()

    @classmethod
    def build(
        cls, config: Mapping[str, Any], arrays: Arrays, provenance: Provenance, facts: Mapping[str, Any]
    ) -> DefragEncoder:
        """Make the encoder of a file."""
        settings = dict(config)
        scaler = settings.pop("scaler")
        read = ChannelScaler(**{**scaler, "names": tuple(scaler["names"])})
        try:
            return cls(Numbers.read(read, arrays), Settings(**settings), provenance, facts)
        except TypeError as error:
            raise ArtefactError(f"settings of the encoder: {error}") from error


def remembered(bars: Bars, block_len: int) -> NDArray[np.bool_]:
    """Tell which bars end a block that the series remembers: every L-th of the clock, wherever a history begins."""
    count = nanoseconds(bars.close_time) // int(bars.interval / np.timedelta64(1, "ns"))
    return np.asarray(count % block_len == 0)


def outcomes_of(returns: Floats, ends: NDArray[np.int64], scaler: ChannelScaler, horizon: int) -> Floats:
    """Return what followed blocks that end at bars ``ends``: ``(n, 2)``, NaN where it is not known yet.

    The sum of the next H returns in its deviation if they were independent, and their log volatility in the level and
    spread of the volatility channel.
    """
    out = np.full((len(ends), OUTCOMES), np.nan)
    if len(returns) <= horizon:
        return out
    total = np.append(0.0, np.cumsum(returns))
    known = ends + horizon < len(returns)
    at = ends[known]
    out[known, 0] = (total[at + horizon + 1] - total[at + 1]) / (scaler.deviation * math.sqrt(horizon))
    out[known, 1] = (future_log_volatility(returns, horizon)[at] - scaler.level) / scaler.spread
    return out


def nanoseconds(times: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """Return times as nanoseconds of the epoch."""
    return np.asarray(times.astype("datetime64[ns]").astype(np.int64))
