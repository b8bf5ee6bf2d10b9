"""Agreement of partitions: worked examples, invariances, and what each score gives for nothing."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders import clustering
from encoders.clustering import (
    KMeans,
    Standardiser,
    adjusted_rand,
    cluster_scores,
    contingency,
    hungarian_accuracy,
    mutual_information,
    purity,
    seed_agreement,
    self_persistence,
)
from markets.errors import ConfigError, DataError, MissingExtraError

SEED = 2
LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2])
CLUSTERS = np.array([5, 5, 7, 7, 7, 7, 9, 5])


def random_partitions(count: int = 300) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng(SEED)
    return rng.integers(0, 4, count), rng.integers(0, 6, count)


def test_points_are_counted_by_label_and_cluster() -> None:
    assert contingency(LABELS, CLUSTERS).tolist() == [[2, 1, 0], [0, 3, 0], [1, 0, 1]]


def test_the_four_scores_of_a_worked_example() -> None:
    """Of 28 pairs 1 + 3 are together in both, 3 + 3 + 1 by label, 3 + 6 + 0 by cluster; chance is 7 * 9 / 28."""
    scores = cluster_scores(LABELS, CLUSTERS)
    assert scores["purity"] == pytest.approx((2 + 3 + 1) / 8)
    assert scores["hungarian"] == pytest.approx((2 + 3 + 1) / 8)
    assert scores["ari"] == pytest.approx((4 - 2.25) / (8 - 2.25))
    joint = [(2, 3, 3), (1, 3, 4), (3, 3, 4), (1, 2, 3), (1, 2, 1)]  # count, label's, cluster's
    shared = sum(n / 8 * math.log(n * 8 / (a * b)) for n, a, b in joint)
    entropies = [-sum(n / 8 * math.log(n / 8) for n in sizes) for sizes in ((3, 3, 2), (3, 4, 1))]
    assert scores["nmi"] == pytest.approx(2 * shared / sum(entropies))


def test_scores_are_those_of_the_library() -> None:
    library = pytest.importorskip("sklearn.metrics", reason="scores of clusters need the extra 'models'")
    for labels, clusters in (random_partitions(), random_partitions(7), (LABELS, CLUSTERS)):
        assert adjusted_rand(labels, clusters) == pytest.approx(library.adjusted_rand_score(labels, clusters))
        assert mutual_information(labels, clusters) == pytest.approx(
            library.normalized_mutual_info_score(labels, clusters)
        )


@pytest.mark.parametrize("score", [purity, adjusted_rand, mutual_information, hungarian_accuracy])
def test_a_score_does_not_know_the_names_of_clusters_and_a_perfect_one_is_1(score: Any) -> None:
    labels, clusters = random_partitions()
    renamed = np.array([40, -3, 7, 22, 0, 5])[clusters]
    assert score(labels, renamed) == pytest.approx(score(labels, clusters), rel=1e-12)
    assert score(labels, np.array([3, 2, 9, 0])[labels]) == pytest.approx(1.0)


def test_a_constant_gets_the_commonest_label_from_purity_and_nothing_from_the_others() -> None:
    labels, _ = random_partitions()
    scores = cluster_scores(labels, np.zeros_like(labels))
    assert scores["purity"] == np.bincount(labels).max() / len(labels)
    assert scores["ari"] == 0.0
    assert scores["nmi"] == pytest.approx(0.0)


def test_purity_is_bought_with_more_clusters_and_the_adjusted_index_is_not() -> None:
    """Twin of the score that ignores chance: every point a cluster of its own is pure, and agrees with nothing."""
    labels, _ = random_partitions()
    own = np.arange(len(labels))
    assert purity(labels, own) == 1.0
    assert adjusted_rand(labels, own) == pytest.approx(0.0)


def test_equal_trivial_partitions_agree() -> None:
    one = np.zeros(5, int)
    assert (adjusted_rand(one, one), mutual_information(one, one), purity(one, one)) == (1.0, 1.0, 1.0)
    assert adjusted_rand(np.arange(5), np.arange(5)) == 1.0


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 5), (5, 2), (5, 5)])
def test_the_best_match_is_the_best_of_all_matches(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(SEED)
    for _ in range(20):
        counts = rng.integers(0, 9, shape)
        wide = counts if shape[0] <= shape[1] else counts.T
        best = max(
            sum(wide[row, column] for row, column in enumerate(columns))
            for columns in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        )
        assert clustering._best_match(counts) == best


def test_a_greedy_match_is_not_the_best_one() -> None:
    """Twin of the best match: taking the largest count first gives 10 + 0 where 9 + 8 can be had."""
    assert clustering._best_match(np.array([[10, 9], [8, 0]])) == 17


@pytest.mark.parametrize(
    ("labels", "clusters"), [(np.zeros(3), np.zeros(4)), (np.zeros(0), np.zeros(0)), (np.ones((2, 2)), np.ones((2, 2)))]
)
def test_partitions_of_other_points_are_refused(labels: Any, clusters: Any) -> None:
    with pytest.raises(DataError, match="one number a point"):
        contingency(labels, clusters)


def test_persistence_is_1_where_nothing_moves_and_0_for_chance() -> None:
    spells = np.repeat([0, 1, 0, 2, 1, 2], 100)
    same = 1.0 - 5 / 599  # five changes in 599 pairs
    assert self_persistence(spells, 1) == pytest.approx((same - 1 / 3) / (1 - 1 / 3))
    drawn = np.random.default_rng(SEED).integers(0, 4, 20_000)
    assert abs(self_persistence(drawn, 8)) < 0.02
    assert self_persistence(np.zeros(50, int), 8) == 0.0
    assert self_persistence(np.tile([0, 1], 50), 1) == pytest.approx(-1.0)
    for lag in (0, 50):
        with pytest.raises(ConfigError, match=f"lag={lag}"):
            self_persistence(np.zeros(50, int), lag)


def test_agreement_of_seeds_is_the_mean_over_pairs() -> None:
    labels, clusters = random_partitions()
    third = adjusted_rand(labels, clusters)
    assert seed_agreement([labels, labels, clusters]) == pytest.approx((1.0 + 2 * third) / 3)
    with pytest.raises(ConfigError, match="1 partitions"):
        seed_agreement([labels])


def test_a_column_that_never_moves_standardises_to_zero() -> None:
    points = np.column_stack([np.full(50, 0.1), np.arange(50.0), np.full(50, 1e9)])
    scaled = Standardiser(points)(points)
    assert np.abs(scaled[:, [0, 2]]).max() < 1e-6
    assert scaled[:, 1].std() == pytest.approx(1.0)


def test_k_means_finds_separate_clouds_and_the_same_ones_twice() -> None:
    pytest.importorskip("sklearn", reason="k-means needs the extra 'models'")
    rng = np.random.default_rng(SEED)
    truth = rng.integers(0, 3, 600)
    points = rng.normal(0.0, 0.3, (600, 2)) + np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])[truth]
    points[:, 1] *= 1e-6  # the scale of a column says nothing, unless it is asked to
    assert adjusted_rand(truth, KMeans(points, 3)(points)) == 1.0
    assert adjusted_rand(truth, KMeans(points, 3, whiten=False)(points)) < 0.8
    again, other = KMeans(points, 5, seed=1), KMeans(points, 5, seed=1)
    assert np.array_equal(again(points), other(points))
    assert again(points[:1] + 1e9).shape == (1,)


def test_points_that_cannot_be_clustered_are_refused() -> None:
    pytest.importorskip("sklearn", reason="k-means needs the extra 'models'")
    points = np.ones((10, 2))
    points[4, 1] = np.nan
    with pytest.raises(DataError, match="row 4"):
        KMeans(points, 2)
    with pytest.raises(DataError, match="3 points cannot make 4 clusters"):
        KMeans(np.ones((3, 2)), 4)
    with pytest.raises(DataError, match=r"shape \(5,\)"):
        KMeans(np.ones(5), 2)
    assert set(KMeans(np.ones((10, 2)), 3)(np.ones((4, 2)))) == {0}


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"regimegym\[models\]"):
        KMeans(np.arange(20.0).reshape(10, 2), 2)
