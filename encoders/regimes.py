"""Regime odds: who says which regime the market is in, as probabilities over K regimes ordered by volatility.

Three voices under one interface: the belief filter (reads returns, remembers everything), the encoder's own softmax
(a linear head on the embedding, distilled from the smoothed belief, no labels), and k-means on the embedding (soft
assignment by distance). All are causal and cost O(1) a bar.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from markets.errors import ArtefactError

Floats = NDArray[np.float64]

VOICES = ("belief", "softmax", "kmeans")


@dataclass(frozen=True, eq=False)
class SoftmaxHead:
    """Odds ``softmax(W z + b)`` of an embedding; ``weight (K, D)``, ``bias (K,)``."""

    weight: Floats
    bias: Floats

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise ArtefactError(f"a softmax head has weight {self.weight.shape} and bias {self.bias.shape}")

    def odds(self, embedding: Floats) -> Floats:
        """``(..., D)`` to ``(..., K)``."""
        return softmax(embedding @ self.weight.T + self.bias)


@dataclass(frozen=True, eq=False)
class KMeansHead:
    """Odds by distance to centres fitted on the training range: ``softmax(-|z - c|^2 / (2 h^2))``.

    Attributes:
        centres: ``(K, D)`` ordered by the volatility of their bars. width: h, typical distance to the nearest centre.
    """

    centres: Floats
    width: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.width) and self.width > 0.0 and self.width**2 > 0.0):
            raise ArtefactError(f"width={self.width!r} of the k-means odds must be a positive number")

    def odds(self, embedding: Floats) -> Floats:
        """``(..., D)`` to ``(..., K)``."""
        gaps = np.asarray(embedding)[..., None, :] - self.centres
        return softmax(-np.sum(gaps * gaps, axis=-1) / (2.0 * self.width**2))


def softmax(values: Floats) -> Floats:
    """Softmax over the last axis."""
    shifted = np.exp(values - np.max(values, axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def transitions(odds: Floats, hold: int = 3) -> NDArray[np.bool_]:
    """Flag the bars in which the most likely regime has just changed for good: ``(T, K)`` to ``(T,)``, causal.

    A change counts once the new regime has been the most likely one for ``hold`` bars in a row, and it is flagged at
    the last of these: a flicker of fewer bars is no transition.
    """
    regime = np.argmax(odds, axis=1)
    flags = np.zeros(len(regime), bool)
    settled, candidate, count = int(regime[0]) if len(regime) else 0, -1, 0
    for t, now in enumerate(regime.tolist()):
        if now == settled:
            candidate, count = -1, 0
            continue
        count = count + 1 if now == candidate else 1
        candidate = now
        if count >= hold:
            settled, candidate, count = now, -1, 0
            flags[t] = True
    return flags


def by_volatility(regime: NDArray[np.int64], returns: Floats, count: int) -> NDArray[np.int64]:
    """Order of ``count`` classes by the mean square of their bars' returns, lowest first; empty ones come last."""
    squares = [float(np.mean(returns[regime == k] ** 2)) if np.any(regime == k) else np.inf for k in range(count)]
    return np.argsort(squares, kind="stable")


def names_of(count: int) -> tuple[str, ...]:
    """Observation names of the odds."""
    return tuple(f"regime_{k}" for k in range(count))
