"""Odds of a change of regime: the sum over every path, causal, the same live, and better than what they replace."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.change_odds import LONGEST, ChangeStream, change_flags, coming_change, recent_change, usual_window
from encoders.encoder import load
from encoders.jepa import JEPAEncoder
from encoders.regime_changes import change_scores, delays, detect_regime_changes, onsets
from encoders.regimes import transitions
from markets import sources
from markets.errors import ConfigError, DataError
from markets.synthetic_regimes import posterior, regime_market, simulate

Floats = NDArray[np.float64]
Recent = Callable[[Floats, Floats, int], Floats]

CHAIN = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.3, 0.1, 0.6]])
START = np.array([0.5, 0.2, 0.3])
WITHIN = 3


def model(bars: int = 5) -> tuple[Floats, Floats]:
    """Densities ``(T, K)`` of some bars, and the filter's odds by its recursion."""
    density = np.random.default_rng(0).gamma(1.0, size=(bars, 3))
    odds, row = [], START * density[0]
    for t in range(bars):
        row = row if t == 0 else (odds[-1] @ CHAIN) * density[t]
        odds.append(row / row.sum())
    return density, np.array(odds)


def enumerated(density: Floats, t: int) -> tuple[float, float]:
    """P(a change within the last bars) and within the next, over every path of the bars up to t (and after it)."""
    total = changed = coming = 0.0
    for path in itertools.product(range(3), repeat=t + 1 + WITHIN):
        weight = START[path[0]] * np.prod([CHAIN[a, b] for a, b in itertools.pairwise(path)])
        weight *= np.prod([density[s, path[s]] for s in range(t + 1)])
        total += weight
        changed += weight * (len(set(path[max(t - WITHIN, 0) : t + 1])) > 1)
        coming += weight * (len(set(path[t:])) > 1)
    return changed / total, coming / total


def is_exact(recent: Recent) -> bool:
    density, odds = model()
    found = recent(odds, CHAIN, WITHIN)
    return all(abs(found[t] - enumerated(density, t)[0]) < 1e-12 for t in range(len(odds)))


def distance(odds: Floats, chain: Floats, within: int) -> Floats:
    """Total variation between the odds now and ``within`` bars before."""
    before = np.concatenate([np.repeat(odds[:1], within, axis=0), odds])[: len(odds)]
    return np.asarray(0.5 * np.abs(odds - before).sum(axis=1))


def forgetful(odds: Floats, chain: Floats, within: int) -> Floats:
    """The chance of a change before anything was seen, from the odds of then."""
    return coming_change(np.concatenate([np.repeat(odds[:1], within, axis=0), odds])[: len(odds)], chain, within)


def late(odds: Floats, chain: Floats, within: int) -> Floats:
    return recent_change(odds, chain, within + 1)


def test_recent_and_coming_changes_are_sums_over_every_path() -> None:
    """K24."""
    assert is_exact(recent_change)
    density, odds = model()
    coming = coming_change(odds, CHAIN, WITHIN)
    for t in range(len(odds)):
        assert coming[t] == pytest.approx(enumerated(density, t)[1], abs=1e-12)


@pytest.mark.parametrize("mutant", [distance, forgetful, late])
def test_the_enumeration_catches_other_readings(mutant: Recent) -> None:
    assert not is_exact(mutant)


@pytest.fixture(scope="module")
def made(tiny_folder: Path) -> JEPAEncoder:
    encoder = load(tiny_folder)
    assert isinstance(encoder, JEPAEncoder)
    return encoder


@pytest.fixture(scope="module")
def bars() -> Any:
    return sources.load("synthetic:regimes?seed=9&bars=3000&level=clear&regimes=3")


def test_live_equals_the_table_and_goes_on_after_a_restart(made: JEPAEncoder, bars: Any) -> None:
    table = made.change_odds(bars, 40)
    encoder = made.speaking("softmax")  # the odds of a change are the belief's whatever is served
    assert np.array_equal(encoder.change_odds(bars, 40), table)
    live: Any = encoder.stream()
    stream = ChangeStream(made.belief.transition, 40)
    for row in range(1200):
        if row == 500:
            kept, stream = stream.state_dict(), ChangeStream(made.belief.transition, 40)
            stream.load_state_dict(kept)
        live.push(float(bars.close[row, 0]), float(bars.volume[row, 0]))
        assert abs(stream.update(live.belief) - table[row]) <= 1e-9, row
    assert table[:1200].max() > 0.3, "the test has no power"


