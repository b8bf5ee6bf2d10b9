"""Selection, once by validation and on a moving window: doing nothing and one lucky bar do not win over skill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from agents import report
from agents.bootstrap import confidence_interval
from agents.selection import EARNING, FLAT, LOSING, Candidate, Selection, best_of, select, trades
from markets.errors import ConfigError

SEED, BARS = 11, 600


def noise(seed: int = 0) -> Any:
    """Returns of one bar of 1 % deviation and mean 0."""
    drawn = np.random.default_rng([SEED, seed]).standard_normal(BARS)
    return 0.01 * (drawn - drawn.mean()) / drawn.std(ddof=1)


def earning(sharpe: float, seed: int = 0) -> Any:
    return noise(seed) + 0.01 * sharpe


FLAT_AGENT = np.zeros(BARS)
LUCKY_AGENT = np.where(np.arange(BARS) == 100, 0.01, 0.0)  # a single trade: ratio sqrt(1 / T), whatever it made


def check_not_won_by_idling(choose: Callable[[dict[str, Any]], str]) -> None:
    """At every strength of skill, also where chance could explain it, and whoever is named first."""
    for sharpe in (0.01, 0.05, 0.2):
        agents = {
            "idle": FLAT_AGENT, "lucky": LUCKY_AGENT, "skilled": earning(sharpe), "losing": earning(-0.1, 1),
        }  # fmt: skip
        for order in (list(agents), list(agents)[::-1]):
            assert choose({name: agents[name] for name in order}) == "skilled", (sharpe, order)


def test_an_agent_that_does_nothing_is_not_chosen_over_one_with_skill() -> None:
    check_not_won_by_idling(lambda agents: select(agents, 10.0).name)


def highest_lower_bound(agents: dict[str, Any]) -> str:
    found = select(agents, 10.0).candidates
    return max(found, key=lambda name: 0.0 if found[name].interval is None else found[name].interval[0])  # type: ignore[index]


def highest_ratio_where_undefined_is_large(agents: dict[str, Any]) -> str:
    return max(agents, key=lambda name: (agents[name].mean() + 1e-12) / (agents[name].std() + 1e-15))


def highest_sharpe(agents: dict[str, Any]) -> str:
    """The plain rule: undefined is 0. One lucky bar has more than a skill of 0.01 a bar."""
    return max(agents, key=lambda name: agents[name].mean() / (agents[name].std(ddof=1) or 1.0))


def bounds_without_activity(agents: dict[str, Any]) -> str:
    """Classes by spread and sign alone: no resample of one lucky bar loses, so its lower bound is 0."""
    lows = {
        name: confidence_interval(values, "sharpe", mean_block=10.0, draws=200)[0]
        for name, values in agents.items()
        if values.std() > 0.0 and values.mean() > 0.0
    }
    return max(lows, key=lambda name: lows[name])


@pytest.mark.parametrize(
    "rule", [highest_lower_bound, highest_ratio_where_undefined_is_large, highest_sharpe, bounds_without_activity]
)
def test_the_usual_rules_are_caught(rule: Callable[[dict[str, Any]], str]) -> None:
    with pytest.raises(AssertionError):
        check_not_won_by_idling(rule)


def test_doing_nothing_is_chosen_where_everybody_else_lost() -> None:
    found = select({"losing": earning(-0.02), "idle": FLAT_AGENT, "worse": earning(-0.3, 1)}, 10.0)
    assert found.name == "idle"
    assert list(found.candidates) == ["idle", "losing", "worse"]
    assert not found.skilled
    assert not found.ahead


@pytest.mark.parametrize(("constant", "rank"), [(0.0, FLAT), (1e-4, FLAT), (-1e-4, LOSING)])
def test_a_record_without_spread_has_no_ratio_and_a_class_of_its_own(constant: float, rank: int) -> None:
    found = select({"flat": np.full(BARS, constant), "skilled": earning(0.05)}, 10.0)
    assert found.candidates["flat"] == Candidate(0.0, None, pytest.approx(constant), rank)
    assert found.name == "skilled"
    assert found.candidates["skilled"].rank == EARNING


def test_of_flat_records_the_one_that_earns_is_chosen_and_a_tie_goes_to_the_first() -> None:
    assert select({"idle": FLAT_AGENT, "carry": np.full(BARS, 1e-5)}, 10.0).name == "carry"
    assert select({"one": FLAT_AGENT, "two": FLAT_AGENT}, 10.0).name == "one"
    assert select({"idle": FLAT_AGENT, "lucky": LUCKY_AGENT, "losing": earning(-0.1)}, 10.0).name == "idle"
    assert select({"bleeding": np.full(BARS, -1e-5), "losing": earning(-0.1)}, 10.0).name == "losing"


def test_skill_is_told_from_luck_and_a_lead_from_a_tie() -> None:
    def chosen(first: float, second: float) -> Selection:
        return select({"first": earning(first), "second": earning(second, 1)}, 5.0)

    clear, luck, tie = chosen(0.4, 0.1), chosen(0.03, -0.1), chosen(0.30, 0.29)
    assert (clear.name, clear.skilled, clear.ahead) == ("first", True, True)
    assert (luck.name, luck.skilled) == ("first", False)
    assert (tie.skilled, tie.ahead) == (True, False)
    assert chosen(0.4, 0.1) == clear


def test_bad_records_are_named() -> None:
    for agents, words in (
        ({}, "no agent"), ({"a": np.zeros(5), "b": np.zeros(6)}, "unequal"), ({"a": [0.0, np.nan]}, "'a'"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            select(agents, 2.0)


# On a moving window


def test_on_a_window_who_is_flat_or_lucky_is_not_followed_over_one_with_skill() -> None:
    def follow(agents: dict[str, Any]) -> str:
        return list(agents)[best_of(np.stack(list(agents.values()), axis=1), errors=0.0)]

    check_not_won_by_idling(follow)


def plain_argmax(returns: np.ndarray) -> int:
    spread = returns.std(axis=0)
    ratio = np.divide(returns.mean(axis=0), spread, out=np.zeros_like(spread), where=spread > 0)
    return int(ratio.argmax())


def test_none_is_followed_where_none_is_surely_above_0() -> None:
    losing, even = earning(-0.1)[:, None], noise()[:, None]
    idle = np.zeros((BARS, 1))
    for returns in (losing, np.hstack([even, idle]), np.hstack([losing, idle]), np.hstack([idle, idle])):
        assert best_of(returns) == -1
    assert plain_argmax(np.hstack([idle, losing])) == 0  # the plain rule has no way to stand aside
    assert best_of(np.full((2, 2), 0.1)) == -1  # too few
    assert best_of(np.full((BARS, 2), 0.1)) == -1  # no spread, no ratio


def test_one_lucky_bar_is_no_skill() -> None:
    returns = np.zeros((BARS, 2))
    returns[5:7, 0] = 0.5, 0.4
    assert best_of(returns, errors=0.0) == -1
    assert best_of(returns, errors=0.0, activity=0.0) == 0
    assert plain_argmax(returns) == 0
    assert trades(returns).tolist() == [False, False]
    assert trades(returns, 2 / BARS).tolist() == [True, False]
    assert not trades(returns[:1]).any()


@pytest.mark.parametrize(("errors", "chosen"), [(1.99, 0), (2.01, -1)])
def test_the_bar_is_a_number_of_standard_errors(errors: float, chosen: int) -> None:
    assert best_of(earning(2.0 / np.sqrt(BARS))[:, None], errors=errors) == chosen


def test_both_faces_agree_where_the_lead_is_clear_and_ties_go_to_the_first() -> None:
    agents = {"idle": FLAT_AGENT, "second": earning(0.15, 1), "first": earning(0.35, 2), "losing": earning(-0.1)}
    assert select(agents, 5.0).name == list(agents)[best_of(np.stack(list(agents.values()), axis=1))] == "first"
    twice = {"one": earning(0.3), "two": earning(0.3)}
    assert select(twice, 5.0).name == "one"
    assert best_of(np.stack(list(twice.values()), axis=1)) == 0


# In the report


def told(chosen: str, kind: str, skilled: bool = False, ahead: bool = False) -> str:
    rows = {chosen: {"sharpe": 1.0, "interval": [-1.0, 3.0] if kind == "earning" else None, "class": kind}}
    found = {
        "chosen": chosen, "skilled": skilled, "ahead": ahead, "candidates": rows, "first": "2024-01-01T00:00",
        "last": "2024-06-01T00:00", "in_sample": False, "seen_by": [],
    }  # fmt: skip
    facts = {"split": "test", "source": "s", "first": "2024", "last": "2025", "periods_per_year": 8760.0, "touches": 1}
    return "\n".join(report.notes({**facts, "selection": found}))


def test_the_report_says_whom_validation_chose_and_how_little_that_may_mean() -> None:
    assert "a; its interval does not lie above 0, not surely ahead of the second." in told("a", "earning")
    assert "a; its interval lies above 0, ahead of the second." in told("a", "earning", True, True)
    assert "idle; nobody earned anything that counts." in told("idle", "flat")
    assert "a; nobody earned" in told("a", "losing")
