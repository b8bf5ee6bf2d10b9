"""Training: what is written, which weights are kept, and that a run can be repeated to the last bit."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import artefact, callbacks, metrics, recipe, training
from agents.callbacks import AccountTags, ValidationChoice
from agents.recipe import TrainingConfig, resolve, whole_split
from agents.training import train
from envs.make import game_of
from envs.simulation import EQUITY, OUTCOME, ROW, TERMINATED, TRUNCATED
from markets.errors import ConfigError, RegimeGymError, UnknownNameError

BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
SEED = 23
ROOT = Path(artefact.__file__).resolve().parent.parent
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 32, "batch_size": 256, "n_epochs": 2},
    "a2c": {},
    "recurrent_ppo": {"n_steps": 32, "batch_size": 256, "n_epochs": 1, "lstm_hidden_size": 8},
    "tqc": {"train_freq": 16, "gradient_steps": 1, "batch_size": 64, "learning_starts": 1024, "buffer_size": 4096},
}
TAGS = (
    "account/equity", "account/drawdown", "account/turnover", "account/costs", "account/funding", "account/leverage",
    "account/liquidations", "action/share_short", "action/share_flat", "action/share_long", "regime/share_bull",
    "regime/share_bear", "regime/share_range", "regime/share_crash",
)  # fmt: skip


def config(out: Path, algo: str = "ppo", **changes: Any) -> TrainingConfig:
    plain: dict[str, Any] = {
        "env": "PerpFutures-v0", "algo": algo, "steps": 4096, "seed": SEED, "out": out, "lanes": 16, "quiet": True,
        "arguments": {"bars": BARS}, "settings": SETTINGS.get(algo, {}), "evaluations": 2, "device": "cpu",
    }  # fmt: skip
    return TrainingConfig(**{**plain, **changes})


def scalars(folder: Path) -> dict[str, list[float]]:
    """Read every scalar of the one event file below a folder, by tag."""
    files = list((folder / "tensorboard").rglob("events.out.tfevents.*"))
    assert len(files) == 1
    events = EventAccumulator(str(files[0]))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module", params=list(SETTINGS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    assert train(config(folder, request.param)) == folder / "agent.zip"
    return folder


# What a training leaves behind


def test_a_short_training_ends_with_an_agent_that_acts(trained: Path) -> None:
    agent = artefact.load(trained)
    action, _ = agent.predict(np.zeros(len(agent.reads), np.float32))
    assert action.shape == (1,)
    assert -1.0 <= action[0] <= 1.0
    assert sorted(item.name for item in trained.iterdir()) == ["agent.zip", "checkpoints", "tensorboard"]


def test_the_event_file_holds_every_documented_tag(trained: Path) -> None:
    found = scalars(trained)
    assert set(TAGS) <= set(found)
    assert {"validation/score", "validation/total_return", "validation/max_drawdown"} <= set(found)
    for tag in TAGS:
        assert np.isfinite(found[tag]).all(), tag
    documented = callbacks.__doc__ or ""
    for tag in TAGS:
        group, name = tag.split("/")
        assert f"``{group}/" in documented
        assert (name if group == "account" else "share_") in documented


def test_tags_are_written_once_for_every_rollout(trained: Path) -> None:
    found = scalars(trained)
    settings = artefact.load(trained).manifest["settings"]
    rollout = 16 * settings["train_freq" if "train_freq" in settings else "n_steps"]
    for tag in TAGS:
        assert len(found[tag]) == 4096 // rollout, tag


def test_tags_have_values_that_the_accounts_can_have(trained: Path) -> None:
    found = {tag: np.array(values) for tag, values in scalars(trained).items()}
    assert np.all((found["account/equity"] > 0.1) & (found["account/equity"] < 3.0))
    assert np.all((found["account/drawdown"] >= 0.0) & (found["account/drawdown"] < 1.0))
    assert np.all((found["account/leverage"] > 0.0) & (found["account/leverage"] < 3.5))
    assert np.all(found["account/turnover"] > 0.0)
    assert np.all(found["account/costs"] < 0.01 * found["account/turnover"])
    assert np.any(found["account/funding"] != 0.0)
    for group in ("action/share_", "regime/share_"):
        total = sum(values for tag, values in found.items() if tag.startswith(group))
        assert total == pytest.approx(np.ones(len(total)), abs=1e-6)


def test_the_manifest_says_how_the_agent_was_trained(trained: Path) -> None:
    manifest = artefact.load(trained).manifest
    assert manifest["env"] == "PerpFutures-v0"
    assert manifest["arguments"] == {"bars": BARS}
    assert manifest["seed"] == SEED
    assert manifest["steps"] == 4096
    assert manifest["lanes"] == 16
    assert manifest["bars"]["source"] == BARS
    (first, last), (begin, end) = manifest["splits"]["train"], manifest["splits"]["validation"]
    assert first < last < begin < end
    assert len(manifest["validation_history"]) >= 2
    best = max(row["score"] for row in manifest["validation_history"])
    assert manifest["chosen_on_validation"]["sharpe"] == best


def rollout_tags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **changes: Any) -> tuple[dict[str, list[float]], Any]:
    """Train one rollout and keep what every lane did in every bar, beside the tags that were written of it."""
    seen: list[Any] = []
    honest = AccountTags._on_step

    def watch(self: Any) -> bool:
        simulation = self.training_env.simulation
        ended = np.isin(simulation.accounts[0, :, OUTCOME], (TERMINATED, TRUNCATED))
        seen.append(np.where(ended[:, None], simulation.accounts[1], simulation.accounts[0]))
        return honest(self)

    monkeypatch.setattr(AccountTags, "_on_step", watch)
    train(config(tmp_path, steps=16 * 64, evaluations=0, settings={"n_steps": 64, "batch_size": 256}, **changes))
    return scalars(tmp_path), np.array(seen)


def test_liquidations_in_a_rollout_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"bars": BARS, "leverage": 100.0}
    tags, rows = rollout_tags(monkeypatch, tmp_path, arguments=arguments)
    from envs import perp_columns as kernel

    counted = rows[:, :, kernel.LIQUIDATED].sum()
    assert counted > 0, "nobody was liquidated: the test is empty"
    assert tags["account/liquidations"] == [counted]


def test_costs_of_a_rollout_include_the_bars_in_which_an_account_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from envs import perp_columns as kernel

    tags, rows = rollout_tags(monkeypatch, tmp_path, arguments={"bars": BARS, "episode_bars": 4})
    equity = np.maximum(rows[:, :, EQUITY], 1e-9)
    columns = [kernel.FEE, kernel.SPREAD_COST, kernel.IMPACT_COST, kernel.CLEARANCE]
    assert tags["account/costs"] == [pytest.approx(float((rows[:, :, columns].sum(axis=2) / equity).mean()), rel=1e-5)]


def test_regime_shares_are_those_of_all_bars_of_the_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from markets.sources import load as load_bars

    tags, rows = rollout_tags(monkeypatch, tmp_path)
    bars = load_bars(BARS)
    assert bars.labels is not None
    labels = bars.labels[rows[:, :, ROW].astype(int)]
    for code, name in enumerate(bars.label_names):
        assert tags[f"regime/share_{name}"] == [pytest.approx(float(np.mean(labels == code)), abs=1e-6)], name


# The choice on the validation split


class FakeModel:
    """Weights that say at which evaluation they were looked at."""

    def __init__(self) -> None:
        self.policy = torch.nn.Linear(1, 1, bias=False)
        self.num_timesteps = 0
        self.logger = type("Silent", (), {"record": staticmethod(lambda *_: None)})()

    def get_env(self) -> None:
        return None


class KeepsTheLast(ValidationChoice):
    """Planted fault: takes any new score for a better one."""

    def check(self) -> None:
        self.best_score = -np.inf
        super().check()


class ComparesWithNan(ValidationChoice):
    """Planted fault: ``not score <= best`` lets NaN win."""

    def check(self) -> None:
        before = self.best_score
        super().check()
        score = self.history[-1]["score"]
        if not score <= before:
            self.best_score = score
            self.best_state = {k: v.detach().clone() for k, v in self.model.policy.state_dict().items()}


def check_best_is_kept(kind: type[ValidationChoice], scores: list[float], best: int | None) -> None:
    model, queue = FakeModel(), iter(scores)
    choice = kind(lambda _: {"score": next(queue)}, 10)
    choice.model = model  # type: ignore[assignment]
    for place in range(len(scores)):
        with torch.no_grad():
            model.policy.weight.fill_(float(place))
        choice.num_timesteps = 10 * (place + 1)
        choice.check()
    assert len(choice.history) == len(scores)
    if best is None:
        assert choice.best_state is None
        return
    assert choice.best_state is not None
    assert choice.best_state["weight"].item() == best
    assert choice.best_score == scores[best]
    assert choice.best_steps == 10 * (best + 1)


NAN = math.nan
CURVES: list[tuple[list[float], int | None]] = [
    ([1.0, 3.0, 2.0], 1), ([-5.0, -2.0, -9.0], 1), ([1.0, NAN, 0.5], 0), ([NAN, -1.0, NAN], 1), ([NAN, NAN], None),
    ([0.0, math.inf, 0.5], 2), ([-math.inf, -1.0], 1), ([2.0, 2.0], 0),
]  # fmt: skip


@pytest.mark.parametrize(("scores", "best"), CURVES, ids=str)
def test_the_weights_with_the_best_score_are_kept_and_never_those_without_one(
    scores: list[float], best: int | None
) -> None:
    """C14."""
    check_best_is_kept(ValidationChoice, scores, best)


@pytest.mark.parametrize(
    ("kind", "scores", "best"), [(KeepsTheLast, [1.0, 3.0, 2.0], 1), (ComparesWithNan, [1.0, NAN, 0.5], 0)]
)
def test_a_choice_with_a_planted_fault_is_caught(kind: type[ValidationChoice], scores: list[float], best: int) -> None:
    """Twin of C14. Among them ``not score <= best``, for which NaN is better than anything."""
    with pytest.raises(AssertionError):
        check_best_is_kept(kind, scores, best)


def test_the_saved_agent_has_the_weights_that_scored_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[dict[str, torch.Tensor]] = []
    honest = ValidationChoice.check

    def watch(self: ValidationChoice) -> None:
        states.append({k: v.detach().clone() for k, v in self.model.policy.state_dict().items()})
        honest(self)

    monkeypatch.setattr(ValidationChoice, "check", watch)
    scores = iter([0.1, 0.9, 0.2, 0.3, 0.3, 0.3])
    monkeypatch.setattr(metrics, "sharpe", lambda *_: next(scores))
    train(config(tmp_path, evaluations=4))
    loaded = artefact.load(tmp_path)
    assert loaded.manifest["chosen_on_validation"]["sharpe"] == 0.9
    ours = loaded.policy.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in states[1].items())
    assert not all(torch.equal(ours[name], value) for name, value in states[-1].items())


def test_a_score_that_is_not_a_number_does_not_lose_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C14."""
    scores = iter([0.5, NAN, 0.2, NAN, NAN])
    monkeypatch.setattr(metrics, "sharpe", lambda *_: next(scores))
    train(config(tmp_path))
    assert artefact.load(tmp_path).manifest["chosen_on_validation"]["sharpe"] == 0.5


