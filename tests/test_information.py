"""What an observation may know, for every registered id: not the future, not the label, not what was there before.

``test_causality.py`` holds the finer checks of the PerpFutures family; here the same questions are asked through
``gym.make``, so that later ids are asked them too.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from registered import IDS, family, make, make_on
from test_causality import changed, draw_rows

from agents import lookahead
from encoders.encoder import Encoder
from markets import features
from markets.bars import Bars
from markets.errors import InSampleError

SEED = 101
Floats = np.ndarray[Any, Any]

# ---- the future -------------------------------------------------------------------------------------------------

WAYS = ("noise", "x10", "reversed", "nan", "cut")


def dated(name: str, bars: Bars) -> dict[str, Any]:
    """Splits by date, so that nothing that is fitted moves with the bars of the test split."""
    ends = [str(bars.close_time[row]) for row in family(name).ends_of_splits]
    return {"split": "test", "train_end": ends[0], "validation_end": ends[1]}


def episode(name: str, bars: Bars, start: np.datetime64, actions: list[Any], dates: dict[str, Any]) -> Any:
    """Observations and rewards, as bytes and floats."""
    env = make_on(name, bars, disable_env_checker=True, **dates, **family(name).enduring)
    obs, _ = env.reset(seed=SEED, options={"start": start})
    seen, rewards = [obs.tobytes()], []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        seen.append(obs.tobytes())
        rewards.append(reward)
        if terminated or truncated:
            break
    return seen, rewards


def what_leaked(name: str, places: int = 20) -> list[str]:
    """Replace the market from random rows on in one way after the other; say what changed that may not."""
    bars, found = family(name).market(), []
    first, last = family(name).played
    dates = dated(name, bars)
    env = make_on(name, bars, **dates)
    env.action_space.seed(SEED)
    actions = [env.action_space.sample() for _ in range(last - first)]
    actions = [actions[count - count % 4] for count in range(len(actions))]  # held, so that positions live
    seen, rewards = episode(name, bars, bars.time[first], actions, dates)
    assert len(rewards) == last - first
    sessions = "spy" in family(name).query  # an unfinished session is not played: its bars are cut off behind it
    for count, k in enumerate(draw_rows(first + 2, last, places)):
        for how in (WAYS[count % len(WAYS)], WAYS[(count + 2) % len(WAYS)]):
            content = bars.between(0, last + 1) if how == "cut" and sessions else changed(bars, k, how)
            other, other_rewards = episode(name, content, bars.time[first], actions, dates)
            known = k - first  # observations of rows first .. k - 1
            if seen[:known] != other[:known]:
                found.append(f"{how} from {k}: an observation")
            if rewards[: known - 1] != other_rewards[: known - 1]:
                found.append(f"{how} from {k}: a reward")
    return found


@pytest.mark.parametrize("name", IDS)
def test_nothing_before_a_changed_or_missing_bar_is_another_bit(name: str) -> None:
    """E13, E14. Noise, ten times as much, reversed, NaN and cut off, at 20 random bars."""
    print(f"seed {SEED}")
    assert what_leaked(name) == []


@pytest.mark.usefixtures("fresh_games")
@pytest.mark.parametrize("name", IDS)
def test_mutant_one_bar_of_lookahead_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of E13 and E14."""
    raw = family(name).features.raw

    def early(bars: Bars) -> Floats:
        values = raw(bars)
        values[:-1, 0] = values[1:, 0]
        return values

    monkeypatch.setattr(family(name).features, "raw", early)
    found = what_leaked(name, 5)
    assert any("observation" in leak for leak in found)


@pytest.mark.parametrize("name", IDS)
def test_the_lookahead_detector_finds_every_id_clean(name: str) -> None:
    """E13, E14. The instrument that users have, on another market and other actions."""
    leaks = lookahead.check_id(name, family(name).market(), trials=5, seed=SEED)
    assert list(leaks) == []
    assert leaks.skipped == 0


# ---- the past ---------------------------------------------------------------------------------------------------


def scaler_file(name: str, bars: Bars, folder: Path, rows: int = 1_000) -> str:
    """Fit the feature scaler once, on the first rows, so that histories of any length are observed through the same."""
    file, kind = folder / "scaler.json", family(name)
    file.write_text(json.dumps(kind.scaler.fit(bars, kind.features.raw(bars), rows).to_json()))
    return str(file)


