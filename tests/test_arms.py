"""Arms: what each is shown and nothing else, runs that are kept, and what is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import regimegym
from agents import arm_comparison, arms
from agents.arm_comparison import Comparison
from agents.arms import Arm, Recipe, game_for, parse_arm, seen_columns
from agents.trial_registry import touch_log, trials_on
from envs.make import lanes_of
from envs.simulation import MODE_DISABLED, Game, Simulation
from markets.errors import ConfigError, UnknownNameError
from markets.table import CausalTable

BARS = "synthetic:crypto?seed={seed}&interval=1h&bars=3000"
TINY = {"n_steps": 4, "batch_size": 64, "n_epochs": 1, "net_arch": [4]}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path / "cache"))


def arm(name: str, **changes: Any) -> Arm:
    return Arm(**{"name": name, "env": "PerpFutures-v0", "arguments": {"episode_bars": 100}, **changes})


def comparison(out: Path, **changes: Any) -> Comparison:
    recipe = Recipe(**{"settings": TINY, "steps": 1_000, "lanes": 16, **changes.pop("recipe", {})})
    given = {"arms": (arm("plain"), arm("blind", sees=("exposure",))), "bars": BARS, "seeds": 2, "out": out}
    return Comparison(**{**given, "recipe": recipe, **changes})


def varied(game: Game) -> tuple[str, ...]:
    """Columns that change while eight accounts trade at random."""
    simulation = Simulation(game, 8)
    starts = np.linspace(game.first, game.last - 60, 8).astype(int)
    simulation.reset([np.random.default_rng(0)] * 8, None, starts, np.ones(8, bool))
    draw, seen = np.random.default_rng(0), []
    for _ in range(50):
        simulation.set_actions(draw.uniform(-1.0, 1.0, (8, 1)))
        simulation.run(MODE_DISABLED)
        seen.append(simulation.seen().copy())
    moving = np.ptp(np.concatenate(seen), axis=0) > 0.0
    return tuple(name for name, moves in zip(game.all_names, moving, strict=True) if moves)


def shown_more_than(one: Arm, game: Game) -> set[str]:
    return set(varied(game)) - set(seen_columns(one, game.all_names))


def test_an_arm_is_shown_its_columns_and_no_other() -> None:
    blind = arm("blind", sees=("exposure", "return_1*"))
    game = game_for(blind, BARS.replace("{seed}", "0"), "train")
    assert seen_columns(blind, game.all_names) == ("return_1", "return_12", "return_168", "exposure")
    assert shown_more_than(blind, game) == set()
    assert set(varied(game)) == {"return_1", "return_12", "return_168", "exposure"}
    leaky = game_for(arm("blind"), BARS.replace("{seed}", "0"), "train")
    assert "return_4" in shown_more_than(blind, leaky), "the mutant that hides nothing"
    with pytest.raises(UnknownNameError, match="return_1"):
        game_for(arm("wrong", sees=("retrun_1",)), BARS.replace("{seed}", "0"), "train")


def test_revealed_columns_are_the_rows_of_their_table_in_every_lane() -> None:
    def revealed(bars: Any, config: Any) -> CausalTable:
        values = np.arange(len(bars), dtype=np.float32)[:, None] / len(bars)
        return CausalTable(values, ("told",), np.zeros(1, np.float32), np.ones(1, np.float32), 0, bars.hash)

    one = arm("one", sees=("told",), arguments={"episode_bars": 7})
    game = game_for(one, BARS.replace("{seed}", "0"), "train", revealed)
    env = lanes_of(game, 3, autoreset_mode=AutoresetMode.SAME_STEP.value, info="none")
    simulation = env.unwrapped.simulation
    seen, _ = env.reset(seed=1)
    ended = 0
    for _ in range(20):
        assert env.observation_names[-1] == "told"
        np.testing.assert_array_equal(seen[:, -1], game.revealed.values[simulation.rows, 0])  # type: ignore[union-attr]
        assert not seen[:, list(game.all_names).index("return_4")].any()
        seen, _, _, _, infos = env.step(np.zeros((3, 1), np.float32))
        for lane in np.flatnonzero(infos.get("_final_obs", [])):
            assert infos["final_obs"][lane][-1] == game.revealed.values[simulation.final_rows[lane], 0]  # type: ignore[union-attr]
            ended += 1
    assert ended == 6
    assert "told" not in game_for(arm("plain"), BARS.replace("{seed}", "0"), "train").all_names


def test_commas_belong_to_the_value_unless_an_argument_follows() -> None:
    given = parse_arm("less:hide=hour_sin,hour_cos,leverage=2,reward=log_return=1,costs=1", "PerpFutures-v0")
    assert given == (
        "less", "PerpFutures-v0",
        {"hide": "hour_sin,hour_cos", "leverage": "2", "reward": "log_return=1,costs=1"},
    )  # fmt: skip
    assert parse_arm("plain", "PerpFutures-v0") == ("plain", "PerpFutures-v0", {})
    assert parse_arm("seeing:env=PerpFutures-JEPA-v0", "PerpFutures-v0")[1] == "PerpFutures-JEPA-v0"
    with pytest.raises(UnknownNameError, match="leverage"):
        parse_arm("x:levrage=2", "PerpFutures-v0")
    with pytest.raises(ConfigError, match="twice"):
        parse_arm("x:leverage=2,leverage=3", "PerpFutures-v0")
    with pytest.raises(ConfigError, match="NAME:key=value"):
        parse_arm("x:leverage", "PerpFutures-v0")
    for wrong in ({"name": "a/b"}, {"arguments": {"bars": BARS}}, {"sees": ("exposure",), "arguments": {"hide": "x"}}):
        with pytest.raises(ConfigError):
            arm(**{"name": "x", **wrong})


def test_a_comparison_that_was_stopped_goes_on_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = arm_comparison.run(comparison(tmp_path / "whole"))
    played: list[str] = []
    play = arms.play

    def stopped(one: Arm, *rest: Any) -> dict[str, Any]:
        if len(played) == 3:
            raise KeyboardInterrupt
        played.append(one.name)
        return play(one, *rest)

    monkeypatch.setattr(arms, "play", stopped)
    with pytest.raises(KeyboardInterrupt):
        arm_comparison.run(comparison(tmp_path / "cut"))
    assert played == ["plain", "blind", "plain"]
    monkeypatch.setattr(arms, "play", lambda one, *rest: (played.append(one.name), play(one, *rest))[1])
    steps: list[int] = []
    again = arm_comparison.run(comparison(tmp_path / "cut"), told=steps.append)
    assert played == ["plain", "blind", "plain", "blind"], "one was left to train"
    assert again == whole
    assert sum(steps) == comparison(tmp_path).total_steps
    assert json.loads((tmp_path / "cut" / "compare.json").read_text()) == json.loads(json.dumps(whole))
    assert whole["columns"]["blind"] == ["exposure"]
    with pytest.raises(ConfigError, match=r"plain-0\.json is a run with steps=1000, not 2000"):
        arm_comparison.run(comparison(tmp_path / "cut", recipe={"steps": 2_000}))
    with pytest.raises(ConfigError, match=r"blind-0\.json is a run with columns="):
        arm_comparison.run(comparison(tmp_path / "cut", arms=(arm("plain"), arm("blind", sees=("drawdown",)))))
    (tmp_path / "cut" / "blind-1.json").write_text('{"identity": {}}')
    with pytest.raises(ConfigError, match=r"blind-1\.json is no run of a comparison"):
        arm_comparison.run(comparison(tmp_path / "cut"))


class Wild:
    """All in, the other way every bar: ruined by costs of half of what it trades."""

    def predict(self, seen: Any, deterministic: bool) -> tuple[Any, None]:
        self.side = -getattr(self, "side", 1.0)
        return np.full((len(seen), 1), self.side, np.float32), None


def test_a_ruined_episode_counts_as_the_ruin_it_ended_at() -> None:
    arguments = {"episode_bars": 100, "taker_fee": 0.3, "leverage": 1.0}
    wild = arm("wild", arguments=arguments, plays=lambda names: Wild())
    row = arms.play(wild, Recipe(), BARS.replace("{seed}", "0"), 0)
    assert row["ruined"] == row["episodes"] > 1
    assert row["score"] == pytest.approx(np.log(0.01))
    bold = arm("bold", arguments={**arguments, "ruin": 1e-3}, plays=lambda names: Wild())
    assert arms.play(bold, Recipe(), BARS.replace("{seed}", "0"), 0)["score"] < np.log(0.01), "the twin of less ruin"


def test_trainings_and_readings_of_a_test_split_are_written_down(tmp_path: Path) -> None:
    arm_comparison.run(comparison(tmp_path / "a"))
    assert not touch_log().exists(), "validation is no test"
    game = game_for(arm("plain"), BARS.replace("{seed}", "0"), "train")
    assert trials_on({game.bars.hash}).configurations == 2
    for _ in range(2):  # kept runs read nothing again
        arm_comparison.run(comparison(tmp_path / "b", recipe={"split": "test"}))
        lines = [json.loads(line) for line in touch_log().read_text().splitlines()]
        assert [line["agents"] for line in lines] == [["compare plain", "compare blind"]] * 2


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    for changes, said in (
        ({"arms": (arm("plain"),)}, "at least two"),
        ({"arms": (arm("plain"), arm("Plain"))}, "differ in more than case"),
        ({"seeds": 1}, "seeds=1"),
        ({"threads": 0}, "threads=0"),
        ({"recipe": {"split": "testing"}}, "Did you mean 'test'"),
        ({"recipe": {"device": "cuda:99"}}, "cuda:99"),
    ):
        with pytest.raises(ConfigError, match=said):
            comparison(tmp_path, **changes)  # type: ignore[arg-type]


def test_the_command_trains_draws_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "compare", "--env", "PerpFutures-v0", "--arm", "plain", "--arm", "low:leverage=1,hide=hour_sin,hour_cos",
        "--bars", BARS, "--env-arg", "episode_bars=100", "--seeds", "2", "--steps", "512", "--lanes", "16", "--quiet",
        "--out", str(tmp_path / "out"), "--threads", "1", "--device", "cpu",
    ]  # fmt: skip
    words += [part for name, number in TINY.items() for part in ("--set", f"{name}={number}")]
    assert regimegym.main(words) == 0
    assert "difference from plain" in capsys.readouterr().out
    assert (tmp_path / "out" / "compare.png").read_bytes()[:4] == b"\x89PNG"
    assert regimegym.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["differences"]) == ["low"]
    assert {"hour_sin", "hour_cos"} == set(found["columns"]["plain"]) - set(found["columns"]["low"])
    for more, said in (
        (["--plan", "regime-gap"], "is not of --plan"), (["--quick"], "--quick is of --plan"),
        (["--algo", "tqc"], "algo of a comparison"), (["--arm", "x:bars=y"], "bars is the same for every arm"),
    ):  # fmt: skip
        assert regimegym.main([*words, *more]) == 2
        assert said in capsys.readouterr().err
