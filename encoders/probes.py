"""Scores of an embedding against the true regimes of a synthetic market.

k-means and the linear probe are fitted on training series and scored on test series, on every eighth bar from bar 255
on (:func:`scored_rows`): the figures are those of the published benchmark. A label is the regime at the last bar the
embedding knows. Shapes: S series, T bars, R scored rows, D dimensions, r regimes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.clustering import FURTHEST, KMeans, Standardiser, cluster_scores, every_nth, finite
from markets.errors import ConfigError, DataError, require

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]

WARM, STRIDE = 256, 8  # bars before the first scored row ends, bars between scored rows
HOLD = 3  # successive right rows that make a detection
HORIZON = 256  # bars after which a switch counts as missed
LAG = 64  # bars over which the spectrum is measured
RIDGE = 1e-3  # of the least-squares Koopman matrix
PROBE_STEPS = 400  # of the logistic regression, which may end before it has converged: the benchmark's number


def scored_rows(bars: int, warm: int = WARM, stride: int = STRIDE) -> NDArray[np.int64]:
    """Return the bars that are scored: 255, 263, 271, ...; raises ``ConfigError`` where there is none."""
    if not (warm >= 1 and stride >= 1 and bars >= warm):
        raise ConfigError(f"no row to score: bars={bars!r}, warm={warm!r}, stride={stride!r}")
    return np.arange(warm - 1, bars, stride)


def score_and_clusters(
    train: Any, train_labels: Integers, test: Any, test_labels: Integers, regimes: int, stride: int = STRIDE,
    seed: int = 0, whiten: bool = True, spectrum: Sequence[float] | Floats | None = None,
) -> tuple[dict[str, float], NDArray[np.int64]]:  # fmt: skip
    """Score an embedding: k-means and probe fitted on ``train``, every figure on ``test``.

    Args:
        train, test: ``(S, T, D)``, a row a bar, or ``(S, R, D)``, only the scored rows.
        train_labels, test_labels: ``(S, T)`` regime of each bar.
        regimes: clusters of k-means, the true number.
        stride: bars between scored rows.
        whiten: standardise by the training points first; False where distances already mean something.
        spectrum: true moduli at a lag of 64 bars, to be told the error (``RegimeMarket.spectrum(64)``).

    Returns:
        ``purity, ari, nmi, hungarian`` of the clusters; ``probe, probe_balanced, probe_f1, delay`` (bars), ``hit,
        flip`` of the probe; ``effective_rank``; ``min_std, mean_std`` of the training rows; ``edmd_r2``, and
        ``edmd_error`` where ``spectrum`` is given. And the k-means cluster of each scored test row, series end to end.

    Raises:
        DataError: shapes do not fit, a row is not finite, or training rows know one regime only.
    """
    if stride < 1 or LAG % stride:
        raise ConfigError(f"stride={stride!r} must divide {LAG} bars, the lag of the spectrum")
    train_rows, train_truth = _rows("train", train, train_labels, stride)
    test_rows, test_truth = _rows("test", test, test_labels, stride)
    if train_rows.shape[2] != test_rows.shape[2]:
        raise DataError(f"train has {train_rows.shape[2]} dimensions and test {test_rows.shape[2]}")
    fitted, judged = _flat(train_rows, "train"), _flat(test_rows, "test")
    truth = test_truth.ravel()
    clusters = KMeans(fitted, regimes, seed, whiten)(judged)
    out = cluster_scores(truth, clusters)
    predicted = linear_probe(fitted, train_truth.ravel(), judged, whiten)
    out |= probe_scores(truth, predicted)
    out["delay"], out["hit"] = detection_delay(truth, predicted, stride)
    out["flip"] = flip_ratio(truth, predicted)
    out["effective_rank"] = effective_rank(judged)
    out["min_std"], out["mean_std"] = latent_std(fitted)
    moduli, out["edmd_r2"] = series_spectrum(test_rows, LAG // stride)
    if spectrum is not None:
        out["edmd_error"] = spectrum_error(moduli, spectrum)
    return out, clusters


def score(
    train: Any, train_labels: Integers, test: Any, test_labels: Integers, regimes: int, stride: int = STRIDE,
    seed: int = 0, whiten: bool = True, spectrum: Sequence[float] | Floats | None = None,
) -> dict[str, float]:  # fmt: skip
    """Return the figures of :func:`score_and_clusters` alone."""
    return score_and_clusters(
        train, train_labels, test, test_labels, regimes, stride=stride, seed=seed, whiten=whiten, spectrum=spectrum
    )[0]


def linear_probe(train: Floats, labels: Integers, test: Floats, whiten: bool = True) -> Integers:
    """Fit a logistic regression on ``(N, D)`` training rows and return the label it gives each test row."""
    train, test = finite(train, "train"), finite(test, "test")
    if len(np.unique(labels)) < 2:
        raise DataError("the training rows know one regime only: there is nothing to tell apart")
    if whiten:
        scale = Standardiser(train)
        train, test = scale(train), scale(test)
    require("sklearn", "models")
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(action="ignore"):  # about steps that did not suffice
        model = LogisticRegression(C=1.0, max_iter=PROBE_STEPS).fit(every_nth(train), every_nth(labels))
    return np.asarray(model.predict(np.clip(test, -FURTHEST, FURTHEST)))


def probe_scores(labels: Integers, predicted: Integers) -> dict[str, float]:
    """Accuracy, mean recall over the labels that occur, and mean F1 over those that occur or are predicted."""
    recalls, f1 = [], []
    for label in np.union1d(labels, predicted):
        here, said = labels == label, predicted == label
        right = float((here & said).sum())
        if here.any():
            recalls.append(right / here.sum())
        f1.append(2.0 * right / (here.sum() + said.sum()))
    return {
        "probe": float(np.mean(predicted == labels)),
        "probe_balanced": float(np.mean(recalls)),
        "probe_f1": float(np.mean(f1)),
    }


def detection_delay(
    labels: Integers, predicted: Integers, stride: int = STRIDE, hold: int = HOLD, horizon: int = HORIZON
) -> tuple[float, float]:
    """Return the median bars from a switch until ``hold`` successive rows are right, and the share ever detected.

    A switch that is not detected before the next one, or begins to be right only after ``horizon`` bars, counts with
    the length of its regime, at most ``horizon``. Without a switch the delay is NaN and the share 0.
    """
    switches = np.flatnonzero(np.diff(labels)) + 1
    delays, hits = [], 0
    for first, stop in zip(switches, np.append(switches, len(labels))[1:], strict=True):
        right = np.append(0, np.cumsum(predicted[first:stop] == labels[first:stop]))
        held = np.flatnonzero(right[hold:] - right[:-hold] == hold) if stop - first >= hold else np.empty(0, np.int64)
        if len(held) and held[0] * stride <= horizon:
            hits += 1
            delays.append((held[0] + hold - 1) * stride)
        else:
            delays.append(min((stop - first) * stride, horizon))
    return (float(np.median(delays)) if delays else float("nan")), hits / max(len(switches), 1)


def flip_ratio(labels: Integers, predicted: Integers) -> float:
    """Changes of the prediction for each change of the truth: 1 is as restless as the market."""
    return float(np.mean(np.diff(predicted) != 0) / max(float(np.mean(np.diff(labels) != 0)), 1e-9))


def effective_rank(points: Floats) -> float:
    """Exponential of the entropy of the shares of variance along the principal axes of ``(N, D)``: 1 to D.

    A constant has no variance to share: 1.
    """
    power = np.linalg.svd(points - points.mean(axis=0), compute_uv=False) ** 2
    shares = power / max(float(power.sum()), 1e-30)
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def latent_std(points: Floats) -> tuple[float, float]:
    """Return the smallest and the mean standard deviation over the dimensions of ``(N, D)``: near 0 is collapse."""
    deviations = points.std(axis=0)
    return float(deviations.min()), float(deviations.mean())


def edmd_spectrum(now: Floats, later: Floats, ridge: float = RIDGE) -> tuple[Floats, float]:
    """Return the moduli of :func:`edmd_eigenvalues`, largest first, and R2."""
    values, r2 = edmd_eigenvalues(now, later, ridge)
    return np.sort(np.abs(values))[::-1], r2


def edmd_eigenvalues(now: Floats, later: Floats, ridge: float = RIDGE) -> tuple[NDArray[np.complex128], float]:
    """Fit the least-squares Koopman matrix from ``(N, D)`` to ``(N, D)``: its eigenvalues ``(D,)``, and R2.

    It reads frozen embeddings, standardised by those of ``now``, so no predictor's start can flatter it.
    """
    mean, deviation = now.mean(axis=0), now.std(axis=0) + 1e-8
    start, end = (now - mean) / deviation, (later - mean) / deviation
    count, size = start.shape
    matrix = np.linalg.solve(start.T @ start / count + ridge * np.eye(size), start.T @ end / count)
    values = np.linalg.eigvals(matrix).astype(np.complex128)
    missed = float(((end - start @ matrix) ** 2).sum())
    return values, 1.0 - missed / max(float((end**2).sum()), 1e-300)


def series_spectrum(rows: Floats, lag: int) -> tuple[Floats, float]:
    """Return :func:`edmd_spectrum` of S series ``(S, R, D)`` at ``lag`` rows; no pair spans two series.

    Raises:
        DataError: the series are no longer than the lag.
    """
    if rows.shape[1] <= lag:
        raise DataError(f"{rows.shape[1]} scored rows a series leave none {lag} later")
    size = rows.shape[2]
    return edmd_spectrum(rows[:, :-lag].reshape(-1, size), rows[:, lag:].reshape(-1, size))


def spectrum_error(moduli: Floats, truth: Sequence[float] | Floats) -> float:
    """Mean absolute difference of the leading moduli from the true ones; missing moduli count as 0."""
    truth = np.asarray(truth, np.float64)
    found = np.zeros(len(truth))
    found[: min(len(moduli), len(truth))] = moduli[: len(truth)]
    return float(np.abs(found - truth).mean())


def _rows(name: str, embedding: Any, labels: Integers, stride: int) -> tuple[Floats, Integers]:
    """Return the scored rows ``(S, R, D)`` and their labels ``(S, R)``."""
    values, truth = np.asarray(embedding, np.float64), np.asarray(labels)
    if truth.ndim != 2 or values.ndim != 3 or len(values) != len(truth):
        raise DataError(f"{name}: embedding {values.shape} and labels {truth.shape}, expected (S, T, D) and (S, T)")
    scored = scored_rows(truth.shape[1], stride=stride)
    if values.shape[1] == truth.shape[1]:
        values = values[:, scored]
    if values.shape[1] != len(scored):
        raise DataError(f"{name}: {values.shape[1]} rows a series, expected {truth.shape[1]} or {len(scored)}")
    return values, truth[:, scored]


def _flat(rows: Floats, name: str) -> Floats:
    return finite(rows.reshape(-1, rows.shape[2]), name)
