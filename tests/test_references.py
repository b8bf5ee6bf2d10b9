"""Reference rows: causal, the benchmark's numbers, and models that find what is there."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.clustering import adjusted_rand, cluster_scores
from encoders.probes import scored_rows
from encoders.reference_models import GaussianHMM, JumpModel
from encoders.references import (
    FEATURES,
    Reference,
    RidgeForecast,
    exponential_moments,
    future_statistics,
    hand_features,
    oracle,
    references,
    rolling_moments,
    rolling_shape,
    wasserstein,
)
from markets.errors import ConfigError, DataError
from markets.synthetic_regimes import regime_market, simulate

Floats = NDArray[np.float64]

MARKET = regime_market()
BARS = 6000
FROZEN_ROW = [  # of the benchmark's own features
    0.37256261657452044,
    -1.4819919423590513,
    -0.08111681745794566,
    -1.6102607759515704,
    -1.357801441427111,
]
NAMES = (
    "oracle", "constant", "rolling 64 mean and volatility", "27 hand features", "wasserstein 64",
    "ridge forecast of the next 64 bars", "Gaussian HMM on returns", "Gaussian HMM on running mean and volatility",
    "jump model",
)  # fmt: skip


@cache
def returns(seed: int) -> Floats:
    return simulate(seed, BARS, MARKET)[0]


@cache
def rows() -> dict[str, Reference]:
    pytest.importorskip("sklearn", reason="the hidden Markov model starts from k-means, of the extra 'models'")
    return {one.name: one for one in references([returns(1), returns(2)], 6, 0, MARKET)}


def test_every_row_is_there_in_order_and_the_oracle_only_where_it_exists() -> None:
    assert tuple(rows()) == NAMES
    real = references([returns(1)[:2000]], 3)
    assert tuple(one.name for one in real) == NAMES[1:]


def assert_blind(row: Reference, cut: int = 3001) -> None:
    one, other = returns(101), returns(101).copy()
    other[cut:] = -4.0 * other[cut:]
    found, changed = row.embed(one), row.embed(other)
    assert found.shape == changed.shape
    assert len(found) == BARS
    assert np.isfinite(found).all()
    assert np.array_equal(found[:cut], changed[:cut])
    assert np.array_equal(found[:cut], row.embed(one[:cut]))
    assert row.name == "constant" or not np.array_equal(found[cut:], changed[cut:])


@pytest.mark.parametrize("name", NAMES)
def test_no_row_knows_a_later_return(name: str) -> None:
    assert_blind(rows()[name])


@pytest.mark.parametrize(
    "leak",
    [
        lambda values: hand_features(values[::-1])[::-1],
        lambda values: np.nan_to_num(future_statistics(values)),
        lambda values: hand_features(values) - hand_features(values).mean(axis=0),
        lambda values: np.append(hand_features(values)[1:], np.zeros((1, 27)), axis=0),
    ],
    ids=["reversed", "target", "mean of the whole", "one bar late"],
)
def test_the_check_catches_a_row_that_knows_the_future(leak: object) -> None:
    with pytest.raises(AssertionError):
        assert_blind(Reference("leaky", leak))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["oracle", *NAMES[6:]])
def test_odds_add_up_to_one(name: str) -> None:
    row = rows()[name]
    assert row.odds
    np.testing.assert_allclose(row.embed(returns(101)).sum(axis=1), 1.0)


def test_rolling_columns_of_a_worked_example() -> None:
    """Four returns: mean .5, deviation 1.290994 (of a sample), lag-1 products -1, -2, 0 but three of them."""
    values = np.array([-1.0, 1.0, 2.0, 0.0])
    deviation = math.sqrt(5.0 / 3.0) + 1e-6
    assert rolling_moments(values, (4,))[-1].tolist() == pytest.approx([0.5 * 2.0 / deviation, math.log(deviation)])
    assert rolling_moments(values, (4,))[:-1].tolist() == [[0.0, 0.0]] * 3
    longer = np.append(values, 3.0)
    mean, deviation = 1.5, math.sqrt(5.0 / 3.0) + 1e-6
    assert rolling_shape(longer, (4,))[-1].tolist() == pytest.approx(
        [
            mean * 2.0 / deviation, math.log(deviation), (-1.0 + 2.0 + 0.0 + 0.0) / 4 / deviation**2,
            math.log(1.5 / deviation + 1e-6), math.log(3.0 / deviation), math.log(1e-3 / deviation),
        ]
    )  # fmt: skip


def test_exponential_columns_of_a_worked_example() -> None:
    """Half-life one bar: weights 1/2 and 1 of -2 and 1, over 3/2."""
    mean, down, both = 0.0, math.sqrt(4.0 / 3.0) + 1e-6, math.sqrt(2.0) + 1e-6
    found = exponential_moments(np.array([-2.0, 1.0]), (1,))[-1]
    assert found.tolist() == pytest.approx([mean, math.log(down), math.log(both)], abs=1e-12)


def test_there_are_27_hand_features_and_their_last_row_is_frozen() -> None:
    found = hand_features(returns(101))
    assert found.shape == (BARS, 27)
    assert found[-1, [0, 7, 14, 20, 26]].tolist() == pytest.approx(FROZEN_ROW, abs=1e-9)


def test_wasserstein_columns_are_quantiles_of_the_last_bars() -> None:
    values = np.arange(100.0)
    found = wasserstein(values, window=8, quantiles=4)
    assert found[50].tolist() == [44.0, 46.0, 48.0, 50.0]
    assert found[0].tolist() == [0.0] * 4
    long = returns(1)[:5000]  # over the edge of a chunk
    assert np.array_equal(wasserstein(long, 64)[4500], wasserstein(long[4437:4501], 64)[-1])


def test_the_target_of_the_ridge_is_the_next_bars_only() -> None:
    values = returns(1)[:1000]
    found = future_statistics(values)
    assert np.isnan(found[-64:]).all()
    ahead = values[501:565]
    deviation = ahead.std(ddof=1) + 1e-3
    assert found[500, :2].tolist() == pytest.approx([math.log(deviation), 2.0 * ahead.mean() / deviation])


def test_the_ridge_forecasts_volatility_and_needs_a_future_to_learn_it() -> None:
    embed, values = RidgeForecast([returns(1), returns(2)]), returns(101)
    target = future_statistics(values)[255:-64]
    assert np.corrcoef(embed(values)[255:-64, 0], target[:, 0])[0, 1] > 0.7
    with pytest.raises(DataError, match="64 bars after it"):
        RidgeForecast([returns(1)[:300]])


def test_the_oracle_is_above_every_row_that_needs_no_label_and_the_constant_is_at_zero() -> None:
    labels = simulate(101, BARS, MARKET)[1][scored_rows(BARS)]
    found = {
        name: cluster_scores(labels, row.embed(returns(101))[scored_rows(BARS)].argmax(axis=1))
        for name, row in rows().items()
        if row.odds or name == "constant"
    }
    assert found["constant"]["ari"] == 0.0
    best = max(scores["ari"] for name, scores in found.items() if name != "oracle")
    assert found["oracle"]["ari"] > best + 0.1
    assert min(scores["ari"] for name, scores in found.items() if name != "constant") > 0.1


# --- the models -------------------------------------------------------------------------------------------------------


def clouds(bars: int = 3000) -> tuple[Floats, NDArray[np.int64]]:
    """Points of three Gaussian states that overlap, spells of 100 points, and their states."""
    rng = np.random.default_rng(9)
    states = np.repeat(rng.permutation(np.tile([0, 1, 2], bars // 300 + 1)), 100)[:bars]
    centre, spread = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]]), np.array([0.7, 1.4, 0.4])
    return centre[states] + rng.normal(size=(bars, 2)) * spread[states, None], states


def test_both_models_find_planted_states_that_k_means_cannot_tell() -> None:
    library = pytest.importorskip("sklearn.cluster", reason="the comparison needs the extra 'models'")
    points, states = clouds()
    plain = adjusted_rand(states, library.KMeans(3, n_init=3, random_state=0).fit_predict(points))
    hidden = GaussianHMM([points[:1500], points[1500:]], 3)
    jump = JumpModel([points[:1500], points[1500:]], 3, 3.0)
    assert plain < 0.8
    assert adjusted_rand(states, hidden.filter(points).argmax(axis=1)) > 0.93
    assert adjusted_rand(states, jump.states(points).argmax(axis=1)) > 0.85
    order = np.argsort(hidden.means[:, 0] - hidden.means[:, 1])
    spread = np.sqrt(hidden.covariances[order][:, [0, 1], [0, 1]])  # of standardised points
    np.testing.assert_allclose(spread * points.std(axis=0), [[0.4] * 2, [0.7] * 2, [1.4] * 2], rtol=0.15)


def test_the_likelihood_of_the_hidden_model_rises_with_every_iteration() -> None:
    pytest.importorskip("sklearn", reason="the hidden Markov model starts from k-means, of the extra 'models'")
    points, _ = clouds(900)
    reached = [GaussianHMM([points], 3, iterations=count).log_likelihood for count in (1, 2, 3, 6)]
    assert reached == sorted(reached)
    assert reached[-1] > reached[0] + 0.01


def test_the_online_path_is_the_cheapest_of_all_paths_so_far() -> None:
    """The same cost as every path of 6 points written down, for the state of each point."""
    import itertools

    points, _ = clouds(300)
    model = JumpModel([points], 3, 2.0)
    few = points[97:103]
    scaled = (few - points.mean(axis=0)) / points.std(axis=0)
    losses = 0.5 * ((scaled[:, None, :] - model.centres) ** 2).sum(axis=2)
    found = model.states(few).argmax(axis=1)
    for last in range(len(few)):
        best = min(
            itertools.product(range(3), repeat=last + 1),
            key=lambda path: (
                sum(losses[t, k] for t, k in enumerate(path)) + 2.0 * sum(a != b for a, b in itertools.pairwise(path))
            ),
        )
        assert found[last] == best[-1]


def test_a_free_change_is_made_at_every_point_and_a_dear_one_where_the_states_change() -> None:
    points, states = clouds(900)
    paths = [JumpModel([points], 3, penalty).states(points).argmax(axis=1) for penalty in (0.0, 0.5, 3.0)]
    changes = [int((np.diff(path) != 0).sum()) for path in (*paths, states)]
    assert changes[0] > 1.3 * changes[1]
    assert changes[1] > changes[2] >= changes[3]
    nearest = ((points - points.mean(axis=0)) / points.std(axis=0))[:, None] - JumpModel([points], 3, 0.0).centres
    assert np.array_equal(paths[0], (nearest**2).sum(axis=2).argmin(axis=1))


def test_models_are_the_same_for_the_same_seed() -> None:
    pytest.importorskip("sklearn", reason="the hidden Markov model starts from k-means, of the extra 'models'")
    points, _ = clouds(600)
    assert np.array_equal(*(JumpModel([points], 3, 5.0, seed=4).centres for _ in range(2)))
    assert np.array_equal(*(GaussianHMM([points], 3, seed=4).means for _ in range(2)))


def test_settings_and_points_that_cannot_work_are_refused() -> None:
    points = np.ones((50, 1))
    for penalty in (-1.0, math.nan):
        with pytest.raises(ConfigError, match="penalty="):
            JumpModel([points], 2, penalty)
    with pytest.raises(ConfigError, match="states=1"):
        GaussianHMM([points], 1)
    with pytest.raises(ConfigError, match="iterations=0"):
        GaussianHMM([points], 2, iterations=0)
    points[7] = np.nan
    with pytest.raises(DataError, match="row 7"):
        JumpModel([points], 2, 1.0)
    with pytest.raises(DataError, match="row 7"):
        GaussianHMM([points], 2)


def test_features_need_no_training() -> None:
    assert [one.name for one in FEATURES] == list(NAMES[1:5])
    assert [one.name for one in FEATURES if not one.whiten] == ["wasserstein 64"]
    assert oracle(MARKET).embed(returns(1)[:10]).shape == (10, 6)
