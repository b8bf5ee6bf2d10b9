"""Seeded streams of ticks with true regimes, and the same with drift: to show and to test a monitor with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from markets.errors import ConfigError, unknown

FEATURES = ("return", "spread", "imbalance", "activity")
REGIMES = {"calm": (0.5, 0.0), "trending": (1.0, 0.3), "reverting": (2.0, -0.3)}  # deviation, lag-1 autocorrelation
DRIFTS = ("scale", "unseen")


def regime_stream(
    blocks: int, block_len: int = 64, dwell: float = 6.0, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw ticks ``(blocks * block_len, 4)`` and the regime of each block ``(blocks,)``, numbers into ``REGIMES``.

    Regimes change between blocks only and stay ``dwell`` blocks on average; the next one is either of the others. Ticks
    of a regime are AR(1) in every feature, without anything in common; a block begins anew from the stationary law.

    Raises:
        ConfigError: no block, or a dwell below 1.
    """
    if blocks < 1 or block_len < 2 or not dwell >= 1.0:
        raise ConfigError(f"blocks={blocks!r}, block_len={block_len!r} and dwell={dwell!r} must be at least 1, 2 and 1")
    generator = np.random.default_rng(seed)
    steps = np.where(generator.random(blocks) < 1.0 / dwell, generator.integers(1, len(REGIMES), blocks), 0)
    steps[0] = generator.integers(len(REGIMES))
    labels = np.cumsum(steps) % len(REGIMES)
    deviation, rho = np.array(list(REGIMES.values()))[labels].T[:, :, None]
    ticks = generator.standard_normal((blocks, block_len, len(FEATURES)))
    for row in range(1, block_len):
        ticks[:, row] = rho * ticks[:, row - 1] + np.sqrt(1.0 - rho**2) * ticks[:, row]
    ticks = (deviation[:, None] * ticks).reshape(blocks * block_len, len(FEATURES))
    return ticks.astype(np.float32), labels


def drifted(ticks: NDArray[np.float32], kind: str, factor: float = 3.0) -> NDArray[np.float32]:
    """Return ticks ``(T, F)`` that have drifted: ``scale`` times ``factor``, or an ``unseen`` regime.

    The unseen one is a smoothed stream, each tick the mean of itself and the seven before it at the same deviation: its
    autocorrelation is that of no regime.
    """
    if kind not in DRIFTS:
        raise unknown("drift", kind, DRIFTS)
    if kind == "scale":
        return (factor * ticks).astype(np.float32)
    padded = np.concatenate([np.repeat(ticks[:1], 7, axis=0), ticks])
    smooth = np.lib.stride_tricks.sliding_window_view(padded, 8, axis=0).mean(axis=-1)
    return (smooth * (ticks.std(axis=0) / smooth.std(axis=0))).astype(np.float32)