def warm_up_gaps(name: str, folder: Path, histories: tuple[int, ...] = ()) -> list[float]:
    """Start one episode behind histories of several lengths; largest difference of an observation to the longest."""
    whole, (usual, at, after) = family(name).market(), family(name).behind
    scaler = scaler_file(name, whole, folder)
    short = family(name).short(50)
    declared = make_on(name, whole, **short).unwrapped.simulation.game.first  # type: ignore[attr-defined]
    runs = []
    for history in (length for length in histories or usual if length >= declared):
        bars = whole.between(at - history, at + after)
        dates = {
            "split": "test", "train_end": str(whole.close_time[at - 20]), "scaler": scaler, "allow_in_sample": True,
            "validation_end": str(whole.close_time[at - 10]),
        }  # fmt: skip
        env = make_on(name, bars, **dates, **family(name).enduring)
        obs, _ = env.reset(seed=SEED, options={"start": whole.time[at]})
        env.action_space.seed(SEED)
        seen = [obs]
        for _ in range(150):
            seen.append(env.step(env.action_space.sample())[0])
        runs.append(np.stack(seen))
    assert len(runs) >= 2, f"a warm-up of {declared} bars leaves nothing to compare: add a longer history"
    return [float(np.abs(run - runs[-1]).max()) for run in runs[:-1]]


@pytest.mark.parametrize("name", IDS)
def test_an_episode_is_the_same_behind_any_history_that_covers_the_warm_up(name: str, tmp_path: Path) -> None:
    """E15. Histories of several lengths before the first observation, as long as an encoder asks for."""
    assert max(warm_up_gaps(name, tmp_path)) <= 1e-6


@pytest.mark.usefixtures("fresh_games")
@pytest.mark.parametrize("name", IDS)
def test_mutant_a_feature_that_counts_the_bars_of_the_history_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of E15."""
    raw = family(name).features.raw

    def counts(bars: Bars) -> Floats:
        values = raw(bars)
        values[:, 0] *= 1.0 + np.arange(len(bars)) % 7
        return values

    scaler = scaler_file(name, family(name).market(), tmp_path)
    monkeypatch.setattr(f"{__name__}.scaler_file", lambda *arguments: scaler)
    monkeypatch.setattr(family(name).features, "raw", counts)
    assert max(warm_up_gaps(name, tmp_path)) > 1e-3


@pytest.mark.usefixtures("fresh_games")
@pytest.mark.parametrize("name", [name for name in IDS if family(name).features is features])
def test_mutant_a_warm_up_that_is_declared_too_short_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of E15."""
    monkeypatch.setattr(features, "warm_up", lambda interval: 100)
    monkeypatch.setattr(features, "WARM_UP", 100)
    table = Encoder.table
    monkeypatch.setattr(Encoder, "table", lambda self, bars: replace(table(self, bars), valid_from=100))
    assert max(warm_up_gaps(name, tmp_path, (130, 1_700))) > 1e-3


# ---- what a linear probe can read -------------------------------------------------------------------------------

PROBED = 10_000


def rollout(name: str, bars: Bars) -> tuple[Floats, Floats]:
    """Observations of long play with random actions held for a while, account columns too, and their rows."""
    env = make_on(
        name, bars, split="test", train_end=str(bars.close_time[500]), validation_end=str(bars.close_time[800]),
        info="none", disable_env_checker=True, **family(name).enduring,
    )  # fmt: skip
    env.action_space.seed(SEED)
    obs, _ = env.reset(seed=SEED)
    seen, rows = [obs], [int(env.unwrapped.simulation.rows[0])]  # type: ignore[attr-defined]
    action = env.action_space.sample()
    for count in range(PROBED):
        if count % 5 == 0:
            action = env.action_space.sample()
        obs, _, terminated, truncated, _ = env.step(action)
        seen.append(obs)
        rows.append(int(env.unwrapped.simulation.rows[0]))  # type: ignore[attr-defined]
        if terminated or truncated:  # the next session; the last observation of this one is not kept
            seen[-1], _ = env.reset()
            rows[-1] = int(env.unwrapped.simulation.rows[0])  # type: ignore[attr-defined]
    assert len(set(rows)) == len(rows), "the market is too short: an episode was played twice"
    return np.array(seen[:-1], np.float64), np.array(rows[:-1])


def probe(inputs: Floats, target: Floats) -> float:
    """Out-of-sample R2 of a ridge regression fitted on the first half."""
    half = len(target) // 2
    mean, scale = inputs[:half].mean(axis=0), inputs[:half].std(axis=0) + 1e-12
    design = np.column_stack([np.ones(len(inputs)), (inputs - mean) / scale])
    gram = design[:half].T @ design[:half] + 10.0 * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, design[:half].T @ target[:half])
    rest, guess = target[half:], design[half:] @ weights
    return float(1.0 - np.sum((rest - guess) ** 2) / np.sum((rest - target[:half].mean()) ** 2))


