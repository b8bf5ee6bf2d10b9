"""Figures of a trained defragmentation encoder on bars, measured anew, beside what learns nothing.

As :mod:`encoders.measure` for Koopman-JEPA; the control that matters here is the weighted moments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.defrag_config import DefragConfig
from encoders.defrag_dense import DenseBlocks
from encoders.defrag_encoder import EncoderWeights, RegimeEncoder
from encoders.defrag_market import DefragEncoder
from encoders.defrag_past import Past, points_of
from encoders.measure import LEAST_ROWS, STRIDE, against_truth, checks, speed, told
from encoders.unseen import cautions
from markets.bars import Bars
from markets.errors import DataError

Floats = NDArray[np.float64]


def measure(encoder: DefragEncoder, bars: Bars, seed: int = 0) -> dict[str, Any]:
    """Measure an encoder on ``bars``: plain values that JSON can hold.

    Returns:
        ``bars``, ``cautions``, ``checks``, ``seconds_per_bar``, ``labels`` (None without true regimes).

    Raises:
        DataError: fewer bars than the warm-up and some hundreds of rows take.
    """
    rows = np.arange(encoder.warm_up, len(bars), STRIDE)
    if len(rows) < LEAST_ROWS:
        least = encoder.warm_up + STRIDE * LEAST_ROWS
        raise DataError(f"{len(bars)} bars are too few to measure this encoder on: {least} are needed")
    return {
        "bars": told(encoder, bars), "cautions": cautions(encoder.provenance, bars),
        "checks": checks(encoder, bars, seed), "seconds_per_bar": speed(encoder, bars),
        "labels": None if bars.labels is None else _labels(encoder, bars, rows, seed),
    }  # fmt: skip


def _labels(encoder: DefragEncoder, bars: Bars, rows: NDArray[np.int64], seed: int) -> dict[str, Any]:
    past = encoder.past(bars)
    odds = {"belief odds": encoder.filtered(past), "kmeans odds": encoder.evidence(past)}
    features: dict[str, Floats] = {
        "all columns but the odds": encoder.encode(bars)[:, : len(encoder.names) - encoder.regimes].astype(np.float64),
        "the learned embedding alone": past.learned.astype(np.float64),
    }
    untrained = untrained_of(encoder, bars)
    if untrained is not None:
        features["the untrained embedding alone"] = untrained.learned.astype(np.float64)
    features["weighted moments, nothing learned"] = points_of(past.moments, encoder.numbers.moments)
    return against_truth(bars, rows, odds, features, encoder.regimes, seed)


def untrained_of(encoder: DefragEncoder, bars: Bars) -> Past | None:
    """Return what the weights that training began with say of the bars; None where the facts do not tell them."""
    config = encoder.facts.get("config")
    if config is None:
        return None
    start = EncoderWeights.initial(DefragConfig.from_json(config["block"]), np.random.default_rng(config["seed"]))
    numbers, settings = encoder.numbers, encoder.settings
    block = RegimeEncoder(start, numbers.moments, settings.moments_weight)
    learned, moments = DenseBlocks(numbers.blocks, block, settings.block_len).embed(numbers.scaler.of_bars(bars))
    return Past(learned, moments, numbers.moments, settings)
