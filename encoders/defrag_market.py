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
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from encoders.change_odds import recent_change, usual_window
from encoders.channels import MEMORY, ChannelScaler, bar_returns
from encoders.defrag_blocks import BlockScaler
from encoders.defrag_config import REACH
from encoders.defrag_dense import DenseBlocks
from encoders.defrag_encoder import EncoderWeights, MomentScale, RegimeEncoder, unit
from encoders.defrag_novelty import Novelty
from encoders.defrag_recall import OUTCOMES, Kept, Own, recall
from encoders.encoder import Arrays, Encoder, Provenance, is_generated
from encoders.regimes import KMeansHead, names_of
from encoders.volatility_probes import future_log_volatility
from markets.bars import Bars
from markets.compiled import compiled
from markets.errors import ArtefactError, unknown

if TYPE_CHECKING:
    from encoders.defrag_stream import DefragStream

Array = NDArray[np.float32]
Floats = NDArray[np.float64]

CLIP = 5.0  # deviations of the training range
LONG = 4  # blocks of the longer past
STATISTICS = ("mean", "deviation", "memory")  # of a channel in a block
RECALLED = ("recall_return", "recall_volatility", "recall_error", "familiarity")
VOICES = ("belief", "kmeans")
LEAST_BLOCK = REACH + 4  # ticks, of the block encoder as well
LARGEST = 2**20  # of a whole number: what a file may ask for and no memory could hold is refused
KEPT_AS = {
    "memory.rows": "float16",
    "memory.outcomes": "float64",
    "memory.visible_from": "int64",
    "memory.real": "uint8",
    "components": "float64",
    "scale.mean": "float64",
    "scale.deviation": "float64",
    "head.centres": "float64",
    "head.width": "float64",
    "chain": "float64",
}  # kind of each tensor of a file; float32 of all others


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is not a fitted number.

    Attributes:
        block_len: L, bars. moments_weight: their share of an embedding's squared length.
        neighbours: k of a recall. horizon: H, bars of an outcome. own_blocks: how many blocks back a series remembers
            itself. evidence: share of a bar's odds that counts as news. memory: bars after which the filter has
            forgotten where it began. voice: whose odds are served, ``belief`` (filtered) or ``kmeans`` (as they are).
    """

    block_len: int = 64
    moments_weight: float = 0.5
    neighbours: int = 16
    horizon: int = 64
    own_blocks: int = 8
    evidence: float = 0.5
    memory: int = 0
    voice: str = "belief"

    def __post_init__(self) -> None:
        if self.voice not in VOICES:
            raise unknown("voice of a defrag encoder", self.voice, VOICES)
        for name, least in (
            ("block_len", LEAST_BLOCK), ("neighbours", 2), ("horizon", 1), ("own_blocks", 0), ("memory", 0)
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
                raise ArtefactError(f"{name}={value!r} must be a whole number from {least} to {LARGEST:,}")
        for name, value, fits, said in (
            ("moments_weight", self.moments_weight, lambda x: 0.0 <= x < 1.0, "of at least 0 and below 1"),
            ("evidence", self.evidence, lambda x: 0.0 < x <= 1.0, "above 0 and at most 1"),
        ):
            if not isinstance(value, int | float) or isinstance(value, bool) or not fits(value):
                raise ArtefactError(f"{name}={value!r} must be a number {said}")

    @property
    def settled(self) -> int:
        """Bars after which a row no longer depends on where the history began, but for the filter and own memory."""
        return MEMORY + LONG * self.block_len

    @property
    def warm_up(self) -> int:
        """Bars before the first row that is served."""
        own = MEMORY + (self.own_blocks + 1) * self.block_len
        return max(own, self.settled + self.memory) + 1  # the first bar has no return


@dataclass(frozen=True, eq=False)
class Scale:
    """``(x - mean) / deviation`` of ``(T, n)`` columns, clipped to five deviations."""

    mean: Floats
    deviation: Floats

    def __post_init__(self) -> None:
        if self.mean.shape != self.deviation.shape or not (self.deviation > 0.0).all():
            raise ArtefactError("mean and deviation of served columns must be of one length, deviations above 0")

    @classmethod
    def fit(cls, columns: Floats) -> Scale:
        """Fit on training rows."""
        return cls(columns.mean(axis=0), np.maximum(columns.std(axis=0), 1e-9))

    def apply(self, columns: Any) -> Floats:
        """Standardise and clip."""
        return np.clip((np.asarray(columns, np.float64) - self.mean) / self.deviation, -CLIP, CLIP)


@dataclass(frozen=True, eq=False)
class Numbers:
    """The fitted numbers of an encoder.

    Attributes:
        scaler: of channels. blocks: of ticks. weights, moments: of the block encoder. novelty: reference of training.
        components: ``(P, 2 D')`` principal directions of the learned embedding of block and longer past.
        scale: of the ``6 F + P`` columns before the recalled ones. kept: memory. head: centres of the regimes.
        chain: ``(K, K)`` P.
    """

    scaler: ChannelScaler
    blocks: BlockScaler
    weights: EncoderWeights
    moments: MomentScale
    novelty: Novelty
    components: Floats
    scale: Scale
    kept: Kept
    head: KMeansHead
    chain: Floats

    def __post_init__(self) -> None:
        features, learned = len(self.scaler.names), self.weights.head_weight.shape[0]
        moments = len(STATISTICS) * features
        regimes = len(self.chain)
        for name, value, shape in (
            ("blocks.center", self.blocks.center, (features,)), ("moments.mean", self.moments.mean, (moments,)),
            ("first kernel's features", np.empty(self.weights.a_weight.shape[1]), (features,)),
            ("components", self.components, (len(self.components), 2 * learned)),
            ("scale.mean", self.scale.mean, (2 * moments + len(self.components),)),
            ("head.centres", self.head.centres, (regimes, 2 * moments)), ("chain", self.chain, (regimes, regimes)),
            ("novelty.points", self.novelty.points, (len(self.novelty.points), moments)),
        ):  # fmt: skip
            if value.shape != shape:
                raise ArtefactError(f"{name} has shape {value.shape}, expected {shape}")
        if not ((self.chain >= 0.0).all() and np.allclose(self.chain.sum(axis=1), 1.0)):
            raise ArtefactError("chain: a row is not odds")

    def arrays(self) -> Arrays:
        """Return every number by name; those of the scaler are plain values of the configuration."""
        return {
            **self.blocks.arrays(),
            **{f"encoder.{name}": value for name, value in self.weights.arrays().items()},
            "moments.mean": self.moments.mean, "moments.deviation": self.moments.deviation,
            "moments.persistence": self.moments.persistence, **self.novelty.arrays(), "components": self.components,
            "scale.mean": self.scale.mean, "scale.deviation": self.scale.deviation, **self.kept.arrays(),
            "head.centres": self.head.centres, "head.width": np.array([self.head.width]), "chain": self.chain,
        }  # fmt: skip

    @classmethod
    def read(cls, scaler: ChannelScaler, arrays: Arrays) -> Numbers:
        """Read back what :meth:`arrays` gave; raises ``KeyError`` where one is missing."""
        for name, value in arrays.items():
            if value.dtype != KEPT_AS.get(name, "float32"):
                raise ArtefactError(f"tensor {name!r} is {value.dtype}, expected {KEPT_AS.get(name, 'float32')}")
        if arrays["head.width"].shape != (1,):
            raise ArtefactError(f"tensor 'head.width' has shape {arrays['head.width'].shape}, expected (1,)")
        weights = {name[8:]: value for name, value in arrays.items() if name.startswith("encoder.")}
        return cls(
            scaler, BlockScaler(arrays["scaler.center"], arrays["scaler.scale"]), EncoderWeights(**weights),
            MomentScale(arrays["moments.mean"], arrays["moments.deviation"], arrays["moments.persistence"]),
            Novelty(arrays["novelty.points"], arrays["novelty.distances"]), arrays["components"],
            Scale(arrays["scale.mean"], arrays["scale.deviation"]),
            Kept(
                arrays["memory.rows"].astype(np.float32), arrays["memory.outcomes"], arrays["memory.visible_from"],
                arrays["memory.real"].astype(bool),
            ),
            KMeansHead(arrays["head.centres"], float(arrays["head.width"][0])), arrays["chain"],
        )  # fmt: skip


class Past:
    """What the learned part and the moments say of block and longer past, for a whole history.

    Attributes:
        block: ``(T, D')`` unit rows of the learned part of the block. moments: ``(T, 6 F)`` of both pasts.
        z: ``(T, D)`` unit rows that memory is asked with.
    """

    def __init__(self, learned: Array, moments: Array, scale: MomentScale, settings: Settings) -> None:
        self.block, self._length = learned, settings.block_len
        self.moments = np.concatenate([moments, _longer(moments, settings.block_len)], axis=1)
        self.z = _joined(learned, moments, scale, settings)

    @cached_property
    def learned(self) -> Array:
        """Learned part of both pasts, ``(T, 2 D')``."""
        return np.concatenate([self.block, _longer(self.block, self._length)], axis=1)

    def components(self, directions: Floats) -> Floats:
        """Return ``learned @ directions.T``: the longer past is a mean, so that it can be taken after the product."""
        width = self.block.shape[1]
        narrow = directions.astype(np.float32)
        return (self.block @ narrow[:, :width].T).astype(np.float64) + _longer(
            self.block @ narrow[:, width:].T, self._length
        )


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


def width_of(numbers: Numbers, settings: Settings) -> int:
    """Return D, the length of a row that memory is asked with: without moments where they weigh nothing."""
    return numbers.weights.head_weight.shape[0] + (len(numbers.moments.mean) if settings.moments_weight else 0)


def points_of(moments: Array, scale: MomentScale) -> Floats:
    """Return where a bar stands among the regimes' centres: clipped moments, each times its persistence."""
    return np.asarray(np.clip(moments.astype(np.float64), -CLIP, CLIP) * np.tile(scale.persistence, 2))


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


def filtered(evidence: Floats, chain: Floats, news: float) -> Floats:
    """Run the forward filter over ``(T, K)`` odds of each bar by itself, from even odds on: ``(T, K)``."""
    out, count = np.empty(evidence.shape), evidence.shape[1]
    _filter(evidence, chain, news, np.full(count, 1.0 / count), np.empty(count), out)
    return out


def _longer(rows: Array, length: int) -> Array:
    """Mean of each row and those one, two and three blocks before it; rows that are missing count as zero."""
    total = rows.astype(np.float64)
    for back in range(length, LONG * length, length):
        if back < len(rows):
            total[back:] += rows[:-back]
    return (total / LONG).astype(np.float32)


def _joined(learned: Array, moments: Array, scale: MomentScale, settings: Settings) -> Array:
    """Return the unit rows of :meth:`encoders.defrag_encoder.RegimeEncoder.embed`."""
    share = settings.moments_weight
    if share == 0.0:
        return learned
    first = unit(moments * scale.persistence)
    return np.concatenate([np.float32(share**0.5) * first, np.float32((1.0 - share) ** 0.5) * learned], axis=1)


@compiled
def filter_step(odds: Floats, chain: Floats, news: float, state: Floats, out: Floats) -> None:
    """One bar of the filter: ``(b P) q^news``, normalised; ``state (K,)`` is b, ``out (K,)`` is scratch.

    Evidence that is not a number is a bar nobody saw: the odds only move on by the chain.
    """
    total = 0.0
    for k in range(state.shape[0]):
        arriving = 0.0
        for j in range(state.shape[0]):
            arriving += state[j] * chain[j, k]
        out[k] = arriving * max(odds[k], 1e-12) ** news if odds[k] == odds[k] else arriving
        total += out[k]
    for k in range(state.shape[0]):
        state[k] = out[k] / total


@compiled
def _filter(odds: Floats, chain: Floats, news: float, state: Floats, scratch: Floats, out: Floats) -> None:
    for t in range(odds.shape[0]):
        filter_step(odds[t], chain, news, state, scratch)
        for k in range(state.shape[0]):
            out[t, k] = state[k]
