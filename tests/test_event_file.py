"""TensorBoard records are written as they should be, and a training never ends because they cannot be."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import artefact, event_file
from agents.callbacks import AccountTags
from agents.event_file import EventFile, tensorboard_logger
from agents.recipe import TrainingConfig
from agents.training import train

BARS = "synthetic:crypto?seed=1&interval=1h&bars=3000"


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def dump(logger: Logger, step: int, **values: Any) -> None:
    for name, value in values.items():
        logger.record(name, value)
    logger.dump(step)


def test_what_was_recorded_is_read_back_by_tensorboard(tmp_path: Path) -> None:
    logger = tensorboard_logger(tmp_path, "ppo")
    dump(logger, 10, a=1.5, b=np.float32(2.5), c=3)
    logger.record("hidden", 1.0, exclude="tensorboard")
    dump(logger, 20, a=2.0, note="text is no number")
    assert scalars(tmp_path / "ppo_1") == {"a": [(10, 1.5), (20, 2.0)], "b": [(10, 2.5)], "c": [(10, 3.0)]}


def test_each_run_has_a_folder_and_a_resumed_one_goes_on_in_the_latest(tmp_path: Path) -> None:
    for run, steps in (("ppo_1", None), ("ppo_2", None), ("ppo_2", 10)):
        logger = tensorboard_logger(tmp_path, "ppo", steps)
        assert logger.dir == str(tmp_path / run)
        dump(logger, 10, a=1.0)
    assert tensorboard_logger(tmp_path / "gone", "ppo", 10).dir == str(tmp_path / "gone" / "ppo_1")


def test_records_beyond_the_step_that_a_run_is_resumed_from_no_longer_count(tmp_path: Path) -> None:
    logger = tensorboard_logger(tmp_path, "ppo")
    for step in (10, 20, 30):
        dump(logger, step, a=float(step))
    resumed = tensorboard_logger(tmp_path, "ppo", 20)
    for step in (30, 40):
        dump(resumed, step, a=step + 0.5)
    assert scalars(tmp_path / "ppo_1")["a"] == [(10, 10.0), (20, 20.0), (30, 30.5), (40, 40.5)]


def test_half_a_record_is_never_left_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = tensorboard_logger(tmp_path, "ppo")
    dump(logger, 10, a=1.0)

    class Full:
        """A file on a disk that takes ten more bytes."""

        def __init__(self, *arguments: Any, **more: Any) -> None:
            self.file = open(*arguments, **more)  # noqa: SIM115 - closed on leaving

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            return self.file.write(data[:10])

    with monkeypatch.context() as patch:
        patch.setattr(event_file, "open", Full, raising=False)
        dump(logger, 20, a=2.0)
    dump(logger, 30, a=3.0)
    assert scalars(tmp_path / "ppo_1")["a"] == [(10, 1.0), (30, 3.0)]


# A training whose log cannot be written


def trouble_missing(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The folder is gone before the first record, and a file stands in its place."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_bytes(b"")


def trouble_deleted(folder: Path, patch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder)


def trouble_full(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(event_file, "open", full, raising=False)


def train_with(trouble: Callable[[Path, pytest.MonkeyPatch], None], out: Path, patch: pytest.MonkeyPatch) -> None:
    """Train eight rollouts and make trouble in the fourth."""
    honest, calls = AccountTags._on_step, [0]

    def on_step(self: Any) -> bool:
        calls[0] += 1
        if calls[0] == 100:
            trouble(out / "tensorboard", patch)
        return honest(self)

    patch.setattr(AccountTags, "_on_step", on_step)
    train(
        TrainingConfig(
            env="PerpFutures-v0", algo="ppo", steps=1024, seed=3, out=out, lanes=4, quiet=True, evaluations=2,
            arguments={"bars": BARS}, settings={"n_steps": 32, "batch_size": 64, "n_epochs": 1}, device="cpu",
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("trouble", "said"), [(trouble_missing, True), (trouble_deleted, False), (trouble_full, True)],
    ids=["missing", "deleted meanwhile", "full"],
)  # fmt: skip
def test_a_training_goes_on_where_its_log_cannot_be_written(
    trouble: Callable[[Path, pytest.MonkeyPatch], None], said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """C16. Said once, and the agent is the one that a training with a log ends with."""
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        train_with(trouble, tmp_path / "troubled", patch)
    assert caplog.text.count("TensorBoard records cannot be written, training goes on") == said
    with pytest.MonkeyPatch.context() as patch:
        train_with(lambda *_: None, tmp_path / "plain", patch)
    agents = [artefact.load(tmp_path / name).manifest for name in ("troubled", "plain")]
    assert agents[0]["steps"] == agents[1]["steps"] == 1024
    assert agents[0]["sha256"] == agents[1]["sha256"]
    if trouble is trouble_deleted:  # begun anew
        steps = [step for step, _ in scalars(tmp_path / "troubled" / "tensorboard" / "ppo_1")["account/equity"]]
        assert steps == [512, 640, 768, 896, 1024]


def test_a_log_that_ends_the_training_is_caught(tmp_path: Path) -> None:
    """Twin of C16. The error is not held back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventFile, "write", lambda self, values, excluded, step=0: self._append([]))
        with pytest.raises(OSError, match="No space"):
            train_with(trouble_full, tmp_path, patch)
