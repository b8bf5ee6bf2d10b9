"""Novelty: how far a block lies from the training blocks, as a share of those that lie as far from each other.

The distance is to the fifth-nearest training block in standardised moments; embeddings have unit length and cannot say
how large a move was. Confidence is the conformal p-value of that distance::

    confidence = (1 + #{training blocks at least as far out}) / (1 + R)

so on blocks like those of training it is spread evenly over (0, 1], and on blocks unlike them it is near 0. Source:
Vovk, Gammerman and Shafer 2005, "Algorithmic Learning in a Random World" (k-nearest-neighbour nonconformity).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from markets.errors import ArtefactError

Array = NDArray[np.float32]

REFERENCE = 1024  # training blocks kept, evenly spread over the range
NEIGHBOUR = 5
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

    def arrays(self) -> dict[str, Array]:
        """Return the numbers by name."""
        return {"novelty.points": self.points, "novelty.distances": self.distances}
