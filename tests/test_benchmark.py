"""The benchmark measures what it says: ratios in one run, never an asserted time."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import envs
import regimegym
from agents import benchmark, encoder_speed, scaling, stopwatch
from agents.empty_env import make_empty
from agents.peers import PEERS, Peer
from agents.scaling import construction, default_bars, tiled
from agents.stopwatch import Fact, Row, Stopwatch
from markets import sources
from markets.errors import ConfigError, UnknownNameError

ENV = "PerpFutures-v0"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark of a few steps."""
    for name, value in (("SINGLE_STEPS", 300), ("PEER_STEPS", 300), ("LANE_STEPS", 4_096)):
        monkeypatch.setattr(benchmark, name, value)
    for name, value in (
        ("SHORT", 2_000), ("LONG", 8_000), ("EPISODE", 2_500), ("LATE", 1_000), ("LANES", 4), ("CALLS", 20),
    ):  # fmt: skip
        monkeypatch.setattr(scaling, name, value)


@pytest.mark.usefixtures("small")
def test_the_benchmark_prints_every_row_and_fact_with_its_bound(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "construction", lambda env_id: [Fact("built", 1.0, 2.0)])
    monkeypatch.setattr(benchmark, "speed_facts", lambda encoded, rounds: [Fact(f"{encoded}: a bar", 1.0, 3.0)])
    monkeypatch.setattr(benchmark, "PEERS", (Peer("nobody", "no_such_module", 1, lambda steps, stream: int),))
    assert regimegym.main(["benchmark", "--rounds", "1", "--no-training", "--json"]) in (0, 1)
    result = json.loads(capsys.readouterr().out)
    rows, facts = result["rows"], result["facts"]
    assert [row["stream"] for row in rows] == ["constant"] * 12 + ["random"] * 12
    promised = {row["name"]: row["bound"] for row in rows[:12]}
    plain = [bound for name, bound in promised.items() if "Leverage" not in name]
    assert plain == [0.13, 0.22, 0.028, 0.04, *[0.5] * 4]
    assert [bound for name, bound in promised.items() if "Leverage" in name] == [None] * 4
    assert all(row["bound"] is None for row in rows[12:])
    assert [row["goal"] for row in rows] == [0.20, 0.30, 0.05, 0.10, *[None] * 8] * 2
    for name in [name for name in envs.ids() if name.startswith("PerpFutures-") and name != "PerpFutures-v0"]:
        assert sum(row["name"].startswith(name) for row in rows) == 4
    for row in rows:
        assert row["ratio"] == pytest.approx(row["reference"] / row["nanoseconds"])
        assert row["holds"] == (None if row["bound"] is None else row["ratio"] >= row["bound"])
    for fact in facts:
        assert fact["holds"] == (None if fact["bound"] is None else fact["value"] <= fact["bound"])
    assert {fact["name"] for fact in facts if fact["bound"]} >= {
        "built",
        "CPU time of other threads, share",
        "PerpFutures-JEPA-v0: a bar",
    }
    assert sum("lanes anywhere" in fact["name"] for fact in facts) == 1  # printed, though nothing is promised of it
    assert result["no_row_for"] == {"nobody": "not installed"}


@pytest.mark.usefixtures("small")
def test_a_family_of_sessions_and_choices_has_rows_and_facts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "construction", lambda env_id: construction(env_id, 3_000))
    result = benchmark.run("ZeroDTE-v0", 1, training=False)
    own = [row for row in result["rows"] if row["name"].split(",")[0] not in encoder_speed.encoded_ids("ZeroDTE-v0")]
    assert [row["bound"] for row in own] == [0.10, None, None, 0.03] + [None] * 4
    assert [row["bound"] for row in result["rows"] if row not in own] == [0.5] * 4 + [None] * 4
    assert set(result["no_row_for"].values()) == {"another game"}
    facts = {fact["name"] for fact in result["facts"]}
    assert any("lanes side by side" in name for name in facts)
    assert not any("into an episode" in name for name in facts)  # none is longer than a session
    assert "CPU seconds to build over 3,000 loaded bars" in facts


