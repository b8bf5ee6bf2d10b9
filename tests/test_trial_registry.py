"""Trial registry: what counts as a trial, what does not, and that neither processes nor damage lose a line."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import artefact
from agents.recipe import TrainingConfig
from agents.training import train
from agents.trial_registry import Trials, record_trial, trial_log, trials_on

ROOT = Path(__file__).resolve().parent.parent
BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
HOURS = 8760.0


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(**changes: Any) -> dict[str, Any]:
    """What is known of a training run, as ``agents.recipe.identity`` says it."""
    plain = {
        "env": "PerpFutures-v0", "algo": "ppo", "seed": 0, "arguments": {"bars": "a.csv", "leverage": 3.0},
        "settings": {"gamma": 0.9}, "policy": {"net_arch": [8]}, "lanes": 16, "bars": "hash", "scaler": "s",
    }  # fmt: skip
    return {**plain, **changes}


DIFFERENT = [
    {"env": "PerpFutures-JEPA-v0"}, {"algo": "a2c"}, {"arguments": {"bars": "a.csv", "leverage": 2.0}},
    {"settings": {"gamma": 0.8}}, {"policy": {"net_arch": [9]}}, {"lanes": 8},
]  # fmt: skip
SAME = [{"arguments": {"bars": "b.csv", "leverage": 3.0}}, {"scaler": "t"}]


@pytest.mark.parametrize("changes", DIFFERENT, ids=str)
def test_what_somebody_chose_makes_another_configuration(changes: dict[str, Any]) -> None:
    for one in (run(), run(**changes)):
        record_trial(one)
    assert trials_on({"hash"}) == Trials(configurations=2, runs=2, deviation=None, scored=0)


@pytest.mark.parametrize("changes", SAME, ids=str)
def test_what_chooses_nothing_does_not(changes: dict[str, Any]) -> None:
    for one in (run(), run(**changes)):
        record_trial(one)
    assert trials_on({"hash"}).runs == 1


def test_seeds_are_runs_of_one_configuration_and_a_resumed_run_is_one_run() -> None:
    for seed in (0, 1, 1, 2):
        record_trial(run(seed=seed))
        record_trial(run(seed=seed), 2.0 + seed, HOURS)
    record_trial(run(seed=3))  # killed
    found = trials_on({"hash"})
    assert (found.configurations, found.runs, found.scored) == (1, 4, 3)
    assert found.deviation == pytest.approx(np.std([2.0, 3.0, 4.0], ddof=1) / math.sqrt(HOURS))


def test_trials_on_other_bars_are_not_counted() -> None:
    record_trial(run(), 1.0, HOURS)
    record_trial(run(bars="other"), 2.0, HOURS)
    assert trials_on({"hash"}).runs == trials_on({"other"}).runs == 1
    assert trials_on({"hash", "other"}) == Trials(2, 2, pytest.approx(math.sqrt(0.5 / HOURS)), 2)
    assert trials_on({"third"}) == Trials(0, 0, None, 0)


def test_agents_at_hand_count_once_whether_they_are_written_down_or_not() -> None:
    here = {**run(), "bars": {"hash": "hash"}, "chosen_on_validation": {"sharpe": 1.5}}
    stranger = {**here, "seed": 9, "chosen_on_validation": None}
    assert trials_on({"hash"}, [here, stranger], HOURS) == Trials(1, 2, None, 1)
    record_trial(run(), 1.5, HOURS)
    assert trials_on({"hash"}, [here, stranger], HOURS) == Trials(1, 2, None, 1)


def test_a_score_that_is_no_number_is_none() -> None:
    for seed, score in enumerate((-math.inf, math.nan, None, 1.0)):
        record_trial(run(seed=seed), score, HOURS)
    assert trials_on({"hash"}) == Trials(1, 4, None, 1)


def test_processes_that_write_at_once_lose_no_line(own_folder: Path) -> None:
    code = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("registry", "agents/trial_registry.py")  # without torch: both begin soon
registry = sys.modules["registry"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(registry)
run = json.loads(sys.argv[2])
for k in range(150):
    registry.record_trial({**run, "seed": 1000 * int(sys.argv[1]) + k})
"""
    padded = json.dumps(run(settings={"pad": "x" * 3000}))
    started = [subprocess.Popen([sys.executable, "-c", code, str(k), padded], cwd=ROOT) for k in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    lines = [line for line in trial_log().read_text(encoding="utf-8").splitlines() if line]
    assert len(lines) == 300
    assert {json.loads(line)["seed"] for line in lines} == {1000 * k + n for k in range(2) for n in range(150)}


def test_a_line_that_a_killed_writer_left_costs_no_other_line() -> None:
    record_trial(run())
    with open(trial_log(), "ab") as file:
        file.write(b'{"bars": "ha\xff')
    record_trial(run(seed=1))
    with open(trial_log(), "ab") as file:
        file.write(b'[1]\n{"bars": "hash"}\n{"bars": "hash", "run": [], "configuration": "c"}\n\n')
    record_trial(run(seed=2))
    assert trials_on({"hash"}).runs == 3


@pytest.mark.parametrize(
    "change",
    [{"run": []}, {"run": {}}, {"configuration": []}, {"periods_per_year": 0}, {"periods_per_year": -1.0},
     {"periods_per_year": "often"}, {"sharpe": [1.0]}],
    ids=str,
)  # fmt: skip
def test_a_line_with_numbers_that_cannot_be_is_passed_over(change: dict[str, Any]) -> None:
    line = {"bars": "hash", "run": "r", "configuration": "c", "sharpe": 1.0, "periods_per_year": HOURS, **change}
    record_trial(run(), 1.0, HOURS)
    with open(trial_log(), "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    assert trials_on({"hash"}) == Trials(1, 1, None, 1)


def test_an_unwritable_place_is_said_and_tolerated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path / "file" / "below"))
    with caplog.at_level(logging.WARNING):
        record_trial(run())
    assert "below" in caplog.text
    assert trials_on({"hash"}).runs == 0


def test_a_training_is_written_down_with_its_validation_sharpe_ratio(tmp_path: Path) -> None:
    config = TrainingConfig(
        env="PerpFutures-v0", algo="a2c", steps=256, seed=4, out=tmp_path / "run", arguments={"bars": BARS},
        lanes=16, evaluations=1, device="cpu", quiet=True,
    )  # fmt: skip
    manifest = artefact.load(train(config)).manifest
    begun, ended = (json.loads(line) for line in trial_log().read_text(encoding="utf-8").splitlines())
    assert begun["sharpe"] is None
    assert ended["sharpe"] == manifest["chosen_on_validation"]["sharpe"]
    assert begun["run"] == ended["run"]
    known = trials_on({manifest["bars"]["hash"]}, [manifest], ended["periods_per_year"])
    assert known == Trials(1, 1, None, 1), "the agent's file and the registry tell of the same run"
