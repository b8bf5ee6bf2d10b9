"""Pretraining of the defragmentation encoder on bars: channels, blocks, regimes, memory; writes weights and a card.

The last share of every series is kept for validation: nothing is fitted there, and only the memory has rows of it,
which a bar sees when their outcomes are known. What validation says is written down and chooses nothing, so that there
is no best step to be found. A training whose learned part has collapsed, or whose row knows less of the volatility to
come than two past volatilities do, says so.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders import encoder as files
from encoders.channels import CHANNELS, MEMORY, ChannelScaler, bar_returns
from encoders.defrag import COLLAPSED, effective_dimension
from encoders.defrag_blocks import BlockScaler
from encoders.defrag_config import DefragConfig
from encoders.defrag_dense import DenseBlocks
from encoders.defrag_encoder import EncoderWeights, MomentScale, RegimeEncoder, block_moments
from encoders.defrag_market import DefragEncoder, nanoseconds, outcomes_of
from encoders.defrag_novelty import Novelty
from encoders.defrag_numbers import Numbers, Scale, Settings
from encoders.defrag_past import Past, filtered, points_of
from encoders.defrag_recall import Kept
from encoders.defrag_training import train_encoder
from encoders.encoder import is_generated
from encoders.forgetting import forgetting
from encoders.jepa_training import provenance_of
from encoders.kmeans_head import centres
from encoders.regimes import KMeansHead
from encoders.volatility_probes import future_log_volatility, log_volatility, ridge_r2
from markets.bars import Bars
from markets.errors import ConfigError, DataError, unknown

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
Told = Callable[[int, int, dict[str, float]], None]

PAST = (16, 64)  # bars of the reference volatilities
STRIDE = 8  # rows scored
OF_POSITIVES = {"jitter": "augmented", "max_shift": "augmented", "lag": "adjacent"}  # settings of one kind only
LEAST_ROWS = 2  # that an R2 needs

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DefragPretrain:
    """What ``regimegym pretrain --encoder defrag`` is told.

    Attributes:
        channels: what is read of a bar. regimes: K. components: P learned columns that are served.
        block_len, hidden, latent_dim, epochs, positives, moments_weight, ..: of :class:`DefragConfig` by ``block``.
        neighbours, horizon, own_blocks, evidence: of :class:`encoders.defrag_numbers.Settings`.
        validation: share of each series that nothing is fitted on; 0 for :func:`fit` alone.
    """

    channels: tuple[str, ...] = CHANNELS[:2]
    regimes: int = 6
    components: int = 16
    block: dict[str, Any] = field(default_factory=dict)
    neighbours: int = 16
    horizon: int = 64
    own_blocks: int = 8
    evidence: float = 0.5
    validation: float = 0.1
    seed: int = 0
    command: str = ""
    about: str = ""

    def __post_init__(self) -> None:
        share = self.validation
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0.0 <= share < 0.5:
            raise ConfigError(f"validation={self.validation!r} must be a share of at least 0 and below 0.5")
        for name, least in (("regimes", 2), ("components", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
        if self.components > 2 * self.config.learned_dim:
            raise ConfigError(
                f"components={self.components} are more than {2 * self.config.learned_dim} learned columns"
            )
        for channel in self.channels:
            if channel not in CHANNELS:
                raise unknown("channel", channel, CHANNELS)
        repeated = sorted({name for name in self.channels if self.channels.count(name) > 1})
        if repeated:
            raise ConfigError(f"channels={self.channels!r} have {repeated[0]!r} twice")
        if not {"return", "volatility"} & set(self.channels):
            raise ConfigError(
                f"channels={self.channels!r}: regimes are ordered by volatility, which none of them tells"
            )
        positives = self.block.get("positives", "adjacent")
        for name, of in OF_POSITIVES.items():
            if name in self.block and of != positives:
                raise ConfigError(f"{name} does nothing with positives={positives!r}: it is of {of!r}")
        _ = self.settings

    @property
    def config(self) -> DefragConfig:
        """Settings of the block encoder."""
        return DefragConfig(
            **{**self.block, "input_dim": len(self.channels), "label_horizon": self.horizon, "seed": self.seed}
        )

    @property
    def settings(self) -> Settings:
        """Settings of the encoder that is served, before the filter's memory is measured."""
        config = self.config
        return Settings(
            block_len=config.block_len, moments_weight=config.moments_weight, neighbours=self.neighbours,
            horizon=self.horizon, own_blocks=self.own_blocks, evidence=self.evidence,
        )  # fmt: skip


