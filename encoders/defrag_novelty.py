"""Novelty: how far a block lies from the training blocks, as a share of those that lie as far from each other.

The distance is to the fifth-nearest training block in standardised moments; embeddings have unit length and cannot say
how large a move was. Confidence is the conformal p-value of that distance::

    confidence = (1 + #{training blocks at least as far out}) / (1 + R)

so on blocks like those of training it is spread evenly over (0, 1], and on blocks unlike them it is near 0. Source:
Vovk, Gammerman and Shafer 2005, "Algorithmic Learning in a Random World" (k-nearest-neighbour nonconformity).
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

REFERENCE = 1024  # training blocks kept, evenly spread over the range
NEIGHBOUR = 5
PASS = 256  # rows whose distances are taken at once
APART = 2  # blocks in a row share a regime: a training block is measured without those so near in time


@dataclass(frozen=True, eq=False)
class Novelty:
    """Reference of training.

    Attributes:
        points: ``(R, M)`` standardised moments. distances: ``(R,)`` their own distances, ascending.
    """

    points: Array
    distances: Array

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.distances.shape != self.points.shape[:1]:
            raise ArtefactError(f"novelty: {self.points.shape} points, {self.distances.shape} distances")
        if not len(self.points) or not (self.distances >= 0.0).all() or (np.diff(self.distances) < 0.0).any():
            raise ArtefactError("novelty: distances must be one or more, of at least 0, ascending")
        # |x - p|^2 = |x|^2 - 2 x.p + |p|^2
        object.__setattr__(self, "_squares", np.einsum("rm,rm->r", self.points, self.points))

    @classmethod
    def fit(cls, moments: Array) -> Novelty:
        """Fit on ``(N, M)`` standardised moments of training blocks in order of time."""
        kept = np.unique(np.linspace(0, len(moments) - 1, min(len(moments), REFERENCE)).astype(np.int64))
        points = np.ascontiguousarray(moments[kept])
        squares = np.einsum("rm,rm->r", points, points)
        squared = squares[:, None] + squares[None] - 2.0 * (points @ points.T)
        squared[np.abs(kept[:, None] - kept[None]) <= APART] = np.inf
        nearest = min(NEIGHBOUR, int(np.isfinite(squared).sum(1).min()))
        if nearest == 0:  # so few blocks that all are near in time: then only a block itself is left out
            squared = squares[:, None] + squares[None] - 2.0 * (points @ points.T)
            np.fill_diagonal(squared, np.inf)
            nearest = 1
        own = np.partition(squared, nearest - 1, 1)[:, nearest - 1]
        return cls(points, np.sqrt(np.maximum(np.sort(own), 0.0)).astype(np.float32))

    def confidence(self, moments: Array) -> float:
        """Return the confidence for one row ``(M,)``, above 0 and at most 1."""
        squared = self._squares - 2.0 * (self.points @ moments) + moments @ moments  # type: ignore[attr-defined]
        nearest = min(NEIGHBOUR, len(squared)) - 1
        distance = float(max(np.partition(squared, nearest)[nearest], 0.0)) ** 0.5
        as_far = len(self.distances) - int(np.searchsorted(self.distances, distance, side="left"))
        return (1.0 + as_far) / (1.0 + len(self.distances))

    def familiarity(self, moments: Array) -> NDArray[np.float64]:
        """Return the confidence of each row of ``(T, M)``, without its steps: ``(T,)``, from 0 to 1.

        Between two distances of training it falls evenly, so that an answer moves with its question.
        """
        out, best = np.empty(len(moments)), np.empty(min(NEIGHBOUR, len(self.points)))
        squares, columns, distances, places = self._prepared
        if len(moments) == 1:  # live
            row = moments.astype(np.float64)
            _nearest(row @ columns, row, squares, best, out)
            return np.asarray(np.interp(out, distances, places))
        padded = np.zeros((PASS, len(columns)))  # passes of one shape: the same bits whatever comes later
        for first in range(0, len(moments), PASS):
            rows = moments[first : first + PASS]
            padded[: len(rows)] = rows
            _nearest(padded @ columns, padded, squares, best, out[first : first + PASS])
        return np.asarray(np.interp(out, distances, places))

    @cached_property
    def _prepared(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Squared lengths and columns of the points, and the curve from a distance to its familiarity."""
        points = self.points.astype(np.float64)
        count = len(self.distances)
        return (
            np.einsum("rm,rm->r", points, points), np.ascontiguousarray(points.T),
            np.append(0.0, self.distances), np.linspace(1.0, 0.0, count + 1),
        )  # fmt: skip

    def arrays(self) -> dict[str, Array]:
        """Return the numbers by name."""
        return {"novelty.points": self.points, "novelty.distances": self.distances}


@compiled
def _nearest(products: Floats, rows: Floats, squares: Floats, best: Floats, out: Floats) -> None:
    """Distance of each row to its n-th nearest, ``|x - p|^2 = |x|^2 - 2 x.p + |p|^2``; ``best (n,)`` is scratch."""
    neighbour = best.shape[0]
    for t in range(out.shape[0]):
        best[:] = np.inf
        furthest = np.inf
        for r in range(products.shape[1]):
            apart = squares[r] - 2.0 * products[t, r]
            if apart < furthest:
                place = neighbour - 1
                while place > 0 and best[place - 1] > apart:
                    best[place] = best[place - 1]
                    place -= 1
                best[place] = apart
                furthest = best[neighbour - 1]
        own = 0.0
        for m in range(rows.shape[1]):
            own += rows[t, m] * rows[t, m]
        out[t] = np.sqrt(max(own + furthest, 0.0))
