"""The ensemble as an agent: decisions, causality, failures, duplicates, files, evaluation."""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_pickles import KINDS, payloads
from signal_toys import LastReturn, bars_of

import agents
import regimegym
from agents.agent import Agent
from agents.ensemble import EnsembleAgent
from agents.ensemble_artefact import FILE, build, save
from agents.ensemble_memory import EnsembleMemory
from agents.ensemble_settings import EnsembleSettings
from agents.evaluation import walk
from agents.market_view import MarketView, view_of
from agents.recipe import resolve, whole_split
from agents.signals.agent import fit_signal
from agents.signals.agent import save as save_signal
from encoders.signals import SIGNALS, register
from envs.make import build as build_env
from envs.make import game_of
from markets import storage
from markets.bars import Bars
from markets.errors import ArtefactError, ConfigError, RegimeGymError

BARS = "synthetic:crypto?seed=1&interval=1h&bars=2500"
SEEN = np.zeros((1, 1), np.float32)


class Says(Agent):
    """Votes as it is told: a number, or a function of the row."""

    def __init__(self, what: float | Callable[[int], float], sure: float = 1.0, name: str = "says") -> None:
        super().__init__()
        self.what, self.sure, self.name, self.rows = what, sure, name, lambda: np.zeros(1, np.int64)

    def watch(self, view: MarketView) -> Agent:
        self.rows, self.width = view.rows, len(view.bars.symbols)
        return self

    def vote(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Any:
        says = np.array([[float(self.what(row)) if callable(self.what) else self.what] for row in self.rows()])
        direction = np.repeat(says, self.width, axis=1)
        return direction, np.full_like(direction, self.sure), state


def walking(bars: int = 1000, drift: float = 0.0, seed: int = 0, assets: int = 1) -> Bars:
    draws = np.random.default_rng(seed).normal(drift, 0.005, (bars, assets))
    return bars_of(4.0 + np.cumsum(draws, axis=0), tuple("ABCDEF"[:assets]))


class Clock:
    """The row that everybody stands on."""

    def __init__(self, bars: Bars, lanes: int = 1) -> None:
        self.bars, self.row, self.lanes = bars, 0, lanes
        self.view = MarketView(bars, lambda: np.full(self.lanes, self.row))


def seated(clock: Clock, members: Sequence[Agent], names: Sequence[str] = ("any",), **settings: Any) -> EnsembleAgent:
    weights = {f"m{place}": 1.0 for place in range(len(members))}
    ensemble = EnsembleAgent(members, list(weights), EnsembleSettings(**settings), weights)
    ensemble.bind(list(names)).watch(clock.view)
    return ensemble


def played(ensemble: EnsembleAgent, clock: Clock, bars: int, seen: Any = SEEN) -> tuple[np.ndarray, np.ndarray]:
    """Actions ``(bars, A)`` and weights ``(bars, M)`` of the first lane."""
    state, actions, weights = None, [], []
    for clock.row in range(bars):
        action, state = ensemble.predict(seen, state)
        assert ensemble.last is not None
        actions.append(action[0])
        weights.append(ensemble.last.weights[0])
    return np.array(actions), np.array(weights)


def label(ensemble: EnsembleAgent) -> int:
    ensemble.predict(SEEN)
    assert ensemble.last is not None
    return int(ensemble.last.label[0, 0])


# Decisions


@pytest.mark.parametrize(
    ("direction", "wanted"),
    [
        (0.3, 0), (float(np.nextafter(0.3, 1)), 1), (-0.3, 0), (float(np.nextafter(-0.3, -1)), -1), (0.0, 0), (1.0, 1),
        (-1.0, -1),
    ],
)  # fmt: skip
def test_a_direction_must_exceed_the_threshold(direction: float, wanted: int) -> None:
    assert label(seated(Clock(walking()), [Says(direction)], floor=0.0)) == wanted


@pytest.mark.parametrize(("sure", "wanted"), [(0.25, 1), (float(np.nextafter(0.25, 0)), 0), (0.0, 0)])
def test_a_vote_must_reach_the_floor_of_confidence(sure: float, wanted: int) -> None:
    assert label(seated(Clock(walking()), [Says(1.0, sure)], floor=0.25)) == wanted


def test_the_action_is_the_size_with_the_sign_of_the_decision() -> None:
    ensemble = seated(Clock(walking()), [Says(-1.0, 0.3)], full=0.5, max_size=0.8)
    action, _ = ensemble.predict(SEEN)
    assert action[0, 0] == pytest.approx(-0.8 * 0.6)
    assert ensemble.last is not None
    assert (ensemble.last.label[0, 0], ensemble.last.size[0, 0]) == (-1, pytest.approx(0.48))
    single, _ = ensemble.predict(SEEN[0])
    assert single.shape == (1,)


def test_hold_keeps_the_weights_of_a_portfolio() -> None:
    names = ["BTC_return_1", "A_weight", "B_weight", "cash_weight", "gross_exposure"]
    seen = np.array([[0.9, 0.2, 0.5, 0.3, 0.7]], np.float32)
    ensemble = seated(Clock(walking(assets=2)), [Says(0.0)], names)
    action, _ = ensemble.predict(seen)
    assert action[0].tolist() == pytest.approx([0.2, 0.5])


def test_hold_keeps_what_is_held_or_closes_it() -> None:
    seen = np.array([[0.35, 0.0]], np.float32)
    for unsure, wanted in (("keep", 0.35), ("flat", 0.0)):
        ensemble = seated(Clock(walking()), [Says(0.1)], ("exposure", "other"), unsure=unsure)
        action, _ = ensemble.predict(seen)
        assert action[0, 0] == pytest.approx(wanted)


def test_without_an_exposure_column_hold_repeats_the_last_target() -> None:
    clock = Clock(walking())
    actions, _ = played(seated(clock, [Says(lambda row: 1.0 if row < 3 else 0.0)]), clock, 6)
    assert actions[:, 0].tolist() == [1.0] * 6


def test_of_several_assets_each_has_its_decision() -> None:
    clock = Clock(walking(assets=3))
    ensemble = seated(clock, [Says(1.0), Says(1.0)])
    action, _ = ensemble.predict(SEEN)
    assert action.tolist() == [[1.0, 1.0, 1.0]]


def test_an_ensemble_can_be_a_member() -> None:
    clock = Clock(walking())
    inner = seated(clock, [Says(-1.0, 0.6)])
    outer = seated(clock, [inner])
    assert label(outer) == -1


# Recent skill and echoes over time


def test_recent_skill_gains_weight_and_loses_it_again() -> None:
    """A member that is right until bar 720 and wrong from there on, beside one that tosses coins."""
    bars = walking(1600, seed=3)
    moves = np.sign(np.diff(np.log(bars.close[:, 0]), append=np.nan))
    coins = np.random.default_rng(1).choice([-1.0, 1.0], 1600)
    clock = Clock(bars)
    members = [Says(lambda row: moves[row] * (1.0 if row < 720 else -1.0)), Says(lambda row: coins[row])]
    _, weights = played(seated(clock, members, cost=0.0), clock, 1599)
    assert weights[0].tolist() == pytest.approx([0.5, 0.5])
    assert weights[700, 0] > 0.7
    assert weights[1590, 0] < 0.3
    assert weights.sum(axis=1) == pytest.approx(1.0)
    clock.row = 0
    _, fixed = played(seated(clock, members, adaptive=False), clock, 800)
    assert np.abs(fixed - 0.5).max() < 1e-9


def check_causal(make: Callable[[Clock], EnsembleAgent]) -> None:
    """What a later close is changes no earlier action or weight, bit for bit."""
    bars = walking(400, seed=5)
    for k, leap in ((73, 0.0), (193, 0.4), (193, -0.4), (385, 0.0)):  # bars after those that refresh the weights
        other = np.log(bars.close[:, 0])
        noise = np.random.default_rng(k).normal(0.0, 0.05, 400 - k) + leap  # a leap outweighs all that was before
        other = np.concatenate([other[:k], other[k:] + noise])
        found = []
        for market in (bars, bars_of(other, bars.symbols)):
            clock = Clock(market)
            found.append(played(make(clock), clock, 399))
        for left, right in zip(*found, strict=True):
            assert np.array_equal(left[:k], right[:k])
        assert k > 384 or not np.array_equal(found[0][1], found[1][1])  # the last day whose weights are shown


def three(clock: Clock, **settings: Any) -> EnsembleAgent:
    coins = np.random.default_rng(2).uniform(-1.0, 1.0, (3, 400))
    return seated(clock, [Says(lambda row, coin=coin: coin[row]) for coin in coins], **settings)


@pytest.mark.parametrize("combine", ["vote", "select"])
def test_weights_know_no_later_close(combine: str) -> None:
    check_causal(lambda clock: three(clock, combine=combine, errors=0.0, cost=0.0))


@pytest.mark.parametrize("combine", ["vote", "select"])
def test_weights_that_know_the_next_close_are_caught(combine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = EnsembleMemory.close

    def peeking(self: EnsembleMemory, view: MarketView, *votes: Any) -> None:
        honest(self, MarketView(view.bars, lambda: view.rows() + 1), *votes)

    monkeypatch.setattr(EnsembleMemory, "close", peeking)
    with pytest.raises(AssertionError):
        check_causal(lambda clock: three(clock, combine=combine, errors=0.0, cost=0.0))


def shares(members: Sequence[Agent], bars: int) -> np.ndarray:
    clock = Clock(walking(400, seed=5))
    return played(seated(clock, members, adaptive=False), clock, bars)[1]


def test_a_duplicated_member_does_not_double_its_vote_from_the_first_bar_on() -> None:
    coins = np.random.default_rng(2).uniform(-1.0, 1.0, (2, 400))
    first, second, again = (Says(lambda row, coin=coin: coin[row]) for coin in (coins[0], coins[1], coins[1]))
    two, doubled = shares([first, second], 399), shares([first, second, again], 399)
    for row in (0, 5, 100, 398):
        assert doubled[row, 1] + doubled[row, 2] == pytest.approx(two[row, 1], abs=0.02)
        assert doubled[row, 1] == pytest.approx(doubled[row, 2])


def test_an_almost_equal_member_hardly_adds_a_vote_once_it_is_known() -> None:
    coins = np.random.default_rng(2).uniform(-1.0, 1.0, (3, 400))
    near = coins[1] + 0.05 * coins[2]
    doubled = shares([Says(lambda row, coin=coin: coin[row]) for coin in (coins[0], coins[1], near)], 399)
    assert doubled[1, 1:].sum() > 0.6  # nothing is known yet
    assert doubled[398, 1:].sum() < 0.6


def test_a_flat_member_is_not_selected_over_one_with_positive_skill() -> None:
    bars = walking(1200, seed=3)
    moves = np.sign(np.diff(np.log(bars.close[:, 0]), append=np.nan))
    often = np.random.default_rng(4).random(1200) < 0.6  # of the bars it is right
    skilful = Says(lambda row: moves[row] if often[row] else -moves[row], name="skilful")
    clock = Clock(bars)
    actions, weights = played(seated(clock, [Says(0.0, name="flat"), skilful], combine="select", cost=0.0), clock, 1199)
    assert not actions[:24].any()  # nobody is known yet: it stands aside
    assert weights[800:, 1].mean() > 0.9
    assert not weights[:, 0].any()


def test_none_to_select_is_flat() -> None:
    clock = Clock(walking(300, drift=-0.002))
    actions, weights = played(seated(clock, [Says(1.0), Says(0.0)], combine="select"), clock, 299)
    assert not actions.any()
    assert not weights.any()


def test_an_episode_that_begins_anew_forgets() -> None:
    bars = walking(400, seed=5)
    clock = Clock(bars)
    ensemble, state = three(clock), None
    for clock.row in range(200):
        _, state = ensemble.predict(SEEN, state)
    clock.row = 0
    fresh, _ = ensemble.predict(SEEN, None)
    weights = ensemble.last.weights  # type: ignore[union-attr]
    again, _ = ensemble.predict(SEEN, state, np.array([True]))
    assert np.array_equal(fresh, again)
    assert np.array_equal(weights, ensemble.last.weights)  # type: ignore[union-attr]


# Failures


class Fails(Says):
    """Fails at random, in every way that a member can."""

    def __init__(self, seed: int, rate: float) -> None:
        super().__init__(0.0, name=f"fails {seed}")
        self._draw, self._rate = np.random.default_rng(seed), rate

    def vote(self, observation: Any, state: Any = None, *rest: Any) -> Any:
        draw = self._draw
        good = draw.uniform(-1.0, 1.0, (len(self.rows()), 1)), draw.random((len(self.rows()), 1)), state
        if draw.random() >= self._rate:
            return good
        how = draw.integers(8)
        if how == 0:
            raise ValueError("broken")
        if how == 1:
            raise MemoryError
        if how == 2:
            return good[0] * np.nan, good[1], state
        if how == 3:
            return good[0], good[1] * np.inf, state
        if how == 4:
            return np.zeros((3, 7)), np.zeros((3, 7)), state
        if how == 5:
            return None
        if how == 6:
            return "buy", "sure", state
        return good[0] * 1e300, -good[1] * 1e300, state


@pytest.mark.parametrize(("rate", "lanes"), [(0.5, 1), (0.97, 2)])
def test_ten_thousand_failures_never_give_a_nan_or_an_exception(rate: float, lanes: int) -> None:
    clock = Clock(walking(3000), lanes)
    ensemble = seated(clock, [Fails(seed, rate) for seed in range(4)])
    state, bars = None, 0
    seen = np.zeros((lanes, 1), np.float32)
    while sum(ensemble.failures.values()) < 5000:  # two cases: ten thousand in all
        clock.row = bars % 3000
        actions, state = ensemble.predict(seen, state, np.full(lanes, clock.row == 0))
        assert actions.shape == (lanes, 1)
        assert np.isfinite(actions).all()
        assert (np.abs(actions) <= 1.0).all()
        assert ensemble.last is not None
        sums = ensemble.last.weights.sum(axis=1)
        assert ((np.abs(sums - 1.0) < 1e-9) | (sums == 0.0)).all()
        bars += 1


def test_without_the_guard_a_failure_would_end_it() -> None:
    member = Fails(0, 1.0).watch(Clock(walking()).view)
    with pytest.raises((ValueError, MemoryError)):
        [member.vote(SEEN) for _ in range(50)]


def test_who_fails_leaves_its_weight_to_the_rest_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(walking())
    ensemble = seated(clock, [Says(1.0), Says(float("nan"), name="broken"), Says(-1.0, 0.2)])
    with caplog.at_level(logging.WARNING):
        _, weights = played(ensemble, clock, 5)
    assert weights == pytest.approx(np.tile([0.5, 0.0, 0.5], (5, 1)))
    assert ensemble.failures == {"broken": 5}
    assert sum("'broken' failed" in record.message for record in caplog.records) == 1


def test_who_has_nothing_to_say_is_left_out_and_who_abstains_makes_it_less_sure() -> None:
    mute = Says(0.0, 0.0)
    ensemble = seated(Clock(walking()), [mute, Says(1.0, 0.6)])
    ensemble.predict(SEEN)
    assert ensemble.last is not None
    assert ensemble.last.confidence[0, 0] == pytest.approx(0.3)
    mute.silent = "nothing to read"  # type: ignore[attr-defined]
    ensemble.predict(SEEN)
    assert ensemble.last.confidence[0, 0] == pytest.approx(0.6)
    assert not ensemble.failures


def test_who_fails_to_say_whether_it_is_silent_is_left_out() -> None:
    class Torn(Says):
        @property
        def silent(self) -> str:
            raise RuntimeError("no table")

    ensemble = seated(Clock(walking()), [Torn(1.0, name="torn"), Says(-1.0)])
    assert label(ensemble) == -1
    assert ensemble.failures == {"torn": 1}


@pytest.mark.parametrize("timeout", [0.0, 30.0])
def test_who_writes_into_what_it_sees_changes_nobody_elses_view(timeout: float) -> None:
    class Writes(Says):
        def vote(self, observation: Any, *words: Any) -> Any:
            observation[:] = np.nan
            return super().vote(observation, *words)

    class Reads(Says):
        def vote(self, observation: Any, *words: Any) -> Any:
            assert np.isfinite(observation).all()
            return super().vote(observation, *words)

    seen = np.array([[0.25]], np.float32)
    ensemble = seated(Clock(walking()), [Writes(0.0, 0.0), Reads(0.0, 0.0)], ("exposure",), timeout=timeout)
    action, _ = ensemble.predict(seen)
    assert not ensemble.failures
    assert seen[0, 0] == 0.25
    assert action[0, 0] == 0.25, "and HOLD keeps what is held"


@pytest.mark.parametrize("unsure", ["keep", "flat"])
@pytest.mark.parametrize("combine", ["vote", "select"])
def test_where_all_fail_the_ensemble_holds(unsure: str, combine: str) -> None:
    seen = np.array([[-0.4]], np.float32)
    ensemble = seated(Clock(walking()), [Says(float("nan"))] * 2, ("exposure",), unsure=unsure, combine=combine)
    action, _ = ensemble.predict(seen)
    assert action[0, 0] == pytest.approx(-0.4)
    assert label(ensemble) == 0


def test_who_answers_late_is_left_out_until_it_is_done() -> None:
    gate = threading.Event()

    class Late(Says):
        asked = 0

        def vote(self, *words: Any) -> Any:
            self.asked += 1
            assert gate.wait(30.0)
            return super().vote(*words)

    late = Late(1.0, name="late")
    clock = Clock(walking())
    ensemble = seated(clock, [late, Says(-1.0)], timeout=0.02)
    assert label(ensemble) == -1
    assert label(ensemble) == -1
    assert (late.asked, ensemble.failures["late"]) == (1, 2)
    gate.set()
    ensemble._asked[0].join(30.0)  # type: ignore[union-attr]
    patient = seated(clock, [late, Says(-1.0, 0.1)], timeout=30.0)
    assert label(patient) == 1
    assert not patient.failures


def test_one_that_is_not_ready_says_what_to_call() -> None:
    ensemble = EnsembleAgent([Says(1.0)], ["rl"])
    with pytest.raises(ConfigError, match="watch"):
        ensemble.predict(SEEN)
    clock = Clock(walking())
    with pytest.raises(ConfigError, match="shape"):
        seated(clock, [Says(1.0)]).predict(np.zeros((1, 5), np.float32))
    with pytest.raises(ConfigError, match="last predict"):
        seated(clock, [Says(1.0)]).predict(SEEN, state="no")


# Files and the command line


@pytest.fixture(autouse=True)
def own_touch_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's log of test readings stays out of reach."""
    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short PPO, two toy signals and their ensemble, made by the command line."""
    place = tmp_path_factory.mktemp("ensemble")
    register("signal_toys:LastReturn")
    for name, sign in (("follow", 1.0), ("half", 0.5)):
        save_signal(place / name, fit_signal(LastReturn(sign), "PerpFutures-v0", {"bars": BARS}))
    words = ["train", "--env", "PerpFutures-v0", "--algo", "ppo", "--bars", BARS, "--steps", "1024", "--lanes", "16"]
    settings = ["--set", "n_steps=32", "--set", "batch_size=256", "--evaluations", "0", "--quiet", "--device", "cpu"]
    assert regimegym.main([*words, *settings, "--out", str(place / "ppo")]) == 0
    members = [str(place / name) for name in ("follow", "ppo", "half")]
    more = ["--weight", "last_return=0.3", "--set", "floor=0.05", "--out", str(place / "all")]
    assert regimegym.main(["ensemble", "--members", *members, *more]) == 0
    return place


@pytest.fixture(autouse=True, scope="module")
def own_rows() -> Any:
    """The toy's row ends with this file."""
    rows = dict(SIGNALS)
    yield
    SIGNALS.clear()
    SIGNALS.update(rows)


def test_a_saved_ensemble_is_moved_by_itself_and_acts_as_before(folder: Path, tmp_path: Path) -> None:
    made = build(
        [folder / name for name in ("follow", "ppo", "half")], EnsembleSettings(floor=0.05), {"last_return": 0.3}
    )
    shutil.copy(folder / "all" / FILE, tmp_path / FILE)
    read = agents.load(tmp_path)
    assert read.base.tolist() == pytest.approx([0.25, 0.5, 0.25])
    assert read.settings == made.settings
    assert [member.name for member in read.members] == ["last_return", "ppo seed 0", "last_return (2)"]
    env = build_env("PerpFutures", bars=BARS, split="test", scaler=read.scaler)
    read.check(env)
    actions = []
    for ensemble in (made, read):
        observation, _ = env.reset(seed=0)
        ensemble.bind(env.observation_names).watch(view_of(env))
        state, said = None, []
        for _ in range(50):
            action, state = ensemble.predict(observation, state)
            observation, *_ = env.step(action)
            said.append(action.tolist())
        actions.append(said)
    assert actions[0] == actions[1]
    assert np.abs(actions[0]).max() > 0.0


def test_evaluate_prints_members_ensemble_and_baselines_in_one_table(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regimegym.main(["evaluate", str(folder / "all"), "--split", "validation", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = list(found["table"])
    assert names[-4:] == ["last_return", "ppo seed 0", "last_return (2)", "ensemble"]
    assert {"idle", "buy-and-hold"} <= set(names)
    assert found["rows"]["ensemble"]["turnover_per_year"] > 0.0
    rate = re.search(r"confidence >= 0.5 on (\d+\.\d\d) bars a day, (\d+\.\d\d) of them new", found["remarks"][0])
    assert rate is not None, found["remarks"]
    assert 0.0 <= float(rate[2]) <= float(rate[1]) <= 24.0
    assert found["remarks"][0] in (folder / "all" / "evaluation-validation.md").read_text(encoding="utf-8")
    assert set(found["selection"]["candidates"]) == {"idle", *names[-4:]}


def test_signals_and_ensembles_that_were_evaluated_count_as_trials_ever_after(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def runs(*folders: Path) -> int:
        capsys.readouterr()
        words = [str(one) for one in folders]
        assert regimegym.main(["evaluate", *words, "--split", "validation", "--quiet", "--json", "--out", out]) == 0
        return int(json.loads(capsys.readouterr().out)["trials"]["runs"])

    out = str(tmp_path / "report")
    assert runs(folder / "follow") == 1
    assert runs(folder / "all") == 4
    for days in ("20", "40"):
        other = tmp_path / days
        words = ["--members", str(folder / "ppo"), "--set", f"days={days}", "--out", str(other)]
        assert regimegym.main(["ensemble", *words]) == 0
        assert runs(other) == (5 if days == "20" else 6)
    assert runs(folder / "ppo") == 6  # nobody is forgotten, nobody counts twice


def test_high_confidence_signals_are_counted_per_day() -> None:
    """Five hours of the day are sure, in three spells of which one turns: four signals begin, twice over."""
    clock = Clock(walking(60))
    sure = {1: 1.0, 2: 1.0, 8: 1.0, 9: -1.0, 20: 1.0}  # hour of the day: vote
    ensemble = seated(clock, [Says(lambda row: sure.get(row % 24, 0.0))], adaptive=False)
    played(ensemble, clock, 48)
    said = "48 bars of the first lane: BUY 8, SELL 2, HOLD 38; confidence >= 0.5 on 5.00 bars a day, 4.00 of them new"
    assert ensemble.report().startswith(said)
    assert "bars with a vote of says 21%;" in ensemble.report()  # 10 of 48
    ensemble.failures["says"] = 3
    ensemble.bind(["any"])
    assert ensemble.report().startswith("0 bars of the first lane: BUY 0")
    assert ensemble.report().endswith("failures: none")


def test_an_agent_that_is_named_twice_or_beside_its_ensemble_is_one_run(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Else it would be two runs with an interval of no width, two trials, and two strategies of the PBO."""
    words = [str(folder / name) for name in ("all", "follow", "ppo", "ppo")]
    assert regimegym.main(["evaluate", *words, "--split", "validation", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["agents"]) == ["last_return", "ensemble", "last_return (2)", "ppo seed 0"]
    assert not [name for name in found["table"] if "runs (IQM)" in name]
    assert found["overfitting"]["strategies"] == 4
    assert "1 of 4 agents are the same" in caplog.text


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    words = ["evaluate", str(folder / "follow"), "--split", "validation", "--quiet", "--json", "--out", str(tmp_path)]
    assert regimegym.main(words) == 0
    before = (tmp_path / "evaluation-validation.json").read_bytes()
    monkeypatch.setattr("markets.storage.os.fsync", full)
    assert regimegym.main(words) != 0
    assert (tmp_path / "evaluation-validation.json").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_changed_leverage_is_refused_by_every_member(folder: Path) -> None:
    with pytest.raises(ArtefactError, match="leverage"):
        agents.load(folder / "all").check(build_env("PerpFutures", bars=BARS, split="test", leverage=7))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("member", ["", "manifest.json", "scaler.json", "member-01.zip", "data.pkl"])
def test_a_planted_pickle_in_an_ensemble_is_refused_and_never_executed(
    member: str, kind: str, folder: Path, tmp_path: Path
) -> None:
    planted = payloads(tmp_path / "executed")[kind]
    path = tmp_path / FILE
    if member in ("", "manifest.json"):
        path.write_bytes(planted)
    else:
        manifest, parts = storage.read(folder / "all" / FILE, ["scaler.json"], [f"member-0{k}.zip" for k in range(3)])
        storage.write(path, manifest, {**parts, member: planted})
    with pytest.raises(RegimeGymError):
        agents.load(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"members": []}, "its members"), ({"settings": {"floor": 3}}, "floor=3"), ({"format": 0}, "format is 0"),
        ({"weights": {"who": 1.0}}, "no member has it"), ({"lanes": "x"}, "lanes is 'x'"),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_is_named(change: dict[str, Any], said: str, folder: Path, tmp_path: Path) -> None:
    manifest, parts = storage.read(folder / "all" / FILE, ["scaler.json"], [f"member-0{k}.zip" for k in range(3)])
    storage.write(tmp_path / FILE, {**manifest, **change}, parts)
    with pytest.raises(ArtefactError, match=said):
        agents.load(tmp_path)


def test_wrong_members_are_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    for words, said in (
        (["--members", str(folder / "all"), "--out", out], "is an ensemble"),
        (["--members", str(tmp_path / "nothing"), "--out", out], "no agent.zip there"),
        (["--members", str(folder / "ppo"), "--weight", "garch=1", "--out", out], "no member has it"),
        (["--members", str(folder / "ppo"), "--set", "flor=1", "--out", out], "Did you mean 'floor'"),
        (["--members", str(folder / "ppo"), "--role", "other=rl", "--out", out], "it is no member"),
        (["--members", str(folder / "ppo"), "--out", str(folder / "ppo")], "holds agent.zip already"),
        (["--members", str(folder / "follow"), "--env", "ZeroDTE-v0", "--out", out], "actions are choices"),
    ):
        assert regimegym.main(["ensemble", *words]) == 2
        assert said in capsys.readouterr().err
    assert not Path(out).exists()


def test_lanes_of_a_walk_decide_as_they_would_alone(folder: Path) -> None:
    ensemble = build([folder / "follow", folder / "half"], EnsembleSettings(floor=0.05))
    family, config = resolve("PerpFutures-v0", {"bars": BARS})
    game = game_of(family, replace(whole_split(config, "validation"), scaler=ensemble.scaler))
    together = walk(ensemble, game, (0.0, 1.0, 5.0))
    assert together.turnover.min() > 0.0
    for lane, scale in enumerate(together.scales):
        alone = walk(ensemble, game, (scale,))
        assert np.array_equal(alone.equity[:, 0], together.equity[:, lane])


def test_a_policy_without_an_encoder_may_vote_beside_one(folder: Path, tiny_folder: Path) -> None:
    bars = "synthetic:regimes?seed=5&bars=3000"
    arguments: dict[str, Any] = {"bars": bars, "encoded": "jepa", "encoder": str(tiny_folder), "split": "train"}
    manifest = dict(agents.load(folder / "ppo").manifest)
    plain, encoded = build_env("PerpFutures", bars=bars, split="train"), build_env("PerpFutures", **arguments)
    policy = agents.load(folder / "ppo")
    policy.scaler = plain.unwrapped.simulation.game.details["scaler"]
    policy.check(plain)
    with pytest.raises(ArtefactError, match="encoder"):
        policy.check(encoded)
    EnsembleAgent([policy], ["rl"]).check(encoded)
    policy.manifest = {**manifest, "encoder": {"name": "other", "sha256": "0"}}
    with pytest.raises(ArtefactError, match="encoder"):
        EnsembleAgent([policy], ["rl"]).check(encoded)


def test_policies_of_several_ids_act_where_the_encoder_is_and_say_where_they_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--algo", "ppo", "--bars", "synthetic:crypto?seed=1&interval=1h&bars=4500", "--steps", "512", "--lanes"]
    more += ["16", "--set", "n_steps=32", "--set", "batch_size=256", "--evaluations", "0", "--quiet", "--device", "cpu"]
    ids = ["PerpFutures-v0", "PerpFutures-JEPA-v0"]
    for name in ids:
        assert regimegym.main(["train", "--env", name, *more, "--out", str(tmp_path / name)]) == 0
    members = [str(tmp_path / name) for name in ids]
    assert regimegym.main(["ensemble", "--members", *members, "--out", str(tmp_path / "all")]) == 0
    made = agents.load(tmp_path / "all")
    assert made.manifest["env"] == ids[1]
    names = [f"ppo on {name} seed 0" for name in ids]
    assert [member.name for member in made.members] == names
    capsys.readouterr()
    assert regimegym.main(["evaluate", str(tmp_path / "all"), "--split", "validation", "--quiet", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)["table"]
    assert list(table)[-3:] == [*names, "ensemble"]
    assert table[names[0]]["total_return"] != table[names[1]]["total_return"]


def test_a_role_of_ones_own_has_its_weight(folder: Path, tmp_path: Path) -> None:
    paths = [folder / "follow", folder / "ppo"]
    ensemble = build(paths, None, {"tft": 0.9}, {f"{paths[0]}/": "tft"})
    save(tmp_path, ensemble, paths)
    read = agents.load(tmp_path)
    assert read.roles == ("tft", "rl")
    assert read.base.tolist() == pytest.approx([0.75, 0.25])
