"""The lookahead detector makes no error on leaky and clean fixtures of every kind, and its shortcuts make some."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from lookahead_fixtures import CLEAN, LEAKY, Fixture
from lookahead_toys import Floats, ToyEnv, returns

from agents import infos, leaks, lookahead, lookahead_envs, lookahead_tables, lookahead_vectors
from agents.learnability import UNSAFE, RevealNextReturnVector, next_returns
from agents.lookahead import Leaks
from envs import perp_columns, perp_futures
from markets import features, sources
from markets.bars import Bars
from markets.errors import ConfigError, UnknownNameError
from markets.features import FeatureScaler
from scripts import lookahead as script

ALL = (*LEAKY, *CLEAN)


@cache
def market() -> Bars:
    """A short market that opens apart from the close before."""
    return sources.load(lookahead.DEFAULT_BARS).between(0, 400)


@cache
def numbers() -> Floats:
    return np.random.default_rng(3).normal(size=(300, 2))


def examine(fixture: Fixture, trials: int = 20) -> Leaks:
    settings = {"subject": fixture.name, "trials": trials, **fixture.settings}
    if fixture.kind == "normaliser":
        return lookahead.check_normaliser(fixture.subject, numbers(), names=fixture.names, **settings)
    if fixture.kind == "table":
        return lookahead.check_table(fixture.subject, market(), names=fixture.names, **settings)
    check: Callable[..., Leaks] = {
        "env": lookahead.check_env, "policy": lookahead.check_policy, "vector": lookahead.check_vector_env,
    }[fixture.kind]  # fmt: skip
    return check(fixture.subject, market(), **settings)


def errors(fixture: Fixture, trials: int = 20) -> list[str]:
    """What the detector got wrong: columns missed or accused, first steps and reaches that are not the planted ones."""
    found = {leak.column: leak for leak in examine(fixture, trials)}
    wrong = [f"{fixture.name}: {name} missed" for name in fixture.leaks if name not in found]
    wrong += [f"{fixture.name}: {name} accused" for name in found if name not in fixture.leaks]
    for name, (step, ahead) in fixture.leaks.items():
        if name in found and found[name].step != step:
            wrong.append(f"{fixture.name}: {name} from step {found[name].step}")
        if name in found and ahead is not None and found[name].bars_ahead != ahead:
            wrong.append(f"{fixture.name}: {name} {found[name].bars_ahead} bars ahead")
        if name in found and fixture.lane is not None and found[name].lane != fixture.lane:
            wrong.append(f"{fixture.name}: {name} in lane {found[name].lane}")
    return wrong


def test_there_are_more_than_ten_of_each_and_every_kind_is_among_both() -> None:
    assert len(LEAKY) > 10 < len(CLEAN)
    assert all(fixture.leaks for fixture in LEAKY)
    assert not any(fixture.leaks for fixture in CLEAN)
    assert len({fixture.name for fixture in ALL}) == len(ALL)
    kinds = {"env", "wrapper", "table", "normaliser", "encoder", "policy", "info", "vector"}
    for group in (LEAKY, CLEAN):
        assert {fixture.name.split(":")[0] for fixture in group} == kinds


@pytest.mark.parametrize("fixture", ALL, ids=lambda fixture: fixture.name)
def test_no_error_on_the_fixtures_with_column_first_step_and_reach(fixture: Fixture) -> None:
    assert errors(fixture) == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_another_seed_makes_no_error_on_the_tables_either(seed: int) -> None:
    for fixture in ALL:
        if fixture.kind not in ("env", "vector"):
            settings = {**fixture.settings, "seed": seed}
            assert errors(Fixture(**{**vars(fixture), "settings": settings})) == []


# ---- mutants of the detector ------------------------------------------------------------------------------------


def wrong_fixtures(*, lanes: bool = False) -> set[str]:
    """Leaky fixtures that the detector gets wrong; vector environments, which take longest, only where asked for."""
    asked = [fixture for fixture in LEAKY if lanes or fixture.kind != "vector"]
    return {error.split(": ")[1] for fixture in asked for error in errors(fixture, 3)}


def test_mutant_a_comparison_with_tolerance_misses_the_whisper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "differs", lambda one, two: ~np.isclose(one, two, 1e-9, 1e-9, equal_nan=True))
    assert wrong_fixtures() == {"shift(-1), whispered"}


def test_mutant_a_comparison_that_skips_the_last_row_misses_what_sees_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    original = leaks.known
    monkeypatch.setattr(leaks, "known", lambda rows, k: max(original(rows, k) - 1, 0))
    assert {"reward of the next bar", "appends the next return", "shift(-1), whispered", "peeks"} <= wrong_fixtures()


def test_mutant_without_the_jump_of_prices_an_early_fill_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookahead_envs, "_early_fill", lambda *_: None)
    assert wrong_fixtures() == {"fills at the observed close"}


def test_mutant_without_missing_values_a_formula_that_depends_on_holes_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = lookahead_tables.search
    monkeypatch.setattr(lookahead_tables, "search", lambda *a, missing, **more: original(*a, **more))
    assert wrong_fixtures() == {"another formula where data is missing"}


def test_mutant_that_reads_no_infos_misses_what_they_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infos, "numbers", lambda info, prefix="": {})
    monkeypatch.setattr(lookahead_vectors, "batch", lambda infos, lanes: {})
    assert wrong_fixtures(lanes=True) == {"next close", "all prices", "info of one lane peeks"}


def test_mutant_that_compares_the_first_lane_only_misses_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    original = lookahead_vectors._order
    monkeypatch.setattr(lookahead_vectors, "_order", lambda rows: original(rows)[original(rows) % rows.shape[1] == 0])
    assert {"one lane peeks", "info of one lane peeks"} <= wrong_fixtures(lanes=True)


def test_mutant_that_looks_nowhere_near_the_ends_of_episodes_misses_the_last_observation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (fixture,) = [fixture for fixture in LEAKY if "last observation" in fixture.name]

    def missed() -> int:
        changed = [{**fixture.settings, "seed": seed} for seed in range(4)]
        return sum(bool(errors(replace(fixture, settings=settings), 1)) for settings in changed)

    assert missed() == 0
    monkeypatch.setattr(lookahead_vectors, "_turns", lambda base: [])
    assert missed() > 0


def test_an_entry_of_info_that_no_two_replays_share_is_named_and_not_compared() -> None:
    clock = next(fixture for fixture in CLEAN if "clock" in fixture.name)
    leaks = examine(clock, 3)
    assert leaks.unsteady == ("info[seconds]",)
    assert "info[seconds]" in str(leaks)


# ---- the suite's own environments and tables --------------------------------------------------------------------


def lookahead_infos() -> dict[str, float]:
    """The numeric entries of the environment's info."""
    return infos.numbers(gym.make("PerpFutures-v0").reset(seed=0)[1])


