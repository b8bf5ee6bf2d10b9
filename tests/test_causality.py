"""Nothing knows the future: bars from k on are replaced by anything, and nothing before k changes, bit for bit.

``obs_t`` knows bars 0..t, the action fills at the open of t+1, and ``r_t`` covers the close of t to the close of t+1.
So with bars k.. changed in any way, or cut off, ``obs_0..obs_(k-1)`` and ``r_0..r_(k-2)`` stay. The checker also runs
over planted leaks, each of which it must find.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from registered import make as made

import envs
from envs import perp_columns, perp_futures
from envs.make import build
from markets import features, sources
from markets.bars import MARKS, PRICES, Bars
from markets.errors import ConfigError, InSampleError
from markets.features import FeatureScaler
from markets.sources.memory import register_bars

Floats = np.ndarray[Any, Any]

SEED = 41
SMALL = "synthetic:crypto?seed=1&interval=1h&bars=4000"
TRAIN, VALIDATION, LAST = 1500, 1800, 2400  # rows that end the first two splits, and the last row that is played
ROWS = 2600  # bars of the market that is perturbed
REPLACEMENTS = ("noise", "x10", "reversed", "nan", "cut")


@cache
def market() -> Bars:
    """Bars that open apart from the close before them, so that a fill at either is told from the other."""
    bars = sources.load(SMALL).between(0, ROWS)
    opened = bars.open * np.exp(np.random.default_rng(SEED).normal(0.0, 0.001, bars.open.shape))
    return replace(bars, open=opened, high=np.maximum(bars.high, opened), low=np.minimum(bars.low, opened))


def changed(bars: Bars, k: int, how: str) -> Bars:
    """Bars whose rows from ``k`` on (and funding stamps after the opening of ``k``) are replaced, or cut off."""
    if how == "cut":
        return bars.between(0, k)
    generator = np.random.default_rng([SEED, k])
    columns: dict[str, Any] = {name: value.copy() for name, value in bars.columns.items()}
    for value in columns.values():
        future = value[k:]
        if how == "noise":
            future *= np.exp(generator.normal(0.0, 1.0, future.shape))
        elif how == "x10":
            future *= 10.0
        elif how == "reversed":
            future[:] = future[::-1].copy()
        else:
            future[:] = np.nan
    if how == "noise":  # stays a candle and a quote, so that it passes the checks of the schema
        for prefix in ("", "mark_") if "mark_open" in columns else ("",):
            opened, high, low, close = (columns[prefix + name][k:] for name in PRICES)
            low[:], high[:] = np.minimum(np.minimum(opened, close), low), np.maximum(np.maximum(opened, close), high)
        if "bid" in columns:
            bid, ask = columns["bid"][k:], columns["ask"][k:]
            bid[:], ask[:] = np.minimum(bid, ask), np.maximum(bid, ask)
    rates = bars.funding_rate.copy()
    later = bars.funding_time >= bars.time[k]
    rates[later] = {"nan": np.nan, "noise": 0.01, "x10": rates[later] * 10, "reversed": rates[later][::-1]}[how]
    labels = None if bars.labels is None else np.concatenate([bars.labels[:k], bars.labels[k:][::-1]])
    return replace(bars, **columns, funding_rate=rates, labels=labels, checked=how != "nan")


Run = tuple[list[bytes], list[float], list[dict[str, Any]]]
Make = Callable[[Bars], Any]


def play(env: Any, start: np.datetime64, actions: Floats) -> Run:
    """Observations, rewards and infos of one episode with given actions."""
    obs, info = env.reset(seed=SEED, options={"start": start})
    seen, rewards, infos = [obs.tobytes()], [], [info]
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        seen.append(obs.tobytes())
        rewards.append(reward)
        infos.append(info)
        if terminated or truncated:
            break
    return seen, rewards, infos


def held_actions(count: int) -> Floats:
    print(f"seed {SEED}")
    generator = np.random.default_rng(SEED)
    actions = generator.uniform(-1.0, 1.0, (count, 1))
    for row in range(1, count):
        if generator.random() < 0.6:
            actions[row] = actions[row - 1]
    return actions


def leaks(make: Make, start: int, rows: list[int], ways: tuple[str, ...] = REPLACEMENTS) -> list[str]:
    """Play the market and its perturbations with the same actions; say what changed that may not, and where."""
    bars = market()
    actions = held_actions(LAST - start)
    seen, rewards, infos = play(make(bars), bars.time[start], actions)
    found = fills_out_of_turn(bars, start, infos)
    for k in rows:
        for how in ways:
            other, other_rewards, other_infos = play(make(changed(bars, k, how)), bars.time[start], actions)
            for row in range(start, min(k, start + len(seen))):  # obs of rows start..k-1
                if row - start >= len(other) or seen[row - start] != other[row - start]:
                    found.append(f"{how} from {k}: observation of row {row}")
                    break
            for row in range(start, min(k - 1, start + len(rewards))):  # r_row covers row+1, at most k-1
                if row - start >= len(other_rewards) or rewards[row - start] != other_rewards[row - start]:
                    found.append(f"{how} from {k}: reward of row {row}")
                    break
                if {**infos[row - start], "time": 0} != {**other_infos[row - start], "time": 0} and how != "cut":
                    found.append(f"{how} from {k}: info of row {row}")
                    break
    return found


def fills_out_of_turn(bars: Bars, start: int, infos: list[dict[str, Any]]) -> list[str]:
    """Fills that are not at the open of the bar after the observation, plus the costs that were charged for it."""
    for count, info in enumerate(infos[1:], start=1):
        quantity = info["fill_quantity"]
        if quantity == 0.0:
            continue
        cost = (info["spread_cost"] + info["impact_cost"]) / quantity
        opened = bars.open[start + count, 0]
        if abs(info["fill_price"] - cost - opened) > 1e-9 * opened:
            return [f"the fill of step {count} is not at the next open: {info['fill_price']} for {opened}"]
    return []


def dated(bars: Bars) -> Any:
    """The test split of a market with dated splits; the scaler is fitted by the env on the training range."""
    return build(
        "PerpFutures", bars=bars, split="test", leverage=5.0, continue_after_liquidation=True, ruin=1e-6,
        train_end=str(market().close_time[TRAIN]), validation_end=str(market().close_time[VALIDATION]),
    )  # fmt: skip


def fitted() -> FeatureScaler:
    bars = market()
    return FeatureScaler.fit(bars, features.raw(bars), TRAIN)


def fixed(scaler: FeatureScaler, **settings: Any) -> Make:
    """Almost the whole market as a test split, observed through a scaler that was fitted before."""
    times = market().close_time

    def make(bars: Bars) -> Any:
        return build(
            "PerpFutures", bars=bars, scaler=scaler, split="test", allow_in_sample=True, leverage=5.0, ruin=1e-6,
            train_end=str(times[180]), validation_end=str(times[190]), continue_after_liquidation=True, **settings,
        )  # fmt: skip

    return make


def draw_rows(low: int, high: int, count: int = 20) -> list[int]:
    return sorted(int(k) for k in np.random.default_rng(SEED + 1).choice(np.arange(low, high), count, replace=False))


def test_no_bar_after_the_training_range_reaches_the_past_with_dated_splits() -> None:
    """E13, E14."""
    assert leaks(dated, VALIDATION + 10, draw_rows(VALIDATION + 12, LAST)) == []


def test_no_bar_anywhere_reaches_the_past_with_a_scaler_that_is_held_fixed() -> None:
    """E13, E14."""
    assert leaks(fixed(fitted()), 200, draw_rows(202, LAST)) == []


@pytest.mark.parametrize("leverage", [1.0, 50.0])
def test_the_rewards_of_every_term_know_no_future_either(leverage: float) -> None:
    """E13, E14."""
    make = fixed(fitted(), reward="log_return=1,differential_sharpe=1,drawdown=1,costs=1,funding=1", rebalance_band=0.0)

    def at_leverage(bars: Bars) -> Any:
        env = make(bars)
        env.simulation.accounts[0, :, perp_columns.LEVERAGE] = leverage
        return env

    assert leaks(at_leverage, 200, draw_rows(202, LAST, 5)) == []


def test_the_first_bar_that_may_change_an_observation_does() -> None:
    bars, scaler = market(), fitted()
    actions = held_actions(600)
    seen, rewards, _ = play(fixed(scaler)(bars), bars.time[200], actions)
    other, other_rewards, _ = play(fixed(scaler)(changed(bars, 500, "x10")), bars.time[200], actions)
    assert seen[499 - 200] == other[499 - 200]
    assert seen[500 - 200] != other[500 - 200]
    assert rewards[498 - 200] == other_rewards[498 - 200]
    assert rewards[499 - 200] != other_rewards[499 - 200]


@pytest.mark.parametrize("how", ["noise", "x10", "reversed"])
@pytest.mark.parametrize("name", [name for name in envs.ids() if name.startswith("PerpFutures")])
def test_no_registered_id_knows_what_comes_after_its_last_bar(name: str, how: str) -> None:
    bars = market()
    settings = {
        "split": "test", "train_end": str(bars.close_time[TRAIN]), "validation_end": str(bars.close_time[VALIDATION]),
        "continue_after_liquidation": True, "ruin": 1e-6,
    }  # fmt: skip
    actions, runs = held_actions(400), []
    for number, content in enumerate((bars, changed(bars, 2100, how))):
        spec = register_bars(f"causality-{number}", content)
        runs.append(play(gym.make(name, bars=spec, **settings), bars.time[VALIDATION + 50], actions))
    known = 2100 - (VALIDATION + 50)
    assert runs[0][0][:known] == runs[1][0][:known]
    assert runs[0][0] != runs[1][0]
    assert runs[0][1][: known - 1] == runs[1][1][: known - 1]


# ---- planted leaks ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh_games")
def test_mutant_a_feature_that_is_one_bar_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of E13."""
    raw = features.raw

    def early(bars: Bars) -> Floats:
        values = raw(bars)
        values[:-1, 0] = values[1:, 0]
        return values

    scaler = fitted()
    monkeypatch.setattr(features, "raw", early)
    found = leaks(fixed(scaler), 200, draw_rows(202, LAST, 3), ("noise",))
    assert any("observation" in leak for leak in found)


