"""The past of each bar: its block and the three before it, its place among the regimes, and the forward filter."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from encoders.defrag_encoder import MomentScale, unit
from encoders.defrag_numbers import CLIP, LONG, Settings
from markets.compiled import compiled

Array = NDArray[np.float32]
Floats = NDArray[np.float64]


class Past:
    """What the learned part and the moments say of block and longer past, for a whole history.

    Attributes:
        block: ``(T, D')`` unit rows of the learned part of the block. moments: ``(T, 6 F)`` of both pasts.
        z: ``(T, D)`` unit rows that memory is asked with.
    """

    def __init__(self, learned: Array, moments: Array, scale: MomentScale, settings: Settings) -> None:
        self.block, self._length = learned, settings.block_len
        self.moments = np.concatenate([moments, _longer(moments, settings.block_len)], axis=1)
        self.z = joined(learned, moments, scale, settings)

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


def points_of(moments: Array, scale: MomentScale) -> Floats:
    """Return where a bar stands among the regimes' centres: clipped moments, each times its persistence."""
    return np.asarray(np.clip(moments.astype(np.float64), -CLIP, CLIP) * np.tile(scale.persistence, 2))


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


def joined(learned: Array, moments: Array, scale: MomentScale, settings: Settings) -> Array:
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
