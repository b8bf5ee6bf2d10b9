"""A default encoder that costs seconds: pretrained for a few steps on two short generated series, with its facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from encoders import pretrain as module
from encoders.belief import BeliefConfig
from encoders.jepa import JEPAEncoder
from encoders.jepa_training import JEPAConfig
from encoders.pretrain import PretrainConfig, pretrain
from markets import sources

SPEC = "synthetic:regimes?seed={seed}&bars={bars}&level=clear&regimes=3"
CONFIG = JEPAConfig(
    hidden=6, inner=8, latent=4, steps=8, sequences=2, length=400, belief=BeliefConfig(regimes=3), seed=1
)


def tiny_encoder(folder: Path) -> JEPAEncoder:
    """Pretrain on seeds 1 and 2 into ``folder``; the alarm, which tiny trainings would ring, is held back."""
    original = module._Judge.__init__

    def quiet(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self.reference = -1e9

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Judge, "__init__", quiet)
        series = [sources.load(SPEC.format(seed=seed, bars=2000)) for seed in (1, 2)]
        plan = PretrainConfig(jepa=CONFIG, every=4, command="regimegym pretrain ...")
        return pretrain(series, plan, folder)
