"""Resume: a run that was killed goes on to the weights of one that was not, and nothing else is taken for its state."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import regimegym
from agents import artefact, checkpoint, snapshot, training, vec_env
from agents.callbacks import AccountTags, ValidationChoice
from agents.recipe import TrainingConfig
from agents.sb3 import ALGORITHMS
from agents.training import train
from agents.vec_env import NativeVecEnv
from markets import storage
from markets.errors import ArtefactError, ConfigError

BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
ARGUMENTS = {"bars": BARS, "episode_bars": 48}  # lanes end and begin again several times
SEED, LANES, STEPS, EVERY = 29, 8, 2048, 512
KILLED_AFTER = 150  # calls of the environment: beyond 1,024 steps and in the middle of a rollout of every algorithm
INTERRUPTED_AFTER = 170  # calls: in a rollout of PPO that began at 1,280 steps, where no checkpoint is due
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 32, "batch_size": 128, "n_epochs": 2},
    "a2c": {"n_steps": 8},
    "recurrent_ppo": {"n_steps": 32, "batch_size": 128, "n_epochs": 1, "lstm_hidden_size": 8},
    "maskable_ppo": {"n_steps": 32, "batch_size": 128, "n_epochs": 2},
    "tqc": {
        "train_freq": 8, "gradient_steps": 2, "batch_size": 64, "learning_starts": 256, "buffer_size": 800,
        "net_arch": [16],
    },
}  # fmt: skip
ROOT = Path(regimegym.__file__).resolve().parent


class Killed(BaseException):
    """Ends a training as a kill does: nobody catches it, nothing is saved after it."""


def config(out: Path, algo: str = "ppo", **changes: Any) -> TrainingConfig:
    plain: dict[str, Any] = {
        "env": "PerpFutures-v0", "algo": algo, "steps": STEPS, "seed": SEED, "out": out, "lanes": LANES, "quiet": True,
        "arguments": ARGUMENTS, "settings": {**SETTINGS[algo], **changes.pop("more", {})}, "evaluations": 3,
        "device": "cpu", "checkpoint_every": EVERY,
    }  # fmt: skip
    return TrainingConfig(**{**plain, **changes})


def train_until(config: TrainingConfig, calls: int, end: Callable[[], object]) -> None:
    """Train, and do ``end`` in the call of the environment with this number."""
    honest, count = AccountTags._on_step, [0]

    def on_step(self: Any) -> bool:
        count[0] += 1
        if count[0] == calls:
            end()
        return honest(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AccountTags, "_on_step", on_step)
        train(config)


def kill(config: TrainingConfig, calls: int = KILLED_AFTER) -> None:
    def end() -> None:
        raise Killed

    with pytest.raises(Killed):
        train_until(config, calls, end)


def spoil_process_state() -> None:
    """What another process would not have either: torch's and numpy's generators, and the games that are prepared."""
    torch.rand(7)
    np.random.rand(3)  # noqa: NPY002


def compare(whole: Path, resumed: Path) -> float:
    """Check that two folders hold the same agent and the same last state, bit for bit, and return the largest
    difference of a weight of the last state."""
    one, other = (checkpoint.newest(folder / "checkpoints") for folder in (whole, resumed))
    assert one is not None
    assert other is not None
    ours, theirs = one.state.arrays, other.state.arrays
    assert set(ours) == set(theirs)
    weights = [name for name in ours if name.startswith("weights/")]
    difference = max(float(np.abs(ours[name] - theirs[name]).max()) for name in weights)
    print(f"{one.identity['algo']}: largest difference of a weight {difference:g}")
    for name in ours:
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    assert one.state.plain == other.state.plain
    assert one.choice == other.choice
    first, second = artefact.load(whole).manifest, artefact.load(resumed).manifest
    for key in ("steps", "validation_history", "chosen_on_validation", "sha256"):
        assert first[key] == second[key], key
    return difference


# Half sessions, 209 steps: 2,048 steps over 8 lanes begin a second one in every lane.
SESSIONS: dict[str, Any] = {
    "env": "ZeroDTE-v0",
    "arguments": {"bars": "synthetic:spy?seed=1&sessions=9&early_close=only"},
}
RUNS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "ppo with an encoder": {"env": "PerpFutures-JEPA-v0"},
    "ppo with hidden columns": {"arguments": {**ARGUMENTS, "hide": "hour_sin,hour_cos"}},
    "ppo without validation": {"evaluations": 0},
    "ppo with state-dependent noise": {"more": {"use_sde": True}},
    "a2c": {},
    "a2c without validation": {"evaluations": 0},
    "recurrent_ppo": {},
    "maskable_ppo": SESSIONS,
    "maskable_ppo with sizes": {**SESSIONS, "arguments": {**SESSIONS["arguments"], "actions": "sized"}},
    "maskable_ppo with an encoder": {
        "env": "ZeroDTE-JEPA-v0",
        "arguments": {"bars": "synthetic:spy?seed=1&sessions=27&early_close=only"},
    },
    "tqc": {},
    "tqc with state-dependent noise": {"more": {"use_sde": True}},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs that were never interrupted, made when first asked for."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole")
            train(config(made[name], name.split()[0], **RUNS[name]))
        return made[name]

    return run


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PPO run that was killed; tests copy what they change."""
    folder = tmp_path_factory.mktemp("cut")
    kill(config(folder))
    return folder


