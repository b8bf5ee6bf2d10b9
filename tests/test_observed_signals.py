"""Signals as columns of an observation: what they are, what they were fitted on, and that none sees the future."""

from __future__ import annotations

import logging
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from registered import basket_market, perpetual_market, session_market
from signal_toys import LastReturn, NextReturn, cointegrated

import regimegym
from agents.lookahead import check_id, check_id_lanes
from agents.signals.agent import fit_signal, save
from encoders import signals
from encoders.signals import files, fitted
from encoders.signals.fitted import SignalSet, signal_set
from envs.make import build, build_vector, game_of
from envs.perp_config import PerpFuturesConfig
from envs.splits import split_rows
from markets import sources
from markets.bars import Bars
from markets.errors import ArtefactError, ConfigError, DataError, InSampleError, UnknownNameError
from markets.sources.memory import register_bars

for extra in ("statsmodels", "arch", "xgboost"):
    pytest.importorskip(extra, reason="extra 'models' is not installed")

ROWS = 2000
TOY, LEAK = "last_return", "next_return"
FAMILIES = {"PerpFutures-v0": perpetual_market, "SpotCrypto-v0": basket_market}
STEPS: dict[Any, dict[str, int]] = {check_id: {"steps": 120}, check_id_lanes: {"steps": 60}}  # of a replay
Arrays = list[np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def own_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Rows, fits and files of a test end with it."""
    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fitted, "_fits", OrderedDict())
    rows = dict(signals.SIGNALS)
    for name in ("LastReturn", "NextReturn"):
        signals.register(f"signal_toys:{name}")
    yield
    signals.SIGNALS.clear()
    signals.SIGNALS.update(rows)


def bars_of(env_id: str, rows: int = ROWS) -> Bars:
    return FAMILIES[env_id.replace("-JEPA", "")](rows)


def make(env_id: str, bars: Bars | None = None, **arguments: Any) -> Any:
    return gym.make(env_id, bars=register_bars("observed", bars or bars_of(env_id)), **arguments)


def played(env: Any, steps: int = 40, seed: int = 3) -> tuple[Arrays, list[float]]:
    env.action_space.seed(seed)
    obs, _ = env.reset(seed=seed)
    seen, rewards = [obs], []
    for _ in range(steps):
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append(obs)
        rewards.append(float(reward))
        if terminated or truncated:
            break
    return seen, rewards


def models_of(env: Any) -> SignalSet:
    found = env.unwrapped.simulation.game.signals.models
    assert isinstance(found, SignalSet)
    return found


# What is observed


@pytest.mark.parametrize("env_id", list(FAMILIES))
def test_columns_are_named_bounded_and_pass_the_environment_checker(env_id: str) -> None:
    env = make(env_id, signals=f"garch,{TOY}")
    names = env.get_wrapper_attr("observation_names")
    coins = ("",) if env_id == "PerpFutures-v0" else ("BTC_", "ETH_", "SOL_")
    wanted = [f"{coin}{name}" for name in ("garch_direction", "garch_confidence", "garch_volatility") for coin in coins]
    wanted += [f"{coin}{TOY}_{name}" for name in ("direction", "confidence") for coin in coins]
    assert list(names[-len(wanted) :]) == wanted
    space = env.observation_space
    assert space.shape == (len(names),)
    assert np.isfinite(space.low).all()
    assert np.isfinite(space.high).all()
    with pytest.warns(UserWarning, match="different from the unwrapped version"):  # a wrapper serves the columns
        check_env(env, skip_render_check=True)
    seen, _ = played(env)
    assert all(obs.dtype == np.float32 and space.contains(obs) for obs in seen)
    assert np.ptp(np.array(seen)[:, -len(wanted) :], axis=0).max() > 0.1, "columns that never move prove nothing"


@pytest.mark.parametrize("env_id", list(FAMILIES))
def test_the_environment_behind_the_columns_is_what_it_was(env_id: str) -> None:
    """The first columns, rewards and starts are those of the environment without signals, where it begins as late."""
    start = {"random_start": False, "split": "validation"}
    plain, more = make(env_id, **start), make(env_id, signals=TOY, **start)
    assert plain.unwrapped.simulation.game.appended is None
    assert type(plain) is type(make(env_id, signals="", **start))
    (one, first), (two, second) = played(plain), played(more)
    width = one[0].shape[0]
    assert first == second
    assert all(np.array_equal(a, b[:width]) for a, b in zip(one, two, strict=True))
    assert two[0].shape[0] > width


@pytest.mark.parametrize("env_id", list(FAMILIES))
def test_each_row_is_the_models_own_at_the_bar_of_the_observation(env_id: str) -> None:
    env = make(env_id, signals=TOY)
    game = env.unwrapped.simulation.game
    table = models_of(env).models[0].table(game.bars)
    width = table.values.shape[1]
    obs, _ = env.reset(seed=1)
    for _ in range(5):
        row = int(env.unwrapped.simulation.rows[0])
        assert np.array_equal(obs[-width:], table.values[row])
        assert not np.array_equal(obs[-width:], table.values[row - 1])  # the comparison tells bars apart
        obs = env.step(env.action_space.sample())[0]


def test_lanes_equal_single_environments_and_last_observations_have_the_columns() -> None:
    arguments = {"bars": bars_of("SpotCrypto-v0"), "signals": TOY, "episode_bars": 5, "hide": f"ETH_{TOY}_confidence"}
    vector = build_vector("SpotCrypto", num_envs=2, autoreset_mode="SameStep", **arguments)
    single = build("SpotCrypto", **arguments)
    lanes, _ = vector.reset(seed=7)
    alone, _ = single.reset(seed=7)
    place = single.get_wrapper_attr("observation_names").index(f"ETH_{TOY}_confidence")
    action = np.full((2, 3), 0.3, np.float32)
    for _ in range(5):
        assert np.array_equal(lanes[0], alone)
        assert alone[place] == 0.0
        lanes, _, _, truncated, infos = vector.step(action)
        alone, *_ = single.step(action[0])
    assert truncated.all()
    assert np.array_equal(infos["final_obs"][0], alone)
    assert not np.array_equal(lanes[0], alone)
    assert np.array_equal(lanes, vector.unwrapped.simulation.seen())


def test_with_an_encoder_the_signals_stand_behind_its_columns() -> None:
    env = make("PerpFutures-JEPA-v0", bars_of("PerpFutures-v0", 4000), signals=TOY, random_start=False)
    names = env.get_wrapper_attr("observation_names")
    assert names[-2:] == (f"{TOY}_direction", f"{TOY}_confidence")
    assert names.index("jepa_00") < names.index("regime_0") < len(names) - 2
    seen, _ = played(env, 5)
    game = env.unwrapped.simulation.game
    assert np.array_equal(seen[0][:-2][-game.encoded.table.values.shape[1] :].shape, (36,))
    assert env.observation_space.contains(seen[-1])
    assert "BTC_regime" in env.reset(seed=0)[1]


@pytest.mark.parametrize("name", ["mean_reversion", "garch", "boosting", "sentiment"])
def test_the_document_describes_the_columns_that_a_model_serves(name: str) -> None:
    bars = basket_market(1400).between(0, 1400)
    model = signals.make(name, **({"trees": 5} if name == "boosting" else {})).fit(bars)
    table, kind = model.table(bars), signals.signal_kind(name)
    assert [f"{name}_{column}_{bars.symbols[0]}" for column, *_ in kind.described] == list(table.names[::3])
    served = [f"{low:g} .. {high:g}" for low, high in zip(table.low[::3], table.high[::3], strict=True)]
    assert [bounds for *_, bounds, _ in kind.described] == served


def test_sessions_take_models_that_understand_nights_and_refuse_the_others() -> None:
    bars = register_bars("nights", session_market())
    with pytest.raises(ConfigError, match=r"'garch' takes the step over a night .* sessions = True: sentiment"):
        gym.make("ZeroDTE-v0", bars=bars, signals="garch")
    times = [str(time) for time in session_market().time[::400]]
    heard = signals.make("sentiment").give(times, ["profits soar"] * len(times)).fit(session_market())
    env = build("ZeroDTE", bars=session_market(), signals=SignalSet([heard]))
    seen = np.array(played(env, 30)[0])
    assert env.get_wrapper_attr("observation_names")[-2:] == ("sentiment_direction", "sentiment_confidence")
    assert seen[:, -2].max() == 1.0
    with pytest.raises(ConfigError, match="over a night"):
        build("ZeroDTE", bars=session_market(), signals=SignalSet([LastReturn().fit(session_market())]))


# What they were fitted on


def test_named_models_are_fitted_on_the_training_range_and_on_nothing_else() -> None:
    bars = bars_of("PerpFutures-v0")
    stop = split_rows(bars, "train", None, None)[1]
    found = {split: models_of(make("PerpFutures-v0", split=split, signals=f"garch,{TOY}")) for split in
             ("train", "validation", "test")}  # fmt: skip
    assert len(set(found.values())) == 1
    assert all(model.train_end == bars.close_time[stop - 1] for model in found["test"].models)

    def scaled(first: int, last: int) -> Bars:
        volume = {name: np.array(getattr(bars, name)) for name in ("open", "high", "low", "close")}
        for column in volume.values():
            column[first:last] *= np.linspace(1.0, 1.5, last - first)[:, None]
        return replace(bars, **volume)

    assert models_of(make("PerpFutures-v0", scaled(stop, len(bars)), signals=f"garch,{TOY}")) == found["train"]
    twin = models_of(make("PerpFutures-v0", scaled(stop - 200, stop), signals=f"garch,{TOY}"))
    assert twin != found["train"], "other training bars are another fit"


def test_a_saved_model_that_was_fitted_inside_the_asked_split_is_refused(tmp_path: Path) -> None:
    bars = bars_of("PerpFutures-v0")
    late = str(bars.close_time[int(0.9 * ROWS)])
    for place, end in ((tmp_path / "late", late), (tmp_path / "early", str(bars.close_time[int(0.6 * ROWS) - 1]))):
        dates = {"train_end": end, "validation_end": str(bars.close_time[int(0.95 * ROWS)])}
        agent = fit_signal(LastReturn(), "PerpFutures-v0", {"bars": register_bars("observed", bars), **dates})
        save(place, agent)
    with pytest.raises(InSampleError, match=rf"signal 'last_return', which ends at {late[:10]}"):
        make("PerpFutures-v0", signals=str(tmp_path / "late"), split="test")
    allowed = make("PerpFutures-v0", signals=str(tmp_path / "late"), split="test", allow_in_sample=True)
    assert allowed.reset(seed=0)[1]["in_sample"]
    honest = make("PerpFutures-v0", signals=str(tmp_path / "early" / "signal.zip"), split="test")
    assert not honest.reset(seed=0)[1]["in_sample"]
    assert models_of(honest) == models_of(make("PerpFutures-v0", signals=TOY))


def test_a_file_that_is_fitted_anew_is_served_anew(tmp_path: Path) -> None:
    arguments = {"bars": register_bars("observed", bars_of("PerpFutures-v0"))}
    served = []
    for sign in (1.0, -1.0):
        save(tmp_path, fit_signal(LastReturn(sign=sign), "PerpFutures-v0", arguments))
        served.append(played(make("PerpFutures-v0", signals=str(tmp_path)), 3)[0][0][-2])
    assert served[0] == -served[1] != 0.0


def test_a_fit_is_made_once_for_all_environments_and_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    honest = LastReturn.learn

    def counted(self: LastReturn, bars: Bars) -> dict[str, Any]:
        calls.append(len(bars))
        return honest(self, bars)

    monkeypatch.setattr(LastReturn, "learn", counted)
    bars = bars_of("PerpFutures-v0")

    def fit() -> SignalSet:
        return signal_set(TOY, bars, 1200)

    for env in [make("PerpFutures-v0", signals=TOY, leverage=1.0 + lane) for lane in range(8)]:
        env.reset(seed=0)
    first = fit()
    assert calls == [1200]
    fitted._fits.clear()  # as in another process
    assert fit() == first
    assert calls == [1200]
    assert signal_set(TOY, bars, 1300) != first
    assert calls == [1200, 1300]
    for file in (tmp_path / "cache" / "signals").iterdir():
        file.write_bytes(file.read_bytes()[:-40])
    fitted._fits.clear()
    with caplog.at_level(logging.WARNING):
        assert fit() == first
    assert calls == [1200, 1300, 1200]
    assert "a cached fit is not used" in caplog.text


def test_a_pickled_environment_refuses_other_fits(tmp_path: Path) -> None:
    arguments = {"bars": register_bars("observed", bars_of("PerpFutures-v0"))}
    save(tmp_path, fit_signal(LastReturn(), "PerpFutures-v0", arguments))
    env = make("PerpFutures-v0", signals=str(tmp_path))
    env.reset(seed=0)
    kept = pickle.dumps(env)
    assert np.array_equal(pickle.loads(kept).step([0.5])[0], env.step([0.5])[0])
    save(tmp_path, fit_signal(LastReturn(sign=-1.0), "PerpFutures-v0", arguments))
    with pytest.raises(ArtefactError, match="signals' fits"):
        pickle.loads(kept)


# None sees the future


@pytest.mark.parametrize("name", ["mean_reversion", "garch", "boosting", TOY])
def test_a_row_does_not_change_when_bars_follow_and_the_stream_says_the_same(name: str) -> None:
    bars = cointegrated(1400, 10.0, 1) if name == "mean_reversion" else basket_market(1400)
    model = signals.make(name, **({"trees": 20} if name == "boosting" else {})).fit(bars.between(0, 840))
    found = SignalSet([model])
    table = found.table(bars)
    for row in range(table.valid_from, len(bars), 97):
        assert np.array_equal(found.table(bars.between(0, row + 1)).values[row], table.values[row])
    stream, rows = found.stream(), []
    for row in range(len(bars) - model.look_back - 3, len(bars)):
        rows.append(stream.update(bars.one(row)))
    assert rows[: model.look_back] == [None] * model.look_back
    assert np.allclose(rows[-3:], table.values[-3:], atol=1e-5)  # sums of a window from two ends
    assert np.ptp(table.values[table.valid_from :], axis=0).max() > 0.01


def test_mutant_a_row_of_a_model_that_peeks_changes_when_bars_follow() -> None:
    bars = basket_market(1400)
    found = SignalSet([NextReturn().fit(bars.between(0, 840))])
    table = found.table(bars)
    changed = [not np.array_equal(found.table(bars.between(0, row + 1)).values[row], table.values[row])
               for row in range(900, 1390, 10)]  # fmt: skip
    assert any(changed)


@pytest.mark.parametrize(("env_id", "check"), [("PerpFutures-v0", check_id), ("SpotCrypto-v0", check_id_lanes)])
def test_the_lookahead_detector_finds_nothing_in_an_environment_with_signals(env_id: str, check: Any) -> None:
    found = check(env_id, bars_of(env_id), {"signals": f"garch,{TOY}"}, trials=2, **STEPS[check])
    assert found == [], str(found)
    assert found.columns - found.ends - found.told > 40 + 2
    assert found.skipped <= 1  # a cut that leaves too few bars for an episode


def test_mutant_a_planted_signal_that_knows_the_next_return_is_found_in_lanes() -> None:
    found: Any = check_id_lanes("SpotCrypto-v0", basket_market(ROWS), {"signals": f"{LEAK},{TOY}"}, trials=2, steps=60)
    leaky = {f"{coin}_{LEAK}_{what}" for coin in ("BTC", "ETH", "SOL") for what in ("direction", "confidence")}
    assert found
    assert {leak.column for leak in found} <= leaky
    assert {leak.bars_ahead for leak in found} == {1}


def test_the_command_finds_a_planted_signal_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    del signals.SIGNALS[LEAK]
    words = ["lookahead", "--env", "PerpFutures-v0", "--trials", "2", "--bars", "synthetic:crypto?seed=1&bars=900"]
    assert regimegym.main([*words, "--env-arg", f"signals={LEAK}", "--signals", "signal_toys:NextReturn"]) == 1
    assert f"'{LEAK}_direction'" in capsys.readouterr().out


# What cannot be


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ("garhc", UnknownNameError, "Did you mean 'garch'"),
        ("nowhere/at/all", UnknownNameError, "no such file or folder"),
        ("garch,,boosting", ConfigError, "empty name"),
        ("garch, garch", ConfigError, "'garch' twice"),
        (5, ConfigError, "signals must be text"),
        ("mean_reversion", ConfigError, "needs two prices.*--set KEY=VALUE"),
    ],
)
def test_what_cannot_be_observed_is_named(given: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make("PerpFutures-v0", signals=given)


def test_models_of_other_symbols_names_and_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=r"holds no signal.zip: fit one with"):
        make("PerpFutures-v0", signals=str(tmp_path / "empty"))
    other = LastReturn().fit(basket_market(1400))
    with pytest.raises(ConfigError, match="was fitted on BTCUSDT, ETHUSDT, SOLUSDT"):
        game_of("PerpFutures", PerpFuturesConfig(bars=perpetual_market(), signals=SignalSet([other])))
    with pytest.raises(ConfigError, match="two of the models are called 'last_return'"):
        SignalSet([other, LastReturn(sign=-1.0).fit(basket_market(1400))])
    with pytest.raises(ConfigError, match="not fitted"):
        SignalSet([LastReturn()])
    with pytest.raises(DataError, match="GARCH needs 500"):
        make("PerpFutures-v0", perpetual_market(700), signals="garch", episode_bars=10)


def test_a_column_without_a_finite_number_or_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = perpetual_market(1500)
    model = LastReturn().fit(bars)
    honest = LastReturn.table

    def unbounded(self: LastReturn, bars: Bars) -> Any:
        table = honest(self, bars)
        return replace(table, high=np.full(len(table.names), np.inf, np.float32))

    monkeypatch.setattr(LastReturn, "table", unbounded)
    with pytest.raises(ConfigError, match="without finite bounds"):
        SignalSet([model]).table(bars.between(0, 1400))
    monkeypatch.setattr(LastReturn, "table", honest)
    monkeypatch.setattr(LastReturn, "learn", lambda self, bars: {"scale": float("nan")})
    with pytest.raises(DataError, match="not finite"):
        signal_set(TOY, bars.between(0, 1400), 800)


def test_a_saved_signal_is_read_back_to_the_same_hash(tmp_path: Path) -> None:
    bars = sources.load("synthetic:crypto?seed=1&interval=1h&bars=1200")
    for name in ("garch", "boosting"):
        model = signals.make(name, **({"trees": 5} if name == "boosting" else {})).fit(bars)
        rows, parts = files.told([model])
        assert files.retold(rows, parts)[0].hash == model.hash
        rows[0]["settings"] = {**rows[0]["settings"], "horizon" if name == "boosting" else "bars": 7}
        with pytest.raises(ArtefactError, match="hash differs"):
            files.retold(rows, parts)
