"""Scores of embeddings: worked examples, and the published benchmark's figures on the same numbers.

The frozen figures were printed by the benchmark's own scorer for series of 8,192 bars, seeds 1 to 3 against 101 and
102, level ``market``; it rounds to four digits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders import probes
from encoders.clustering import cluster_scores
from encoders.probes import (
    detection_delay,
    edmd_spectrum,
    effective_rank,
    flip_ratio,
    latent_std,
    linear_probe,
    probe_scores,
    score,
    scored_rows,
    series_spectrum,
    spectrum_error,
)
from encoders.references import exponential_moments, hand_features
from markets.errors import ConfigError, DataError
from markets.synthetic_regimes import posterior, regime_market, simulate

Floats = NDArray[np.float64]

BARS = 8192
MARKET = regime_market()
FROZEN = {
    "exponential_moments": {
        "purity": 0.6848, "ari": 0.271, "nmi": 0.3825, "hungarian": 0.4809, "probe": 0.6818, "probe_balanced": 0.4328,
        "probe_f1": 0.4399, "delay": 88.0, "hit": 0.5897, "flip": 3.7692, "effective_rank": 3.0772, "min_std": 0.4769,
        "mean_std": 0.5741, "edmd_error": 0.1445, "edmd_r2": 0.5909,
    },
    "noise": {
        "purity": 0.2966, "ari": -0.0001, "nmi": 0.0033, "hungarian": 0.1903, "probe": 0.289, "probe_balanced": 0.1671,
        "probe_f1": 0.0807, "delay": 216.0, "hit": 0.1795, "flip": 2.0, "effective_rank": 2.9978, "min_std": 0.9865,
        "mean_std": 0.9988, "edmd_error": 0.7812, "edmd_r2": 0.0029,
    },
    "hand_features": {
        "purity": 0.7588, "ari": 0.3842, "nmi": 0.4343, "hungarian": 0.5665, "probe": 0.7754, "probe_balanced": 0.544,
        "probe_f1": 0.5597, "delay": 56.0, "hit": 0.7436, "flip": 3.4103, "effective_rank": 4.9706, "min_std": 0.0667,
        "mean_std": 0.4663, "edmd_error": 0.0596, "edmd_r2": 0.4199,
    },
}  # fmt: skip


@cache
def series(seeds: tuple[int, ...], bars: int = BARS) -> tuple[Floats, NDArray[np.int64]]:
    drawn = [simulate(seed, bars, MARKET) for seed in seeds]
    return np.stack([one[0] for one in drawn]), np.stack([one[1] for one in drawn])


@cache
def data(name: str) -> tuple[Floats, NDArray[np.int64], Floats, NDArray[np.int64]]:
    """Training embedding and labels, test embedding and labels."""
    (train, train_labels), (test, test_labels) = series((1, 2, 3)), series((101, 102))
    if name == "noise":
        rng = np.random.default_rng(5)
        return rng.normal(size=(3, BARS, 3)), train_labels, rng.normal(size=(2, BARS, 3)), test_labels
    embed = {"exponential_moments": exponential_moments, "hand_features": hand_features}[name]
    return np.stack([embed(one) for one in train]), train_labels, np.stack([embed(one) for one in test]), test_labels


@pytest.mark.parametrize("name", FROZEN)
def test_figures_are_those_of_the_published_benchmark(name: str) -> None:
    pytest.importorskip("sklearn", reason="probes need the extra 'models'")
    found = score(*data(name), regimes=6, spectrum=MARKET.spectrum(64))
    assert found.keys() == FROZEN[name].keys()
    assert found == pytest.approx(FROZEN[name], abs=1e-4)


def test_the_exact_posterior_scores_as_published() -> None:
    test, labels = series((101, 102))
    rows = scored_rows(BARS)
    found = np.concatenate([posterior(one, MARKET)[rows].argmax(axis=1) for one in test])
    expected = {"purity": 0.9204, "ari": 0.8331, "nmi": 0.7665, "hungarian": 0.9199}
    assert cluster_scores(labels[:, rows].ravel(), found) == pytest.approx(expected, abs=1e-4)


def test_only_the_scored_rows_need_to_be_given() -> None:
    pytest.importorskip("sklearn", reason="probes need the extra 'models'")
    train, train_labels, test, test_labels = data("noise")
    rows = scored_rows(BARS)
    full = score(train, train_labels, test, test_labels, 6)
    assert score(train[:, rows], train_labels, test[:, rows], test_labels, 6) == full
    assert "edmd_error" not in full
    assert score(train[:, rows], train_labels, test[:, rows], test_labels, 6, seed=1)["probe"] == full["probe"]


def test_scored_rows_are_255_263_and_so_on() -> None:
    assert scored_rows(272).tolist() == [255, 263, 271]
    assert scored_rows(10, warm=4, stride=3).tolist() == [3, 6, 9]
    assert len(scored_rows(32_768)) == 4065
    for bars, warm, stride in ((255, 256, 8), (300, 0, 8), (300, 256, 0)):
        with pytest.raises(ConfigError, match="no row"):
            scored_rows(bars, warm, stride)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a[:2], b), r"train: embedding \(2,"), (lambda a, b: (a[:, :100], b), "train: 100 rows"),
        (lambda a, b: (a[0], b), "expected .S, T, D."), (lambda a, b: (np.where(a > 3.0, np.nan, a), b), "train: row "),
        (lambda a, b: (a[:, :, :2], b), "2 dimensions and test 3"), (lambda a, b: (a, np.zeros_like(b)), "one regime"),
    ],
)  # fmt: skip
def test_embeddings_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    pytest.importorskip("sklearn", reason="probes need the extra 'models'")
    train, train_labels, test, test_labels = data("noise")
    with pytest.raises(DataError, match=message):
        score(*change(train, train_labels), test, test_labels, 6)


def test_a_stride_that_does_not_fit_the_lag_is_refused() -> None:
    with pytest.raises(ConfigError, match="stride=7"):
        score(*data("noise"), regimes=6, stride=7)


def test_delay_counts_to_the_third_right_row_and_misses_with_the_length_of_the_regime() -> None:
    labels = np.repeat([0, 1, 2, 0], [4, 6, 3, 10])
    predicted = labels.copy()
    predicted[4:6] = 0  # regime 1 is right from its third row: held at the fifth, two rows later
    predicted[10] = 1  # regime 2 has two right rows only: missed, counts its three rows
    assert detection_delay(labels, predicted, stride=8) == (24.0, 2 / 3)  # 32, 24 and 16 bars
    assert detection_delay(labels, labels, stride=8) == (16.0, 1.0)
    assert detection_delay(labels, labels + 1, stride=8) == (48.0, 0.0)  # lengths 48, 24 and 80
    late = np.repeat([0, 1], [5, 50])
    slow = np.repeat([0, 1], [38, 17])  # right after 33 rows, 264 bars: over the horizon
    assert detection_delay(late, slow, stride=8) == (256.0, 0.0)
    assert detection_delay(late, np.repeat([0, 1], [37, 18]), stride=8) == (272.0, 1.0)
    without = detection_delay(np.zeros(9, int), np.zeros(9, int))
    assert np.isnan(without[0])
    assert without[1] == 0.0


def test_a_detection_must_hold() -> None:
    """Twin of the delay: a prediction that is right every second row is never a detection."""
    labels = np.repeat([0, 1], [10, 60])
    flicker = np.where(np.arange(70) % 2 == 0, labels, 0)
    assert detection_delay(labels, flicker)[1] == 0.0
    assert detection_delay(labels, flicker, hold=1)[1] == 1.0


def test_flips_are_counted_against_those_of_the_truth() -> None:
    labels = np.repeat([0, 1, 0], 10)
    assert flip_ratio(labels, labels) == 1.0
    assert flip_ratio(labels, np.zeros(30, int)) == 0.0
    assert flip_ratio(labels, np.tile([0, 1], 15)) == pytest.approx(29 / 2)


def test_probe_scores_of_a_worked_example() -> None:
    """Recalls 1/2, 1 and none of label 2; F1 2/4, 2/3 and 0, and 0 of label 3, which is said and never true."""
    labels, predicted = np.array([0, 0, 1, 2]), np.array([0, 3, 1, 1])
    assert probe_scores(labels, predicted) == pytest.approx(
        {"probe": 0.5, "probe_balanced": 0.5, "probe_f1": (2 / 3 + 2 / 3) / 4}
    )


def test_probe_scores_are_those_of_the_library() -> None:
    library = pytest.importorskip("sklearn.metrics", reason="probes need the extra 'models'")
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    found = probe_scores(labels, predicted)
    assert found["probe_balanced"] == pytest.approx(library.balanced_accuracy_score(labels, predicted))
    assert found["probe_f1"] == pytest.approx(library.f1_score(labels, predicted, average="macro"))


def test_the_probe_reads_a_linear_boundary() -> None:
    pytest.importorskip("sklearn", reason="probes need the extra 'models'")
    rng = np.random.default_rng(3)
    points = rng.normal(size=(1000, 3)) * [1.0, 100.0, 0.01]
    labels = (points @ [1.0, 0.01, 100.0] > 0).astype(int)
    assert np.mean(linear_probe(points[:500], labels[:500], points[500:]) == labels[500:]) > 0.97


def test_effective_rank_is_the_number_of_equal_directions() -> None:
    rng = np.random.default_rng(4)
    axes = np.linalg.qr(rng.normal(size=(400, 5)))[0]
    axes = np.linalg.qr(axes - axes.mean(axis=0))[0]
    assert effective_rank(axes) == pytest.approx(5.0)
    assert effective_rank(axes[:, :2] @ rng.normal(size=(2, 8)) + 7.0) < 2.0 + 1e-9
    assert effective_rank(np.column_stack([axes[:, 0]] * 4)) == pytest.approx(1.0)
    assert effective_rank(np.ones((9, 3))) == 1.0


def test_latent_std_shows_a_dead_dimension() -> None:
    points = np.column_stack([np.tile([-1.0, 1.0], 10), np.ones(20)])
    assert latent_std(points) == (0.0, 0.5)


def test_the_spectrum_of_a_linear_system_is_found() -> None:
    """z' = A z with eigenvalues .9 and .6 +- .3i (modulus .67), watched through another basis."""
    rng = np.random.default_rng(6)
    system = np.array([[0.9, 0.0, 0.0], [0.0, 0.6, -0.3], [0.0, 0.3, 0.6]])
    start = rng.normal(size=(500, 3))
    basis = rng.normal(size=(3, 3))
    moduli, r2 = edmd_spectrum(start @ basis, start @ system.T @ basis, ridge=0.0)
    np.testing.assert_allclose(moduli, [0.9, np.hypot(0.6, 0.3), np.hypot(0.6, 0.3)], rtol=1e-2)
    assert r2 == pytest.approx(1.0, abs=1e-2)
    assert edmd_spectrum(start, rng.normal(size=(500, 3)))[0].max() < 0.2


