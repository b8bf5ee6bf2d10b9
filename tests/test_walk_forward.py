"""Walk-forward: folds that never see their test, one stitched record, a folder that goes on where it was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regimegym
from agents import artefact, metrics, walk_forward
from agents.baselines import BASELINES
from agents.walk_forward import WalkForwardConfig, prepare, run
from markets.bars import Bars
from markets.errors import ConfigError, DataError
from markets.sources import load
from markets.sources.memory import register_bars

BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
FOLDS, EMBARGO = 2, 48


def config(out: Path, **changes: Any) -> WalkForwardConfig:
    plain = {
        "env": "PerpFutures-v0", "algo": "a2c", "steps": 512, "folds": FOLDS, "embargo_bars": EMBARGO, "lanes": 16,
        "evaluations": 1, "device": "cpu", "arguments": {"bars": BARS},
    }  # fmt: skip
    return WalkForwardConfig(out=out, **{**plain, **changes})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("walk-forward")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGIMEGYM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return {**run(config(out)), "out": out}


@pytest.fixture(autouse=True)
def own_registry_of_a_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test counts its own trials: a record is deflated by all that were run on its bars."""
    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path / "cache"))


def untrained(*_: object) -> Path:
    raise KeyboardInterrupt


def check_folds(bars: Bars, folds: list[dict[str, Any]], embargo: int) -> None:
    """Fits come before their tests with the embargo between, and tests follow each other to the last bar."""
    close = bars.close_time
    rows = [
        {name: [int(np.searchsorted(close, np.datetime64(time))) for time in fold[name]] for name in ("train", "test")}
        | {"fit": int(np.searchsorted(close, np.datetime64(fold["validation"][1])))}
        for fold in folds
    ]
    for row in rows:
        assert row["train"][0] < row["train"][1] < row["fit"]
        assert row["test"][0] - row["fit"] > embargo + walk_forward.HORIZON
    for before, after in pairwise(rows):
        assert after["test"][0] == before["test"][1] + 1
    assert rows[-1]["test"][1] == len(bars) - 1


def test_each_fit_ends_an_embargo_before_its_test_and_the_tests_cover_the_rest(done: dict[str, Any]) -> None:
    check_folds(load(BARS), done["folds"], EMBARGO)


