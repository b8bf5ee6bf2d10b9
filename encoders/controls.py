"""What proves nothing, to stand beside what should: the net an encoder began as, and the predictor M = I (torch).

Every figure on the predictor's matrix alone is met by a net that never trained (:mod:`encoders.diagnostics`), and so is
much of what an embedding scores. The untrained net is drawn again from the seed in the encoder's facts; a hash of its
weights, stored at pretraining, says whether it is the very one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.belief import BeliefConfig
from encoders.box_trunk import BoxTrunk, TrunkWeights
from encoders.diagnostics import figures
from encoders.encoder import Encoder
from encoders.jepa import WARM_UP
from encoders.jepa_training import JEPAConfig, JEPANet, JEPATraining
from markets.bars import Bars

ROWS = 4096  # of the training range that a predictor is measured on


@dataclass(frozen=True, eq=False)
class Untrained:
    """The trunk an encoder began as; ``same`` where its hash is the stored one, None where none was stored."""

    trunk: BoxTrunk
    same: bool | None


def config_of(facts: Mapping[str, Any]) -> JEPAConfig:
    """Read the configuration that ``pretrain`` stored in the facts; raises ``KeyError`` where there is none."""
    stored = dict(facts["config"])
    belief = dict(stored.pop("belief"))
    belief["half_lives"] = None if belief["half_lives"] is None else tuple(belief["half_lives"])
    lists = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}
    return JEPAConfig(**{**stored, **lists, "belief": BeliefConfig(**belief)})


def untrained_of(encoder: Encoder) -> Untrained | None:
    """Draw the net that the encoder began as; None where its facts do not say how it was made."""
    if "config" not in encoder.facts:
        return None
    config = config_of(encoder.facts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        weights = JEPANet(config).trunk.weights()
    stored = encoder.facts.get("untrained_sha256")
    return Untrained(BoxTrunk(weights), None if stored is None else stored == hash_of(weights))


def hash_of(weights: TrunkWeights) -> str:
    """SHA-256 of a trunk's numbers."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.arrays().items()):
        digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def predictor_figures(training: JEPATraining, series: Sequence[Bars]) -> dict[str, Any]:
    """Return the figures of M on S series: ``trained``, and the same ``at_identity`` and ``untrained``.

    The keys of each are those of :func:`encoders.diagnostics.figures`; latents are the trunk's own, where M acts.
    """
    config, nets = training.config, {"trained": training.net, "untrained": training.untrained}
    regimes, size = config.belief.regimes, config.latent
    found: dict[str, Any] = {}
    for name, net in nets.items():
        latents = _pairs(BoxTrunk(net.trunk.weights()), training, series)
        found[name] = figures(net.predictor.weight.detach().cpu().double(), latents, regimes, config.seed)
        if name == "trained":
            found["at_identity"] = figures(torch.eye(size, dtype=torch.float64), latents, regimes, config.seed)
    return found


def _pairs(trunk: BoxTrunk, training: JEPATraining, series: Sequence[Bars]) -> tuple[Tensor, Tensor]:
    """Raw latents at evenly spaced bars, and D bars later; no pair spans two series."""
    lag = training.config.horizon
    total = sum(max(len(bars) - lag - WARM_UP, 0) for bars in series)
    step = max(1, -(-total // ROWS))
    now: list[NDArray[np.float32]] = []
    later: list[NDArray[np.float32]] = []
    for bars in series:
        rows = np.arange(WARM_UP, len(bars) - lag, step)
        embedded = trunk.embed(training.material.scaler.of_bars(bars))
        now.append(embedded[rows])
        later.append(embedded[rows + lag])
    first, second = (torch.from_numpy(np.concatenate(part).astype(np.float64)) for part in (now, later))
    return first, second
