"""The command line: what each verb writes and prints, and what bad input is told."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import envs
import regimegym
from agents import artefact
from agents.baselines import BASELINES
from encoders.encoder import load, shipped

BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"
OTHER_BARS = "synthetic:crypto?seed=2&interval=1h&bars=3000"
ROOT = Path(regimegym.__file__).resolve().parent
SETS = {"ppo": ["--set", "n_steps=32", "--set", "batch_size=256"], "a2c": []}


@pytest.fixture(autouse=True)
def own_touch_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's log of test readings stays out of reach."""
    monkeypatch.setenv("REGIMEGYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "test-touches.jsonl"


def train_words(out: Path, algo: str = "ppo", *more: str) -> list[str]:
    return [
        "train", "--env", "PerpFutures-v0", "--algo", algo, "--bars", BARS, "--steps", "2048", "--lanes", "16",
        "--evaluations", "1", "--out", str(out), "--quiet", "--device", "cpu", *SETS.get(algo, []), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Agents that the command line trained: PPO of two seeds and A2C."""
    folder = tmp_path_factory.mktemp("runs")
    logging.getLogger().setLevel(logging.INFO)
    for name, algo, seed in (("ppo", "ppo", "0"), ("ppo-1", "ppo", "1"), ("a2c", "a2c", "0")):
        assert regimegym.main(train_words(folder / name, algo, "--seed", seed)) == 0
    return {name: folder / name for name in ("ppo", "ppo-1", "a2c")}


def failed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run words that must end with status 2, whoever refuses them, and return what was said."""
    capsys.readouterr()
    try:
        status = regimegym.main(words)
    except SystemExit as error:
        status = error.code  # type: ignore[assignment]
    said = capsys.readouterr()
    assert status == 2, said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    return said.err


# train


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_train_ends_with_an_agent_an_event_file_and_a_log(trained: dict[str, Path], name: str) -> None:
    folder = trained[name]
    assert artefact.load(folder).manifest["algo"] == name
    assert len(list((folder / "tensorboard").rglob("events.out.tfevents.*"))) == 1
    assert (folder / "training.log").is_file()


def test_the_log_of_a_training_says_what_was_run(tmp_path: Path) -> None:
    code = f"import sys, regimegym; sys.exit(regimegym.main({train_words(tmp_path / 'run')!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    log = (tmp_path / "run" / "training.log").read_text(encoding="utf-8")
    for words in ("training ppo on PerpFutures-v0, seed 0, 16 lanes, 2048 steps", "saved", BARS):
        assert words in log
    for words in ("regimegym evaluate", "tensorboard --logdir", "training.log"):
        assert words in done.stderr


def test_flags_and_arguments_reach_the_training(tmp_path: Path) -> None:
    more = ["--seed", "5", "--env-arg", "leverage=2.5", "--env-arg", "reward=log_return=1,drawdown=0.5"]
    assert regimegym.main(train_words(tmp_path, "ppo", *more, "--set", "gamma=0.9", "--set", "net_arch=[8]")) == 0
    manifest = artefact.load(tmp_path).manifest
    assert manifest["seed"] == 5
    assert manifest["arguments"] == {"leverage": 2.5, "reward": "log_return=1,drawdown=0.5", "bars": BARS}
    assert manifest["settings"]["gamma"] == 0.9
    assert manifest["policy"]["net_arch"] == [8]


def test_ctrl_c_saves_the_agent_and_ends_with_status_130(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from agents.callbacks import AccountTags

    honest, calls = AccountTags._on_step, []

    def interrupt(self: Any) -> bool:
        calls.append(1)
        if len(calls) == 40:
            raise KeyboardInterrupt
        return honest(self)

    monkeypatch.setattr(AccountTags, "_on_step", interrupt)
    assert regimegym.main(train_words(tmp_path)) == 130
    assert artefact.load(tmp_path).manifest["steps"] == 40 * 16
    assert "stopped" in capsys.readouterr().err
    assert "ended by Ctrl-C; go on with the same command and --resume, from the checkpoint of step 512" in caplog.text


# evaluate


def test_evaluate_writes_a_table_numbers_and_a_plot(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(trained["ppo"]), str(trained["a2c"]), "--out", str(tmp_path / "report"), "--quiet"]
    assert regimegym.main(words) == 0
    printed = capsys.readouterr().out
    assert "Traceback" not in printed
    assert "ppo seed 0" in printed
    content = json.loads((tmp_path / "report" / "evaluation-test.json").read_text(encoding="utf-8"))
    table = (tmp_path / "report" / "evaluation-test.md").read_text(encoding="utf-8")
    for name in (*BASELINES, "ppo seed 0", "a2c seed 0"):
        assert name in content["table"]
        assert f"| {name} |" in table
    pytest.importorskip("matplotlib", reason="the extra viz is not installed")
    assert (tmp_path / "report" / "evaluation-test.png").read_bytes()[:4] == b"\x89PNG"


def test_evaluate_without_matplotlib_writes_the_rest_and_says_what_is_missing(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert regimegym.main(["evaluate", str(trained["ppo"]), "--out", str(tmp_path), "--quiet"]) == 0
    assert (tmp_path / "evaluation-test.md").exists()
    assert not (tmp_path / "evaluation-test.png").exists()
    assert "regimegym[viz]" in caplog.text


def test_evaluate_prints_json_and_nothing_else_when_asked(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(trained[name]) for name in ("ppo", "ppo-1", "a2c")]
    assert regimegym.main(["evaluate", *words, "--json", "--out", str(tmp_path), "--quiet"]) == 0
    printed = capsys.readouterr().out
    content = json.loads(printed)
    assert content == json.loads((tmp_path / "evaluation-test.json").read_text(encoding="utf-8"))
    assert list(content["table"])[: len(BASELINES)] == list(BASELINES)
    assert {"ppo seed 0", "ppo seed 1", "a2c seed 0", "ppo, 2 runs (IQM)"} <= set(content["table"])
    assert content["table"]["ppo, 2 runs (IQM)"]["runs"] == 2
    assert content["agents"]["ppo seed 1"] == str(trained["ppo-1"])


def test_evaluate_writes_beside_the_first_agent_unless_told_otherwise(trained: dict[str, Path]) -> None:
    assert regimegym.main(["evaluate", str(trained["a2c"]), "--split", "validation", "--quiet"]) == 0
    assert {"evaluation-validation.json", "evaluation-validation.md"} <= {p.name for p in trained["a2c"].iterdir()}


def test_only_readings_of_the_test_split_are_counted(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], own_touch_log: Path
) -> None:
    counts = []
    for split in ("validation", "test", "train", "test"):
        words = ["evaluate", str(trained["ppo"]), "--split", split, "--json", "--out", str(tmp_path), "--quiet"]
        capsys.readouterr()
        assert regimegym.main(words) == 0
        counts.append(json.loads(capsys.readouterr().out)["touches"])
    assert counts == [0, 1, 0, 2]
    assert len(own_touch_log.read_text(encoding="utf-8").splitlines()) == 2


def test_an_agent_is_evaluated_on_other_bars_with_its_own_scaler(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def numbers(*more: str) -> dict[str, Any]:
        capsys.readouterr()
        words = ["evaluate", str(trained["ppo"]), "--json", "--out", str(tmp_path), "--quiet", *more]
        assert regimegym.main(words) == 0
        content: dict[str, Any] = json.loads(capsys.readouterr().out)
        return content

    own, other = numbers(), numbers("--bars", OTHER_BARS)
    assert own["source"] == BARS
    assert other["source"] == OTHER_BARS
    assert other["table"]["buy-and-hold"]["total_return"] != own["table"]["buy-and-hold"]["total_return"]
    assert other["touches"] == 1
    assert numbers("--bars", BARS)["table"] == own["table"]


def test_an_environment_argument_changes_the_evaluation(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    returns = []
    for scale in ("0", "5"):
        words = ["evaluate", str(trained["ppo"]), "--json", "--env-arg", f"cost_scale={scale}", "--out", str(tmp_path)]
        capsys.readouterr()
        assert regimegym.main([*words, "--quiet"]) == 0
        returns.append(json.loads(capsys.readouterr().out)["table"]["random"]["fee"])
    assert returns[0] == 0.0 < returns[1]


# envs, --version, help


def test_envs_lists_every_registered_id(capsys: pytest.CaptureFixture[str]) -> None:
    assert regimegym.main(["envs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(envs.ids())


def test_envs_prints_the_columns_as_a_table_in_the_order_of_the_observation(capsys: pytest.CaptureFixture[str]) -> None:
    from envs.make import build

    assert regimegym.main(["envs", "--columns"]) == 0
    plain, _, encoded = capsys.readouterr().out.partition("PerpFutures-JEPA-v0")
    rows = [line for line in plain.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    for name in shipped():
        encoder = load(name)
        assert f"| {name} | {encoder.names[0]} .. {encoder.names[-encoder.regimes - 1]} |" in encoded
    names = [line.split("|")[1].strip() for line in rows if "column" not in line.split("|")[1]]
    assert tuple(names) == build("PerpFutures", bars=BARS).observation_names


def test_envs_prints_the_arguments_and_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert regimegym.main(["envs", "--arguments"]) == 0
    printed = capsys.readouterr().out
    for line in ("leverage = 3.0", "split = 'train'", "reward = 'log_return'"):
        assert f"    {line}\n" in printed


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        regimegym.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == f"regimegym {regimegym.__version__}"


@pytest.mark.parametrize("words", [[], ["--help"]], ids=["nothing", "--help"])
def test_help_lists_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        regimegym.main(words)
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for verb in regimegym.VERBS:
        assert verb in printed


@pytest.mark.parametrize("verb", regimegym.VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        regimegym.main([verb, "--help"])
    assert stopped.value.code == 0
    assert f"regimegym {verb}" in capsys.readouterr().out


# Bad input

BAD = {
    "verb": (["trian"], ("verb 'trian'", "Did you mean 'train'")),
    "flag": (["train", "--sed", "5"], ("--sed", "--seed")),
    "flag before the verb": (["--sed", "train"], ("--sed",)),
    "no flags": (["train"], ("--env", "--algo", "--out")),
    "steps": (["train", "--steps", "many"], ("--steps", "'many'")),
    "no steps": (["train", "--steps", "0"], ("steps=0",)),
    "seed": (["train", "--seed", "-1"], ("seed=-1",)),
    "large seed": (["train", "--seed", str(2**32)], ("seed=",)),
    "algo": (["train", "--algo", "pp0"], ("algo 'pp0'", "Did you mean 'ppo'")),
    "env": (["train", "--env", "PerpFuture-v0"], ("env 'PerpFuture-v0'", "Did you mean 'PerpFutures-v0'")),
    "env of another module": (["train", "--env", "nowhere:PerpFutures-v0"], ("nowhere",)),
    "key": (["train", "--env-arg", "levrage=2"], ("'levrage'", "Did you mean 'leverage'")),
    "value": (["train", "--env-arg", "leverage=high"], ("leverage='high'", "number")),
    "no value": (["train", "--env-arg", "leverage"], ("--env-arg", "KEY=VALUE")),
    "no key": (["train", "--env-arg", "=5"], ("--env-arg", "KEY=VALUE")),
    "twice": (["train", "--env-arg", "leverage=2", "--env-arg", "leverage=3"], ("'leverage'", "twice")),
    "hyperparameter": (["train", "--set", "gama=0.9"], ("'gama'", "Did you mean 'gamma'")),
    "hyperparameter value": (["train", "--set", "gamma=high"], ("gamma",)),
    "hyperparameter out of range": (["train", "--set", "gamma=1.5"], ("gamma=1.5", "from 0 to 1")),
    "hyperparameter as a flag": (["train", "--learning-rate", "0.1"], ("--set learning_rate=",)),
    "argument as a flag": (["train", "--leverage", "2"], ("--env-arg leverage=",)),
    "misspelt flag": (["learnability", "--quik"], ("did you mean --quick?",)),
    "misspelt flag that is required": (["train", "--ouut", "x"], ("did you mean --out?",)),
    "fix without a target": (["data-doctor", "x.csv", "--fix"], ("--fix OUT",)),
    "reserved hyperparameter": (["train", "--set", "verbose=1"], ("verbose",)),
    "device": (["train", "--device", "gpu"], ("device='gpu'",)),
    "one date": (["train", "--env-arg", "train_end=2020-03-01"], ("validation_end is missing",)),
    "dates in the wrong order": (
        ["train", "--env-arg", "train_end=2020-04-01", "--env-arg", "validation_end=2020-03-01"],
        ("train_end", "validation_end", "must come before"),
    ),
    "no date": (["train", "--env-arg", "train_end=soon", "--env-arg", "validation_end=2020-03-01"], ("soon",)),
    "too few bars": (["train", "--bars", "synthetic:crypto?bars=100"], ("bars",)),
    "fewer bars than an episode": (["train", "--env-arg", "episode_bars=100000"], ("100000", "episode_bars")),
    "kind of bars": (["train", "--bars", "paquet:x.parquet"], ("'paquet'", "Did you mean 'parquet'")),
    "no kind of bars": (["train", "--bars", "x.parquet"], ("kind:path",)),
    "market": (["train", "--bars", "synthetic:cripto"], ("'cripto'", "Did you mean 'crypto'")),
    "option of bars": (["train", "--bars", "synthetic:crypto?sed=1"], ("'sed'", "Did you mean 'seed'")),
    "file": (["train", "--bars", "parquet:nowhere.parquet"], ("nowhere.parquet", "looked at")),
    "interval": (["train", "--bars", "synthetic:crypto?interval=1x"], ("interval", "1x")),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_ends_with_status_two_and_a_message_that_names_it(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, said = BAD[what]
    monkeypatch.delenv("REGIMEGYM_DATA", raising=False)
    if words[0] == "train" and len(words) > 1:
        words = [*train_words(tmp_path / "out"), *words[1:]]
    text = failed(words, capsys)
    for word in said:
        assert word in text
    assert not (tmp_path / "out" / "agent.zip").exists()


@pytest.mark.parametrize("what", ["algo", "env", "key", "no value", "no steps"])
def test_nothing_is_written_where_a_name_is_wrong(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed([*train_words(tmp_path / "out"), *BAD[what][0][1:]], capsys)
    assert not (tmp_path / "out").exists()


def test_a_column_that_is_missing_in_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bars.csv"
    file.write_text("time,open,high,low,clos,volume\n2024-01-01T00:00:00Z,1,1,1,1,1\n2024-01-01T01:00:00Z,1,1,1,1,1\n")
    text = failed([*train_words(tmp_path / "out"), "--bars", f"csv:{file}?interval=1h&symbol=BTCUSDT"], capsys)
    assert "'close'" in text


def test_a_value_that_breaks_the_schema_is_named_with_column_and_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"2024-01-{1 + hour // 24:02d}T{hour % 24:02d}:00:00Z,10,11,9,10,5" for hour in range(48)]
    rows[7] = rows[7].replace(",10,11,9,", ",10,9,11,")
    file = tmp_path / "bars.csv"
    file.write_text("\n".join(["time,open,high,low,close,volume", *rows]) + "\n")
    text = failed([*train_words(tmp_path / "out"), "--bars", f"csv:{file}?interval=1h&symbol=BTCUSDT"], capsys)
    assert "row 7" in text
    assert "high" in text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--split", "tset"], ("split 'tset'", "Did you mean 'test'")),
        (["--env-arg", "levrage=2"], ("'levrage'", "Did you mean 'leverage'")),
        (["--bars", "synthetic:crypto?bars=100"], ("bars",)),
        (["--bars", "synthetik:crypto"], ("Did you mean 'synthetic'",)),
        (["--jsn"], ("--jsn", "--json")),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_bad_evaluation_ends_with_status_two(
    trained: dict[str, Path], more: list[str], said: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = failed(["evaluate", str(trained["ppo"]), "--out", str(tmp_path / "out"), "--quiet", *more], capsys)
    for word in said:
        assert word in text


def test_a_folder_without_an_agent_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path) in failed(["evaluate", str(tmp_path)], capsys)


def test_a_damaged_agent_ends_with_status_two(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (trained["ppo"] / "agent.zip").read_bytes()
    (tmp_path / "agent.zip").write_bytes(data[: len(data) // 2])
    assert "agent.zip" in failed(["evaluate", str(tmp_path)], capsys)


def test_agents_of_different_environments_are_not_compared(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regimegym.main(train_words(tmp_path / "levered", "ppo", "--env-arg", "leverage=9")) == 0
    assert "arguments" in failed(["evaluate", str(trained["ppo"]), str(tmp_path / "levered"), "--quiet"], capsys)


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_an_output_folder_that_is_a_file_ends_with_status_two(
    trained: dict[str, Path], verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    words = train_words(file) if verb == "train" else ["evaluate", str(trained["ppo"]), "--out", str(file), "--quiet"]
    assert str(file) in failed(words, capsys)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "gamma=2"], "gamma=2"),
        (["--bars", "parquet:nowhere.parquet"], "nowhere.parquet"),
        (["--device", "gpu"], "device='gpu'"),
    ],
    ids=["set", "bars", "device"],
)
def test_a_wrong_setting_is_told_before_a_folder_that_is_taken(
    trained: dict[str, Path], more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = failed([*train_words(trained["ppo"]), *more], capsys)
    assert said in text
    assert "--out" not in text


def test_an_output_folder_that_cannot_be_made_is_named_as_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert f"--out {tmp_path / 'file'} is a file" in failed(train_words(tmp_path / "file"), capsys)
    assert "--out" in failed(train_words(tmp_path / "file" / "below"), capsys)


def test_a_file_that_is_no_agent_is_not_recommended_as_a_folder_to_train_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.py"
    file.write_text("")
    text = failed(["evaluate", str(file)], capsys)
    assert "it is a file" in text
    assert "--out" not in text


def test_nothing_to_resume_is_an_error_that_names_the_nearest_run_and_writes_nothing(
    trained: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    missing = trained["ppo"].with_name("ppo-11")
    text = failed([*train_words(missing), "--resume"], capsys)
    assert f"Did you mean {trained['ppo-1']}?" in text
    assert "leave --resume out" in text
    assert not missing.exists()


def test_a_run_that_left_its_log_only_is_begun_anew_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "training.log").write_text("begun\n")
    assert regimegym.main([*train_words(tmp_path), "--resume"]) == 0
    assert [record.levelname for record in caplog.records if "starting from the beginning" in record.message] == [
        "WARNING"
    ]


def test_the_log_says_how_steps_are_rounded_and_what_zeros_stand_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert regimegym.main([*train_words(tmp_path), "--steps", "1000"]) == 0
    assert "1,000 steps asked, 1,024 trained: whole rollouts of 16 lanes x 32" in caplog.text
    assert artefact.load(tmp_path).manifest["steps"] == 1024
    assert "lanes=16" in caplog.text
    assert "checkpoint_every=100000" in caplog.text


def test_an_evaluation_inside_the_training_range_names_the_flag_that_allows_it(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = BARS.replace("bars=3000", "bars=1500")
    words = ["evaluate", str(trained["ppo"]), "--bars", bars, "--out", str(tmp_path), "--quiet"]
    assert "--env-arg allow_in_sample=true" in failed(words, capsys)
    assert regimegym.main([*words, "--env-arg", "allow_in_sample=true"]) == 0


def test_a_second_demo_keeps_the_first_and_overwrite_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = regimegym.main, []

    def main(words: list[str]) -> int:
        calls.append(words)
        out = Path(words[words.index("--out") + 1]) if words[0] == "train" else None
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / "agent.zip").write_bytes(b"")
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(regimegym, "main", main)
    for more, folder in (([], "demo"), ([], "demo-2"), ([], "demo-3"), (["--overwrite"], "demo")):
        calls.clear()
        assert honest(["demo", *more]) == 0
        assert calls[0][calls[0].index("--out") + 1] == str(Path("runs") / folder)
        assert ("--overwrite" in calls[0]) == bool(more)
        assert calls[1][:2] == ["evaluate", str(Path("runs") / folder)]


def test_a_demo_into_a_folder_that_holds_an_agent_is_refused(
    trained: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained["ppo"] / "agent.zip").read_bytes()
    assert "--overwrite" in failed(["demo", "--out", str(trained["ppo"]), "--steps", "1000", "--quiet"], capsys)
    assert (trained["ppo"] / "agent.zip").read_bytes() == before


# Processes of their own


def test_the_module_runs_from_any_folder(tmp_path: Path) -> None:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "regimegym", "envs"],
        cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(envs.ids())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["envs", "agents", "markets"])
def test_a_folder_of_the_users_that_hides_a_package_is_explained(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", "import regimegym"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert f"'{name}' belongs to RegimeGym" in last
    assert str(tmp_path / name) in last
    assert "Rename that folder" in last


def test_the_command_line_is_light_until_a_verb_needs_more(run_python: Callable[..., str]) -> None:
    code = "import sys, regimegym; regimegym.main(['envs']); print({'torch', 'stable_baselines3'} & set(sys.modules))"
    assert run_python(code).splitlines()[-1] == "set()"