def test_live_with_another_window_is_caught(made: JEPAEncoder, bars: Any) -> None:
    odds = made.odds(bars, "belief")[:600]
    stream = ChangeStream(made.belief.transition, 41)
    found = np.array([stream.update(row) for row in odds])
    assert np.abs(found - made.change_odds(bars, 40)[:600]).max() > 1e-6


def test_no_row_knows_a_later_bar(made: JEPAEncoder, bars: Any) -> None:
    table = made.change_odds(bars)
    assert made.change_odds(bars.between(0, 1700)).tobytes() == table[:1700].tobytes()
    smoothed = np.convolve(table, np.ones(9) / 9, mode="same")
    again = np.convolve(made.change_odds(bars.between(0, 1700)), np.ones(9) / 9, mode="same")
    assert not np.array_equal(again, smoothed[:1700]), "a centred mean would be caught"


def test_the_usual_window_is_a_sixth_of_the_mean_spell() -> None:
    assert usual_window([[0.99, 0.01], [0.01, 0.99]]) == 17
    assert usual_window([[0.9, 0.1], [0.001, 0.999]]) == round(1 / 6 / (0.1 * 1 / 101 + 0.001 * 100 / 101))
    assert usual_window(np.full((2, 2), 0.5)) == 2


def test_a_chain_that_hardly_leaves_does_not_ask_for_all_memory() -> None:
    assert usual_window([[1 - 1e-5, 1e-5], [1e-5, 1 - 1e-5]]) == LONGEST
    assert usual_window([[1 - 1e-3, 1e-3], [1e-3, 1 - 1e-3]]) == 167 < LONGEST
    never = np.full((20, 2), 0.5)
    assert recent_change(never, np.eye(2)).tolist() == pytest.approx([0.0] * 20)


def test_a_flag_waits_until_the_odds_have_fallen() -> None:
    odds = np.array([0.1, 0.75, 0.6, 0.8, 0.3, 0.71, 0.9])
    assert np.flatnonzero(change_flags(odds)).tolist() == [1, 5]
    assert np.flatnonzero(change_flags(odds, 0.85)).tolist() == [6]
    with pytest.raises(ConfigError, match="least=1"):
        change_flags(odds, 1.0)


def test_known_switches_are_found_with_fewer_false_alarms_than_by_other_readings() -> None:
    """K24: F1, delay and false alarms on ``synthetic:regimes``, printed; odds are the exact filter's of the market."""
    market = regime_market("market", 6)
    returns, labels = simulate(102, 16_000, market)
    odds, true = posterior(returns, market), np.flatnonzero(np.diff(labels)) + 1
    found = {
        "odds of a change": np.flatnonzero(change_flags(recent_change(odds, market.transition))),
        "most likely regime held 3 bars": np.flatnonzero(transitions(odds)),
        "distance of odds, causal": onsets(detect_regime_changes(returns, odds, lag=24)),
        "distance of odds, offline": onsets(detect_regime_changes(returns, odds, lag=24, mode="offline")),
        "drawn at random": np.sort(np.random.default_rng(0).integers(0, len(returns), len(true))),
    }
    f1, false = {}, {}
    for name, points in found.items():
        scores, after = change_scores(points, true, 96), delays(points, true, 96)
        f1[name], false[name] = scores["f1"], 1000 * (len(points) - len(after)) / len(returns)
        print(f"{name}: {scores}, median delay {np.median(after)} bars, {false[name]:.2f} false alarms in 1,000 bars")
    assert f1["odds of a change"] > max(value for name, value in f1.items() if name != "odds of a change") + 0.1
    assert false["odds of a change"] < 0.5 * false["most likely regime held 3 bars"]
    assert f1["drawn at random"] < 0.25


def test_what_is_no_odds_or_no_chain_is_refused_and_leaves_the_state_alone() -> None:
    _, odds = model()
    with pytest.raises(ConfigError, match="within=0"):
        recent_change(odds, CHAIN, 0)
    with pytest.raises(DataError, match=r"\(3, 3\)"):
        recent_change(odds[:, :2], CHAIN)
    with pytest.raises(DataError, match="row 2"):
        recent_change(np.where(np.arange(5)[:, None] == 2, np.nan, odds), CHAIN)
    stream = ChangeStream(CHAIN, 2)
    stream.update(odds[0])
    kept = stream.state_dict()
    for wrong in (odds[0][:2], np.full(3, np.nan)):
        with pytest.raises(DataError, match="3 finite numbers"):
            stream.update(wrong)
    assert all(np.array_equal(value, kept[name]) for name, value in stream.state_dict().items())