def test_a_held_choice_is_sent_once_an_episode_and_a_random_one_every_bar() -> None:
    bars = "synthetic:spy?seed=1&sessions=7"
    for actions in ("discrete", "sized"):
        env = gym.make("ZeroDTE-v0", bars=bars, actions=actions)
        made = np.asarray(benchmark._actions(env, "constant", 800)).reshape(800, -1)
        assert np.flatnonzero(made[:, 0]).tolist() == [0, 389, 778]
        drawn = benchmark._actions(env, "random", 800)
        assert all(env.action_space.contains(action) for action in drawn)
        assert len(np.unique(drawn, axis=0)) == (4 if actions == "discrete" else 16)
    lanes = gym.make_vec("ZeroDTE-v0", num_envs=3, vectorization_mode="vector_entry_point", bars=bars)
    held = benchmark._actions(lanes, "constant", 800, (3,))
    assert np.flatnonzero(held[:, 1]).tolist() == [0, 390, 780]
    go = benchmark._steps(lanes, held[:300])
    go()
    simulation = lanes.unwrapped.simulation  # type: ignore[attr-defined]
    assert (simulation.accounts[0, :, simulation.game.ledger.position] > 0.0).any()


def test_longer_bars_of_sessions_are_more_sessions() -> None:
    bars = sources.load("synthetic:spy?seed=3&sessions=3")
    made = tiled(bars, 1_000)
    assert len(made) == 3 * 390
    assert made.market == "spy"


def test_the_cost_of_an_encoder_is_taken_a_bar_at_a_time_and_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_speed, "BARS", 6_000)
    monkeypatch.setattr(encoder_speed, "STREAMED", 20)
    costs = encoder_speed.costs("PerpFutures-JEPA-v0", 1)
    assert set(costs) == {"live update of both", "embedding, dense", "belief, dense"}
    assert all(0.0 < value < 1e6 for value in costs.values())
    assert encoder_speed.encoded_ids("PerpFutures-JEPA-v0") == []
    costs = encoder_speed.costs("PerpFutures-Defrag-v0", 1)
    assert set(costs) == {"live update", "whole table"}
    assert all(0.0 < value < 1e6 for value in costs.values())
    encoded = [name for name in envs.ids() if name.startswith("PerpFutures-") and name != ENV]
    assert encoder_speed.encoded_ids(ENV) == encoded


def test_an_encoded_environment_is_made_fresh_without_torch_and_one_that_imports_it_is_found() -> None:
    line = encoder_speed.FRESH.format(name="PerpFutures-JEPA-v0")
    assert encoder_speed._fresh("-c", line).split()[1] == "0"
    assert encoder_speed._fresh("-c", f"import torch\n{line}").split()[1] == "1"


def result(ratio: float, value: float) -> dict[str, Any]:
    rows = [Row("row", "constant", 100.0, 100.0 * ratio, 0.5, 0.6)]
    return {
        "env": ENV, "rounds": 1, "rows": [row.to_json() for row in rows], "no_row_for": {},
        "facts": [Fact("fact", value, 2.0).to_json(), Fact("told", 9.0).to_json()],
    }  # fmt: skip


@pytest.mark.parametrize(("ratio", "value", "status"), [(0.5, 2.0, 0), (0.4, 2.0, 1), (0.5, 2.1, 1)])
def test_a_row_or_a_fact_beyond_its_bound_makes_the_exit_status_1_and_is_called_missed(
    ratio: float, value: float, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "run", lambda *words, **more: result(ratio, value))
    assert regimegym.main(["benchmark"]) == status
    text = capsys.readouterr().out
    assert ("MISSED" in text) == bool(status)
    assert "told: 9" in text


def test_the_benchmark_refuses_what_it_does_not_know() -> None:
    with pytest.raises(UnknownNameError, match="PerpFutures-v0"):
        benchmark.run("PerpFuture-v0")
    with pytest.raises(ConfigError, match="rounds"):
        benchmark.run(rounds=0)


# ---- the stopwatch ----------------------------------------------------------------------------------------------


class Clock:
    """Time that only passes where a loop says so."""

    def __init__(self) -> None:
        self.process = self.thread = 0.0

    def process_time(self) -> float:
        return self.process

    def thread_time(self) -> float:
        return self.thread


def test_a_median_leaves_the_first_round_and_all_preparation_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    spent, order = iter([100.0, 1.0, 7.0, 3.0]), []

    def loop() -> int:
        order.append("loop")
        seconds = next(spent)
        clock.process += seconds
        clock.thread += seconds
        return 2

    def other() -> int:
        order.append("other")
        clock.process += 4.0  # half of it in another thread
        clock.thread += 2.0
        return 1

    def prepare() -> None:
        clock.process += 50.0

    watch = Stopwatch(rounds=3)
    assert watch.medians([loop, other], [prepare, None]) == [3.0 / 2 * 1e9, 4.0 * 1e9]
    assert order == ["loop", "other"] * 4
    shared = watch.other_threads()
    assert shared.value == pytest.approx(8.0 / (111.0 + 16.0))
    assert shared.to_json()["holds"] is False