def test_a_test_that_begins_within_the_embargo_is_caught(done: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check_folds(load(BARS), done["folds"], EMBARGO + 2)


def test_the_record_is_the_folds_returns_one_after_the_other(done: dict[str, Any]) -> None:
    folds = [json.loads((done["out"] / f"fold-0{k}" / "fold.json").read_text()) for k in (1, 2)]
    assert set(done["table"]) == {"agent", *BASELINES}
    for name, row in done["table"].items():
        returns = np.concatenate([fold["returns"][name] for fold in folds])
        assert row["bars"] == len(returns) == 3000 - 1500 - FOLDS  # the first bar of a test is only looked at
        assert row["total_return"] == pytest.approx(np.prod(1.0 + returns) - 1.0)
        assert row["sharpe"] == pytest.approx(np.sqrt(8760.0) * returns.mean() / max(returns.std(ddof=1), 1e-12))
        low, high = row["sharpe_interval"]
        assert low <= row["sharpe"] <= high
    assert 0.0 <= done["table"]["agent"]["deflated_sharpe"] <= 1.0
    for fold in folds:
        curve = np.concatenate([[1.0], np.cumprod(1.0 + np.array(fold["returns"]["agent"]))])
        assert fold["scores"]["agent"]["max_drawdown"] == pytest.approx(metrics.max_drawdown(curve))
    assert json.loads((done["out"] / "walk-forward.json").read_text())["table"] == done["table"]


def test_finished_folds_are_kept_and_the_missing_one_is_trained(
    done: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []
    original = walk_forward.train

    def watched(training: Any) -> Path:
        trained.append(training.out)
        return original(training)

    monkeypatch.setattr(walk_forward, "train", watched)
    assert run(config(done["out"]))["table"] == done["table"]
    assert trained == []
    (done["out"] / "fold-02" / "fold.json").unlink()
    again = run(config(done["out"]))
    assert [path.name for path in trained] == ["fold-02"]
    assert again["table"] == done["table"]


def test_a_walk_forward_that_was_stopped_keeps_the_folds_that_were_done(
    done: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = walk_forward.train
    monkeypatch.setattr(walk_forward, "train", lambda t: original(t) if t.out.name == "fold-01" else untrained())
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path))
    assert (tmp_path / "fold-01" / "fold.json").exists()
    monkeypatch.setattr(walk_forward, "train", lambda t: untrained() if t.out.name == "fold-01" else original(t))
    assert run(config(tmp_path))["table"] == done["table"]


def test_another_walk_forward_on_the_same_bars_is_one_trial_more(done: dict[str, Any], tmp_path: Path) -> None:
    assert (done["configurations"], done["runs"]) == (1, 1)
    for _ in range(2):
        assert run(config(done["out"]))["runs"] == 1
    more = run(config(tmp_path / "more", folds=1))
    assert [fold["touches"] for fold in more["folds"]] == [1]
    assert (more["configurations"], more["runs"]) == (2, 2)
    again = run(config(done["out"]))
    assert again["table"]["agent"]["deflated_sharpe"] < done["table"]["agent"]["deflated_sharpe"]


def test_a_folder_of_another_walk_forward_is_refused(done: dict[str, Any]) -> None:
    for changes in ({"steps": 256}, {"seed": 1}, {"folds": 3}, {"embargo_bars": 1}, {"settings": {"gamma": 0.9}}):
        with pytest.raises(ConfigError, match=r"fold-01.*choose another folder"):
            run(config(done["out"], **changes))


@pytest.mark.parametrize(
    "change", [{"identity": 3}, {"scores": None}, {"returns": {}}, {"scores": {"idle": {}}}], ids=str
)
def test_a_fold_file_that_is_none_is_named(change: dict[str, Any], done: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "fold-01").mkdir()
    row = json.loads((done["out"] / "fold-01" / "fold.json").read_text(encoding="utf-8"))
    (tmp_path / "fold-01" / "fold.json").write_text(json.dumps({**row, **change}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"fold\.json is no fold of a walk-forward"):
        run(config(tmp_path))


# What a fold sees


def altered(place: str) -> str:
    """The bars with other prices from a row on: those of the test of a single fold, or of its validation."""
    bars = load(BARS)
    row = {"test": 2000, "validation": 1500}[place]
    scale = np.where(np.arange(len(bars)) >= row, 1.0 + 0.2 * np.sin(np.arange(len(bars)) / 7.0), 1.0)[:, None]
    names = [name for name in bars.columns if name != "volume"]
    columns: dict[str, Any] = {name: bars.columns[name] * scale for name in names}
    return register_bars(f"altered {place}", replace(bars, **columns))


def weights(out: Path, bars: str) -> tuple[dict[str, Any], Any]:
    run(config(out, folds=1, first=2 / 3, embargo_bars=0, arguments={"bars": bars}))
    agent = artefact.load(out / "fold-01")
    row = json.loads((out / "fold-01" / "fold.json").read_text())
    state = {name: value.numpy() for name, value in agent.policy.state_dict().items()}
    return state, (agent.scaler.hash, row["chosen_on_validation"], row["scores"]["buy-and-hold"]["total_return"])


def test_what_happens_in_the_test_changes_neither_scaler_nor_weights_nor_choice(tmp_path: Path) -> None:
    state, (scaler, chosen, earned) = weights(tmp_path / "plain", BARS)
    other, (scaler_too, chosen_too, earned_too) = weights(tmp_path / "test", altered("test"))
    assert all(np.array_equal(state[name], other[name]) for name in state)
    assert (scaler, chosen) == (scaler_too, chosen_too)
    assert earned != earned_too
    _, (_, chosen_otherwise, _) = weights(tmp_path / "validation", altered("validation"))
    assert chosen != chosen_otherwise, "twin: the validation slice does change the choice"


def test_rolling_fits_keep_their_length_and_anchored_ones_begin_at_the_first_bar(tmp_path: Path) -> None:
    first = load(BARS).time[0]
    for anchored in (True, False):
        _, _, parts = prepare(config(tmp_path, folds=3, anchored=anchored))
        assert [part.bars.time[0] == first for part in parts] == [True, anchored, anchored]
    assert len({np.datetime64(part.fit_end) - part.bars.close_time[0] for part in parts}) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folds": 0}, "folds=0"), ({"first": 1.5}, r"first=1\.5"), ({"validation": 0.0}, r"validation=0\.0"),
        ({"embargo_bars": -1}, "embargo=-1"), ({"embargo_bars": 1600}, "embargo=1600"),
        ({"evaluations": 0}, "evaluations=0"), ({"arguments": {"bars": BARS, "split": "test"}}, "split='test'"),
        ({"arguments": {"bars": BARS, "train_end": "2020-03-01"}}, "train_end="),
        ({"env": "ZeroDTE-v0", "arguments": {}}, "sessions"), ({"env": "PerpFuture-v0"}, "Did you mean"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named_before_anything_is_trained(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        prepare(config(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_first_fold_that_is_too_short_for_an_episode_is_named(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match="bars"):
        prepare(config(tmp_path, first=0.05, embargo_bars=0))


def test_the_command_line_prints_folds_and_record(done: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "walk-forward", "--env", "PerpFutures-v0", "--algo", "a2c", "--steps", "512", "--folds", "2", "--lanes", "16",
        "--embargo-bars", "48", "--evaluations", "1", "--device", "cpu", "--bars", BARS, "--out", str(done["out"]),
    ]  # fmt: skip
    assert regimegym.main(words) == 0
    printed = capsys.readouterr().out
    for text in ("embargo 48 bars", "validation Sharpe", "buy-and-hold", "DSR", "1,498 bars out of sample"):
        assert text in printed
    assert regimegym.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"] == done["table"]
