"""Agents that observe signals: trained, saved with the fits they saw, evaluated with those, and refused others."""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from registered import perpetual_market
from signal_toys import LastReturn

import agents
import regimegym
from agents import fit, recipe
from agents.comparison import compare
from agents.ensemble_artefact import build as build_ensemble
from agents.ensemble_artefact import load as load_ensemble
from agents.ensemble_artefact import save as save_ensemble
from agents.recipe import TrainingConfig
from agents.signals.agent import fit_signal, save
from agents.training import train
from encoders import signals
from encoders.signals import fitted
from encoders.signals.fitted import SignalSet
from envs.make import build
from markets import storage
from markets.errors import ArtefactError, ConfigError
from markets.sources.memory import register_bars

pytest.importorskip("arch", reason="extra 'models' is not installed")

TOY = "last_return"
ROWS = 2000
SETTINGS = {"n_steps": 16, "batch_size": 64, "n_epochs": 1, "net_arch": [8]}


@pytest.fixture(scope="module", autouse=True)
def own_rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Rows and fits end with this file."""
    rows = dict(signals.SIGNALS)
    signals.register("signal_toys:LastReturn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGIMEGYM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(fitted, "_fits", OrderedDict())
        yield
    signals.SIGNALS.clear()
    signals.SIGNALS.update(rows)


def market() -> str:
    return register_bars("observing", perpetual_market(ROWS))


def config(out: Path, given: str = f"garch,{TOY}", **changes: Any) -> TrainingConfig:
    arguments = {"bars": market(), "episode_bars": 32, **({"signals": given} if given else {})}
    plain: dict[str, Any] = {
        "env": "PerpFutures-v0", "algo": "ppo", "steps": 128, "seed": 0, "out": out, "lanes": 4, "quiet": True,
        "arguments": arguments, "settings": SETTINGS, "evaluations": 1, "device": "cpu",
    }  # fmt: skip
    return TrainingConfig(**{**plain, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("observing")
    train(config(out))
    return out


def test_an_agent_remembers_the_fits_it_saw_and_fits_where_they_are_served(trained: Path) -> None:
    agent = agents.load(trained)
    env = gym.make("PerpFutures-v0", **agent.manifest["arguments"])
    assert agent.observed == env.unwrapped.simulation.game.signals.models
    assert agent.reads[-2:] == (f"{TOY}_direction", f"{TOY}_confidence")
    agent.check(env)
    action, _ = agent.predict(env.reset(seed=0)[0])
    assert env.action_space.contains(action)


def test_an_agent_refuses_other_fits_and_none(trained: Path) -> None:
    agent = agents.load(trained)
    arguments = agent.manifest["arguments"]
    bars = perpetual_market(ROWS)
    dates = {"train_end": str(bars.close_time[999]), "validation_end": str(bars.close_time[1500])}
    other = build("PerpFutures", **{**arguments, **dates}, scaler=agent.scaler, allow_in_sample=True, split="test")
    with pytest.raises(ArtefactError, match=r"signals\.garch: expected '[0-9a-f]{64}', found '[0-9a-f]{64}'"):
        agent.check(other)
    none = build("PerpFutures", **{**arguments, "signals": ""}, scaler=agent.scaler)
    with pytest.raises(ArtefactError) as said:
        agent.check(none)
    assert "signals=agent.observed" in str(said.value)
    assert "observation." not in str(said.value)  # its columns are not listed one by one
    same = build("PerpFutures", **{**arguments, **dates, "signals": agent.observed}, scaler=agent.scaler)
    agent.check(same)


def test_an_evaluation_serves_the_agents_own_fits_on_later_bars(trained: Path, monkeypatch: Any) -> None:
    """Of other bars a name would be fitted anew: what is served is what the agent's file holds."""
    later = register_bars("later", perpetual_market(2600).between(400, 2600))
    fits: list[int] = []
    honest = LastReturn.learn

    def counted(self: LastReturn, bars: Any) -> dict[str, Any]:
        fits.append(len(bars))
        return honest(self, bars)

    monkeypatch.setattr(LastReturn, "learn", counted)
    result = compare([trained], "test", {"bars": later})
    assert fits == []
    assert "ppo seed 0" in result["table"]
    with pytest.raises(ArtefactError, match=r"signals\.last_return"):
        compare([trained], "test", {"bars": later, "signals": f"garch,{TOY}"})
    assert fits, "the twin: the name alone is fitted on the other bars"