@cache
def half_year() -> Bars:
    return sources.load(lookahead.DEFAULT_BARS).between(0, 1400)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_perpetual_environment_is_clean(seed: int) -> None:
    leaks = lookahead.check_id("PerpFutures-v0", sources.load(lookahead.DEFAULT_BARS), trials=20, seed=seed)
    assert list(leaks) == []
    assert leaks.trials >= 80
    assert leaks.skipped == 0
    observed = len(features.NAMES) + len(perp_columns.ACCOUNT_NAMES)
    assert leaks.columns == observed + 2 + len(lookahead_infos())


def test_the_native_lanes_are_clean_from_one_episode_to_the_next() -> None:
    leaks = lookahead.check_id_lanes("PerpFutures-v0", half_year(), trials=8)
    assert leaks is not None
    assert list(leaks) == []
    assert leaks.skipped < 5
    assert leaks.columns == len(features.NAMES) + len(perp_columns.ACCOUNT_NAMES) + 2 + len(lookahead_infos())


def test_lanes_are_those_of_our_ids_however_they_are_written() -> None:
    assert lookahead.check_id_lanes("CartPole-v1", half_year()) is None
    leaks = lookahead.check_id_lanes("regimegym:PerpFutures-v0", half_year(), trials=1, steps=5)
    assert leaks is not None
    assert list(leaks) == []


class OnlyAtTheEnd(gym.vector.VectorWrapper):
    """Shows the unsafe column as it is, and the next return only in ``final_obs``."""

    observation_names = property(lambda self: self.env.observation_names)

    def step(self, actions: Any) -> Any:
        *rest, told = self.env.step(actions)
        simulation = self.env.unwrapped.simulation
        for lane in np.flatnonzero(told.get("_final_obs", [])):
            told["final_obs"][lane][0] = next_returns(simulation.game)[simulation.final_rows[lane]]
        return *rest, told


