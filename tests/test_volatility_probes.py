"""Scores without labels: what they find in a market whose volatility is known, and what they refuse to be fooled by."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.volatility_probes import (
    explained_by_clusters,
    future_log_volatility,
    log_volatility,
    ridge_r2,
    score_volatility,
)
from markets.errors import ConfigError, DataError
from markets.synthetic_regimes import posterior, regime_market, simulate

Floats = NDArray[np.float64]
MARKET = regime_market()


@cache
def returns(seed: int, bars: int = 6000) -> Floats:
    return simulate(seed, bars, MARKET)[0]


def test_realised_volatility_is_over_the_last_bars_and_over_what_there_is_at_first() -> None:
    found = log_volatility(np.array([3.0, 4.0, 0.0, 12.0]), (1, 2))
    np.testing.assert_allclose(np.exp(found[:, 1]), np.sqrt([9.0, 12.5, 8.0, 72.0]))
    np.testing.assert_allclose(np.exp(found[[0, 1, 3], 0]), [3.0, 4.0, 12.0])
    assert np.isfinite(found).all()


def test_the_target_is_over_the_next_bars_only() -> None:
    found = future_log_volatility(np.array([50.0, 3.0, 4.0, 0.0, 12.0]), 2)
    np.testing.assert_allclose(np.exp(found[:3]), np.sqrt([12.5, 8.0, 72.0]))
    assert np.isnan(found[3:]).all()
    for horizon in (0, 5):
        with pytest.raises(ConfigError, match=f"horizon={horizon}"):
            future_log_volatility(np.zeros(5), horizon)


def test_the_reference_knows_no_later_return_and_the_target_nothing_else() -> None:
    """Twin included: the target itself fails the check that the reference passes."""
    cut, one = 500, returns(1)[:1000]
    other = one.copy()
    other[cut:] *= 3.0
    assert np.array_equal(log_volatility(one)[:cut], log_volatility(other)[:cut])
    assert not np.array_equal(future_log_volatility(one)[:cut], future_log_volatility(other)[:cut])
    other = one.copy()
    other[: cut + 1] *= 3.0
    np.testing.assert_allclose(future_log_volatility(other)[cut:-64], future_log_volatility(one)[cut:-64], rtol=1e-9)


def test_a_ridge_explains_a_linear_target_and_not_noise() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4000, 3)) * [1.0, 1e-3, 100.0] + 5.0
    target = points @ [1.0, 500.0, 0.01] + 2.0
    train, test = slice(0, 2000), slice(2000, None)
    assert ridge_r2(points[train], target[train], points[test], target[test]) > 0.999
    noise = rng.normal(size=4000)
    assert abs(ridge_r2(points[train], noise[train], points[test], noise[test])) < 0.01
    assert ridge_r2(np.ones((50, 1)), noise[:50], np.ones((50, 1)), noise[50:100]) < 0.0  # the mean of other rows
    with pytest.raises(DataError, match="never moves"):
        ridge_r2(points[train], target[train], points[test], np.ones(2000))


def test_variance_between_clusters_of_a_worked_example() -> None:
    target = np.array([1.0, 3.0, 5.0, 7.0])
    assert explained_by_clusters(target, np.array([0, 0, 4, 4])) == pytest.approx(16 / 20)
    assert explained_by_clusters(target, np.array([0, 1, 2, 3])) == pytest.approx(1.0)
    assert explained_by_clusters(target, np.zeros(4, int)) == 0.0
    assert explained_by_clusters(np.ones(4), np.array([0, 0, 1, 1])) == 0.0


def test_the_exact_posterior_says_more_about_volatility_than_noise_and_its_clusters_persist() -> None:
    pytest.importorskip("sklearn", reason="k-means needs the extra 'models'")
    train, test = [returns(1), returns(2)], [returns(101), returns(102, 5000)]
    exact, apart = score_volatility(
        [posterior(one, MARKET) for one in train], train, [posterior(one, MARKET) for one in test], test
    )
    rng = np.random.default_rng(1)
    noise, _ = score_volatility(
        [rng.normal(size=(len(one), 4)) for one in train], train, [rng.normal(size=(len(one), 4)) for one in test], test
    )
    assert [len(one) for one in apart] == [711, 586]
    assert exact["r2"] > 0.4 > 0.02 > noise["r2"]
    assert exact["har_r2"] == noise["har_r2"] > 0.4
    assert exact["eta2"] > 0.4 > 0.02 > noise["eta2"]
    assert exact["persistence"] > 0.5 > 0.1 > noise["persistence"]
    assert exact["dwell"] > 100.0 > 12.0 > noise["dwell"]
    assert 0.0 <= exact["least_share"] <= 0.2


def test_the_reference_scored_as_an_embedding_is_the_reference() -> None:
    pytest.importorskip("sklearn", reason="k-means needs the extra 'models'")
    train, test = [returns(1)], [returns(101)]
    found, clusters = score_volatility([log_volatility(train[0])], train, [log_volatility(test[0])], test)
    assert found["r2"] == found["har_r2"]
    again, same = score_volatility([log_volatility(train[0])], train, [log_volatility(test[0])], test)
    assert found == again
    assert np.array_equal(clusters[0], same[0])


def test_an_embedding_that_knows_the_future_would_be_seen() -> None:
    """Twin of the score: the target handed in as an embedding explains itself."""
    pytest.importorskip("sklearn", reason="k-means needs the extra 'models'")
    train, test = returns(1), returns(101)
    leak = [np.nan_to_num(future_log_volatility(one)).reshape(-1, 1) for one in (train, test)]
    assert score_volatility(leak[:1], [train], leak[1:], [test])[0]["r2"] > 0.999


@pytest.mark.parametrize(
    ("embedding", "moves", "message"),
    [
        ([np.ones((6000, 2))], [], "1 embeddings for 0 series"), ([], [], "0 embeddings"),
        ([np.ones((5999, 2))], [returns(1)], "series 0 has 5999 rows for 6000 returns"),
        ([np.ones((300, 2))], [returns(1)[:300]], "more than 384"),
        ([np.full((6000, 2), np.nan)], [returns(1)], "train series 0: row 0"),
    ],
)  # fmt: skip
def test_series_that_cannot_be_scored_are_refused(embedding: Any, moves: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_volatility(embedding, moves, [log_volatility(returns(101))], [returns(101)])
