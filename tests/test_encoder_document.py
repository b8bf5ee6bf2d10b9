"""The page about encoders: its code runs as it stands, its settings exist, and an encoder of one's own is served."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import regimegym
from encoders import encoder as files
from encoders.jepa_training import JEPAConfig
from encoders.koopman_config import KoopmanConfig

PAGE = (Path(regimegym.__file__).resolve().parent / "docs" / "encoders.md").read_text(encoding="utf-8")
UNSEEN = "synthetic:regimes?seed=78&bars=3000&level=clear&regimes=3"


def unknown_settings(page: str) -> list[str]:
    """Settings in the second column of the table that no configuration and no flag has."""
    from argparse import ArgumentParser

    from scripts import pretrain

    parser = ArgumentParser()
    pretrain.add_arguments(parser)
    valid = {*JEPAConfig.__dataclass_fields__, *KoopmanConfig.__dataclass_fields__, *parser._option_string_actions}
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and line.count(" | ") == 2]
    spans = [span for row in rows[1:] for span in re.findall(r"`([^`]+)`", row[1])]
    words = [span.split()[0] for span in spans if not span.startswith("[")]  # values stand in brackets
    assert len(words) > 15
    return [word for word in words if word not in valid]


def test_every_setting_of_the_table_exists() -> None:
    """K33."""
    assert unknown_settings(PAGE) == []
    assert unknown_settings(PAGE.replace("`ema_decay`", "`ema_decai`")) == ["ema_decai"]
    for knob in ("init_identity", "alpha_spectral", "ema_decay", "context_window", "latent_dim"):
        assert f"`{knob}`" in PAGE


def test_the_code_runs_and_an_encoder_of_ones_own_is_served(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "KINDS", dict(files.KINDS))
    module: Any = ModuleType("page_of_encoders")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.DIR = str(tiny_folder)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/encoders.md", "exec"), vars(module))
    env: Any = gym.make("PerpFutures-v0", bars=UNSEEN, encoded="calm", encoder="calm", split="test")
    observation, info = env.reset(seed=0)
    row = int(env.unwrapped.simulation.rows[0])
    bars = env.unwrapped.simulation.game.bars
    made = files.load("calm")
    assert observation[-3:].tobytes() == made.table(bars).values[row].tobytes()
    assert info["REGIME_regime"] == observation[-2:].argmax()
    live: Any = made.stream()
    rows = [live.update(bars.between(t - 1, t + 1)) for t in range(1, 50)]
    np.testing.assert_array_equal(np.stack(rows[1:]), made.encode(bars)[2:50])
