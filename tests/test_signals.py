"""Classical signals: what they fit on markets of known truth, that they are causal, and their files and agents."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_pickles import KINDS, payloads
from signal_toys import LastReturn, NextReturn, bars_of, cointegrated, garch_returns, reverting

import agents
import regimegym
from agents.agent import Agent, Signal
from agents.evaluation import walk
from agents.lookahead_tables import check_table
from agents.market_view import MarketView, view_of
from agents.recipe import resolve
from agents.signals.agent import FILE, SignalAgent, fit_signal, load, save
from encoders import signals
from encoders.signals.garch_momentum import LARGEST_SUM, fit_garch, is_stationary
from encoders.signals.gradient_boosting import GradientBoosting
from encoders.signals.mean_reversion import MeanReversion, engle_granger
from encoders.signals.model import SignalModel, asset, side_by_side
from encoders.signals.sentiment import Sentiment, tone
from envs.make import build, game_of
from markets import storage
from markets.bars import Bars
from markets.errors import (
    ArtefactError,
    ConfigError,
    DataError,
    InSampleError,
    MissingExtraError,
    RegimeGymError,
    UnknownNameError,
)
from markets.sources import load as load_bars
from markets.sources.memory import register_bars

for extra in ("statsmodels", "arch", "xgboost"):
    pytest.importorskip(extra, reason="extra 'models' is not installed")

BARS = "synthetic:crypto?seed=1&interval=1h&bars=2500"
TOY = "signal_toys:LastReturn"


@pytest.fixture(autouse=True)
def own_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Rows and readings that a test adds end with it."""
    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path / "cache"))
    rows = dict(signals.SIGNALS)
    yield
    signals.SIGNALS.clear()
    signals.SIGNALS.update(rows)


def fitted(name: str) -> tuple[SignalModel, Bars]:
    """A model fitted on the first 60 % of bars that suit it, and all of them."""
    if name == "mean_reversion":
        bars = cointegrated(1500, 10.0, 1)
    elif name == "garch, two assets":
        draws = [garch_returns(1500, 2e-6, 0.1, 0.85, seed) for seed in (1, 2)]
        bars = bars_of(4.0 + np.cumsum(np.stack(draws, axis=1), axis=0), ("YYY", "XXX"))
    else:
        bars = reverting(2000, 1) if name == "boosting" else load_bars(BARS)
    return signals.make(name.split(",")[0]).fit(bars.between(0, int(0.6 * len(bars)))), bars


# What is fitted


def test_a_half_life_is_recovered_within_a_tenth() -> None:
    """20,000 bars and a half-life of 10: the standard error of the estimate is 4 %; five seeds."""
    for seed in range(5):
        bars = cointegrated(20_000, 10.0, seed)
        found = engle_granger(*np.log(bars.close).T)
        assert found["p_value"] < 0.01
        assert found["half_life"] == pytest.approx(10.0, rel=0.1)
        assert found["hedge_ratio"] == pytest.approx(0.8, abs=0.01)


def test_a_twentieth_of_random_walk_pairs_count_as_cointegrated() -> None:
    """500 pairs of 250 bars, level 5 %: within three standard errors (1 %) of it."""
    draw = np.random.default_rng(7)
    walks = np.cumsum(draw.normal(size=(500, 2, 250)), axis=2)
    found = [engle_granger(y, x, 4) for y, x in walks]
    rate = np.mean([item["p_value"] < 0.05 for item in found])
    assert 0.02 <= rate <= 0.08, rate
    from statsmodels.tsa.adfvalues import mackinnonp

    # a fault that is often made: critical values of a series that was not fitted
    assert np.mean([mackinnonp(item["statistic"], "c", N=1) < 0.05 for item in found]) > 0.1