@pytest.mark.parametrize(
    ("wrapper", "column", "first"),
    [(RevealNextReturnVector, UNSAFE, range(1)), (OnlyAtTheEnd, "return_1", range(1, 41))],
)
def test_a_wrapper_of_native_lanes_that_reveals_the_next_return_is_found(
    wrapper: Any, column: str, first: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_vec = gym.make_vec
    monkeypatch.setattr(gym, "make_vec", lambda *words, **more: wrapper(make_vec(*words, **more)))
    leaks = lookahead.check_id_lanes("PerpFutures-v0", half_year(), {"leverage": 1}, trials=1, steps=60)
    assert leaks is not None
    assert [(leak.column, leak.bars_ahead) for leak in leaks] == [(column, 1)]
    assert leaks[0].step in first  # a cut ends an episode early, and its last observation is one as well


@pytest.mark.usefixtures("fresh_games")
@pytest.mark.parametrize(
    ("column", "fault"),
    [("fill", "fill at the observed close"), ("reward", "reward of the next bar"), ("return_1", "an early feature")],
)
def test_mutant_a_perpetual_market_whose_clock_is_wrong_is_found(
    column: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    market_of, raw = perp_futures.market_matrix, features.raw

    def wrong(bars: Bars) -> tuple[Floats, int]:
        matrix, warm = market_of(bars)
        if fault == "fill at the observed close":
            matrix[1:, perp_columns.OPEN] = bars.close[:-1, 0]
        elif fault == "reward of the next bar":
            matrix[:-1, perp_columns.MARK_CLOSE] = matrix[1:, perp_columns.MARK_CLOSE]
        return matrix, warm

    def early(bars: Bars) -> Floats:
        values = raw(bars)
        values[:-1, 0] = values[1:, 0]
        return values

    monkeypatch.setattr(perp_futures, "market_matrix", wrong)
    if fault == "an early feature":
        monkeypatch.setattr(features, "raw", early)
    leaks = lookahead.check_id("PerpFutures-v0", sources.load(lookahead.DEFAULT_BARS), trials=5)
    assert column in [leak.column for leak in leaks]
    if column == "return_1":
        assert [(leak.step, leak.bars_ahead) for leak in leaks] == [(0, 1)]


def test_the_features_are_clean_as_a_causal_table_behind_a_fixed_scaler() -> None:
    bars = sources.load(lookahead.DEFAULT_BARS).between(0, 900)
    scaler = FeatureScaler.fit(bars, features.raw(bars), 500)
    leaks = lookahead.check_table(lambda content: features.table(content, scaler), bars, trials=10)
    assert list(leaks) == []
    assert leaks.columns == len(features.NAMES)


def test_a_scaler_that_is_fitted_anew_on_everything_is_found_by_every_scaled_column() -> None:
    bars = sources.load(lookahead.DEFAULT_BARS).between(0, 900)

    def table(content: Bars) -> Any:
        values = features.raw(content)
        scaler = FeatureScaler.fit(content, values, len(content))
        return scaler.apply(values)[features.warm_up(content.interval) :]

    def padded(content: Bars) -> Any:
        return np.concatenate([np.zeros((features.warm_up(content.interval), len(features.NAMES))), table(content)])

    def cut_too_short(content: Bars) -> Any:
        return np.zeros((len(content), len(features.NAMES))) if len(content) < 200 else padded(content)

    leaks = lookahead.check_table(cut_too_short, bars, names=features.NAMES, train_rows=400, trials=5)
    scaled = {feature.name for feature in features.FEATURES if feature.scaled}
    assert {leak.column for leak in leaks} >= scaled - {"basis"}
    assert all("whole series" in leak.how for leak in leaks)


def test_rounding_of_longer_and_shorter_matrix_products_is_no_leak() -> None:
    weights = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)

    def project(values: Floats) -> Floats:
        return (values.astype(np.float32) @ weights).astype(np.float64)

    assert list(lookahead.check_normaliser(project, np.random.default_rng(1).normal(size=(333, 40)))) == []


def test_knowing_how_much_data_there_is_counts_as_a_leak() -> None:
    def progress(values: Floats) -> Floats:
        return np.arange(len(values)) / len(values)

    leaks = lookahead.check_normaliser(progress, numbers())
    assert [leak.column for leak in leaks] == ["column 0"]
    assert "cut" in leaks[0].how


# ---- errors -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_tested_says_why() -> None:
    class Silent(ToyEnv):
        def reset(self, **arguments: Any) -> Any:
            return super().reset(**arguments)[0], {}

    generator = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="first_row"):
        lookahead.check_env(Silent, market())
    with pytest.raises(ConfigError, match=r"two replays.*'column 1'"):
        lookahead.check_table(lambda b: np.column_stack([returns(b), generator.normal(size=len(b))]), market())
    with pytest.raises(ConfigError, match="one row per bar"):
        lookahead.check_table(lambda b: returns(b)[5:], market())
    with pytest.raises(ConfigError, match="not numbers"):
        lookahead.check_table(lambda b: {"a": 1}, market())
    with pytest.raises(ConfigError, match="trials"):
        lookahead.check_table(returns, market(), trials=0)
    with pytest.raises(ConfigError, match="nothing to change"):
        lookahead.check_table(returns, market(), train_rows=400)
    with pytest.raises(UnknownNameError, match="PerpFutures-v0"):
        lookahead.check_id("PerpFuture-v0", market())
    with pytest.raises(ConfigError, match="--bars"):
        lookahead.check_id("PerpFutures-v0", market(), {"bars": "csv:x.csv"})


