"""What a defragmentation encoder is worth on a series whose regimes are known: one series, one fit, all figures.

Rows are embeddings of the same blocks: ``ours``, and what it must be read beside: ``untrained`` (same network before
training), ``learned`` (ours without its moments), ``moments`` (standardised mean, log deviation and lag-1
autocorrelation, no learning) and ``weighted`` (those times their persistence: most of the gain over ``moments``, and
still no learning). Blocks of the first part are the memory and what is clustered and chained; blocks after it ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.clustering import KMeans, hungarian_accuracy
from encoders.defrag import ChronosDefragEngine
from encoders.defrag_alpha import alpha_interval
from encoders.defrag_chain import pseudo_timeline
from encoders.defrag_config import DefragConfig
from encoders.defrag_encoder import EncoderWeights, RegimeEncoder, unit
from encoders.defrag_predictor import TemporalPredictor
from encoders.defrag_series import LabelledSeries, block_expectation
from markets.errors import MissingExtraError

Array = NDArray[np.float32]
Order = NDArray[np.int64]
Figures = dict[str, float]

NEAREST = 16
REGIMES = 4
LEVELS = (0.8, 0.95)  # of intervals on alpha
HISTORY = 16  # positions that the predictor reads
ODD = 64  # blocks of each unusual kind


def figures(series: LabelledSeries, train: int, config: DefragConfig) -> dict[str, dict[str, Any]]:
    """Fit on the first ``train`` blocks: ``embedding`` (by row), ``order``, ``predictor``, ``alpha``, ``novelty``."""
    length = series.block_len
    known = series.outcomes[: train * length].copy()
    known[-length:] = np.nan  # they would need the ticks that are held out
    engine = ChronosDefragEngine(replace(config, input_dim=series.features.shape[1], block_len=length))
    engine.fit(series.features[: train * length], known)
    rows = embeddings(engine, series)
    ours = rows["ours"]
    return {
        "embedding": {name: embedding_figures(z, series, train) for name, z in rows.items()},
        "order": order_figures(series.labels[:train], pseudo_timeline(ours[:train], config.chain), config.seed),
        "predictor": predictor_figures(ours, train, engine.config),
        **live_figures(engine, series, train),
    }


def embeddings(engine: ChronosDefragEngine, series: LabelledSeries) -> dict[str, Array]:
    """Return the rows ``(N, D)`` of the module's docstring for every block of the series."""
    encoder, scaler = engine.encoder, engine.fitted.scaler
    scaled = scaler.apply(series.windows)
    ours, moments = engine.fitted.hierarchy.embed_blocks(scaled)
    first = EncoderWeights.initial(engine.config, np.random.default_rng(engine.config.seed))  # where training began
    untrained = RegimeEncoder(first, encoder.scale, engine.config.moments_weight)
    return {
        "ours": ours,
        "untrained": untrained.embed(scaled, moments),
        "learned": unit(ours[:, engine.config.moment_dim :]),
        "weighted": unit(moments * encoder.scale.persistence),
        "moments": unit(moments),
    }


def embedding_figures(z: Array, series: LabelledSeries, train: int) -> Figures:
    """Return figures of unit rows ``(N, D)``; ``kmeans`` is nan without scikit-learn.

    ``same_regime``: share of the 16 nearest memory blocks that are of the asking block's regime. ``kmeans``: accuracy
    of four clusters under their best match. ``switches`` along the greedy chain, its ``path`` as a share of the path in
    order of time. ``kendall``: share of pairs that the chain puts in another order than time. ``ic``: correlation of
    the mean outcome of the 16 nearest with the outcome.
    """
    memory, labels = z[:train], series.labels
    nearest = np.argpartition(-(z[train:] @ memory[:-1].T), NEAREST, 1)[:, :NEAREST]
    order, time = pseudo_timeline(memory), np.arange(train)
    outcomes = series.at_ends(series.outcomes)
    wide = memory.astype(np.float64)
    try:
        kmeans = hungarian_accuracy(labels[:train], KMeans(wide, REGIMES, whiten=False)(wide))
    except MissingExtraError:
        kmeans = np.nan
    return {
        "same_regime": float((labels[nearest] == labels[train:, None]).mean()),
        "kmeans": kmeans,
        "switches": switches(labels, order),
        "path": path_length(memory, order) / path_length(memory, time),
        "kendall": kendall_distance(order),
        "ic": correlation(outcomes[nearest].mean(1)[:-1], outcomes[train:-1]),
    }


def order_figures(labels: Order, order: Order, seed: int) -> Figures:
    """Share of adjacent pairs of one regime: in the chain, in order of time, in random order."""
    random = np.random.default_rng([seed, 1]).permutation(len(labels))
    pairs = len(labels) - 1
    return {
        "chain": 1.0 - switches(labels, order) / pairs,
        "time": 1.0 - switches(labels, np.arange(len(labels))) / pairs,
        "random": 1.0 - switches(labels, random) / pairs,
    }