@pytest.fixture
def copied(cut: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(cut, tmp_path / "run"))


# The same weights


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_that_is_resumed_ends_with_the_weights_of_an_uninterrupted_one(
    name: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    """C12. By hash for PPO and A2C; RecurrentPPO and TQC print the largest difference, which is 0 as well."""
    print(f"seed {SEED}")
    algo = name.split()[0]
    kill(config(tmp_path, algo, **RUNS[name]))
    spoil_process_state()
    train(config(tmp_path, algo, **RUNS[name], resume=True))
    assert compare(whole(name), tmp_path) == 0.0


def test_every_algorithm_is_resumed_by_a_test() -> None:
    assert {name.split()[0] for name in RUNS} == set(ALGORITHMS)


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(
    algo: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    """C12."""
    for calls in (70, 90, 80):
        kill(config(tmp_path, algo, resume=True), calls)  # the first one finds no checkpoint and begins
        spoil_process_state()
    train(config(tmp_path, algo, resume=True))
    compare(whole(algo), tmp_path)


def forget(kind: Any, name: str, then: Callable[..., Any] = lambda *_: None) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(kind, name, then)


def only_reset(self: NativeVecEnv, *_: Any) -> None:
    self.env.reset(seed=0)


def without(group: str) -> Callable[[pytest.MonkeyPatch], None]:
    """The state of a group is read, but what the new model has is kept."""
    honest = snapshot.as_tensors

    def as_tensors(name: str, given: Any, wanted: Any) -> Any:
        return {key: value.clone() for key, value in wanted.items()} if name == group else honest(name, given, wanted)

    return lambda patch: patch.setattr(snapshot, "as_tensors", as_tensors)


FORGOTTEN: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "weights": ("ppo", without("weights")),
    "optimiser": ("ppo", forget(snapshot, "restore_optimizer")),
    "optimiser of A2C": ("a2c", forget(snapshot, "restore_optimizer")),
    "accounts of the lanes": ("ppo", forget(NativeVecEnv, "restore", only_reset)),
    "generators of the lanes": ("ppo", forget(vec_env, "restore_generator")),
    "generators of the process": ("a2c", forget(snapshot, "restore_globals")),
    "choice on validation": ("ppo", forget(ValidationChoice, "restore")),
    "recurrent state": ("recurrent_ppo", without("lstm")),
    "exploration noise": ("ppo with state-dependent noise", without("noise")),
    "replay buffer": ("tqc", forget(snapshot, "_restore_replay")),
    "entropy coefficient": ("tqc", without("variable")),
}


@pytest.mark.parametrize("part", FORGOTTEN)
def test_a_resume_that_forgets_a_part_is_caught(part: str, whole: Callable[[str], Path], tmp_path: Path) -> None:
    """Twin of C12."""
    name, plant = FORGOTTEN[part]
    algo = name.split()[0]
    kill(config(tmp_path, algo, **RUNS[name]))
    spoil_process_state()
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        train(config(tmp_path, algo, **RUNS[name], resume=True))
    with pytest.raises(AssertionError):
        compare(whole(name), tmp_path)


KILLS_ITSELF = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
import regimegym
from agents.callbacks import AccountTags
honest, calls = AccountTags._on_step, [0]
def on_step(self):
    calls[0] += 1
    if calls[0] == {calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(self)
AccountTags._on_step = on_step
regimegym.main({words!r})
"""


def words(out: Path, *more: str) -> list[str]:
    sets = [word for key, value in SETTINGS["ppo"].items() for word in ("--set", f"{key}={value}")]
    return [
        "train", "--env", "PerpFutures-v0", "--algo", "ppo", "--bars", BARS, "--env-arg", "episode_bars=48", "--steps",
        str(STEPS), "--lanes", str(LANES), "--seed", str(SEED), "--evaluations", "3", "--checkpoint-every", str(EVERY),
        "--device", "cpu", "--out", str(out), "--quiet", *sets, *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_the_command_line_resumes_a_process_that_was_killed_to_the_same_weights(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    """C12. With SIGKILL, from process to process."""
    code = KILLS_ITSELF.format(calls=KILLED_AFTER, words=words(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert regimegym.main(words(tmp_path, "--resume")) == 0
    compare(whole("ppo"), tmp_path)


# What a resumed run is


def test_a_run_is_not_resumed_with_other_arguments_and_every_difference_is_named(copied: Path) -> None:
    """C09. Of training checkpoints."""
    changes: dict[str, Any] = {
        "seed": SEED + 1, "lanes": 4, "evaluations": 5, "arguments": {**ARGUMENTS, "leverage": 5.0},
        "more": {"gamma": 0.9},
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        train(config(copied, **changes, resume=True))
    for line in (
        f"seed: expected {SEED}, found {SEED + 1}", f"lanes: expected {LANES}, found 4",
        "evaluations: expected 3, found 5", "arguments.leverage: expected nothing, found 5.0",
        "settings.gamma: expected 0.99, found 0.9",
    ):  # fmt: skip
        assert line in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"algo": "a2c"}, "algo: expected 'ppo', found 'a2c'"),
        (
            {"arguments": {**ARGUMENTS, "bars": BARS.replace("seed=1", "seed=2")}},
            f"bars: expected {BARS!r}, found '",
        ),
        ({"steps": 512}, "steps=512: the run in"),
    ],
    ids=["algorithm", "bars", "fewer steps"],
)
def test_another_run_is_not_taken_for_the_one_to_resume(copied: Path, changes: dict[str, Any], line: str) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*.zip")}
    with pytest.raises(ConfigError) as caught:
        train(config(copied, **changes, resume=True))
    assert line in str(caught.value)
    assert not re.search(r"[0-9a-f]{64}", str(caught.value)), "a hash tells nobody anything"
    assert {path: path.read_bytes() for path in copied.rglob("*.zip")} == before


def test_a_finished_run_goes_on_when_it_is_given_more_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(config(tmp_path, steps=1000))  # four rollouts, the last of which goes beyond
    first = artefact.load(tmp_path).manifest
    with caplog.at_level(logging.INFO):
        train(config(tmp_path, steps=1000, resume=True))
    assert "nothing is left to train" in caplog.text
    assert artefact.load(tmp_path).manifest["sha256"] == first["sha256"]
    train(config(tmp_path, steps=2048, resume=True))
    last = artefact.load(tmp_path).manifest
    assert (first["steps"], last["steps"]) == (1024, 2048)
    assert last["validation_history"][: len(first["validation_history"])] == first["validation_history"]
    assert last["validation_history"][-1]["steps"] == 2048
    assert last["seconds"] > first["seconds"] or last["seconds"] >= 0.1


def test_without_resume_a_run_that_is_there_is_neither_continued_nor_replaced(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "agent.zip").unlink(missing_ok=True)
    before = sorted(path.name for path in (copied / "checkpoints").iterdir())
    assert regimegym.main(words(copied)) == 2
    assert "unfinished run" in capsys.readouterr().err
    assert sorted(path.name for path in (copied / "checkpoints").iterdir()) == before
    assert regimegym.main(words(copied, "--resume", "--overwrite")) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert regimegym.main(words(copied, "--overwrite", "--seed", "3")) == 0
    assert checkpoint.newest(copied / "checkpoints").identity["seed"] == 3  # type: ignore[union-attr]


def test_an_agent_whose_checkpoints_are_gone_is_not_trained_over(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(copied, resume=True))
    checkpoint.remove(copied / "checkpoints")
    before = (copied / "agent.zip").read_bytes()
    assert regimegym.main(words(copied, "--resume")) == 2
    assert "no checkpoint" in capsys.readouterr().err
    assert (copied / "agent.zip").read_bytes() == before


def test_the_last_two_checkpoints_are_kept_at_even_steps_and_leftovers_removed(cut: Path, copied: Path) -> None:
    """C02."""
    names = [path.name for path in checkpoint.files(cut / "checkpoints")]
    assert names == ["checkpoint-000000000001024.zip", "checkpoint-000000000000512.zip"]
    left = copied / "checkpoints" / ".checkpoint-000000000001536.zip.99999999.tmp"
    left.write_bytes(b"half")
    train(config(copied, resume=True))
    names = sorted(path.name for path in (copied / "checkpoints").iterdir())
    assert names == ["checkpoint-000000000001536.zip", "checkpoint-000000000002048.zip"]


def test_the_event_files_of_a_resumed_run_read_as_one_with_steps_that_rise(copied: Path) -> None:
    train(config(copied, resume=True))
    folders = list((copied / "tensorboard").iterdir())
    assert [folder.name for folder in folders] == ["ppo_1"]
    assert len(list(folders[0].iterdir())) == 2
    events = EventAccumulator(str(folders[0]))
    events.Reload()
    rollout = LANES * SETTINGS["ppo"]["n_steps"]
    for tag in ("account/equity", "train/loss", "validation/score"):
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)), tag
    assert [event.step for event in events.Scalars("account/equity")] == list(range(rollout, STEPS + 1, rollout))


# Damaged checkpoints


def fractions() -> list[float]:
    return [sixteenth / 16 for sixteenth in range(16)]


def newest_of(folder: Path) -> Path:
    return checkpoint.files(folder / "checkpoints")[0]


def check_falls_back(folder: Path, caplog: pytest.LogCaptureFixture, *said: str) -> None:
    """Expect the older one of two checkpoints, and a warning that names the newer one."""
    first, second = checkpoint.files(folder / "checkpoints")
    with caplog.at_level(logging.WARNING):
        found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    assert found.path == second
    for word in ("damaged checkpoint", first.name, *said):
        assert word in caplog.text


@pytest.mark.parametrize("fraction", fractions())
def test_a_truncated_checkpoint_is_named_and_the_one_before_it_read(
    copied: Path, fraction: float, caplog: pytest.LogCaptureFixture
) -> None:
    """C03."""
    data = newest_of(copied).read_bytes()
    newest_of(copied).write_bytes(data[: int(len(data) * fraction)])
    check_falls_back(copied, caplog)


@pytest.mark.parametrize("member", ["manifest.json", "state.safetensors", "best.safetensors"])
def test_a_flipped_bit_in_a_checkpoint_is_noticed_and_the_one_before_it_read(
    copied: Path, member: str, caplog: pytest.LogCaptureFixture
) -> None:
    """C03."""
    import zipfile

    data = bytearray(newest_of(copied).read_bytes())
    with zipfile.ZipFile(newest_of(copied)) as archive:
        content = archive.read(member)
    data[data.index(content) + len(content) // 2] ^= 0x10
    newest_of(copied).write_bytes(bytes(data))
    check_falls_back(copied, caplog, member)


def test_a_resume_that_gives_up_on_a_damaged_checkpoint_is_caught(
    copied: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Twin of C03. Nothing is tried after the newest file."""
    monkeypatch.setattr(checkpoint, "newest", lambda folder: checkpoint.read(checkpoint.files(folder)[0]))
    newest_of(copied).write_bytes(newest_of(copied).read_bytes()[:1000])
    with pytest.raises(ArtefactError, match="not a complete file"):
        check_falls_back(copied, caplog)


def test_a_run_with_a_damaged_checkpoint_is_resumed_from_the_one_before_to_the_same_weights(
    copied: Path, whole: Callable[[str], Path]
) -> None:
    """C03. And the damaged file does not count as one of the two good ones."""
    damaged = newest_of(copied)
    damaged.write_bytes(damaged.read_bytes()[:1000])
    train(config(copied, resume=True))
    compare(whole("ppo"), copied)
    for path in checkpoint.files(copied / "checkpoints"):
        checkpoint.read(path)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_left_as_it_is(copied: Path) -> None:
    """C03."""
    for path in checkpoint.files(copied / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"no checkpoint in .* is complete"):
        train(config(copied, resume=True))
    assert len(checkpoint.files(copied / "checkpoints")) == 2


def edit(path: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> None:
    """Change a checkpoint's manifest or members, with hashes that fit."""
    manifest, members = storage.read(path, ["state.safetensors"], ["best.safetensors", "replay.safetensors"])
    change(manifest, members)
    storage.write(path, manifest, members)


def spoiled(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    """Replace an array of the state, or remove it where the value is None."""
    from safetensors.numpy import load, save

    def change(_: dict[str, Any], members: dict[str, bytes]) -> None:
        arrays = load(members["state.safetensors"])
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value(arrays.get(name))
        members["state.safetensors"] = save(arrays)

    return change


def plainly(*path: str, value: Any) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def change(manifest: dict[str, Any], _: dict[str, bytes]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


def nan(array: Any) -> Any:
    array = array.copy()
    array.flat[0] = np.nan
    return array


WRONG: dict[str, tuple[Any, str]] = {
    "missing weight": (spoiled("weights/log_std", None), "weights/log_std"),
    "unknown weight": (spoiled("weights/stowaway", lambda _: np.zeros(3)), "weights/stowaway"),
    "weight of another shape": (spoiled("weights/log_std", lambda a: np.repeat(a, 2)), "weights/log_std"),
    "weight of another type": (spoiled("weights/log_std", lambda a: a.astype(np.float64)), "weights/log_std"),
    "weight that is not finite": (spoiled("weights/log_std", nan), "weights/log_std"),
    "moment that is not finite": (spoiled("optimizer/policy.optimizer/0/exp_avg", nan), "policy.optimizer/0/exp_avg"),
    "optimiser of another model": (
        spoiled("optimizer/policy.optimizer/77/exp_avg", lambda _: np.zeros(3, np.float32)), "parameter 77",
    ),
    "accounts of other lanes": (spoiled("lanes/accounts", lambda a: a[:, :2].copy()), "lanes/accounts"),
    "generators": (plainly("state", "generators", value=[]), "generators"),
    "kind of generator": (plainly("state", "action_space", value={"bit_generator": "MT19937"}), "MT19937"),
    "counter": (plainly("state", "counters", "_n_updates", value="many"), "_n_updates"),
    "choice": (plainly("choice", value={}), "next"),
    "format": (plainly("format", value=checkpoint.FORMAT + 1), "format"),
    "identity": (plainly("identity", value=None), "identity"),
}  # fmt: skip


def check_wrong_state_refused(folder: Path, what: str) -> None:
    change, said = WRONG[what]
    path, older = checkpoint.files(folder / "checkpoints")
    older.unlink()
    edit(path, change)
    with pytest.raises(ArtefactError) as caught:
        train(config(folder, resume=True))
    assert said in str(caught.value)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("what", WRONG)
def test_a_state_that_does_not_fit_is_refused_and_named(copied: Path, what: str) -> None:
    """C08, C09. Of training checkpoints."""
    check_wrong_state_refused(copied, what)


@pytest.mark.parametrize("what", ["missing weight", "weight that is not finite"])
def test_a_resume_that_is_not_strict_is_caught(copied: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of C08. Weights that do not fit are left as a new model has them."""
    without("weights")(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_wrong_state_refused(copied, what)


def test_other_versions_than_the_run_was_started_with_are_said(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    """C09."""
    edit(newest_of(copied), plainly("versions", "torch", value="1.2.3"))
    with caplog.at_level(logging.WARNING):
        train(config(copied, resume=True))
    assert "torch: expected '1.2.3'" in caplog.text


# Interruptions


def interrupted(out: Path, end: Callable[[], object]) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_until(config(out), INTERRUPTED_AFTER, end)


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def check_interruption_is_saved(folder: Path) -> None:
    """Expect a checkpoint of the beginning of the rollout that was interrupted, and an agent of its last step."""
    found = checkpoint.newest(folder / "checkpoints")
    rollout = LANES * SETTINGS["ppo"]["n_steps"]
    begun = INTERRUPTED_AFTER * LANES // rollout * rollout
    assert begun % EVERY, "a checkpoint is due there anyway: the test is empty"
    assert found is not None
    assert found.state.steps == begun, "no checkpoint of the interruption"
    assert artefact.load(folder).manifest["steps"] == INTERRUPTED_AFTER * LANES, "no agent of the interruption"


def test_ctrl_c_leaves_a_checkpoint_and_an_agent_and_the_run_resumes_to_the_same_weights(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    """C13. The checkpoint stands at the beginning of the rollout that was interrupted."""
    interrupted(tmp_path, ctrl_c)
    check_interruption_is_saved(tmp_path)
    spoil_process_state()
    train(config(tmp_path, resume=True))
    compare(whole("ppo"), tmp_path)


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        (checkpoint.Checkpoints, "write", "no checkpoint of the interruption"),
        (training, "_save", "no agent of the interruption"),
    ],
    ids=["checkpoint", "agent"],
)
def test_a_handler_of_ctrl_c_that_saves_nothing_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, said: str
) -> None:
    """Twin of C13. What was saved before the signal does not pass for it."""

    def end() -> None:
        monkeypatch.setattr(owner, name, lambda *_: None)
        ctrl_c()

    interrupted(tmp_path, end)
    with pytest.raises(AssertionError, match=said):
        check_interruption_is_saved(tmp_path)


def interrupt_twice(folder: Path, number: int) -> None:
    """Send a second Ctrl-C while the file with this number is written, and expect that nothing is written after it."""
    honest, armed, saved = os.fsync, [False], [0]

    def fsync(handle: int) -> None:
        if armed[0]:
            saved[0] += 1
            if saved[0] == 2 * number - 1:  # a save flushes its file and then its folder
                ctrl_c()
        honest(handle)

    def first() -> None:
        armed[0] = True
        ctrl_c()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        interrupted(folder, first)
    assert saved[0] == 2 * number - 1, "the second Ctrl-C did not end it"


def test_a_handler_that_goes_on_saving_after_a_second_ctrl_c_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of C13."""
    honest = checkpoint.Checkpoints.write

    def write(self: checkpoint.Checkpoints) -> Path | None:
        try:
            return honest(self)
        except KeyboardInterrupt:
            return None

    monkeypatch.setattr(checkpoint.Checkpoints, "write", write)
    with pytest.raises(AssertionError, match="the second Ctrl-C did not end it"):
        interrupt_twice(tmp_path, 1)


@pytest.mark.parametrize("number", [1, 2], ids=["while the checkpoint is written", "while the agent is written"])
def test_a_second_ctrl_c_quits_at_once_and_leaves_whole_files(
    number: int, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    """C13."""
    interrupt_twice(tmp_path, number)
    for path in checkpoint.files(tmp_path / "checkpoints"):
        checkpoint.read(path)
    assert not list(tmp_path.rglob("*.tmp"))
    artefact.load(tmp_path)  # the best so far
    train(config(tmp_path, resume=True))
    compare(whole("ppo"), tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_the_exit_status_tells_which_signal_ended_the_training(
    number: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C13. The statuses that ``regimegym train --help`` documents."""
    honest, calls = AccountTags._on_step, [0]

    def on_step(self: Any) -> bool:
        calls[0] += 1
        if calls[0] == INTERRUPTED_AFTER:
            os.kill(os.getpid(), number)
        return honest(self)

    monkeypatch.setattr(AccountTags, "_on_step", on_step)
    handler = signal.getsignal(signal.SIGTERM)
    assert regimegym.main(words(tmp_path)) == status
    assert signal.getsignal(signal.SIGTERM) == handler
    check_interruption_is_saved(tmp_path)
    from scripts import train as script

    assert str(status) in (script.__doc__ or "")


def test_an_interruption_before_the_first_rollout_can_be_resumed(
    whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> bool:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AccountTags, "_on_rollout_start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path))
    train(config(tmp_path, resume=True))
    compare(whole("ppo"), tmp_path)


# A disk that refuses


@pytest.fixture
def refusing_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No zip can be flushed to the disk after the first two; names what was tried."""
    honest, tried = os.fsync, []

    def fsync(handle: int) -> None:
        tried.append(os.readlink(f"/proc/self/fd/{handle}"))
        if len(tried) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return tried


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc")
def test_a_full_disk_costs_checkpoints_and_not_the_training(
    refusing_disk: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """C04. Training goes on, the files of before stay whole, and only the last save ends in an error."""
    with pytest.raises(OSError, match="No space"):
        train(config(tmp_path))
    assert "no checkpoint could be written, training goes on" in caplog.text
    assert sum("checkpoint-" in name for name in refusing_disk) >= 4
    assert len(checkpoint.files(tmp_path / "checkpoints")) >= 1
    for path in checkpoint.files(tmp_path / "checkpoints"):
        checkpoint.read(path)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_replay_buffer_too_large_for_a_checkpoint_is_filled_anew_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint, "LARGEST_REPLAY", 10_000)
    kill(config(tmp_path, "tqc"))
    assert "larger than" in caplog.text
    caplog.clear()
    train(config(tmp_path, "tqc", resume=True))
    assert "no replay buffer" in caplog.text
    assert artefact.load(tmp_path).manifest["steps"] == STEPS


def test_the_manifest_of_a_checkpoint_is_json_that_anyone_can_read(cut: Path) -> None:
    import zipfile

    with zipfile.ZipFile(newest_of(cut)) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    assert manifest["identity"]["seed"] == SEED
    assert manifest["state"]["counters"]["num_timesteps"] == 1024
    assert len(manifest["state"]["generators"]) == LANES
    assert manifest["state"]["generators"][0]["bit_generator"] == "PCG64"
