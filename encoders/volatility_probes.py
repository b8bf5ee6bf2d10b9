"""What an embedding says about the volatility to come: scores that need no labels, for real bars.

Fitted on a training range, scored on a test range. Nothing here scores direction: no representation tried so far says
anything about it. Returns are percent a bar. Shapes: S series, T bars, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.clustering import FURTHEST, KMeans, Standardiser, finite, self_persistence
from encoders.probes import WARM, scored_rows
from markets.errors import ConfigError, DataError

Floats = NDArray[np.float64]

HORIZON = 64  # bars ahead
WINDOWS = (4, 24, 168, 256)  # bars of the reference
CLUSTERS = 5
STRIDE = 8
PENALTY = 10.0  # of the ridge, on standardised columns
SMALLEST = 1e-8  # of a mean square, percent squared


def log_volatility(returns: Floats, windows: Sequence[int] = WINDOWS) -> Floats:
    """Return log realised volatility of the last bars, ``(T, windows)``: what HAR forecasts from.

    Rows before a window is full are averaged over what there is.
    """
    total = np.append(0.0, np.cumsum(np.asarray(returns, np.float64) ** 2))
    stop = np.arange(1, len(total))
    columns = [(total[stop] - total[np.maximum(stop - w, 0)]) / np.minimum(stop, w) for w in windows]
    return np.asarray(0.5 * np.log(np.maximum(np.stack(columns, axis=1), SMALLEST)))


def future_log_volatility(returns: Floats, horizon: int = HORIZON) -> Floats:
    """Return log realised volatility of bars t+1 .. t+horizon: ``(T,)``, NaN in the last ``horizon`` rows."""
    if not 1 <= horizon < len(returns):
        raise ConfigError(f"horizon={horizon!r} must be from 1 to {len(returns) - 1} bars")
    total = np.append(0.0, np.cumsum(np.asarray(returns, np.float64) ** 2))
    out = np.full(len(returns), np.nan)
    ahead = total[horizon + 1 :] - total[1:-horizon]
    out[:-horizon] = 0.5 * np.log(np.maximum(ahead / horizon, SMALLEST))
    return out


def ridge_r2(train: Floats, train_target: Floats, test: Floats, test_target: Floats, penalty: float = PENALTY) -> float:
    """Fit a ridge on ``(N, D)`` and return the R2 of its forecast on test rows, about the test mean."""
    scale = Standardiser(finite(train, "train"))
    columns, mean = scale(train), float(train_target.mean())
    normal = columns.T @ columns + penalty * np.eye(columns.shape[1])
    weights = np.linalg.solve(normal, columns.T @ (train_target - mean))
    forecast = mean + np.clip(scale(finite(test, "test")), -FURTHEST, FURTHEST) @ weights
    spread = float(((test_target - test_target.mean()) ** 2).sum())
    if spread == 0.0:
        raise DataError("the test target never moves: there is nothing to explain")
    return 1.0 - float(((test_target - forecast) ** 2).sum()) / spread


def explained_by_clusters(target: Floats, clusters: NDArray[np.integer[Any]]) -> float:
    """Share of the variance of ``(N,)`` that lies between clusters: eta squared."""
    mean, between = float(target.mean()), 0.0
    for cluster in np.unique(clusters):
        inside = target[clusters == cluster]
        between += len(inside) * (float(inside.mean()) - mean) ** 2
    whole = float(((target - mean) ** 2).sum())
    return between / whole if whole > 0.0 else 0.0


def score_volatility(
    train: Sequence[Floats], train_returns: Sequence[Floats], test: Sequence[Floats], test_returns: Sequence[Floats],
    clusters: int = CLUSTERS, seed: int = 0,
) -> tuple[dict[str, float], list[NDArray[np.int64]]]:  # fmt: skip
    """Score embeddings of S series, ``(T_s, D)`` each, by the volatility of the next 64 bars.

    Scored are bars 255, 263, ... whose 64 bars to come lie in the same range.

    Returns:
        figures: ``r2``; ``har_r2``, the same from log volatility of the last 4, 24, 168 and 256 bars; ``eta2`` of
        k-means fitted on train; ``persistence`` of those clusters over 64 bars; ``dwell``, mean bars in a cluster;
        ``least_share``, of the rarest cluster. And the clusters of the scored test rows, a series each, for
        :func:`encoders.clustering.seed_agreement`.

    Raises:
        DataError: a row is not finite, or a series is too short to be scored.
    """
    fitted, fitted_har, fitted_target, _ = _scored("train", train, train_returns)
    judged, judged_har, target, lengths = _scored("test", test, test_returns)
    found = KMeans(fitted, clusters, seed)(judged)
    apart = np.split(found, np.cumsum(lengths)[:-1])
    changes = sum(int((np.diff(one) != 0).sum()) for one in apart)
    shares = np.bincount(found, minlength=clusters) / len(found)
    lag = HORIZON // STRIDE
    return {
        "r2": ridge_r2(fitted, fitted_target, judged, target),
        "har_r2": ridge_r2(fitted_har, fitted_target, judged_har, target),
        "eta2": explained_by_clusters(target, found),
        "persistence": float(np.mean([self_persistence(one, lag) for one in apart])),
        "dwell": len(found) * STRIDE / (changes + len(apart)),
        "least_share": float(shares.min()),
    }, apart


def _scored(
    name: str, embeddings: Sequence[Floats], returns: Sequence[Floats]
) -> tuple[Floats, Floats, Floats, list[int]]:
    """Return embedding, reference columns and target of the scored rows of all series, and how many each has."""
    if len(embeddings) != len(returns) or not len(returns):
        raise DataError(f"{name}: {len(embeddings)} embeddings for {len(returns)} series of returns")
    parts: list[tuple[Floats, Floats, Floats]] = []
    for number, (rows, moves) in enumerate(zip(embeddings, returns, strict=True)):
        if len(rows) != len(moves) or len(moves) <= WARM + 2 * HORIZON:
            raise DataError(
                f"{name}: series {number} has {len(rows)} rows for {len(moves)} returns; both must be equal and more "
                f"than {WARM + 2 * HORIZON}"
            )
        scored = scored_rows(len(moves) - HORIZON, stride=STRIDE)
        target = future_log_volatility(moves)
        parts.append((finite(rows, f"{name} series {number}")[scored], log_volatility(moves)[scored], target[scored]))
    embedding, reference, ahead = (np.concatenate(column) for column in zip(*parts, strict=True))
    return embedding, reference, ahead, [len(part[0]) for part in parts]