def test_where_there_is_no_pair_the_signal_is_neutral_and_says_so() -> None:
    logs = 4.0 + np.cumsum(np.random.default_rng(3).normal(0.0, 0.01, (1000, 2)), axis=0)
    bars = bars_of(logs, ("YYY", "XXX"))
    model = MeanReversion().fit(bars)
    assert "no cointegration" in model.status()
    assert not model.table(bars).values[:, :4].any()


def test_the_legs_of_a_pair_are_opposite_and_a_low_spread_is_bought() -> None:
    model, bars = fitted("mean_reversion")
    table = model.table(bars)
    values = table.values[table.valid_from :]
    y, x, confidence, z = values[:, 0], values[:, 1], values[:, 2], values[:, 4]
    traded = confidence > 0.0
    assert 0.02 < traded.mean() < 0.5
    assert np.array_equal(traded, np.abs(z) >= model.settings()["entry"])
    assert (np.sign(y[traded]) == -np.sign(z[traded])).all()
    assert (np.sign(x[traded]) == np.sign(z[traded])).all()
    assert model.signal(values[traded.argmax()]).confidence == confidence[traded][0]


def test_a_companion_gives_one_asset_the_votes_of_the_pair(tmp_path: Path) -> None:
    both = cointegrated(1200, 10.0, 1)
    register_bars("companion", asset(both, 1))
    alone = asset(both, 0)
    model = MeanReversion(companion="memory:companion").fit(alone)
    pair = MeanReversion().fit(both)
    assert np.array_equal(model.table(alone).values[:, 0], pair.table(both).values[:, 0])
    with pytest.raises(ConfigError, match="companion=SPEC"):
        MeanReversion().fit(alone)


def test_a_companion_of_the_future_reaches_no_row_and_a_stale_one_gives_no_vote() -> None:
    both = cointegrated(1200, 10.0, 1)
    alone, other = asset(both, 0), asset(both, 1)
    register_bars("companion", other)
    model = MeanReversion(companion="memory:companion").fit(alone)
    whole = model.table(alone).values
    register_bars("companion", other.between(0, 900))
    cut = model.table(alone).values
    assert np.array_equal(whole[:900], cut[:900])
    assert whole[900:, 1].any()
    assert not cut[900:, 1].any()


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.85), (0.3, 0.5)])
def test_garch_parameters_lie_inside_their_intervals(alpha: float, beta: float) -> None:
    """5,000 returns; intervals of two parameters at 95 %, so one of ten may miss: at least 8 of 10 hold."""
    inside = 0
    for seed in range(5):
        found = fit_garch(garch_returns(5000, 2e-6, alpha, beta, seed))
        assert is_stationary(found["alpha"], found["beta"])
        for name, truth in (("alpha", alpha), ("beta", beta)):
            low, high = found["intervals"][name]
            assert high - low < 0.3
            inside += low <= truth <= high
    assert inside >= 8


def test_garch_stays_stationary_where_the_returns_are_not() -> None:
    found = fit_garch(garch_returns(4000, 2e-6, 0.5, 0.55, 2))
    assert is_stationary(found["alpha"], found["beta"])
    assert found["alpha"] + found["beta"] <= LARGEST_SUM + 1e-12
    assert found["cut"]
    assert not is_stationary(0.5, 0.55)


def test_garch_is_silent_in_the_wildest_hours() -> None:
    model, bars = fitted("garch")
    table = model.table(bars)
    values = table.values[table.valid_from :]
    ceiling = math.sqrt(model.report()["assets"][0]["ceiling"] * bars.periods_per_year)
    wild = values[:, 2] > ceiling * 1.0001
    assert 0 < wild.sum() < len(wild) / 2
    assert not values[wild, 1].any()
    assert values[~wild, 1].any()