@pytest.mark.parametrize(
    ("score", "more", "said"),
    [(0.0, {}, "use_sde=true"), (0.0, {"use_sde": True}, "lost"), (0.5, {}, ""), (-0.5, {}, "")],
)
def test_weights_that_stay_out_are_said_with_what_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    score: float, more: dict[str, Any], said: str,
) -> None:  # fmt: skip
    scored = {"score": score, "total_return": 0.0, "max_drawdown": 0.0}
    monkeypatch.setattr(training, "_validation", lambda *_: lambda _policy: scored)
    train(config(tmp_path, settings={**SETTINGS["ppo"], **more}))
    told = [line.message for line in caplog.records if "hardly trade" in line.message]
    assert bool(told) == bool(said)
    assert said in "".join(told)
    assert ("use_sde" in "".join(told)) == (said == "use_sde=true")


class Trader:
    """A policy that holds what it is told, by the number of its call."""

    def __init__(self, held: Callable[[int], float]) -> None:
        self._held, self._calls = held, 0

    def set_training_mode(self, mode: bool) -> None:
        """As a policy has it."""

    def predict(self, columns: Any, *_: Any, **__: Any) -> Any:
        """Return the exposure of this call."""
        self._calls += 1
        return np.full((len(columns), 1), self._held(self._calls), np.float32), None