def targets(bars: Bars, rows: Floats) -> dict[str, Floats]:
    """What must not be readable at a row: the next return, the label of this bar and of the next, the next collapse.

    A collapse is a bar whose low lies in the worst twentieth, seen from its open: it liquidates whoever is near it.
    """
    assert bars.labels is not None
    fall = np.log(bars.low[:, 0] / bars.open[:, 0])
    return {
        "next return": np.log(bars.close[rows + 1, 0] / bars.close[rows, 0]),
        "label": bars.labels[rows].astype(np.float64),
        "next label": bars.labels[rows + 1].astype(np.float64),
        "next collapse": (fall[rows + 1] < np.quantile(fall, 0.05)).astype(np.float64),
    }


def readable(name: str, bars: Bars) -> dict[str, float]:
    inputs, rows = rollout(name, bars)
    assert len(rows) > PROBED - 1_000
    return {key: probe(inputs, target) for key, target in targets(bars, rows).items()}


@pytest.mark.parametrize("name", IDS)
def test_a_linear_probe_reads_neither_return_nor_label_nor_collapse_on_a_random_walk(name: str) -> None:
    """E16. Out-of-sample R2 of at most 3 / n."""
    print(f"seed {SEED}")
    found = readable(name, family(name).walk(SEED))
    print(found)
    assert max(found.values()) <= 3.0 / (PROBED / 2), found


@pytest.mark.usefixtures("fresh_games")
@pytest.mark.parametrize("target", ["next return", "label", "next label", "next collapse"])
@pytest.mark.parametrize("name", IDS)
def test_mutant_the_probe_reads_a_planted_lead_feature(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of E16. A feature of which a twenty-sixth of the variance is the target."""
    raw = family(name).features.raw

    def planted(bars: Bars) -> Floats:
        values = raw(bars)
        rows = np.arange(len(bars) - 1)
        lead = targets(bars, rows)[target]
        noise = np.random.default_rng(SEED).standard_normal(len(rows))
        values[rows, 3] = (lead - lead.mean()) / lead.std() + 5.0 * noise
        return values

    monkeypatch.setattr(family(name).features, "raw", planted)
    assert readable(name, family(name).walk(SEED))[target] > 0.01


# ---- what was fitted --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDS)
def test_an_evaluation_that_begins_in_the_fitted_range_raises_unless_it_is_allowed(name: str, tmp_path: Path) -> None:
    """E18. And says so in info; training inside the fitted range is flagged."""
    bars = family(name).market()
    train, validation = family(name).ends_of_splits
    ends = {"train_end": str(bars.close_time[train + 195]), "validation_end": str(bars.close_time[validation + 585])}
    dates = {**ends, **family(name).short(50)}
    begun = make_on(name, bars, split="validation", **dates).unwrapped.simulation.game.first  # type: ignore[attr-defined]
    scaler = scaler_file(name, bars, tmp_path, begun + 420)
    with pytest.raises(InSampleError) as raised:
        make_on(name, bars, split="validation", scaler=scaler, **dates)
    assert str(bars.close_time[begun])[:16] in str(raised.value)
    assert json.loads(Path(scaler).read_text())["train_end"][:16] in str(raised.value)
    for split, inside in (("train", True), ("validation", True), ("test", False)):
        env = make_on(name, bars, split=split, scaler=scaler, allow_in_sample=split == "validation", **dates)
        assert env.reset(seed=SEED)[1]["in_sample"] is inside


# ---- global state -----------------------------------------------------------------------------------------------


def torch_state_matters(env: gym.Env[Any, Any], twin: gym.Env[Any, Any]) -> bool:
    """Play two equal envs, one while torch's global generator is seeded anew every step."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    actions = [env.action_space.sample() for _ in range(50)]
    runs = []
    for count, one in enumerate((env, twin)):
        seen = [one.reset(seed=SEED)[0].tobytes()]
        for turn, action in enumerate(actions):
            if count:
                torch.manual_seed(turn)
            seen.append(one.step(action)[0].tobytes())
        seen.append(one.reset()[0].tobytes())
        if not count and not torch.equal(torch.get_rng_state(), before):
            return True
        runs.append(seen)
    return runs[0] != runs[1]


@pytest.mark.parametrize("name", IDS)
def test_the_global_generator_of_torch_is_neither_used_nor_moved(name: str) -> None:
    """E12."""
    assert not torch_state_matters(make(name), make(name))


def test_mutant_an_env_that_draws_from_torch_is_found() -> None:
    """Twin of E12."""

    class Draws(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            torch.rand(1)
            return self.env.step(action)

    assert torch_state_matters(Draws(make(IDS[0])), Draws(make(IDS[0])))