def test_boosting_beats_the_majority_on_what_can_be_learned_and_not_on_noise() -> None:
    scores = {}
    for name, bars in (
        ("signal", reverting(4000, 1)),
        ("noise", bars_of(4.0 + np.cumsum(np.random.default_rng(5).normal(0.0, 0.005, 4000)))),
    ):
        model = GradientBoosting(horizon=1).fit(bars.between(0, 2800))
        rows = np.arange(2800, len(bars) - 1)
        up = bars.close[rows + 1, 0] > bars.close[rows, 0]
        right = np.mean((model.probability(bars)[rows] > 0.5) == up)
        scores[name] = right - max(up.mean(), 1.0 - up.mean())
        if name == "signal":
            importance = model.report()["importance"]
            assert importance[0][0] in (
                "return_1",
                "return_in_sigmas",
                "close_location",
            )  # here all three say the last return
            assert sum(share for _, share in importance) == pytest.approx(1.0)
    assert scores["signal"] > 0.08, scores
    assert scores["noise"] < 0.03, scores


def test_the_same_bars_give_the_same_trees() -> None:
    bars = reverting(1500, 2)
    assert GradientBoosting(trees=10).fit(bars).dump() == GradientBoosting(trees=10).fit(bars).dump()


def test_without_headlines_sentiment_is_neutral_with_confidence_0_and_says_so() -> None:
    bars = load_bars(BARS)
    model = Sentiment().fit(bars)
    assert not model.table(bars).values.any()
    assert model.status() == "no headlines were given: neutral with confidence 0"
    assert model.train_end is None


def test_a_headline_counts_from_the_first_close_after_it_and_for_its_hours(tmp_path: Path) -> None:
    bars = load_bars(BARS)
    stamp = str(bars.close_time[10])
    file = tmp_path / "news.csv"
    file.write_text(f"time,headline\n{stamp},Funds see record inflows as coin soars\n{stamp},Nothing of note\n")
    model = Sentiment(headlines=str(file), hours=3.0).fit(bars)
    table = model.table(bars).values
    assert model.status() == ""
    assert np.flatnonzero(table[:, 0]).tolist() == [11, 12, 13]  # published as bar 10 closed: known from 11 on
    assert table[11].tolist() == [1.0, 0.25]
    file.write_text("when,headline\n")
    with pytest.raises(DataError, match="column 'time' is missing"):
        Sentiment(headlines=str(file)).fit(bars).table(bars)


@pytest.mark.parametrize(
    ("text", "value"),
    [("Exchange hacked, price plunges", -1.0), ("Rally after approval", 1.0), ("Gains and losses", 0.0), ("", 0.0)],
)
def test_the_tone_of_a_headline(text: str, value: float) -> None:
    assert tone(text) == value


# Causal tables

NAMES = ("mean_reversion", "garch", "garch, two assets", "boosting", "sentiment")


@pytest.mark.parametrize("name", NAMES)
def test_a_row_knows_nothing_of_later_bars(name: str) -> None:
    model, bars = fitted(name)
    if name == "sentiment":
        assert isinstance(model, Sentiment)
        model.give([bars.close_time[1000]], ["Rally"])
    found = check_table(model.table, bars, trials=3)
    assert not found, str(found)


def test_a_row_that_knows_the_next_return_is_caught() -> None:
    bars = load_bars(BARS)
    assert check_table(NextReturn().fit(bars.between(0, 1000)).table, bars, trials=3)


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_gives_the_rows_of_the_table(name: str) -> None:
    model, bars = fitted(name)
    table, start = model.table(bars), 700  # a stream that starts late agrees as well, once it is warm
    stream = model.stream()
    rows = [stream.update(bars.one(row)) for row in range(start, start + model.look_back + 40)]
    assert [row is None for row in rows] == [place < model.look_back for place in range(len(rows))]
    for place in range(model.look_back, len(rows)):
        assert np.array_equal(rows[place], table.values[start + place])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_bars_after_the_training_range_change_nothing_that_is_fitted(name: str) -> None:
    model, bars = fitted(name)
    stop = int(0.6 * len(bars))
    assert model.train_end == (None if name == "sentiment" else bars.close_time[stop - 1])
    again = signals.make(name.split(",")[0]).fit(bars.between(0, stop))
    assert again.fitted == model.fitted


