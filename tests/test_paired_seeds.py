"""Differences of arms over the same seeds: what is paired cancels, and a share of nothing is refused."""

from __future__ import annotations

import numpy as np
import pytest

from agents import paired_seeds
from agents.paired_seeds import aggregate, difference, ratio
from markets.errors import ConfigError


def arms(seeds: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of a market that moves all arms alike, far more than they differ: A, C, D."""
    draw = np.random.default_rng(7)
    market = draw.normal(0.0, 1.0, seeds)
    noise = draw.normal(0.0, 0.02, (3, seeds))
    return market + noise[0], market + 0.09 + noise[1], market + 0.1 + noise[2]


def test_the_middle_half_of_the_differences_is_averaged() -> None:
    found = difference([5.0, 12.0, 103.0, 8.0], [4.0, 10.0, 3.0, 5.0])
    assert found["values"] == [1.0, 2.0, 100.0, 3.0]
    assert found["iqm"] == pytest.approx(2.5)
    assert aggregate([1.0, 2.0, 100.0, 3.0])["iqm"] == pytest.approx(2.5)


def test_what_the_market_did_to_both_arms_cancels() -> None:
    base, _, upper = arms()
    low, high = difference(upper, base)["interval"]
    assert 0.0 < low < 0.1 < high < 0.15
    unpaired = difference(upper, np.random.default_rng(0).permutation(base))["interval"]
    assert unpaired[0] < 0.0 < unpaired[1], "the mutant that pairs other seeds sees nothing"


def test_intervals_of_five_seeds_hold_the_truth_at_least_as_often_as_they_say() -> None:
    def share(widen: bool, trials: int = 300) -> float:
        held = 0
        for trial in range(trials):
            drawn = paired_seeds._drawn(np.random.default_rng(trial).normal(0.3, 1.0, 5))[::10]
            low, high = paired_seeds._interval(drawn, 5) if widen else np.quantile(drawn, [0.025, 0.975])
            held += low <= 0.3 <= high
        return held / trials

    assert share(True) >= 0.95
    assert share(False) < 0.92, "the mutant: percentiles as they are"


def test_both_parts_of_a_ratio_are_drawn_together() -> None:
    base, _, upper = arms()
    half = base + 0.5 * (upper - base)
    found = ratio(half, base, upper, base)
    assert found["value"] == pytest.approx(0.5)
    assert found["interval"] == pytest.approx([0.5, 0.5])
    other = ratio(np.roll(half - base, 1), np.zeros(10), upper, base)
    assert other["interval"][1] - other["interval"][0] > 0.05, "the mutant that draws other seeds for the denominator"


def test_a_share_is_said_only_of_a_gap_that_is_there() -> None:
    base, middle, upper = arms()
    said = ratio(middle, base, upper, base)
    assert said["refused"] is None
    assert said["interval"][0] < 0.9 < said["interval"][1]
    for nothing in (base + np.random.default_rng(3).normal(0.0, 0.3, 10), 2.0 * base - upper):
        refused = ratio(middle, base, nothing, base)
        assert refused["value"] is None
        assert refused["interval"] is None
        assert "not above 0" in refused["refused"]
    twin = np.mean(middle - base) / np.mean(2.0 * base - upper - base)
    assert np.isfinite(twin), "a plain quotient would have given a number"


def test_scores_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 and 2 seeds"):
        difference([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ConfigError, match="2 and 3 seeds"):
        ratio([1.0, 2.0], [0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    with pytest.raises(ConfigError, match="scores"):
        difference([1.0], [2.0])
    with pytest.raises(ConfigError, match="scores"):
        difference([1.0, np.nan], [2.0, 1.0])
