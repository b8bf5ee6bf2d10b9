"""Partitions: how well clusters agree with labels or with each other, and k-means, which makes them of an embedding.

Clusters are numbers without meaning: every score is unchanged when they are renamed. Shapes: N points, K clusters,
r labels. Purity alone proves little (a constant reaches the share of the commonest label, and more clusters always
reach more): read it beside the adjusted Rand index, which is 0 for chance.

Sources: L. Hubert and P. Arabie (1985) for the adjusted Rand index; A. Strehl and J. Ghosh (2002) for mutual
information, here over the arithmetic mean of the two entropies.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from markets.errors import ConfigError, DataError, require

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]

STARTS = 10  # of k-means, the best is kept
FURTHEST = 20.0  # deviations at which embeddings that were not fitted on are cut
MOST_FITTED = 20_000  # points: of more, every n-th is fitted on


def contingency(labels: Integers, clusters: Integers) -> NDArray[np.int64]:
    """Count points by label (rows) and cluster (columns), in ascending order of both.

    Raises:
        DataError: not one label and one cluster a point, or no point.
    """
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    if labels.ndim != 1 or labels.shape != clusters.shape or not len(labels):
        raise DataError(f"labels {labels.shape} and clusters {clusters.shape} must be one number a point each")
    rows, row = np.unique(labels, return_inverse=True)
    columns, column = np.unique(clusters, return_inverse=True)
    counts = np.zeros((len(rows), len(columns)), np.int64)
    np.add.at(counts, (row, column), 1)
    return counts


def purity(labels: Integers, clusters: Integers) -> float:
    """Share of points whose label is the commonest one of their cluster."""
    counts = contingency(labels, clusters)
    return float(counts.max(axis=0).sum() / counts.sum())


def adjusted_rand(labels: Integers, clusters: Integers) -> float:
    """Agreement of two partitions over pairs of points: 1 equal, 0 chance, symmetric."""
    counts = contingency(labels, clusters)
    together = _pairs(counts).sum()
    by_label, by_cluster = _pairs(counts.sum(axis=1)).sum(), _pairs(counts.sum(axis=0)).sum()
    chance = by_label * by_cluster / max(_pairs(np.array([counts.sum()])).sum(), 1.0)
    most = 0.5 * (by_label + by_cluster)
    return float((together - chance) / (most - chance)) if most != chance else 1.0


def mutual_information(labels: Integers, clusters: Integers) -> float:
    """Mutual information of two partitions over the mean of their entropies: 0 independent, 1 equal."""
    joint = contingency(labels, clusters) / len(labels)
    by_label, by_cluster = joint.sum(axis=1), joint.sum(axis=0)
    entropies = _entropy(by_label) + _entropy(by_cluster)
    if entropies == 0.0:
        return 1.0  # one label, one cluster: the same partition
    return float(max(2.0 * (entropies - _entropy(joint.ravel())) / entropies, 0.0))


def hungarian_accuracy(labels: Integers, clusters: Integers) -> float:
    """Share of points that carry their cluster's label under the best one-to-one match of clusters to labels."""
    counts = contingency(labels, clusters)
    return float(_best_match(counts) / counts.sum())


def cluster_scores(labels: Integers, clusters: Integers) -> dict[str, float]:
    """Return ``purity``, ``ari``, ``nmi`` and ``hungarian`` of clusters against labels, ``(N,)`` each."""
    return {
        "purity": purity(labels, clusters),
        "ari": adjusted_rand(labels, clusters),
        "nmi": mutual_information(labels, clusters),
        "hungarian": hungarian_accuracy(labels, clusters),
    }


def self_persistence(clusters: Integers, lag: int) -> float:
    """Share of points in the cluster they were in ``lag`` points before, minus chance, over what chance leaves.

    0 for points drawn anew each time, 1 for a cluster never left; a single cluster persists by definition: 0.

    Raises:
        ConfigError: no point has one ``lag`` before it.
    """
    clusters = np.asarray(clusters)
    if not 1 <= lag < len(clusters):
        raise ConfigError(f"lag={lag!r} must be from 1 to {len(clusters) - 1}, there are {len(clusters)} points")
    same = float(np.mean(clusters[lag:] == clusters[:-lag]))
    shares = np.unique(clusters, return_counts=True)[1] / len(clusters)
    chance = float((shares**2).sum())
    return (same - chance) / (1.0 - chance) if chance < 1.0 else 0.0


