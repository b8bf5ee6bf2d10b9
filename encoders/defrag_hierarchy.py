"""Blocks of several scales: at level m a block is read together with the m - 1 blocks before it, by the same network.

Convolutions and pooling take any length, so one set of weights serves every level; the moments of a longer window have
a scale and persistence of their own. Levels are averaged and brought back to unit length, ``z = unit(sum_m z_m)``, so
that a row has as many columns whatever the levels. All of it is causal: a level reaches back, never ahead. With one
level, the default, this is :class:`encoders.defrag_encoder.RegimeEncoder` and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from encoders.defrag_encoder import EncoderWeights, MomentScale, RegimeEncoder, block_moments, unit

Array = NDArray[np.float32]

CHUNK = 512  # windows at a time


class BlockHierarchy:
    """Embeds blocks with what came before them.

    Attributes:
        levels: m of each level, ascending from 1. encoders: one a level, of the same weights.
    """

    def __init__(self, levels: tuple[int, ...], encoders: tuple[RegimeEncoder, ...]) -> None:
        self.levels, self.encoders = levels, encoders

    @classmethod
    def fit(
        cls, levels: tuple[int, ...], weights: EncoderWeights, moments_weight: float, values: Array
    ) -> BlockHierarchy:
        """Fit the moments of each level on ``(N, L, F)`` scaled training blocks in order of time."""
        encoders = []
        for level in levels:
            moments = np.concatenate([block_moments(windows) for windows in histories(values, level)])
            encoders.append(RegimeEncoder(weights, MomentScale.fit(moments), moments_weight))
        return cls(levels, tuple(encoders))

    def embed_blocks(self, values: Array) -> tuple[Array, Array]:
        """Return unit rows ``(N, D)`` of blocks ``(N, L, F)`` in order of time, and level 1's moments ``(N, 3 F)``.

        The first blocks are read with as many before them as there are.
        """
        moments = self.encoders[0].moments(values)
        rows = self.encoders[0].embed(values, moments)
        for level, encoder in zip(self.levels[1:], self.encoders[1:], strict=True):
            rows = rows + np.concatenate([encoder.embed(windows) for windows in histories(values, level)])
        return (rows if len(self.levels) == 1 else unit(rows)), moments

    def embed_window(self, window: Array) -> tuple[Array, Array]:
        """Return the unit row ``(D,)`` of the last block of ``(max(m) L, F)`` ticks, and its moments ``(3 F,)``."""
        length = len(window) // self.levels[-1]
        block = window[None, -length:]
        moments = self.encoders[0].moments(block)
        row = self.encoders[0].embed(block, moments)
        for level, encoder in zip(self.levels[1:], self.encoders[1:], strict=True):
            row = row + encoder.embed(window[None, -level * length :])
        return (row if len(self.levels) == 1 else unit(row))[0], moments[0]


def histories(values: Array, level: int) -> Iterator[Array]:
    """Yield windows ``(n, m L, F)`` that end with each block of ``(N, L, F)``, shorter ones for the first m - 1."""
    count, length, width = values.shape
    if level == 1:
        yield values
        return
    ticks = values.reshape(count * length, width)
    for last in range(min(level - 1, count)):
        yield ticks[None, : (last + 1) * length]
    if count < level:
        return
    windows = np.lib.stride_tricks.sliding_window_view(ticks, level * length, axis=0)[::length].transpose(0, 2, 1)
    for begin in range(0, len(windows), CHUNK):
        yield np.ascontiguousarray(windows[begin : begin + CHUNK])