def pretrain(series: Sequence[Bars], plan: DefragPretrain, out: Path, told: Told | None = None) -> DefragEncoder:
    """Train on S series of bars, write ``out/encoder.zip`` and ``out/card.md``, and return the encoder.

    Raises:
        ConfigError: bars of several markets or intervals, or nothing to validate on.
        DataError: too few bars, or none that move.
    """
    from torch.utils.tensorboard import SummaryWriter

    from encoders.defrag_card import card

    if plan.validation == 0.0:
        raise ConfigError("validation=0 leaves no rows that weights could be scored on")
    if sum(_late(bars, plan) for bars in series) < LEAST_ROWS * STRIDE:
        most = max(_late(bars, plan) + plan.horizon for bars in series)
        raise DataError(
            f"validation={plan.validation!r} leaves at most {most} bars of a series, and rows are scored by the "
            f"{plan.horizon} bars behind them (horizon): take a larger share, more bars or a shorter horizon"
        )
    began = time.process_time()
    made, history = fit(series, plan, told)
    facts = {
        **made.facts, "command": plan.command, "about": plan.about, "seed": plan.seed,
        "validation": {"share": plan.validation, **validated(made, series, plan)},
        "cpu_seconds": round(time.process_time() - began, 1),
    }  # fmt: skip
    made = DefragEncoder(made.numbers, made.settings, made.provenance, facts)
    scores = facts["validation"]
    if not scores["volatility_r2"] >= scores["two_past_volatilities_r2"]:
        _log.warning(
            "a row explains %.3f of the volatility of the next %d bars on validation rows, two past volatilities "
            "%.3f: it adds nothing there", scores["volatility_r2"], plan.horizon, scores["two_past_volatilities_r2"],
        )  # fmt: skip
    elif scores["volatility_r2"] < 0.0:
        _log.warning(
            "R2 of volatility is below 0 on the validation rows: they are unlike the bars before them, or too few"
        )
    files.save(made, out)
    (out / "card.md").write_text(card(made), encoding="utf-8")
    with SummaryWriter(str(out / "tensorboard")) as board:
        for epoch, losses in enumerate(history):
            for name, value in losses.items():
                board.add_scalar(f"pretrain/{name}", value, epoch + 1)
    return made


def fit(
    series: Sequence[Bars], plan: DefragPretrain, told: Told | None = None
) -> tuple[DefragEncoder, tuple[dict[str, float], ...]]:
    """Fit on the early share of S series; return the encoder and the losses of every epoch."""
    config, settings = plan.config, plan.settings
    provenance = provenance_of(series)
    early = _early(series, plan)
    scaler = ChannelScaler.fit([bar_returns(bars)[1:] for bars in early], plan.channels)
    ticks, counts = _whole_blocks([scaler.of_bars(bars) for bars in early], config.block_len)
    blocks = BlockScaler.fit(ticks, config.scaler)
    scaled = blocks.apply(ticks)
    generator = np.random.default_rng(plan.seed)
    start = EncoderWeights.initial(config, generator)
    trained = train_encoder(scaled, config, start, generator, told, counts)
    values = scaled.reshape(-1, config.block_len, len(plan.channels))
    moments = MomentScale.fit(block_moments(values))
    novelty = Novelty.fit(moments.apply(block_moments(values)))
    dense = DenseBlocks(
        blocks, RegimeEncoder(trained.weights, moments, config.moments_weight), config.block_len
    )  # fmt: skip
    pasts = [_past(dense, scaler.of_bars(bars), moments, settings) for bars in early]
    settled = settings.settled + 1
    learned = np.concatenate([past.learned[settled:] for past in pasts]).astype(np.float64)
    both = np.concatenate([past.moments[settled:] for past in pasts])
    returns = np.concatenate([bar_returns(bars)[settled:] for bars in early])
    components = _principal(learned, plan.components)
    scale = Scale.fit(np.concatenate([both, learned @ components.T], axis=1))
    head = centres(points_of(both, moments), returns, plan.regimes, plan.seed)
    chain = _chain(
        [head.odds(points_of(past.moments[settled:], moments)).argmax(axis=1) for past in pasts], plan.regimes
    )
    kept = _memory(series, dense, scaler, moments, settings)
    settings = _with_memory(settings, head, chain, [past.moments[settled:] for past in pasts], moments)
    numbers = Numbers(scaler, blocks, trained.weights, moments, novelty, components, scale, kept, head, chain)
    dimension = effective_dimension(
        np.concatenate([past.learned[settled :: config.block_len] for past in pasts])[:, : config.learned_dim]
    )
    if dimension < COLLAPSED and config.epochs:
        _log.warning("the learned part has collapsed to %.2f effective dimensions", dimension)
    facts = {
        **_facts(series, plan), "blocks": int(sum(counts)), "remembered": len(kept.rows),
        "effective_dimension": dimension, "temperature": trained.temperature,
    }  # fmt: skip
    made = DefragEncoder(numbers, settings, provenance, facts)
    made.facts["regimes"] = _described(made, pasts, returns, settled)
    return made, trained.history


