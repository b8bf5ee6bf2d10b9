"""Every bar's block at once: the block that ends at each bar, embedded in one dense pass, or bar by bar.

A block of L ticks is embedded from its own ticks alone (:mod:`encoders.defrag_encoder`), so the blocks that end at
successive bars share all but one tick. The convolutions are valid: their values at a tick are those of every block that
holds it. One pass over T ticks gives them all, and the pooled mean and deviation of each block are running sums of 64
bits over the last L - 28 of them::

    (T, F) ticks  ->  u (T, D') unit rows of the learned part,  m (T, 3 F) standardised moments

Passes of 4,096 bars stand on a fixed grid: a longer history, a shorter one and another future give the same bits for
the bars before. Rows before L - 1 have no whole block; what is missing counts as zero there, and they are not served.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.defrag_blocks import BlockScaler
from encoders.defrag_config import DILATIONS, KERNEL, MOMENTS, REACH
from encoders.defrag_encoder import FLOOR, STILL, RegimeEncoder, block_moments, unit
from markets.compiled import compiled

Array = NDArray[np.float32]

PASS = 4096  # bars a pass


class DenseBlocks:
    """Embeds the block that ends at each bar.

    Args:
        scaler: of the ticks. encoder: of blocks. length: L, ticks a block.
    """

    def __init__(self, scaler: BlockScaler, encoder: RegimeEncoder, length: int) -> None:
        self.scaler, self.encoder, self.length = scaler, encoder, length
        weights = encoder.weights
        # kernels as matrices: one product a convolution, over windows of five rows laid side by side
        self._taps = [
            np.ascontiguousarray(one.transpose(2, 1, 0).reshape(-1, one.shape[0]))
            for one in (weights.a_weight, weights.b_weight, weights.c_weight)
        ]
        self._biases = (weights.a_bias, weights.b_bias, weights.c_bias)
        self._head = np.ascontiguousarray(weights.head_weight.T)

    def embed(self, ticks: Array) -> tuple[Array, Array]:
        """Return ``u (T, D')`` and ``m (T, 3 F)`` of ``(T, F)`` ticks that are not yet scaled."""
        count, before = len(ticks), self.length - 1
        scaled: Array = (ticks - self.scaler.center) / self.scaler.scale
        learned = np.empty((count, self._head.shape[1]), np.float32)
        moments = np.empty((count, MOMENTS * ticks.shape[1]), np.float32)
        padded = np.zeros((before + PASS, ticks.shape[1]), np.float32)
        for first in range(0, count, PASS):
            stop = min(first + PASS, count)
            known = max(first - before, 0)
            padded[...] = 0.0
            place = before - (first - known)
            padded[place : place + stop - known] = scaled[known:stop]
            learned[first:stop] = self._learned(padded)[: stop - first]
            moments[first:stop] = self._moments(padded)[: stop - first]
        return learned, moments

    def _learned(self, ticks: Array) -> Array:
        hidden = self._convolve(ticks, 0)
        for place in (1, 2):
            after = self._convolve(hidden, place)
            after += hidden[(KERNEL - 1) * DILATIONS[place] :]
            hidden = after
        pooled = np.empty((len(ticks) - self.length + 1, 2 * hidden.shape[1]), np.float32)
        _pool(hidden, self.length - REACH, FLOOR, pooled)
        return self._finish(pooled)

    def _finish(self, pooled: Array) -> Array:
        return unit(pooled @ self._head + self.encoder.weights.head_bias)

    def _convolve(self, rows: Array, place: int) -> Array:
        """Valid convolution and ReLU of ``(n, C)`` rows: ``(n - 4 dilation, H)``."""
        step = DILATIONS[place]
        kept = len(rows) - (KERNEL - 1) * step
        wide = np.empty((kept, KERNEL, rows.shape[1]), np.float32)
        for tap in range(KERNEL):
            wide[:, tap] = rows[tap * step : tap * step + kept]
        out: Array = wide.reshape(kept, -1) @ self._taps[place]
        out += self._biases[place]
        return np.maximum(out, 0.0, out=out)

    def _moments(self, ticks: Array) -> Array:
        out = np.empty((len(ticks) - self.length + 1, MOMENTS * ticks.shape[1]), np.float32)
        _moments(ticks, self.length, STILL, out)
        return self.encoder.scale.apply(out)

    def stream(self) -> DenseStream:
        """Return the live face, at the beginning of a history."""
        return DenseStream(self)


class DenseStream:
    """One tick in, the embedding of the block that ends with it out; keeps the block and three short rings."""

    def __init__(self, dense: DenseBlocks) -> None:
        self._dense = dense
        hidden = dense.encoder.weights.a_weight.shape[0]
        self._rings = {
            "ticks": np.zeros((dense.length, len(dense.scaler.center)), np.float32),
            "first": np.zeros(((KERNEL - 1) * DILATIONS[1] + 1, hidden), np.float32),
            "second": np.zeros(((KERNEL - 1) * DILATIONS[2] + 1, hidden), np.float32),
            "third": np.zeros((dense.length - REACH, hidden), np.float32),
        }

    def update(self, tick: Array) -> tuple[Array, Array]:
        """Take ``(F,)``, not yet scaled, and return ``u (D',)`` and ``m (3 F,)``."""
        dense, rings = self._dense, self._rings
        ticks = _push(rings["ticks"], (tick - dense.scaler.center) / dense.scaler.scale)
        first = _push(rings["first"], dense._convolve(ticks[-(KERNEL - 1) * DILATIONS[0] - 1 :], 0)[0])
        second = _push(rings["second"], dense._convolve(first, 1)[0] + first[-1])
        third = _push(rings["third"], dense._convolve(second, 2)[0] + second[-1]).astype(np.float64)
        mean = third.mean(0)
        deviation = np.sqrt(np.square(third - mean).mean(0) + FLOOR)
        learned = dense._finish(np.concatenate([mean, deviation]).astype(np.float32)[None])[0]
        moments = dense.encoder.scale.apply(block_moments(ticks.astype(np.float64)[None]))[0]
        return learned, moments

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what has to be kept to go on."""
        return {name: ring.copy() for name, ring in self._rings.items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what :meth:`state` gave."""
        for name, ring in self._rings.items():
            ring[...] = state[name]


def _push(ring: Array, row: Array) -> Array:
    ring[:-1] = ring[1:]
    ring[-1] = row
    return ring


@compiled
def _pool(hidden: Array, length: int, floor: float, out: Array) -> None:
    """Mean and deviation of the last ``length`` rows of ``(n, H)`` at each row from the first whole window on."""
    width = hidden.shape[1]
    for h in range(width):
        total, square = 0.0, 0.0
        for t in range(hidden.shape[0]):
            value = np.float64(hidden[t, h])
            total += value
            square += value * value
            if t >= length:
                gone = np.float64(hidden[t - length, h])
                total -= gone
                square -= gone * gone
            row = t - length + 1
            if row >= 0 and row < out.shape[0]:
                mean = total / length
                out[row, h] = np.float32(mean)
                out[row, width + h] = np.float32(np.sqrt(max(square / length - mean * mean, 0.0) + floor))


@compiled
def _moments(ticks: Array, length: int, floor: float, out: Array) -> None:
    """:func:`encoders.defrag_encoder.block_moments` of the block that ends at each row, from running sums."""
    width = ticks.shape[1]
    for f in range(width):
        total, square, follow = 0.0, 0.0, 0.0  # sums of x, of x^2 and of x x' over the pairs inside the block
        for t in range(ticks.shape[0]):
            value = np.float64(ticks[t, f])
            total += value
            square += value * value
            if t > 0:
                follow += value * np.float64(ticks[t - 1, f])
            if t >= length:
                gone, after = np.float64(ticks[t - length, f]), np.float64(ticks[t - length + 1, f])
                total -= gone
                square -= gone * gone
                follow -= gone * after
            row = t - length + 1
            if row < 0:
                continue
            mean = total / length
            first = np.float64(ticks[row, f])
            deviation = np.sqrt(max(square / length - mean * mean, 0.0)) + floor
            paired = follow - mean * (2.0 * total - first - value) + (length - 1) * mean * mean
            out[row, f] = np.float32(mean)
            out[row, width + f] = np.float32(np.log(deviation))
            out[row, 2 * width + f] = np.float32(paired / (length - 1) / (deviation * deviation))
