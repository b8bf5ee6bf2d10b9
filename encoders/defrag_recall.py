"""What followed in the past: outcomes of the remembered blocks most like the present one, none of them early.

The memory of a market has two parts. *Kept* rows are blocks of the training range, stored with the encoder. *Own* rows
are blocks of the very series that is read: those that end at every L-th bar of the clock among its last bars. A row has
the outcomes of the H bars behind its block, and counts only from the close of the last of these on.

Of the rows that count, the k with the largest cosine answer, weighted by how much they exceed the next one::

    s_1 >= s_2 >= ..,   w_i = s_i - s_{k+1},   recall = sum w_i y_i / sum w_i,   error = sqrt(sum w_i^2 e_i^2) / sum w_i

e_i being what row i is off the recall, times ``sqrt(n / (n - 1))`` for n rows. The weight of the k-th falls to 0 where
another takes its place, so that an answer moves with the present and never leaps by a neighbour. Where nothing
may be seen yet, recall and error are 0. Source of the weights: the bandwidth at the next neighbour's distance of local
regression (Cleveland 1979, "Robust Locally Weighted Regression"), with a triangle for the tricube.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from markets.compiled import compiled
from markets.errors import ArtefactError

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

OUTCOMES = 2  # of a block: return and log volatility of the bars behind it
PASS = 256  # bars whose cosines with the kept rows are taken at once
UNIT = 0.01  # by which the squared length of a row may be off 1: 16 bits round it
ALWAYS = np.iinfo(np.int64).min  # of a row that any bar may see


@dataclass(frozen=True, eq=False)
class Kept:
    """Rows of the training range.

    Attributes:
        rows: ``(N, D)`` unit embeddings. outcomes: ``(N, 2)``, standardised.
        visible_from: ``(N,)`` close of the last bar of each outcome, nanoseconds of the epoch.
        real: ``(N,)`` whether it comes from real bars; the dates of generated ones mean nothing to others.
    """

    rows: Array
    outcomes: Floats
    visible_from: Integers
    real: NDArray[np.bool_]

    def __post_init__(self) -> None:
        count = len(self.rows)
        shapes = (self.outcomes.shape, self.visible_from.shape, self.real.shape)
        if self.rows.ndim != 2 or shapes != ((count, OUTCOMES), (count,), (count,)):
            raise ArtefactError(f"memory: rows {self.rows.shape}, outcomes, times and kinds of shapes {shapes}")
        if not np.isfinite(self.outcomes).all():
            raise ArtefactError("memory: an outcome is not finite")
        off = np.abs(np.einsum("nd,nd->n", self.rows, self.rows, dtype=np.float64) - 1.0)
        if not (off < UNIT).all():
            raise ArtefactError(f"memory: row {int(np.argmax(~(off < UNIT)))} is not of unit length")

    def rounded(self) -> Kept:
        """Return the same memory with rows of 16 bits: what a file holds, so that saving changes nothing."""
        return Kept(self.rows.astype(np.float16).astype(np.float32), self.outcomes, self.visible_from, self.real)

    @cached_property
    def columns(self) -> Array:
        """The rows as columns, ``(D, N)``."""
        return np.ascontiguousarray(self.rows.T)

    def seen_by(self, *, generated: bool, in_sample: bool) -> Kept:
        """Return the rows in the order in which bars may see them, by the rule of bars of one kind.

        Real bars see real rows by date and generated ones always. Generated bars see real rows always, and generated
        ones always too, unless they are bars that the encoder was fitted on: then by date.
        """
        dated = ~self.real & in_sample if generated else self.real
        times = np.where(dated, self.visible_from, ALWAYS)
        order = np.argsort(times, kind="stable")
        return Kept(self.rows[order], self.outcomes[order], times[order], self.real[order])

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the rows by name, in the precision of :meth:`rounded`."""
        return {
            "memory.rows": self.rows.astype(np.float16), "memory.outcomes": self.outcomes,
            "memory.visible_from": self.visible_from, "memory.real": self.real.astype(np.uint8),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Own:
    """Rows of the series that is read, oldest first.

    Attributes:
        rows: ``(M, D)``. outcomes: ``(M, 2)``. ends: ``(M,)`` bar at which each block ends.
        horizon: H, bars until an outcome is known. span: bars back from the present that a row may end in.
    """

    rows: Array
    outcomes: Floats
    ends: Integers
    horizon: int
    span: int


def recall(z: Array, closes: Integers, kept: Kept, own: Own, neighbours: int) -> Floats:
    """Return ``(T, 4)``: the mean of both outcomes, the error of the first, and how many rows counted at all.

    Args:
        z: ``(T, D)`` unit rows of the present blocks. closes: ``(T,)`` closes of their bars, as in ``kept``.
        kept: in the order of :meth:`Kept.seen_by`. neighbours: k.
    """
    out = np.empty((len(z), OUTCOMES + 2))
    counts = np.searchsorted(kept.visible_from, closes, side="right")
    padded = np.zeros((PASS, z.shape[1]), np.float32)
    columns = kept.columns
    scores, rows = np.empty(neighbours + 1), np.empty(neighbours + 1, np.int64)
    for first in range(0, len(z), PASS):
        stop = min(first + PASS, len(z))
        padded[: stop - first] = z[first:stop]
        cosines = padded @ columns if len(z) > 1 else z @ columns
        _answer(
            cosines, z, first, counts, kept.outcomes, own.rows, own.outcomes, own.ends, own.horizon, own.span,
            scores, rows, out[first:stop],
        )  # fmt: skip
    return out


@compiled
def _answer(
    cosines: Array, z: Array, first: int, counts: Integers, kept_outcomes: Floats, own_rows: Array,
    own_outcomes: Floats, own_ends: Integers, horizon: int, span: int, scores: Floats, rows: Integers, out: Floats,
) -> None:  # fmt: skip
    """Fill the answers of bars ``first ..`` from their cosines with the kept rows and from their own rows.

    ``scores`` and ``rows (k + 1,)`` are scratch: the best so far, own rows numbered from N on.
    """
    width, size, kept = z.shape[1], scores.shape[0], kept_outcomes.shape[0]
    low, high = 0, 0  # own rows that end within the span, and those whose outcome is known
    for i in range(out.shape[0]):
        t = first + i
        found, least = 0, -2.0
        for n in range(counts[t]):
            score = np.float64(cosines[i, n])
            if score > least:
                found = _insert(score, n, scores, rows, found)
                least = scores[size - 1] if found == size else -2.0
        while low < own_ends.shape[0] and own_ends[low] <= t - span:
            low += 1
        high = max(high, low)
        while high < own_ends.shape[0] and own_ends[high] <= t - horizon:
            high += 1
        for n in range(low, high):
            score = np.float64(0.0)
            for d in range(width):
                score += np.float64(z[t, d]) * np.float64(own_rows[n, d])
            if score > least:
                found = _insert(score, kept + n, scores, rows, found)
                least = scores[size - 1] if found == size else -2.0
        _weigh(scores, rows, found, kept_outcomes, own_outcomes, counts[t] + high - low, out[i])


@compiled
def _insert(score: float, row: int, scores: Floats, rows: Integers, found: int) -> int:
    """Put a row where it belongs among the best, and return how many there are."""
    size = scores.shape[0]
    place = found if found < size else size - 1
    while place > 0 and scores[place - 1] < score:
        scores[place], rows[place] = scores[place - 1], rows[place - 1]
        place -= 1
    scores[place], rows[place] = score, row
    return min(found + 1, size)


@compiled
def _weigh(
    scores: Floats, rows: Integers, found: int, kept: Floats, own: Floats, known: int, out: Floats
) -> None:  # fmt: skip
    """Turn the best ``k + 1`` rows into means, error and count."""
    size, width, count = scores.shape[0], kept.shape[1], kept.shape[0]
    out[:] = 0.0
    out[width + 1] = known
    used = min(found, size - 1)
    least = scores[size - 1] if found == size else -1.0
    total = 0.0
    for i in range(used):
        weight = max(scores[i] - least, 0.0)
        total += weight
        for j in range(width):
            out[j] += weight * (kept[rows[i], j] if rows[i] < count else own[rows[i] - count, j])
    if not total > 0.0:
        out[:width] = 0.0
        return
    for j in range(width):
        out[j] /= total
    if used < 2:
        return
    apart = 0.0
    for i in range(used):
        outcome = kept[rows[i], 0] if rows[i] < count else own[rows[i] - count, 0]
        off = max(scores[i] - least, 0.0) / total * (outcome - out[0])
        apart += off * off
    out[width] = np.sqrt(used / (used - 1.0) * apart)