def predictor_figures(z: Array, train: int, config: DefragConfig) -> Figures:
    """Skill of predictors trained on the chain, on the order of time and on a random one, on blocks held out.

    Skill is ``1 - loss / loss of "the next is as this one"``, loss one minus cosine; ``A_on_B`` was trained in order A
    and is asked in order B of the held-out blocks. The chain of held-out blocks knows them all: it is a figure, not a
    forecast; only ``_on_time`` is asked as a live stream would.
    """
    from encoders.defrag_predictor_training import train_predictor

    rng = np.random.default_rng([config.seed, 2])
    orders = {
        "chain": pseudo_timeline(z[:train], config.chain), "time": np.arange(train), "random": rng.permutation(train),
    }  # fmt: skip
    asked = {"chain": z[train:][pseudo_timeline(z[train:], config.chain)], "time": z[train:]}
    result = {}
    for name, order in orders.items():
        fit = train_predictor(z[:train], order, config, np.random.default_rng(config.seed))
        for other, sequence in asked.items():
            result[f"{name}_on_{other}"] = predictor_skill(TemporalPredictor(fit.weights), sequence)
    return result


def predictor_skill(predictor: TemporalPredictor, sequence: Array) -> float:
    """Skill over persistence on ``(n, D)`` rows, each next one foretold from the 16 before it."""
    places = range(HISTORY, len(sequence))
    foretold = np.stack([predictor.infer(sequence[i - HISTORY : i]) for i in places])
    actual, before = sequence[HISTORY:], sequence[HISTORY - 1 : -1]
    loss, persistence = (1.0 - float((row * actual).sum(1).mean()) for row in (foretold, before))
    return 1.0 - loss / persistence


def live_figures(engine: ChronosDefragEngine, series: LabelledSeries, train: int) -> dict[str, Figures]:
    """Return ``alpha`` (information coefficient, coverage) and ``novelty`` (AUC of confidence) of ``predict_live``.

    ``ic_oracle`` is of one who sees the regime, ``ic_filter`` of one who knows all parameters and reads the block.
    Coverage is of the mean outcome given the block (:func:`encoders.defrag_series.block_expectation`), which an
    interval on a mean should hold; ``coverage_of_regime`` of that given the true regime of the last tick.
    """
    windows = live_windows(series, train, engine.config.window_len)
    answers = [engine.predict_live(window) for window in windows]
    alpha = np.array([answer.alpha_prediction for answer in answers])
    actual = series.at_ends(series.outcomes)[train:]
    regime, block = series.at_ends(series.expected)[train:], block_expectation(series)[train:]
    result: Figures = {
        "ic": correlation(alpha[:-1], actual[:-1]),
        "ic_filter": correlation(block[:-1], actual[:-1]),
        "ic_oracle": correlation(regime[:-1], actual[:-1]),
    }
    for level in LEVELS:
        ends = np.array(
            [alpha_interval(a.alpha_prediction, a.alpha_count, a.alpha_standard_error, level) for a in answers]
        )
        for name, truth in (("coverage", block), ("coverage_of_regime", regime)):
            result[f"{name}_{level:g}"] = float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())
    known = np.array([answer.regime_confidence for answer in answers])
    scaler = engine.fitted.scaler
    noise = np.random.default_rng([engine.config.seed, 3]).standard_normal((ODD, *windows.shape[1:]))
    odd = {
        "five-fold": 5.0 * windows[:ODD], "white noise": scaler.center + noise * scaler.scale,
        "reversed": windows[:ODD, ::-1], "held out": windows[-ODD:],
    }  # fmt: skip
    area = {}
    for name, values in odd.items():
        confidence = np.array([engine.predict_live(value).regime_confidence for value in values.astype(np.float32)])
        compared = known[:-ODD] if name == "held out" else known
        area[name] = area_above(compared, confidence)
    return {"alpha": result, "novelty": area}


def live_windows(series: LabelledSeries, train: int, ticks: int) -> Array:
    """Return the ``ticks`` that end with each held-out block, ``(n, ticks, F)``."""
    ends = series.block_len * np.arange(train + 1, len(series.labels) + 1)
    return np.stack([series.features[end - ticks : end] for end in ends])


def switches(labels: Order, order: Order) -> int:
    """Count neighbours of different labels."""
    return int((np.diff(labels[order]) != 0).sum())


def path_length(z: Array, order: Order) -> float:
    """Sum of distances between neighbours of ``(N, D)`` rows."""
    return float(np.linalg.norm(np.diff(z[order].astype(np.float64), axis=0), axis=1).sum())


def kendall_distance(order: Order) -> float:
    """Share of pairs out of order: 0 for the identity, 1/2 for a shuffle, 1 for the reverse."""
    count = len(order)
    if count < 2:
        return 0.0
    inverted = sum(int((order[i + 1 :] < order[i]).sum()) for i in range(count - 1))
    return 2.0 * inverted / (count * (count - 1))


def correlation(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
    """Pearson's; 0 where one does not move."""
    if not (np.std(one) > 0.0 and np.std(other) > 0.0):
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def area_above(known: NDArray[np.float64], odd: NDArray[np.float64]) -> float:
    """AUC: probability that a known block's confidence is above an odd one's, ties by half."""
    return float((known[:, None] > odd).mean() + 0.5 * (known[:, None] == odd).mean())


def flat(nested: Mapping[str, Any], before: str = "") -> Figures:
    """Join keys with dots: ``{"alpha": {"ic": .2}}`` becomes ``{"alpha.ic": .2}``."""
    result: Figures = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{before}{name}.")
        else:
            result[before + name] = float(value)
    return result