def seed_agreement(partitions: Sequence[Integers]) -> float:
    """Mean adjusted Rand index over all pairs of partitions of the same points, one partition a training seed."""
    if len(partitions) < 2:
        raise ConfigError(f"{len(partitions)} partitions: two seeds at least are needed to agree")
    pairs = [(one, other) for i, one in enumerate(partitions) for other in partitions[i + 1 :]]
    return float(np.mean([adjusted_rand(one, other) for one, other in pairs]))


class Standardiser:
    """Mean and deviation of the points it was fitted on; a column that never moves is left at 0."""

    def __init__(self, points: Floats) -> None:
        self.mean = points.mean(axis=0)
        deviation = points.std(axis=0)
        rounding = len(points) * np.finfo(np.float64).eps  # of a sum of this many terms
        still = deviation**2 <= rounding * deviation**2 + (rounding * self.mean) ** 2
        self.deviation = np.where(still, 1.0, deviation)

    def __call__(self, points: Floats) -> Floats:
        """Return ``(N, D)`` points in deviations from the mean."""
        return np.asarray((points - self.mean) / self.deviation)


class KMeans:
    """K centres in the space of standardised training points, the best of ten starts; deterministic in ``seed``."""

    def __init__(self, points: Floats, clusters: int, seed: int = 0, whiten: bool = True) -> None:
        """Fit on ``(N, D)`` points; ``whiten=False`` leaves their scale, for embeddings whose distances mean something.

        Raises:
            DataError: a point is not finite, or there are fewer points than clusters.
        """
        points = finite(points, "points")
        if not 1 <= clusters <= len(points):
            raise DataError(f"{len(points)} points cannot make {clusters!r} clusters")
        self._scale = Standardiser(points) if whiten else None
        fitted = every_nth(self._scale(points) if self._scale else points)
        require("sklearn", "models")
        from sklearn.cluster import KMeans as Library

        with warnings.catch_warnings(action="ignore"):  # fewer distinct points than clusters: the scores say it
            self._model = Library(clusters, n_init=STARTS, random_state=seed).fit(fitted)

    def __call__(self, points: Floats) -> NDArray[np.int64]:
        """Return the nearest centre of each ``(N, D)`` point, which may be new: ``(N,)``."""
        points = finite(points, "points")
        scaled = np.clip(self._scale(points) if self._scale else points, -FURTHEST, FURTHEST)
        return np.asarray(self._model.predict(scaled), np.int64)


def every_nth(points: NDArray[Any]) -> NDArray[Any]:
    """Return at least 20,000 evenly spaced points, or all where there are fewer than 40,000."""
    return points[:: max(1, len(points) // MOST_FITTED)]


def finite(values: Any, name: str) -> Floats:
    """Return float64 ``(N, D)`` values; raises ``DataError`` naming the first row that is not finite."""
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or not array.size:
        raise DataError(f"{name} have shape {array.shape}, expected (N, D) with at least one number")
    good = np.isfinite(array).all(axis=1)
    if not good.all():
        raise DataError(f"{name}: row {int(np.argmin(good))} is not finite")
    return array


def _pairs(counts: NDArray[np.int64]) -> Floats:
    return np.asarray(counts * (counts - 1) / 2.0)


def _best_match(counts: NDArray[np.int64]) -> int:
    """Return the largest sum of entries with one a row and one a column at most: shortest augmenting paths."""
    size = max(counts.shape)
    cost = np.zeros((size, size))
    cost[: counts.shape[0], : counts.shape[1]] = -counts
    row_price, column_price = np.zeros(size + 1), np.zeros(size + 1)
    owner = np.full(size + 1, size)  # row of each column; the last column and row are a start of no cost
    for row in range(size):
        owner[size], column = row, size
        distance, via = np.full(size, np.inf), np.full(size, size)
        done = np.zeros(size + 1, bool)
        while owner[column] != size:
            done[column] = True
            here = owner[column]
            reduced = cost[here] - row_price[here] - column_price[:size]
            nearer = ~done[:size] & (reduced < distance)
            distance[nearer], via[nearer] = reduced[nearer], column
            nearest = int(np.argmin(np.where(done[:size], np.inf, distance)))
            step = distance[nearest]
            row_price[owner[done]] += step
            column_price[done] -= step
            distance[~done[:size]] -= step
            column = nearest
        while column != size:
            before = via[column]
            owner[column] = owner[before]
            column = before
    return int(-sum(cost[owner[column], column] for column in range(size)))


def _entropy(shares: Floats) -> float:
    present = shares[shares > 0]
    return float(-(present * np.log(present)).sum())
