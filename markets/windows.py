"""Trailing windows that depend on nothing but their own values.

A running sum would carry rounding from the far past, so a stream that started later would give other bits. Here each
window is summed anew, oldest value first, vectorised over rows: the result of a row is the same for a whole history, a
cut one and a live stream, and an outlier leaves no trace once it has left the window.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CHUNK = 8192  # rows per pass: the accumulator stays in the processor's cache


def window_sum(values: Floats, length: int) -> Floats:
    """Sum of the last ``length`` values ``(T,)``; 0 before the first full window."""
    return _accumulate(np.add, values, length)


def window_max(values: Floats, length: int) -> Floats:
    """Maximum of the last ``length`` values ``(T,)``; 0 before the first full window."""
    return _accumulate(np.maximum, values, length)


def window_min(values: Floats, length: int) -> Floats:
    """Minimum of the last ``length`` values ``(T,)``; 0 before the first full window."""
    return _accumulate(np.minimum, values, length)


def window_mean(values: Floats, length: int) -> Floats:
    """Mean of the last ``length`` values ``(T,)``; 0 before the first full window."""
    return window_sum(values, length) / length


def lagged(values: Floats, bars: int) -> Floats:
    """``values[t - bars]``, 0 before there is one."""
    out = np.zeros_like(values)
    out[bars:] = values[:-bars]
    return out


def ratio(numerator: Floats, denominator: Floats, otherwise: float = 0.0) -> Floats:
    """``numerator / denominator``, and ``otherwise`` where the denominator is not positive."""
    out = np.full(np.broadcast(numerator, denominator).shape, otherwise)
    np.divide(numerator, denominator, out=out, where=~(denominator <= 0.0))
    return out


def _accumulate(operation: np.ufunc, values: Floats, length: int) -> Floats:
    """Combine windows; a long one is combined from shorter ones, so that its cost grows with the root of its length."""
    inner = next(part for part in range(math.isqrt(length), 0, -1) if length % part == 0)
    partial = _combine(operation, values, inner, 1)
    return _combine(operation, partial, length // inner, inner, first=length - 1)


def _combine(operation: np.ufunc, values: Floats, terms: int, stride: int, first: int | None = None) -> Floats:
    """Combine ``values[t], values[t - stride], ..`` (``terms`` of them), oldest first, for rows from ``first`` on."""
    first = (terms - 1) * stride if first is None else first
    out = np.zeros(len(values))
    oldest = first - (terms - 1) * stride
    for start in range(0, len(values) - first, CHUNK):
        stop = min(start + CHUNK, len(values) - first)
        block = values[oldest + start : oldest + stop].copy()
        for term in range(1, terms):
            shift = oldest + term * stride
            operation(block, values[start + shift : stop + shift], out=block)
        out[first + start : first + stop] = block
    return out