def test_doing_nothing_is_kept_over_losing_and_one_lucky_trade_is_no_skill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, arguments = resolve("PerpFutures-v0", config(tmp_path).arguments)
    evaluate = training._validation(family, arguments)
    game = game_of(family, whole_split(arguments, "validation"))
    moves = np.diff(np.log(game.bars.close[game.first : game.last, 0]))
    best = int(moves[1:-1].argmax()) + 1  # the bar that rose most: long for it alone
    idle = evaluate(Trader(lambda call: 0.0))  # type: ignore[arg-type]
    lucky = evaluate(Trader(lambda call: 1.0 if call in (best, best + 1) else 0.0))  # type: ignore[arg-type]
    churns = evaluate(Trader(lambda call: (-1.0) ** call))  # type: ignore[arg-type]
    monkeypatch.setattr(training, "trades", lambda returns: True)  # twin: the plain ratio
    plain = evaluate(Trader(lambda call: 1.0 if call in (best, best + 1) else 0.0))["score"]  # type: ignore[arg-type]
    assert lucky["total_return"] > 0.0 == idle["total_return"]
    assert plain > 1.0
    assert (idle["score"], lucky["score"]) == (0.0, 0.0)
    assert churns["score"] < 0.0


def test_without_evaluations_the_last_weights_are_saved(tmp_path: Path) -> None:
    train(config(tmp_path, evaluations=0, steps=1024))
    manifest = artefact.load(tmp_path).manifest
    assert manifest["chosen_on_validation"] is None
    assert manifest["validation_history"] == []