@pytest.mark.usefixtures("fresh_games")
def test_mutant_a_scaler_fitted_on_the_full_range_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of E13 and E14."""
    fit = FeatureScaler.fit

    def full(bars: Bars, values: Floats, stop: int) -> FeatureScaler:
        return replace(fit(bars, values, len(bars)), train_end=bars.close_time[TRAIN])

    monkeypatch.setattr(FeatureScaler, "fit", full)
    found = leaks(dated, VALIDATION + 10, draw_rows(VALIDATION + 12, LAST, 3), ("noise", "cut"))
    assert any("observation" in leak for leak in found)


@pytest.mark.usefixtures("fresh_games")
@pytest.mark.parametrize(
    "fault",
    ["fill at the observed close", "fill at the next close", "reward of the next bar", "volatility of the day to come"],
)
def test_mutant_a_market_whose_clock_is_wrong_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of E13."""
    original = perp_futures.market_matrix

    def wrong(bars: Bars) -> tuple[Floats, int]:
        matrix, warm = original(bars)
        if fault == "fill at the observed close":
            matrix[1:, perp_columns.OPEN] = bars.close[:-1, 0]
        elif fault == "fill at the next close":
            matrix[:, perp_columns.OPEN] = bars.close[:, 0]
        elif fault == "reward of the next bar":
            matrix[:-1, perp_columns.MARK_CLOSE] = matrix[1:, perp_columns.MARK_CLOSE]
        else:
            matrix[:-24, perp_columns.DAILY_VOLATILITY] = matrix[24:, perp_columns.DAILY_VOLATILITY]
        return matrix, warm

    scaler = fitted()
    monkeypatch.setattr(perp_futures, "market_matrix", wrong)
    found = leaks(fixed(scaler), 200, draw_rows(202, LAST, 3), ("noise",))
    assert (
        any("fill" in leak for leak in found) if fault.startswith("fill") else any("reward" in leak for leak in found)
    )