def _early(series: Sequence[Bars], plan: DefragPretrain) -> list[Bars]:
    """Return the bars of each series that are fitted on.

    Raises:
        DataError: too few of them. ConfigError: more regimes than blocks.
    """
    config, settings = plan.config, plan.settings
    early = [bars.between(0, int(len(bars) * (1.0 - plan.validation))) for bars in series]
    for bars, whole in zip(early, series, strict=True):
        least = settings.warm_up + 4 * config.block_len
        if len(bars) < least:
            raise DataError(
                f"{whole.source or whole.symbols[0]}: {len(whole)} bars leave {len(bars)} to fit on, and "
                f"{least} are needed"
            )
    whole_blocks = sum((len(bars) - MEMORY - 1) // config.block_len for bars in early)
    if plan.regimes > whole_blocks:
        raise ConfigError(f"regimes={plan.regimes} are more than the {whole_blocks} blocks to fit them on")
    return early


def _facts(series: Sequence[Bars], plan: DefragPretrain) -> dict[str, Any]:
    """Return settings and bars as plain values, for the card."""
    plain = {name: value for name, value in asdict(plan).items() if name not in ("command", "about")}
    return {
        "config": json.loads(json.dumps({**plain, "block": plan.config.to_json()})),
        "bars": [{"source": bars.source, "symbol": bars.symbols[0], "first": str(bars.time[0]),
                  "last": str(bars.close_time[-1]), "count": len(bars)} for bars in series],
    }  # fmt: skip


def validated(made: DefragEncoder, series: Sequence[Bars], plan: DefragPretrain) -> dict[str, float]:
    """R2 of the log volatility of the next H bars on the validation rows: of the row, without its learned columns, of
    the recalled volatility alone, and of two past volatilities; each a ridge on the fitted range."""
    width = len(made.names) - made.regimes
    learned = np.array([name.startswith("defrag_") for name in made.names[:width]])
    recalled = made.names.index("recall_volatility")
    views: dict[str, list[Floats]] = {name: [] for name in ("", "without_learned_", "recalled_", "two_past_")}
    targets, early, late = [], [], []
    for bars in series:
        cut, returns = int(len(bars) * (1.0 - plan.validation)), bar_returns(bars)
        values = made.encode(bars)[:, :width].astype(np.float64)
        views[""].append(values)
        views["without_learned_"].append(values[:, ~learned])
        views["recalled_"].append(values[:, [recalled]])
        views["two_past_"].append(log_volatility(returns, PAST))
        rows = np.arange(made.warm_up, len(bars) - plan.horizon, STRIDE)
        early.append(rows[rows < cut - plan.horizon])
        late.append(rows[rows >= cut])
        targets.append(future_log_volatility(returns, plan.horizon))
    least = min(sum(map(len, rows)) for rows in (early, late))
    if least < LEAST_ROWS:
        raise DataError(
            f"{least} rows to score by are left after a warm-up of {made.warm_up} bars (the filter has forgotten where "
            f"it began after {made.settings.memory}) and without the {plan.horizon} bars of an outcome: take more bars"
        )
    found = {}
    for name, columns in views.items():
        seen, ahead, judged, wanted = (
            np.concatenate([part[rows] for part, rows in zip(of, chosen, strict=True)])
            for of, chosen in ((columns, early), (targets, early), (columns, late), (targets, late))
        )
        key = f"{name}volatilities_r2" if name == "two_past_" else f"{name}volatility_r2"
        found[key] = ridge_r2(seen, ahead, judged, wanted)
    return found


def _late(bars: Bars, plan: DefragPretrain) -> int:
    """Return the bars of the validation share whose outcome is known in it."""
    return len(bars) - int(len(bars) * (1.0 - plan.validation)) - plan.horizon


def _whole_blocks(series: Sequence[Array], length: int) -> tuple[Array, list[int]]:
    """Put warmed up whole blocks of S series end to end, and say how many each has."""
    parts = [ticks[MEMORY + 1 :] for ticks in series]
    counts = [len(ticks) // length for ticks in parts]
    return np.concatenate([t[: n * length] for t, n in zip(parts, counts, strict=True)]), counts


def _past(dense: DenseBlocks, ticks: Array, moments: MomentScale, settings: Settings) -> Past:
    learned, own = dense.embed(ticks)
    return Past(learned, own, moments, settings)


def _principal(learned: Floats, count: int) -> Floats:
    """Return the leading principal directions ``(P, n)``, each with its largest part positive."""
    apart = learned - learned.mean(axis=0)
    _, vectors = np.linalg.eigh(apart.T @ apart)
    chosen = vectors[:, ::-1][:, :count].T
    signs = np.sign(np.take_along_axis(chosen, np.abs(chosen).argmax(axis=1)[:, None], axis=1))
    return np.ascontiguousarray(chosen * signs)


def _chain(clusters: Sequence[NDArray[np.int64]], count: int) -> Floats:
    """Count the moves between clusters of successive bars: ``(K, K)``, a row a regime that is left."""
    moves = np.full((count, count), 1e-3)
    for one in clusters:
        np.add.at(moves, (one[:-1], one[1:]), 1.0)
    return np.asarray(moves / moves.sum(axis=1, keepdims=True))


def _memory(
    series: Sequence[Bars], dense: DenseBlocks, scaler: ChannelScaler, moments: MomentScale, settings: Settings
) -> Kept:
    """Blocks of the whole range whose outcome is known in it, oldest first within a series."""
    rows, outcomes, times, real = [], [], [], []
    for bars in series:
        past = _past(dense, scaler.of_bars(bars), moments, settings)
        ends = np.arange(MEMORY + settings.block_len, len(bars) - settings.horizon, settings.block_len)
        rows.append(past.z[ends])
        outcomes.append(outcomes_of(bar_returns(bars), ends, scaler, settings.horizon))
        times.append(nanoseconds(bars.close_time[ends + settings.horizon]))
        real.append(np.full(len(ends), not is_generated(bars.market, bars.source)))
    return Kept(*(np.concatenate(part) for part in (rows, outcomes, times, real))).rounded()


@dataclass(frozen=True, eq=False)
class _Recursion:
    """The filter as :func:`forgetting` asks for it; ``returns`` are the evidence of each bar."""

    chain: Floats
    news: float

    def table(self, returns: Floats) -> Floats:
        return filtered(returns, self.chain, self.news)


def _with_memory(
    settings: Settings, head: KMeansHead, chain: Floats, moments: Sequence[Array], scale: MomentScale
) -> Settings:
    measured = (forgetting(_Recursion(chain, settings.evidence), head.odds(points_of(one, scale))) for one in moments)
    return Settings(**{**asdict(settings), "memory": int(max(measured))})


def _described(made: DefragEncoder, pasts: Sequence[Past], returns: Floats, settled: int) -> list[dict[str, float]]:
    """Volatility, share and mean spell of each regime of the filter on the fitted range."""
    regime = np.concatenate([made.filtered(past)[settled:].argmax(axis=1) for past in pasts])
    found = []
    for k in range(made.regimes):
        here = regime == k
        entries = int((here[1:] & ~here[:-1]).sum()) + int(here[0])
        found.append({
            "regime": k, "share": float(here.mean()),
            "volatility": float(returns[here].std()) if here.any() else 0.0,
            "mean_spell_bars": float(here.sum() / max(entries, 1)),
        })  # fmt: skip
    return found
