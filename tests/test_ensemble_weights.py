"""Weights and votes of an ensemble, by hand: base weights, recent skill, echoes, thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from agents.ensemble_settings import EnsembleSettings, position_size, settings_of
from agents.ensemble_weights import (
    OTHER,
    ROLES,
    WIDEST,
    base_weights,
    combine,
    likeness,
    shrunk_sharpe,
    skilled,
    without_echoes,
)
from markets.errors import ConfigError, UnknownNameError

HOURS = 8760.0
MONTH = 720


def noise(members: int, seed: int = 0, bars: int = MONTH) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 0.005, (bars, members))


def test_the_base_weights_sum_to_one_and_are_those_of_the_roles() -> None:
    assert ROLES == {
        "rl": 0.30, "tft": 0.25, "lstm_cnn": 0.20, "mean_reversion": 0.10, "garch": 0.10, "boosting": 0.05,
        "sentiment": 0.0,
    }  # fmt: skip
    assert base_weights(list(ROLES)).tolist() == pytest.approx(list(ROLES.values()))


def test_absent_members_leave_their_weight_to_the_rest() -> None:
    assert base_weights(["rl", "mean_reversion", "garch"]).tolist() == pytest.approx([0.6, 0.2, 0.2])


def test_members_of_a_role_share_its_weight() -> None:
    assert base_weights(["rl", "rl", "rl", "garch"]).tolist() == pytest.approx([0.25, 0.25, 0.25, 0.25])


def test_an_unknown_role_has_a_small_weight_and_a_given_one_counts() -> None:
    assert base_weights(["garch", "mine"]).tolist() == pytest.approx([0.1 / (0.1 + OTHER), OTHER / (0.1 + OTHER)])
    assert base_weights(["garch", "sentiment"], {"sentiment": 0.3}).tolist() == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(
    ("roles", "given"),
    [
        ([], {}), (["sentiment"], {}), (["garch"], {"garch": 0.0}), (["garch"], {"garch": -1.0}),
        (["garch"], {"garch": float("nan")}), (["garch"], {"rl": 0.5}), (["garch"], {"garch": "much"}),
    ],
)  # fmt: skip
def test_weights_that_cannot_work_are_refused(roles: list[str], given: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        base_weights(roles, given)


def test_a_vote_by_hand() -> None:
    weights = np.array([[0.5, 0.3, 0.2]])
    direction = np.array([1.0, -1.0, 0.5]).reshape(1, 3, 1)
    confidence = np.array([0.8, 0.4, 0.0]).reshape(1, 3, 1)
    combined, sure = combine(weights, direction, confidence)
    assert combined[0, 0] == pytest.approx((0.5 * 0.8 - 0.3 * 0.4) / (0.5 * 0.8 + 0.3 * 0.4))
    assert sure[0, 0] == pytest.approx(0.5 * 0.8 - 0.3 * 0.4)


def test_who_abstains_changes_no_direction_but_makes_the_vote_less_sure() -> None:
    alone = combine(np.array([[1.0, 0.0]]), np.ones((1, 2, 1)), np.array([[[0.6], [0.0]]]))
    both = combine(np.array([[0.5, 0.5]]), np.ones((1, 2, 1)), np.array([[[0.6], [0.0]]]))
    assert alone[0] == both[0] == 1.0
    assert (alone[1], both[1]) == (0.6, 0.3)


def test_where_nobody_votes_there_is_no_direction() -> None:
    for weights in (np.array([[0.5, 0.5]]), np.zeros((1, 2))):
        combined, sure = combine(weights, np.ones((1, 2, 1)), np.zeros((1, 2, 1)))
        assert (combined[0, 0], sure[0, 0]) == (0.0, 0.0)


# Recent skill


def test_a_sharpe_ratio_is_shrunk_by_its_error() -> None:
    returns = noise(1)
    plain = returns.mean() / returns.std(ddof=1) * np.sqrt(HOURS)
    assert shrunk_sharpe(returns, HOURS)[0] == pytest.approx(plain / (1.0 + HOURS / MONTH))
    year = noise(1, bars=8760)
    plain = year.mean() / year.std(ddof=1) * np.sqrt(HOURS)
    assert shrunk_sharpe(year, HOURS)[0] == pytest.approx(plain / 2.0)


def test_recent_skill_gains_weight_within_bounds() -> None:
    returns = noise(3) - noise(3).mean(axis=0)
    returns[:, 0] += 0.0005
    returns[:, 2] -= 0.0005
    base = np.array([0.2, 0.5, 0.3])
    weights = skilled(base, returns, HOURS)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[0] / weights[1] > base[0] / base[1]
    assert weights[2] / weights[1] < base[2] / base[1]
    extreme = skilled(base, returns + np.array([1.0, 0.0, -1.0]), HOURS)
    assert extreme[0] / extreme[2] == pytest.approx(base[0] / base[2] * WIDEST**2)


@pytest.mark.parametrize(
    "returns", [np.zeros((MONTH, 2)), np.full((MONTH, 2), 0.001), np.zeros((1, 2)), np.zeros((0, 2))]
)
def test_without_variance_recent_skill_changes_nothing(returns: np.ndarray) -> None:
    assert shrunk_sharpe(returns, HOURS).tolist() == [0.0, 0.0]
    assert skilled(np.array([0.4, 0.6]), returns, HOURS).tolist() == pytest.approx([0.4, 0.6])


def test_doing_nothing_is_no_skill() -> None:
    returns = noise(2)
    returns[:, 0] = 0.0
    returns[:, 1] += 0.0005
    weights = skilled(np.array([0.5, 0.5]), returns, HOURS)
    assert weights[1] > 0.5 > weights[0]


# Echoes


def alike(members: int, pairs: list[tuple[int, int]]) -> np.ndarray:
    out = np.eye(members)
    for i, j in pairs:
        out[i, j] = out[j, i] = 1.0
    return out[None]


def test_an_echo_does_not_double_a_vote() -> None:
    alone = without_echoes(np.array([[0.5, 0.5]]), alike(2, []))[0]
    echoed = without_echoes(np.array([[1 / 3, 1 / 3, 1 / 3]]), alike(3, [(1, 2)]))[0]
    assert echoed[0] == pytest.approx(alone[0])
    assert echoed[1] + echoed[2] == pytest.approx(alone[1])
    assert without_echoes(np.array([[1 / 3, 1 / 3, 1 / 3]]), alike(3, []))[0][1:].sum() > 0.6  # unaware, it would


def test_a_cluster_carries_the_weight_of_its_heaviest() -> None:
    weights = without_echoes(np.array([[0.3, 0.1, 0.6]]), alike(3, [(0, 1)]))[0]
    assert weights[0] + weights[1] == pytest.approx(0.3 / 0.9)
    assert weights[0] == pytest.approx(3 * weights[1])


def test_who_failed_is_nobodys_echo() -> None:
    weights = without_echoes(np.array([[0.5, 0.0, 0.5]]), alike(3, [(0, 1)]))[0]
    assert weights.tolist() == pytest.approx([0.5, 0.0, 0.5])
    assert without_echoes(np.zeros((1, 3)), alike(3, []))[0].tolist() == [0.0, 0.0, 0.0]


def test_likeness_is_that_of_returns_shrunk_and_never_of_opposites() -> None:
    returns = noise(3)
    returns[:, 1] = returns[:, 0]
    returns[:, 2] = -returns[:, 0]
    found = likeness(returns)
    assert found[0, 1] == pytest.approx((MONTH / (MONTH + 100.0)) ** 2)
    assert found[0, 2] == 0.0
    assert np.diag(found).tolist() == [1.0, 1.0, 1.0]
    assert likeness(noise(2))[0, 1] < 0.02
    assert np.array_equal(likeness(np.zeros((5, 2))), np.eye(2))


# Size and settings


def test_the_size_rises_with_confidence_and_is_capped() -> None:
    settings = EnsembleSettings(full=0.4, max_size=0.7)
    sizes = position_size(np.linspace(0.0, 1.0, 101), settings)
    assert (np.diff(sizes) >= 0.0).all()
    assert sizes[0] == 0.0
    assert sizes[20] == pytest.approx(0.35)
    assert sizes[40] == sizes[-1] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("combine", "best"), ("unsure", "sell"), ("threshold", 1.1), ("floor", -0.1), ("full", 0.0), ("max_size", 2.0),
        ("days", 0.0), ("cost", float("nan")), ("timeout", -1.0), ("adaptive", "yes"), ("high", True),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError):
        settings_of({name: value})


def test_an_unknown_setting_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'threshold'"):
        settings_of({"treshold": 0.2})
