"""The memory: a circular registry of block embeddings, retrieval with decay, and the pseudo-timeline.

A row is what an embedding was, the tick at which its block ended, the tick from which it may be seen (block end plus
label horizon) and its realised outcome where there is one. The score of row i for a query q at tick t is::

    s_i = cos(q, h_i) delta^(lag_i / n),   lag_i = (t - end_i) / L blocks,  n rows in the registry

where the cosine is positive; a negative one stays as it is, or age would raise it. Lag and n are both in blocks: over
the whole registry a similarity loses ``1 - delta``. Source: ChronosDefrag document, "Similarity Persistence Decay".

Retrieval is exact and reads a 16-bit copy of the rows, a quarter of the time of one product with the float32 ones: a
coarse cosine is wrong by at most ``sqrt(D) / 16384``, and rows that can be among the best are taken in full.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.defrag_chain import pseudo_timeline
from encoders.defrag_config import DefragConfig
from markets.compiled import compiled
from markets.errors import ArtefactError, DataError

Array = NDArray[np.float32]
Ticks = NDArray[np.int64]
Coarse = NDArray[np.int16]

ONE = 16384  # a coarse 1.0: a product of two unit rows stays below 2^29 and fits 32 bits
LENGTH = 1e-3  # by which a row's squared length may differ from 1


@dataclass(frozen=True, eq=False)
class Neighbours:
    """What a query found, best first: ``(k,)`` arrays, k at most ``top_k`` and 0 where nothing may be seen yet.

    Attributes:
        rows: places in the registry. scores: decayed cosines. weights: of the neighbourhood, at least 0, sum 1.
        outcomes: realised ones, nan where a block has none.
    """

    rows: NDArray[np.int64]
    scores: Array
    weights: NDArray[np.float64]
    outcomes: NDArray[np.float64]


class VectorDefragRouter:
    """Circular registry of ``registry_capacity`` unit rows, and what is asked of it."""

    def __init__(self, config: DefragConfig) -> None:
        self.config = config
        capacity = config.registry_capacity
        self.registry = np.zeros((capacity, config.latent_dim), np.float32)
        self.ends = np.zeros(capacity, np.int64)
        self.visible_from = np.zeros(capacity, np.int64)
        self.outcomes = np.full(capacity, np.nan)
        self.size, self.pointer = 0, 0
        self._coarse = np.zeros((capacity, config.latent_dim), np.int16)
        self._products = np.zeros(capacity, np.int32)
        self._slack = np.float32(1.01 * config.latent_dim**0.5 / ONE)
        self._decays = np.ones(capacity, np.float32)
        self._newest = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the embeddings: capacity times D times 4."""
        return int(self.registry.nbytes)

    def build_pseudo_timeline(self, z: Array) -> NDArray[np.int64]:
        """Return the order of ``(N, D)`` unit rows in which neighbours are alike (:mod:`encoders.defrag_chain`)."""
        return pseudo_timeline(z, self.config.chain)

    def clear(self) -> None:
        """Forget every row."""
        self.size, self.pointer = 0, 0

    def add(
        self, z: Array, ends: Ticks, outcomes: NDArray[np.float64] | None = None, visible_from: Ticks | None = None
    ) -> None:
        """Insert ``(B, D)`` rows in order; beyond the capacity the oldest ones go.

        Args:
            ends: ``(B,)`` last tick of each block. outcomes: ``(B,)``, nan where there is none.
            visible_from: ``(B,)``; ``ends + label_horizon`` where None.

        Raises:
            DataError: shapes that do not fit, rows that are not finite, ticks that go back.
        """
        count, width = len(z), self.registry.shape[1]
        ends = np.asarray(ends, np.int64)
        seen = ends + self.config.label_horizon if visible_from is None else np.asarray(visible_from, np.int64)
        known = np.full(count, np.nan) if outcomes is None else np.asarray(outcomes, np.float64)
        if z.ndim != 2 or z.shape[1] != width or not ends.shape == seen.shape == known.shape == (count,):
            raise DataError(
                f"registry: rows {z.shape}, ends {ends.shape}, outcomes {known.shape}; expected (B, {width})"
            )
        if not (np.abs(np.einsum("nd,nd->n", z, z) - 1.0) < LENGTH).all():
            raise DataError("registry: a row is not of unit length, or holds a number that is not finite")
        if (np.diff(ends) < 0).any() or (self.size and count and ends[0] < self._newest):
            raise DataError(f"registry: blocks must come in order of time, the newest here ends at tick {self._newest}")
        if count == 0:
            return
        kept = min(count, len(self.registry))
        places = (self.pointer + count - kept + np.arange(kept)) % len(self.registry)
        self.registry[places], self.ends[places] = z[count - kept :], ends[count - kept :]
        self._coarse[places] = coarse(z[count - kept :])
        self.visible_from[places], self.outcomes[places] = seen[count - kept :], known[count - kept :]
        self.pointer = (self.pointer + count) % len(self.registry)
        self.size = min(self.size + count, len(self.registry))
        self._refresh()

    def _refresh(self) -> None:
        """Prepare what age takes from each row as seen from the newest one; the rest is one factor a query."""
        n = self.size
        self._newest = int(self.ends[:n].max())
        lag = (self._newest - self.ends[:n]) / self.config.block_len
        self._decays[:n] = np.float64(self.config.decay) ** (lag / n)

    def query(self, z: Array, time: int) -> Neighbours:
        """Return the best visible rows for the unit row ``z (D,)`` at tick ``time``."""
        n, k = self.size, self.config.top_k
        rows, scores = np.empty(k, np.int64), np.empty(k, np.float32)
        found = 0
        if n:
            products = self._products[:n]
            _multiply(self._coarse, coarse(z), products)
            found = _best(
                products, self._slack, self.registry, z, self._decays, self.visible_from, time, rows, scores
            )  # fmt: skip
        rows, scores = rows[:found], scores[:found]
        if self.config.decay < 1.0 and found:
            shared = self.config.decay ** ((time - self._newest) / self.config.block_len / n)
            scores = np.where(scores > 0.0, scores * np.float32(shared), scores)
        weights = np.maximum(scores.astype(np.float64), 0.0)
        total = float(weights.sum())
        weights = weights / total if total > 0.0 else np.full(found, 1.0 / max(found, 1))
        return Neighbours(rows, scores, weights, self.outcomes[rows])

    def reconstruct_context(self, found: Neighbours) -> Array:
        """Return the weighted mean of the neighbours' embeddings, ``(D,)``; zeros where there are none."""
        result: Array = found.weights.astype(np.float32) @ self.registry[found.rows]
        return result

    def rows_in_order(self) -> NDArray[np.int64]:
        """Places of the rows from the oldest to the newest."""
        return (self.pointer - self.size + np.arange(self.size)) % len(self.registry)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the rows from the oldest to the newest, by name."""
        order = self.rows_in_order()
        return {
            "registry.rows": self.registry[order], "registry.ends": self.ends[order],
            "registry.visible_from": self.visible_from[order], "registry.outcomes": self.outcomes[order],
        }  # fmt: skip

    def restore(self, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Take the rows that :meth:`arrays` gave; a smaller registry keeps the newest, a larger one has room."""
        self.clear()
        try:
            self.add(
                np.asarray(arrays["registry.rows"], np.float32),
                np.asarray(arrays["registry.ends"], np.int64),
                np.asarray(arrays["registry.outcomes"], np.float64),
                np.asarray(arrays["registry.visible_from"], np.int64),
            )  # fmt: skip
        except DataError as error:
            raise ArtefactError(str(error)) from error


