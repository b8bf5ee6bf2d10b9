"""Fit of the k-means voice: centres of an embedding on the training range, ordered by the volatility of their bars."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encoders.regimes import KMeansHead, by_volatility

Floats = NDArray[np.float64]


def centres(embedding: Floats, returns: Floats, count: int, seed: int) -> KMeansHead:
    """K-means by Lloyd's iterations from well-spread starts, centres ordered by the volatility of their bars."""
    rng = np.random.default_rng(seed)
    rows = embedding[:: max(1, len(embedding) // 20_000)]
    best: tuple[float, Floats] | None = None
    for _ in range(5):
        centres = _spread_starts(rows, count, rng)
        for _ in range(60):
            nearest = _distances(rows, centres).argmin(axis=1)
            moved = np.stack(
                [rows[nearest == k].mean(axis=0) if np.any(nearest == k) else centres[k] for k in range(count)]
            )
            done = np.allclose(moved, centres, atol=1e-6)
            centres = moved
            if done:
                break
        inertia = float(_distances(rows, centres).min(axis=1).sum())
        if best is None or inertia < best[0]:
            best = (inertia, centres)
    assert best is not None
    centres = best[1]
    everywhere = _distances(embedding, centres)
    centres = centres[by_volatility(everywhere.argmin(axis=1), returns, count)]
    return KMeansHead(centres, float(np.sqrt(everywhere.min(axis=1).mean())))


def _spread_starts(rows: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Draw starts with probability in proportion to the squared distance from those before (k-means++)."""
    chosen = [rows[rng.integers(len(rows))]]
    for _ in range(count - 1):
        gaps = _distances(rows, np.stack(chosen)).min(axis=1)
        total = gaps.sum()
        chosen.append(rows[rng.choice(len(rows), p=gaps / total if total > 0 else None)])
    return np.stack(chosen)


def _distances(rows: Floats, centres: Floats) -> Floats:
    """Squared distances ``(n, K)``."""
    cross = rows @ centres.T
    return np.maximum(np.sum(rows**2, axis=1)[:, None] - 2.0 * cross + np.sum(centres**2, axis=1), 0.0)