def test_side_by_side_keeps_the_common_times() -> None:
    both = cointegrated(200, 10.0, 1)
    parts = [asset(both, 0).between(10, 150), asset(both, 1).between(0, 120)]
    joined = side_by_side(parts)
    assert joined.symbols == ("YYY", "XXX")
    assert np.array_equal(joined.close, both.close[10:120])
    with pytest.raises(ConfigError, match="twice"):
        side_by_side([parts[0], parts[0]])
    with pytest.raises(DataError, match="in common"):
        side_by_side([asset(both, 0).between(0, 50), asset(both, 1).between(100, 150)])


# Agents


def test_the_action_is_the_direction_of_the_row_it_stands_on() -> None:
    agent = fit_signal(signals.make("garch"), "PerpFutures-v0", {"bars": BARS})
    env = build("PerpFutures", bars=BARS, split="test")
    observation, _ = env.reset(seed=0)
    agent.bind(env.observation_names).watch(view_of(env))
    table = agent.model.table(load_bars(BARS)).values
    for _ in range(30):
        row = env.simulation.rows[0]
        action, _ = agent.predict(observation)
        assert action.tolist() == [table[row, 0] if table[row, 1] > 0.0 else 0.0]
        observation, *_ = env.step(action)


def test_of_several_assets_there_is_an_action_each() -> None:
    model, bars = fitted("mean_reversion")
    row = int(np.flatnonzero(model.table(bars).values[:, 2])[0])
    agent = SignalAgent(model)
    agent.bind(["any"]).watch(MarketView(bars, lambda: np.array([row, row + 1])))
    action, _ = agent.predict(np.zeros((2, 1), np.float32))
    assert action.shape == (2, 2)
    assert action[0, 0] * action[0, 1] < 0.0


def test_an_agent_that_watches_nothing_or_others_says_so() -> None:
    model, bars = fitted("mean_reversion")
    agent = SignalAgent(model)
    agent.bind(["any"])
    with pytest.raises(ConfigError, match="watch"):
        agent.predict(np.zeros(1, np.float32))
    agent.watch(MarketView(bars, lambda: np.array([900, 901])))
    with pytest.raises(ConfigError, match="2 lanes"):
        agent.predict(np.zeros(1, np.float32))
    with pytest.raises(ConfigError, match="fitted on YYY, XXX"):
        agent.watch(MarketView(load_bars(BARS), lambda: np.array([900])))