def coarse(rows: Array) -> Coarse:
    """Round unit rows to 16 bits."""
    return np.rint(rows * np.float32(ONE)).astype(np.int16)


@compiled
def _multiply(rows: Coarse, query: Coarse, products: NDArray[np.int32]) -> None:
    """Product of each row with the query, in 32 bits throughout: processors multiply and add those by the dozen."""
    for i in range(products.shape[0]):
        product = np.int32(0)
        for d in range(query.shape[0]):
            product = np.int32(product + np.int32(np.int32(rows[i, d]) * np.int32(query[d])))
        products[i] = product


@compiled
def _best(
    products: NDArray[np.int32], slack: np.float32, exact: Array, query: Array, decays: Array, visible_from: Ticks,
    time: int, rows: NDArray[np.int64], values: Array,
) -> int:  # fmt: skip
    """Fill ``rows`` and ``values`` with the best visible scores, best first, and return how many there are."""
    size, width, found = rows.shape[0], query.shape[0], 0
    scale = np.float32(1.0 / (ONE * ONE))
    least = np.float32(-4.0)
    for i in range(products.shape[0]):
        bound = np.float32(products[i]) * scale + slack
        if bound <= least:  # age only lowers it
            continue
        if bound > 0.0:
            bound *= decays[i]
        if bound <= least or visible_from[i] > time:
            continue
        cosine = 0.0
        for d in range(width):
            cosine += np.float64(exact[i, d]) * np.float64(query[d])
        score = np.float32(cosine)
        if score > 0.0:
            score *= decays[i]
        if found == size and score <= values[size - 1]:
            continue
        place = found if found < size else size - 1
        while place > 0 and values[place - 1] < score:
            values[place] = values[place - 1]
            rows[place] = rows[place - 1]
            place -= 1
        values[place], rows[place] = score, i
        if found < size:
            found += 1
        if found == size:
            least = values[size - 1]
    return found