def test_a_trial_that_cannot_be_played_is_counted_not_hidden(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    def fragile(bars: Bars) -> Floats:
        if len(bars) < 400:
            raise ValueError("too short")
        return returns(bars)

    leaks = lookahead.check_table(fragile, market(), trials=5)
    assert list(leaks) == []
    assert leaks.skipped > 0
    assert f"note: {leaks.skipped} more could not be played" in str(leaks)
    assert "too short" in str(leaks).splitlines()[-1], "the reason stands at the end"
    assert caplog.text == "", "nothing that looks like a failure comes before the verdict"


# ---- the command ------------------------------------------------------------------------------------------------

MODULE = """
import gymnasium as gym
import numpy as np

NAMES = ("early", "fine")

def table(bars):
    close = bars.close[:, 0]
    return np.column_stack([np.append(close[1:], 0.0), close])

def normalise(values):
    return np.cumsum(values, axis=0)

class Policy:
    def predict(self, history):
        return np.sign(history[-1, :1])
"""


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*words: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        script.add_arguments(parser)
        status = script.run(parser.parse_args([*words, "--bars", "synthetic:crypto?seed=1&interval=1h&bars=600"]))
        return status, capsys.readouterr().out

    return run


def test_a_module_is_tested_in_all_its_parts(command: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MODULE)
    status, text = command("--module", str(file), "--trials", "5")
    assert status == 1
    assert "'early', step 0 (bar 0), looks 1 bar ahead" in text
    assert "mine.py:normalise: nothing found" in text
    assert "mine.py:Policy: nothing found" in text
    status, text = command("--module", str(file), "--trials", "5", "--json")
    content = json.loads(text)
    assert status == 1
    assert [part["clean"] for part in content] == [False, True, True]
    assert content[0]["leaks"][0]["column"] == "early"


def test_a_module_with_wrappers_goes_through_make_env(
    command: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for name, leaky in (("NextReturn", 1), ("RunningNormaliser", 0)):
        file = tmp_path / f"{name}.py"
        file.write_text(
            f"from lookahead_toys import ToyEnv, {name}\ndef make_env(bars):\n    return {name}(ToyEnv(bars))\n"
        )
        status, text = command("--module", str(file), "--trials", "3")
        assert status == leaky
        assert ("'momentum'" in text) == bool(leaky)


def test_a_module_with_lanes_goes_through_make_vector_env_and_names_the_lane(
    command: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    file = tmp_path / "lanes.py"
    file.write_text("from lookahead_toys import OneLanePeeks as make_vector_env\n")
    status, text = command("--module", str(file), "--trials", "1")
    assert status == 1
    assert "lanes.py:make_vector_env: 'return_1', step 0 (bar " in text
    assert ", lane 2), looks 1 bar ahead" in text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("x = 1\n", "defines none of table, make_env"),
        ("import nothing_of_that_name\n", "fails: ModuleNotFoundError"),
        ("def table(bars):\n    return bars.cloze\n", "fails on the bars as they are"),
        (
            "class Policy:\n    def __init__(self, path): ...\n    def predict(self, history): ...\n",
            "fails on the bars",
        ),
    ],
)
def test_a_module_that_cannot_be_tested_is_a_typed_error(
    command: Callable[..., tuple[int, str]], tmp_path: Path, content: str, text: str
) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(content)
    with pytest.raises(ConfigError, match=text):
        command("--module", str(file))
    with pytest.raises(ConfigError, match="not a Python file"):
        command("--module", str(tmp_path / "missing.py"))
    with pytest.raises(ConfigError, match="--env-arg"):
        command("--module", str(file), "--env-arg", "leverage=2")


def test_the_command_tests_an_environment(command: Callable[..., tuple[int, str]]) -> None:
    status, text = command("--env", "PerpFutures-v0", "--env-arg", "leverage=2", "--trials", "3")
    assert status == 0
    assert text.startswith("PerpFutures-v0: nothing found in ")
    assert "columns (41 observed, reward, ended, " in text
    assert "PerpFutures-v0, 4 lanes: nothing found in " in text