# ---- global state -----------------------------------------------------------------------------------------------


def check_global_state(make: Callable[[], Any]) -> None:
    """The global generators are neither read nor moved."""
    env, twin = make(), make()
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    numpy_before, python_before = np.random.get_state(), random.getstate()  # noqa: NPY002
    env.reset(seed=SEED)
    env.action_space.seed(SEED)
    actions = [env.action_space.sample() for _ in range(100)]
    first = [env.step(action)[0].tobytes() for action in actions] + [env.reset()[0].tobytes()]
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(one, two) for one, two in zip(numpy_before, after, strict=True)), "numpy's state moved"
    assert random.getstate() == python_before, "random's state moved"
    second = []
    twin.reset(seed=SEED)
    for turn in range(100):
        np.random.seed(turn)  # noqa: NPY002
        random.seed(turn)
        second.append(twin.step(actions[turn])[0].tobytes())
    assert [*second, twin.reset()[0].tobytes()] == first, "global state had an effect"


@pytest.mark.parametrize("name", envs.ids())
def test_global_random_state_is_neither_used_nor_moved(name: str) -> None:
    """E12."""
    check_global_state(lambda: made(name))


@pytest.mark.parametrize("fault", ["numpy", "python"])
def test_mutant_an_env_that_uses_a_global_generator_is_found(fault: str) -> None:
    """Twin of E12."""

    class Global(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            obs, *rest = self.env.step(action)
            obs[0] += np.random.random() if fault == "numpy" else random.random()  # noqa: NPY002
            return obs, *rest

    with pytest.raises(AssertionError):
        check_global_state(lambda: Global(gym.make(envs.ids()[0], bars=SMALL)))


# ---- what a probe can read --------------------------------------------------------------------------------------

PROBED = 12_000


def random_walk() -> Bars:
    """Independent returns: nothing known at a close says anything about the next one."""
    generator = np.random.default_rng(SEED)
    closes = 50_000.0 * np.exp(np.cumsum(generator.normal(0.0, 0.005, PROBED)))
    opened = np.concatenate([closes[:1], closes[:-1]])
    spread = np.exp(np.abs(generator.normal(0.0, 0.002, (2, PROBED))))
    times = np.datetime64("2022-01-01", "ns") + np.arange(PROBED) * np.timedelta64(1, "h")
    return Bars(
        time=times, interval=np.timedelta64(3600, "s").astype("timedelta64[ns]"), symbols=("BTCUSDT",),
        open=opened[:, None],
        high=(np.maximum(opened, closes) * spread[0])[:, None], low=(np.minimum(opened, closes) / spread[1])[:, None],
        close=closes[:, None], volume=generator.lognormal(8.0, 1.0, (PROBED, 1)),
        funding_time=times[::8], funding_rate=generator.normal(1e-4, 1e-4, (len(times[::8]), 1)),
    )  # fmt: skip


def probe(plant: Callable[[Floats, Floats], None] | None = None) -> float:
    """Out-of-sample R2 of a linear probe from observations (account columns too) to the next return."""
    bars = random_walk()
    env = build(
        "PerpFutures", bars=bars, split="test", continue_after_liquidation=True, ruin=1e-6, cost_scale=0.0,
        train_end=str(bars.close_time[500]), validation_end=str(bars.close_time[510]),
    )  # fmt: skip
    generator = np.random.default_rng(SEED)
    obs, _ = env.reset(seed=SEED)
    rows, seen, action = [int(env.simulation.rows[0])], [obs], np.zeros(1)
    done = False
    while not done:
        if generator.random() < 0.2:
            action = generator.uniform(-0.3, 0.3, 1)
        obs, _, terminated, truncated, _ = env.step(action)
        done = terminated or truncated
        rows.append(int(env.simulation.rows[0]))
        seen.append(obs)
    inputs, places = np.array(seen[:-1], np.float64), np.array(rows[:-1])
    target = np.log(bars.close[places + 1, 0] / bars.close[places, 0])
    if plant is not None:
        plant(inputs, target)
    assert len(target) > 10_000
    half = len(target) // 2
    mean, scale = inputs[:half].mean(axis=0), inputs[:half].std(axis=0) + 1e-12
    design = np.column_stack([np.ones(len(inputs)), (inputs - mean) / scale])
    weights = np.linalg.lstsq(
        design[:half].T @ design[:half] + 10.0 * np.eye(design.shape[1]), design[:half].T @ target[:half], rcond=None
    )[0]
    rest, guess = target[half:], design[half:] @ weights
    return float(1.0 - np.sum((rest - guess) ** 2) / np.sum((rest - target[:half].mean()) ** 2))


def test_a_linear_probe_reads_no_future_return_from_the_observations_of_a_random_walk() -> None:
    """E16."""
    print(f"seed {SEED}")
    assert probe() <= 3.0 / (PROBED / 2)


def test_mutant_the_probe_reads_a_planted_lead_feature() -> None:
    """Twin of E16."""

    def plant(inputs: Floats, target: Floats) -> None:
        noise = np.random.default_rng(SEED).normal(0.0, target.std(), len(target))
        inputs[:, 3] = target + 5.0 * noise  # a twenty-sixth of the variance is the future

    assert probe(plant) > 0.01


# ---- in-sample rule ---------------------------------------------------------------------------------------------


def late_scaler(row: int) -> FeatureScaler:
    bars = market()
    return FeatureScaler.fit(bars, features.raw(bars), row + 1)


def check_in_sample_rule(split: str) -> None:
    """Beginning at or before the end of what was fitted raises, one bar later does not."""
    bars = market()
    dates = {"train_end": str(bars.close_time[TRAIN]), "validation_end": str(bars.close_time[VALIDATION])}
    first = {"validation": TRAIN + 1, "test": VALIDATION + 1}[split]
    for last in (first, first + 100):
        scaler = late_scaler(last)
        with pytest.raises(InSampleError) as raised:
            build("PerpFutures", bars=bars, split=split, scaler=scaler, episode_bars=50, **dates)
        assert str(bars.close_time[first])[:16] in str(raised.value)
        assert str(scaler.train_end)[:16] in str(raised.value)
        env = build(
            "PerpFutures", bars=bars, split=split, scaler=scaler, allow_in_sample=True, episode_bars=50, **dates
        )
        assert env.reset(seed=SEED)[1]["in_sample"] is True
        assert env.step([0.0])[4]["in_sample"] is True
    env = build("PerpFutures", bars=bars, split=split, scaler=late_scaler(first - 1), episode_bars=50, **dates)
    assert env.reset(seed=SEED)[1]["in_sample"] is False


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_evaluation_inside_the_fitted_range_raises_and_names_both_dates(split: str) -> None:
    """E18."""
    check_in_sample_rule(split)


def test_mutant_a_scaler_that_dates_itself_a_bar_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of E18."""
    fit = FeatureScaler.fit

    def early(bars: Bars, values: Floats, stop: int) -> FeatureScaler:
        return replace(fit(bars, values, stop), train_end=bars.close_time[stop - 2])

    monkeypatch.setattr(FeatureScaler, "fit", early)
    with pytest.raises(pytest.fail.Exception):
        check_in_sample_rule("test")


def test_a_scaler_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    scaler, file = fitted(), tmp_path / "scaler.json"
    seen = []
    for mean in (scaler.mean, scaler.mean + scaler.deviation * (scaler.deviation != 1.0)):
        file.write_text(json.dumps(replace(scaler, mean=mean).to_json()))
        seen.append(build("PerpFutures", bars=SMALL, scaler=str(file)).reset(seed=SEED)[0].tobytes())
    assert seen[0] != seen[1]


def test_training_inside_the_fitted_range_is_allowed_and_flagged() -> None:
    """E18."""
    bars = market()
    dates = {"train_end": str(bars.close_time[TRAIN]), "validation_end": str(bars.close_time[VALIDATION])}
    assert build("PerpFutures", bars=bars, **dates).reset(seed=SEED)[1]["in_sample"] is True
    assert build("PerpFutures", bars=bars, split="test", **dates).reset(seed=SEED)[1]["in_sample"] is False
    with pytest.raises(ConfigError):
        build("PerpFutures", bars=bars, allow_in_sample="yes", **dates)


def test_the_marks_and_labels_of_the_future_stay_out_of_the_observation() -> None:
    """E16."""
    bars = market()
    names = build("PerpFutures", bars=bars).observation_names
    assert not any("label" in name or "regime" in name for name in names)
    silent = replace(bars, labels=None, label_names=())
    scaler, actions = fitted(), held_actions(300)
    one, two = (play(fixed(scaler)(content), bars.time[300], actions) for content in (bars, silent))
    assert one[0] == two[0]
    assert one[1] == two[1]
    assert "label" in one[2][0]
    assert "label" not in two[2][0]
    assert set(MARKS) <= set(bars.columns)