def test_one_hot_labels_show_the_spectrum_of_their_chain() -> None:
    labels = series((1, 2, 3), 60_000)[1]
    moduli, _ = series_spectrum(np.eye(6)[labels], 64)
    assert spectrum_error(moduli, MARKET.spectrum(64)) < 0.06
    shuffled = np.random.default_rng(7).permutation(labels.ravel()).reshape(labels.shape)
    assert spectrum_error(series_spectrum(np.eye(6)[shuffled], 64)[0], MARKET.spectrum(64)) > 0.6


def test_no_pair_of_the_spectrum_spans_two_series() -> None:
    """Each series is constant, so every point is followed by itself; a joined series would see the jumps."""
    rows = np.repeat(np.random.default_rng(8).normal(size=(30, 1, 2)), 5, axis=1)
    assert series_spectrum(rows, 4)[1] == pytest.approx(1.0, abs=1e-5)
    joined = rows.reshape(1, -1, 2)
    assert series_spectrum(joined, 4)[1] < 0.5
    with pytest.raises(DataError, match="5 scored rows"):
        series_spectrum(rows, 5)


def test_missing_eigenvalues_count_as_zero_and_further_ones_not_at_all() -> None:
    assert spectrum_error(np.array([0.9]), [0.8, 0.6]) == pytest.approx((0.1 + 0.6) / 2)
    assert spectrum_error(np.array([0.9, 0.6, 0.5]), [0.8, 0.6]) == pytest.approx(0.05)


def test_the_check_of_figures_catches_a_score_fitted_on_the_test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="probes need the extra 'models'")
    _, _, test, test_labels = data("exponential_moments")
    found = score(test, test_labels, test, test_labels, regimes=6, spectrum=MARKET.spectrum(64))
    assert found != pytest.approx(FROZEN["exponential_moments"], abs=1e-4)
    monkeypatch.setattr(probes, "scored_rows", lambda bars, stride: np.arange(63, bars, stride))
    found = score(*data("exponential_moments"), regimes=6, spectrum=MARKET.spectrum(64))
    assert found != pytest.approx(FROZEN["exponential_moments"], abs=1e-4)