def test_the_reference_takes_the_very_rows_that_the_lanes_stood_on() -> None:
    env = benchmark._lanes(ENV, 3)
    actions = benchmark._actions(env, "random", 700, (3,))
    rows = benchmark._rows(ENV, 3, actions, 2)
    go = benchmark._steps(env, actions)
    for line in rows:
        assert go() == 2_100
        assert env.unwrapped.simulation.rows.tolist() == line[-1].tolist()
    served = benchmark._served(env)[rows[-1, -1]]
    market = env.unwrapped.simulation.game.table.shape[1]
    np.testing.assert_array_equal(served[:, :market], env.unwrapped.simulation.obs[0][:, :market])


def test_the_empty_env_has_the_spaces_of_ours_and_the_same_wrappers() -> None:
    empty, ours = make_empty(ENV), gym.make(ENV)
    assert empty.observation_space == ours.observation_space
    assert empty.action_space == ours.action_space

    def wrappers(env: Any) -> list[str]:
        return [type(env).__name__, *wrappers(env.env)] if isinstance(env, gym.Wrapper) else []

    assert wrappers(empty) == wrappers(ours)
    first, info = empty.reset(seed=0)
    second = empty.step(empty.action_space.sample())[0]
    assert info == {}
    assert first is not second
    np.testing.assert_array_equal(first, second)


# ---- scaling and construction -----------------------------------------------------------------------------------


def test_tiled_bars_are_valid_and_as_many_as_asked_for() -> None:
    bars = sources.load("synthetic:crypto?seed=3&bars=700")
    for count in (300, 700, 1_900):
        made = tiled(bars, count)
        assert len(made) == count
        assert made.gaps == 0
        np.testing.assert_array_equal(made.close[:300], bars.close[:300])
        assert len(made.labels) == count
    assert len(tiled(bars, 1_400).funding_time) == 2 * len(bars.funding_time)
    assert default_bars(ENV).hash == gym.make(ENV).unwrapped.simulation.game.bars.hash


@pytest.mark.usefixtures("small")
def test_mutant_a_step_that_reads_the_whole_series_costs_more_on_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    make_vec = gym.make_vec

    class Slow(gym.vector.VectorWrapper):
        def step(self, actions: Any) -> Any:
            np.sort(self.env.unwrapped.simulation.game.bars.close[:, 0])
            return self.env.step(actions)

    monkeypatch.setattr(gym, "make_vec", lambda *words, **more: Slow(make_vec(*words, **more)))
    series = scaling.scaling(ENV, Stopwatch(3))[0]
    assert series.to_json()["holds"] is False


def test_construction_over_a_hundred_thousand_bars_shares_its_tables_between_all_lanes() -> None:
    facts = {fact.name: fact for fact in construction(ENV, 100_000)}
    memory = facts["memory of two envs and 1,024 lanes over bars plus tables"]
    assert memory.bound == 1.5
    assert memory.value <= 1.5
    assert facts["memory while building over bars plus tables"].value >= memory.value - 0.2
    assert facts["CPU seconds to build over 100,000 loaded bars"].bound == 2.0


def test_mutant_an_environment_that_copies_its_tables_is_seen() -> None:
    def copied(*words: Any, **more: Any) -> Any:
        env = gym.make(*words, **more)
        simulation = env.unwrapped.simulation
        simulation.game = replace(
            simulation.game, table=simulation.game.table.copy(), market=simulation.game.market.copy()
        )
        return env

    facts = {fact.name: fact for fact in construction(ENV, 20_000, make=copied)}
    assert facts["memory of two envs and 1,024 lanes over bars plus tables"].value > 1.5


# ---- peers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", benchmark.STREAMS)
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: f"{peer.name}-{peer.lanes}")
@pytest.mark.filterwarnings("default")  # theirs, not ours
def test_a_peer_that_is_installed_makes_the_steps_it_is_asked_for(peer: Peer, stream: str) -> None:
    pytest.importorskip(peer.module, reason=f"{peer.name} is not installed", exc_type=ImportError)
    loop = peer.loop(max(600, 2 * peer.lanes), stream)
    assert not isinstance(loop, str), loop
    assert loop() == max(600, 2 * peer.lanes)


def test_a_peer_that_is_missing_or_fails_costs_its_own_row_only() -> None:
    def fails(steps: int, stream: str) -> Any:
        raise TypeError("unexpected keyword 'verbose'")

    assert Peer("nobody", "no_such_module", 1, fails).loop(1, "constant") == "not installed"
    assert Peer("other", "numpy", 1, fails).loop(1, "constant") == "fails: TypeError: unexpected keyword 'verbose'"