@pytest.mark.parametrize(
    ("action", "direction", "strength"),
    [
        (0.3, 0.0, 0.0), (np.nextafter(0.3, 1), 1.0, 0.3), (-0.3, 0.0, 0.0), (np.nextafter(-0.3, -1), -1.0, 0.3),
        (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (-0.75, -1.0, 0.75), (2.0, 1.0, 1.0),
    ],
)  # fmt: skip
def test_an_action_votes_beyond_its_threshold_with_its_size(action: float, direction: float, strength: float) -> None:
    class Says(Agent):
        def act(self, columns: Any, state: Any, episode_start: Any, deterministic: bool) -> Any:
            return np.full((len(columns), 1), action), state

    agent = Says()
    agent.bind(["any"])
    said, sure, _ = agent.vote(np.zeros((1, 1), np.float32))
    assert said.tolist() == [[direction]]
    assert sure[0, 0] == pytest.approx(strength)


def test_a_signal_has_its_ranges() -> None:
    assert Signal(-1.0, 0.0).direction == -1.0
    for wrong in ((1.1, 0.0), (0.0, -0.1), (float("nan"), 0.0)):
        with pytest.raises(ConfigError):
            Signal(*wrong)


# A model of one's own


def test_a_model_outside_the_package_is_added_by_its_name_alone(tmp_path: Path) -> None:
    out = tmp_path / "toy"
    words = ["signals", "fit", "--signal", "last_return", "--bars", BARS, "--out", str(out)]
    assert regimegym.main([*words, "--signals", TOY, "--set", "sign=-1"]) == 0
    agent = agents.load(out)
    assert agent.model.settings() == {"sign": -1}
    table = agent.model.table(load_bars(BARS))
    assert table.names == ("last_return_direction", "last_return_confidence")
    family, config = resolve("PerpFutures-v0", {"bars": BARS})
    assert walk(agent, game_of(family, config)).turnover[0] > 0.0
    del signals.SIGNALS["last_return"]
    with pytest.raises(ArtefactError, match="register it first"):
        agents.load(out)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("signal_toys", "module:Class"), ("signal_toys:Nothing", "cannot be imported"), ("json:JSONDecoder", "extends"),
        ("no_such_module:Class", "cannot be imported"),
    ],
)  # fmt: skip
def test_what_is_no_signal_model_is_refused(place: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        signals.register(place)


def test_names_and_settings_are_checked_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match="'garch'"):
        signals.make("garhc")
    with pytest.raises(UnknownNameError, match="'entry'"):
        signals.make("garch", entri=1.0)
    for name, wrong in (
        ("garch", {"bars": 0}), ("garch", {"calm": 0.0}), ("mean_reversion", {"level": 0.0}),
        ("mean_reversion", {"entry": 4.0}), ("boosting", {"margin": 0.5}), ("boosting", {"trees": 0}),
        ("sentiment", {"hours": 0.0}), ("boosting", {"rate": "fast"}), ("boosting", {"seed": 1.5}),
        ("boosting", {"seed": -1}), ("boosting", {"horizon": True}), ("boosting", {"depth": 3.0}),
        ("garch", {"entry": None}), ("garch", {"calm": True}), ("garch", {"full": float("inf")}),
        ("mean_reversion", {"companion": 5}), ("mean_reversion", {"window": [4.0]}),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            signals.make(name, **wrong)
    for own in ("name", "member"):  # of the class, no settings
        with pytest.raises(UnknownNameError, match=own) as told:
            signals.make("boosting", **{own: "x"})
        assert f"Valid: {own}" not in str(told.value)
        assert ", member" not in str(told.value)


@pytest.mark.parametrize(
    "text", [None, "date,words\n1,2\n", 'time,headline\n"2024', "time,headline\nsoon,Funds rally\n"]
)
def test_headlines_that_cannot_be_read_are_told_when_the_signal_is_fitted(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "news.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises((ConfigError, DataError)):
        Sentiment(headlines=str(file)).fit(load_bars(BARS))


@pytest.mark.parametrize(
    ("name", "library"), [("mean_reversion", "statsmodels"), ("garch", "arch"), ("boosting", "xgboost")]
)
def test_a_missing_library_is_named_with_its_extra(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [key for key in sys.modules if key.split(".")[0] == library] + [library]:
        monkeypatch.setitem(sys.modules, module, None)
    bars = cointegrated(1000, 10.0, 1)
    with pytest.raises(MissingExtraError, match=r"regimegym\[models\]"):
        signals.make(name).fit(bars)


# Files


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    for name in ("garch", "boosting", "sentiment"):
        save(folder / name, fit_signal(signals.make(name), "PerpFutures-v0", {"bars": BARS}))
    return folder


@pytest.mark.parametrize("name", ["garch", "boosting", "sentiment"])
def test_a_saved_signal_gives_the_same_table(name: str, saved: Path) -> None:
    bars = load_bars(BARS)
    made = fit_signal(signals.make(name), "PerpFutures-v0", {"bars": BARS})
    read = agents.load(saved / name)
    assert np.array_equal(read.model.table(bars).values, made.model.table(bars).values)
    assert read.model.train_end == made.model.train_end
    with zipfile.ZipFile(saved / name / FILE) as archive:
        assert set(archive.namelist()) <= {"manifest.json", "scaler.json", "trees.json"}


def test_a_split_inside_what_a_signal_was_fitted_on_is_refused(saved: Path) -> None:
    agent = agents.load(saved / "garch")
    agent.check(build("PerpFutures", bars=BARS, split="test"))
    early = {"train_end": "2020-01-20", "validation_end": "2020-02-20", "bars": BARS, "split": "validation"}
    with pytest.raises(InSampleError, match="signal 'garch' was fitted on"):
        agent.check(build("PerpFutures", **early))
    agent.check(build("PerpFutures", **early, allow_in_sample=True))
    with pytest.raises(ArtefactError, match="leverage"):
        agent.check(build("PerpFutures", bars=BARS, split="test", leverage=7))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("member", ["", "manifest.json", "scaler.json", "trees.json", "data.pkl"])
def test_a_planted_pickle_in_a_signal_is_refused_and_never_executed(
    member: str, kind: str, saved: Path, tmp_path: Path
) -> None:
    planted = payloads(tmp_path / "executed")[kind]
    shutil.copytree(saved / "boosting", tmp_path / "run")
    path = tmp_path / "run" / FILE
    if not member:
        path.write_bytes(planted)
    else:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(parts.pop("manifest.json"))
        if member == "manifest.json":
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in {**parts, member: planted}.items():
                    archive.writestr(name, data)
        else:
            storage.write(path, manifest, {**parts, member: planted})
    with pytest.raises(RegimeGymError):
        agents.load(tmp_path / "run")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fitted": {"assets": []}}, "0 fits"), ({"symbols": ["A", "B"]}, "1 fits for 2"),
        ({"signal": "none"}, "register"),
        ({"settings": {"bars": 0}}, "bars=0"), ({"format": 9}, "format is 9"), ({"env": 3}, "env is 3"),
        ({"alpha": 0.9}, "not stationary"),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_is_named(change: dict[str, Any], said: str, saved: Path, tmp_path: Path) -> None:
    manifest, parts = storage.read(saved / "garch" / FILE, ["scaler.json"])
    if "alpha" in change:
        manifest["fitted"]["assets"][0] |= change
    else:
        manifest |= change
    path = storage.write(tmp_path / FILE, manifest, parts)
    with pytest.raises(ArtefactError, match=said):
        load(path)


# The command line


def test_the_report_prints_pair_garch_and_boosting(capsys: pytest.CaptureFixture[str]) -> None:
    bars = cointegrated(2500, 10.0, 1)
    register_bars("y", asset(bars, 0))
    register_bars("x", asset(bars, 1))
    words = ["signals", "report", "--bars", "memory:y", "--bars", "memory:x"]
    assert regimegym.main(words) == 0
    text = capsys.readouterr().out
    for part in ("cointegration p = 0.0", "half-life", "YYY alpha =", "XXX alpha =", "beta =", "most important:"):
        assert part in text
    assert regimegym.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean_reversion"]["p_value"] < 0.01
    assert found["mean_reversion"]["half_life"] == pytest.approx(10.0, rel=0.35)  # of 1,500 bars: error 13 %
    assert found["symbols"] == ["YYY", "XXX"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "--bars", BARS], "--signal NAME"), (["report"], "--bars SPEC"),
        (["report", "--bars", BARS, "--out", "x"], "--out is of fit"),
        (["fit", "--signal", "grach", "--bars", BARS, "--out", "x"], "Did you mean 'garch'"),
        (["fit", "--signal", "garch", "--env", "ZeroDTE-v0", "--out", "x"], "exposure from -1 to 1"),
    ],
)  # fmt: skip
def test_wrong_words_are_told_what_to_write(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().setLevel(logging.INFO)
    assert regimegym.main(["signals", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_toy_is_a_signal_model() -> None:
    bars = load_bars(BARS)
    model = LastReturn().fit(bars.between(0, 1000))
    assert model.signal(model.table(bars).values[50]).confidence >= 0.0
    with pytest.raises(ConfigError, match="asset 1"):
        model.signal(model.table(bars).values[50], 1)
