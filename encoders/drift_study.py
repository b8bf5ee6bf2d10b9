"""What a drift monitor does on streams whose drift is known: false alarms, and blocks until a flag.

Each row is a length of the training range and a mean spell of its regimes, on seeded streams of
:mod:`encoders.drift_streams`: a stationary continuation of 200 blocks, and 100 blocks of it with a drift from their
first block on. Confidences do not depend on the learned part of an encoder, so that none is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.defrag import ChronosDefragEngine
from encoders.defrag_config import DefragConfig
from encoders.defrag_monitor import Calibration, DriftMonitor, calibration_of
from encoders.drift_streams import FEATURES, drifted, regime_stream

CASES = ((60, 1), (200, 2), (100, 6), (200, 6), (400, 6), (1000, 6), (400, 20), (700, 20), (60, 6), (100, 12))
DRIFTS = (("scale", 2.0), ("scale", 3.0), ("scale", 5.0), ("unseen", 1.0))
STREAMS, FIRST_SEED = 100, 1000
CALM, WILD = 200, 100  # blocks watched without and with a drift
NEVER = 999.0  # blocks, of a drift that raised no flag


def study(
    streams: int = STREAMS, cases: Iterable[tuple[int, int]] = CASES, told: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """Return a row a case: ``blocks``, ``spell``, ``effective`` (median), ``false_alarms`` (share of the streams) and,
    by drift, ``median`` and ``slow`` (90 %) of the blocks until a flag."""
    rows = []
    quiet = logging.getLogger("encoders")
    level = quiet.level
    try:
        quiet.setLevel(logging.ERROR)  # short training ranges are warned of, and are what is studied
        for blocks, spell in cases:
            found = np.array([_stream(blocks, spell, FIRST_SEED + number) for number in range(streams)])
            row = {
                "blocks": blocks, "spell": spell, "effective": float(np.median(found[:, 0])),
                "false_alarms": float((found[:, 1] < NEVER).mean()),
                "drifts": {
                    f"{kind} x {factor:g}" if kind == "scale" else kind: {
                        "median": float(np.median(delays)), "slow": float(np.quantile(delays, 0.9)),
                    }
                    for (kind, factor), delays in zip(DRIFTS, found[:, 2:].T, strict=True)
                },
            }  # fmt: skip
            rows.append(row)
            told(line(row))
    finally:
        quiet.setLevel(level)
    return rows


def line(row: dict[str, Any]) -> str:
    """Write a row as Markdown: training blocks and spell, effective blocks, false alarms, delays."""
    delays = " | ".join(f"{one['median']:.0f} ({one['slow']:.0f})" for one in row["drifts"].values())
    return (
        f"| {row['blocks']}, {row['spell']} | {row['effective']:.0f} | {100 * row['false_alarms']:.0f} % | {delays} |"
    )


def _stream(blocks: int, spell: int, seed: int) -> list[float]:
    config = DefragConfig(input_dim=len(FEATURES), latent_dim=24, hidden=8, epochs=0, predictor_epochs=0)
    ticks, _ = regime_stream(blocks + CALM, config.block_len, spell, seed)
    engine = ChronosDefragEngine(config)
    engine.fit(ticks[: blocks * config.block_len])
    after = ticks[blocks * config.block_len :]
    calibration = calibration_of(engine, None, 0.05, CALM)
    begun = after[: WILD * config.block_len]
    watched = (after, *(drifted(begun, kind, factor) for kind, factor in DRIFTS))
    return [calibration.effective, *(_blocks_until_flag(engine, calibration, one) for one in watched)]


def _blocks_until_flag(engine: ChronosDefragEngine, calibration: Calibration, ticks: NDArray[np.float32]) -> float:
    fitted, monitor = engine.fitted, DriftMonitor(calibration)
    blocks = fitted.scaler.apply(ticks).reshape(-1, engine.config.block_len, engine.config.input_dim)
    for moments in fitted.encoder.moments(blocks):
        monitor.update(fitted.novelty.confidence(moments))
        if monitor.flagged is not None:
            return monitor.flagged + 1.0
    return NEVER