# The same again

REPEATED = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from agents import artefact
from agents.recipe import TrainingConfig
from agents.training import train
for algo, settings in {settings!r}.items():
    out = Path({out!r}) / algo
    train(TrainingConfig(env="PerpFutures-v0", algo=algo, steps=4096, seed={seed}, out=out, lanes=16,
        arguments={{"bars": {bars!r}}}, settings=settings, evaluations=0, device="cpu", quiet=True))
    print(algo, artefact.load(out).manifest["sha256"]["policy.safetensors"])
"""


@pytest.fixture(scope="module")
def hashes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Hashes of the last weights of every algorithm, from two processes with the same seed and other hash seeds."""
    found = []
    for hash_seed in ("1", "4242"):
        out = tmp_path_factory.mktemp("repeated")
        code = REPEATED.format(seed=SEED, out=str(out), bars=BARS, settings=SETTINGS)
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        found.append(dict(line.split() for line in done.stdout.splitlines()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("algo", SETTINGS)
def test_the_same_seed_gives_the_same_weights_in_two_processes_and_another_seed_others(
    algo: str, hashes: list[dict[str, str]], tmp_path: Path
) -> None:
    first, second = (found[algo] for found in hashes)
    print(f"seed {SEED}, {algo}: {first}, {second}")
    assert len(first) == 64
    assert second == first
    train(config(tmp_path, algo, seed=SEED + 1, evaluations=0))  # the planted fault: another seed
    assert artefact.load(tmp_path).manifest["sha256"]["policy.safetensors"] != first


def test_a_run_among_others_in_one_process_gives_the_same_weights(tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "two"):
        train(config(tmp_path / name, steps=2048))
        hashes.append(artefact.load(tmp_path / name).manifest["sha256"]["policy.safetensors"])
        torch.rand(7), np.random.rand(3)  # noqa: NPY002
    assert hashes[0] == hashes[1]


# Interruptions


@pytest.mark.parametrize("evaluations", [0, 2])
def test_an_interrupted_training_saves_what_is_there_and_raises_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluations: int
) -> None:
    honest, calls = AccountTags._on_step, []

    def interrupt(self: Any) -> bool:
        calls.append(1)
        if len(calls) == 200:
            raise KeyboardInterrupt
        return honest(self)

    monkeypatch.setattr(AccountTags, "_on_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path, steps=100_000, evaluations=evaluations))
    loaded = artefact.load(tmp_path)
    assert loaded.manifest["steps"] == 200 * 16
    action, _ = loaded.predict(np.zeros(len(loaded.reads), np.float32))
    assert np.isfinite(action).all()
    assert len(scalars(tmp_path)["account/equity"]) >= 5


def test_an_interruption_before_the_first_step_saves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(AccountTags, "_on_rollout_start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path))
    assert artefact.load(tmp_path).manifest["steps"] == 0


# What cannot be trained


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algo": "pp0"}, ("algo", "'pp0'", "Did you mean 'ppo'")),
        ({"env": "PerpFuture-v0"}, ("env", "Did you mean 'PerpFutures-v0'")),
        ({"arguments": {"bars": BARS, "levrage": 2}}, ("argument", "Did you mean 'leverage'")),
        ({"arguments": {"bars": BARS, "leverage": "high"}}, ("leverage='high'",)),
        ({"arguments": {"bars": BARS, "leverage": 200.0}}, ("leverage=200.0", "125")),
        ({"arguments": {"bars": "synthetik:crypto"}}, ("'synthetik'", "Did you mean 'synthetic'")),
        ({"arguments": {"bars": BARS, "reward": "log_returns"}}, ("Did you mean 'log_return'",)),
        ({"arguments": {"bars": BARS, "scaler": 5}}, ("scaler",)),
        ({"arguments": {"bars": BARS, "symbol": 5}}, ("symbol",)),
        ({"arguments": {"bars": BARS, "split": "test"}}, ("split",)),
        ({"settings": {"clip_rang": 0.1}}, ("hyperparameter of ppo", "Did you mean 'clip_range'")),
        ({"settings": {"activation_fn": "tahn"}}, ("activation_fn", "Did you mean 'tanh'")),
        ({"settings": {"net_arch": 5}}, ("net_arch",)),
        ({"settings": {"gamma": "high"}}, ("gamma",)),
        ({"settings": {"n_steps": "many"}}, ("n_steps",)),
        ({"settings": {"verbose": 1}}, ("verbose",)),
        ({"settings": {"device": "cpu"}}, ("device",)),
        ({"settings": {"policy_kwargs": {}}}, ("policy_kwargs",)),
        ({"settings": {"tensorboard_log": "x"}}, ("tensorboard_log",)),
        ({"device": "gpu"}, ("device='gpu'",)),
        ({"device": "cuda:99"}, ("device='cuda:99'",)),
        ({"steps": 0}, ("steps=0",)),
        ({"steps": 1.5}, ("steps=1.5",)),
        ({"seed": -1}, ("seed=-1",)),
        ({"seed": 2**32}, (f"seed={2**32}",)),
        ({"lanes": -1}, ("lanes=-1",)),
        ({"evaluations": True}, ("evaluations=True",)),
        ({"threads": 0}, ("threads=0",)),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_cannot_be_trained_is_a_typed_error_that_names_it(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    settings = {**SETTINGS["ppo"], **changes.get("settings", {})}
    with pytest.raises(RegimeGymError) as caught:
        train(config(tmp_path, **{"steps": 64, **changes, "settings": settings}))
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "agent.zip").exists()


@pytest.mark.parametrize("name", ["ppo", "a2c", "recurrent_ppo"])
def test_an_unknown_hyperparameter_lists_only_what_can_be_set(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        train(config(tmp_path, name, settings={"learning_rat": 1.0}))
    text = str(caught.value)
    for word in ("learning_rate", "gamma", "net_arch", "log_std_init"):
        assert word in text
    for word in ("tensorboard_log", "policy_kwargs", "_init_setup_model"):
        assert word not in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_a_typed_error_and_no_silent_fallback(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device='cuda'"):
        train(config(tmp_path, device="cuda", steps=64))
    assert not (tmp_path / "agent.zip").exists()


def test_the_device_auto_is_there_on_every_machine(tmp_path: Path) -> None:
    train(config(tmp_path, device="auto", steps=512, evaluations=0))
    assert artefact.load(tmp_path).manifest["device"] in ("cpu", "cuda", "cuda:0", "mps")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_an_agent_trained_on_cuda_is_loaded_on_the_cpu(tmp_path: Path) -> None:
    train(config(tmp_path, device="cuda", steps=1024))
    loaded = artefact.load(tmp_path)
    assert loaded.manifest["device"].startswith("cuda")
    assert {value.device.type for value in loaded.policy.parameters()} == {"cpu"}


def test_the_training_split_of_the_arguments_is_what_the_learner_sees() -> None:
    family, arguments = resolve("regimegym:PerpFutures-v0", {"bars": BARS})
    assert family == "PerpFutures"
    assert arguments.split == "train"


def test_a_configuration_can_be_described_as_plain_values(tmp_path: Path) -> None:
    json.dumps(recipe.describe(config(tmp_path)))
    assert recipe.describe(replace(config(tmp_path), seed=5))["seed"] == 5
