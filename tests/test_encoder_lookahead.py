"""``regimegym lookahead`` on the shipped encoder, and on the two leaks that encoders are known for, planted in it."""

from __future__ import annotations

from pathlib import Path

import pytest

import regimegym

COMMON = """
from dataclasses import replace

import numpy as np

from encoders import encoder as files
from encoders.channels import ChannelScaler, percent_returns

made = files.load("jepa-synthetic-1h")
"""

SERVED = """
def table(bars):
    return made.encode(bars)
"""

# Padding on both sides: every convolution and mean looks half of its width ahead.
SYMMETRIC = """
def table(bars):
    rows, half = made.encode(bars), made.trunk_weights.a_weight.shape[2] // 2
    return np.concatenate([rows[half:], np.repeat(rows[-1:], half, axis=0)])
"""

# Channels scaled by the whole series: a quiet future makes the past look wild.
FULL_RANGE = """
def table(bars):
    scaler = ChannelScaler.fit([percent_returns(bars.close[:, 0])[1:]], made.scaler.names)
    return (made.trunk.embed(scaler.of_bars(bars)) - made.mean) / made.deviation
"""

# Standardised by the whole series instead of the training range.
STANDARDISED = """
def table(bars):
    rows = made.embed(bars)
    return (rows - rows.mean(axis=0)) / rows.std(axis=0)
"""


def found(code: str, folder: Path) -> int:
    """Run the instrument on a module; its exit status."""
    file = folder / "suspect.py"
    file.write_text(COMMON + code, encoding="utf-8")
    return regimegym.main(["lookahead", "--module", str(file), "--trials", "6"])


def test_the_shipped_encoder_is_found_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """E13."""
    assert found(SERVED, tmp_path) == 0, capsys.readouterr().out


@pytest.mark.parametrize("code", [SYMMETRIC, FULL_RANGE, STANDARDISED])
def test_mutant_an_encoder_that_sees_the_future_is_found(code: str, tmp_path: Path) -> None:
    """Twin of E13. Symmetric padding, and two scalers fitted on the full range."""
    assert found(code, tmp_path) == 1