def test_a_run_is_resumed_with_its_own_fits_only(tmp_path: Path) -> None:
    folder = tmp_path / "signal"
    save(folder, fit_signal(LastReturn(), "PerpFutures-v0", {"bars": market()}))
    out = tmp_path / "run"
    train(config(out, str(folder)))
    train(config(out, str(folder), steps=192, resume=True))
    assert agents.load(out).manifest["steps"] == 192
    save(folder, fit_signal(LastReturn(sign=-1.0), "PerpFutures-v0", {"bars": market()}))
    with pytest.raises(ConfigError, match=r"signals\.last_return"):
        train(config(out, str(folder), steps=256, resume=True))


def test_what_a_run_is_does_not_change_without_signals(tmp_path: Path) -> None:
    from envs.make import game_of

    for given, there in (("", False), (TOY, True)):
        told = config(tmp_path, given)
        game = game_of(*recipe.resolve(told.env, told.arguments))
        assert ("signals" in recipe.identity(told, game)) is there
        assert bool(fit.signals(game)) is there


def test_folders_of_signals_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "garch").mkdir()  # a name comes before a folder
    assert recipe.located({"signals": "garch, mine"}) == {"signals": f"garch,{tmp_path / 'mine'}"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fitted": {"scale": 0.5}}, "hash differs"),
        ({"signal": "nobody"}, "of no row here"),
        ({"fitted": {}}, "scale"),
        ({"settings": {"sign": "x", "more": 1}}, "more"),
    ],
)
def test_a_tampered_fit_in_an_agents_file_is_refused(
    trained: Path, change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with zipfile.ZipFile(trained / "agent.zip") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(parts.pop("manifest.json"))
    manifest["signals"][1] |= change
    storage.write(tmp_path / "agent.zip", manifest, parts)
    with pytest.raises(ArtefactError, match=says):
        agents.load(tmp_path)


def test_members_with_signals_and_without_vote_together(trained: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    train(config(plain, "", arguments={k: v for k, v in config(plain).arguments.items() if k != "signals"}))
    paths = [trained, plain]
    ensemble = build_ensemble(paths)
    assert ensemble.observed == agents.load(trained).observed
    save_ensemble(tmp_path / "both", ensemble, paths)
    again = load_ensemble(tmp_path / "both" / "ensemble.zip")
    assert again.observed == ensemble.observed
    result = compare([tmp_path / "both"], "test", {})
    assert len(result["agents"]) == 3
    flipped = SignalSet([replace(model, sign=-1.0).fit(perpetual_market(ROWS)) if model.name == TOY else model
                         for model in ensemble.observed.models])  # fmt: skip
    env = build("PerpFutures", **{**agents.load(trained).manifest["arguments"], "signals": flipped})
    with pytest.raises(ArtefactError, match=r"signals\.last_return"):
        again.check(env)


def test_the_command_trains_with_signals_of_ones_own(tmp_path: Path) -> None:
    del signals.SIGNALS[TOY]
    words = ["train", "--env", "PerpFutures-v0", "--algo", "ppo", "--steps", "64", "--lanes", "4", "--quiet"]
    words += ["--bars", "synthetic:crypto?seed=1&bars=1500", "--out", str(tmp_path), "--evaluations", "0"]
    words += [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words += ["--env-arg", f"signals={TOY}", "--env-arg", "episode_bars=32", "--signals", "signal_toys:LastReturn"]
    assert regimegym.main(words) == 0
    assert [row["signal"] for row in agents.load(tmp_path).manifest["signals"]] == [TOY]
