"""The fits that rows of a table share: one belief a seed, one training a variant and seed, kept on disk.

A fit sees training bars only: :class:`Fits` is handed nothing else. Files lie in ``fits/`` beside the finished rows and
carry settings and code version as these do, so that a killed run repeats at most the fit it was in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from encoders import encoder as files
from encoders.belief import BeliefConfig
from encoders.belief_training import BeliefTraining, Smoothed, fit_belief
from encoders.box_autoencoder import AutoencoderTraining
from encoders.channels import bar_returns
from encoders.jepa import CLIP, JEPAEncoder
from encoders.jepa_training import JEPAConfig, JEPATraining, Material, finish, prepare, provenance_of
from encoders.neural_belief import belief_of
from encoders.odds import Belief
from encoders.table_rows import Model, joined
from encoders.table_store import differs, plain
from markets import storage
from markets.bars import Bars
from markets.errors import ArtefactError, DataError

Floats = NDArray[np.float64]
Told = Callable[[int, int, dict[str, float]], None]

TENSORS = "belief.safetensors"
SMOOTHED = ("posterior", "predictive", "moves")
VARIANTS: dict[str, dict[str, Any]] = {  # of the default encoder, as changes of its configuration
    "default": {},
    "untrained": {"steps": 0},
    "head-only": {"w_jepa": 0.0, "w_belief": 0.0},
    "jepa-only": {"w_future": 0.0, "w_belief": 0.0},
    "distilled": {"w_jepa": 0.0, "w_future": 0.0},
    "supervised": {"w_jepa": 0.0, "w_future": 0.0},
    "autoencoder": {},
}
DISTILLED = ("default", "distilled")  # what learns from the belief and so costs its fit as well


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of every fit; the seed in ``jepa`` and ``schedule`` is replaced by that of the row."""

    jepa: JEPAConfig = field(default_factory=JEPAConfig)
    schedule: BeliefTraining = field(default_factory=BeliefTraining)

    def belief_settings(self) -> dict[str, Any]:
        """Return what a belief depends on."""
        return {"belief": asdict(self.jepa.belief), "schedule": _seedless(asdict(self.schedule))}

    def encoder_settings(self) -> dict[str, Any]:
        """Return what an encoder depends on."""
        own = {name: value for name, value in asdict(self.jepa).items() if name != "belief"}
        return {"jepa": _seedless(own), **self.belief_settings()}


@dataclass(frozen=True, eq=False)
class FittedBelief:
    """A belief of one seed: the filter, what smoothing found in the training returns, and its cost."""

    parameters: Belief
    smoothed: Smoothed
    cpu_seconds: float


class Fits:
    """Every fit on S series of training bars, made when it is first asked for.

    Args:
        series: training bars; labels are read by the variant ``supervised`` alone.
        data: what identifies them, for the settings of the files.
        code: version of the code that fits.
    """

    def __init__(
        self,
        series: Sequence[Bars],
        config: FitConfig,
        folder: Path,
        data: Mapping[str, Any],
        code: str,
        told: Told | None = None,
    ) -> None:
        self.series, self.config, self.told = list(series), config, told
        self.folder, self._data, self._code = folder / "fits", dict(data), code
        self.returns = [bar_returns(bars) for bars in series]
        self._belief: tuple[int, FittedBelief] | None = None

    def belief(self, seed: int) -> FittedBelief:
        """Return the belief of a seed."""
        if self._belief is None or self._belief[0] != seed:
            path = self.folder / f"belief-{seed}.zip"
            settings = {**self._data, **self.config.belief_settings()}
            found = self._read_belief(path, settings)
            if found is None:
                found = self._fit_belief(seed)
                tensors = {
                    **{f"filter.{name}": value for name, value in found.parameters.arrays().items()},
                    **{name: np.ascontiguousarray(getattr(found.smoothed, name)) for name in SMOOTHED},
                }
                manifest = {
                    "settings": plain(settings), "code": self._code, "cpu_seconds": found.cpu_seconds,
                    "log_likelihood": found.smoothed.log_likelihood,
                }  # fmt: skip
                storage.write(path, manifest, {TENSORS: save_tensors(tensors)})
            self._belief = seed, found
        return self._belief[1]

    def encoder(self, variant: str, seed: int) -> JEPAEncoder:
        """Return an encoder of :data:`VARIANTS`; its ``facts`` say what it cost (without the belief)."""
        place = self.folder / f"{variant}-{seed}"
        settings = {**self._data, **self.config.encoder_settings(), "variant": variant}
        if (place / files.FILE).exists():
            try:
                kept = files.load(place)
                if isinstance(kept, JEPAEncoder) and not differs(kept.facts, settings, self._code):
                    return kept
            except (ArtefactError, KeyError):
                pass  # damaged, or not of a table: it is made again
        belief = self.belief(seed)  # whose cost is its own
        began = time.process_time()
        training = self._trained(variant, seed, belief)
        facts = {"settings": plain(settings), "code": self._code, "cpu_seconds": time.process_time() - began}
        made = finish(training, self.series, provenance_of(self.series), facts)
        files.save(made, place)
        return made

    def embedding(self, variant: str, *beside: Callable[[Bars], Floats]) -> Callable[[int], Model]:
        """Return a row's fit: the embedding of a variant, behind the columns of ``beside``."""

        def fit(seed: int) -> Model:
            made = self.encoder(variant, seed)
            return Model(joined(*beside, lambda bars: clipped(made, bars)), cpu_seconds=self._cost(made, variant, seed))

        return fit

    def softmax(self, variant: str) -> Callable[[int], Model]:
        """Return a row's fit: the odds of a variant's own head."""

        def fit(seed: int) -> Model:
            made = self.encoder(variant, seed)
            cost = self._cost(made, variant, seed)
            return Model(lambda bars: made.odds(bars, "softmax"), odds=True, cpu_seconds=cost)

        return fit

    def odds(self, clusters: bool = True) -> Callable[[int], Model]:
        """Return a row's fit: the belief; ``clusters`` takes its most likely regime for the cluster."""

        def fit(seed: int) -> Model:
            found = self.belief(seed)
            return Model(lambda bars: odds_of(found.parameters, bars), clusters, cpu_seconds=found.cpu_seconds)

        return fit

    def belief_and_embedding(self, seed: int) -> Model:
        """Fit the belief and the default encoder, side by side: what an environment shows."""
        belief = self.belief(seed).parameters
        return self.embedding("default", lambda bars: odds_of(belief, bars))(seed)

    def _cost(self, made: JEPAEncoder, variant: str, seed: int) -> float:
        if variant == "untrained":
            return math.nan
        return float(made.facts["cpu_seconds"]) + (self.belief(seed).cpu_seconds if variant in DISTILLED else 0.0)

    def _trained(self, variant: str, seed: int, belief: FittedBelief) -> JEPATraining:
        config = replace(self.config.jepa, seed=seed, **VARIANTS[variant])
        material = prepare(self.series, config, fitted=(belief.parameters, belief.smoothed))
        if variant == "supervised":
            material = labelled(material, self.series, config.belief.regimes)
        training = (AutoencoderTraining if variant == "autoencoder" else JEPATraining)(material, config)
        for number in range(config.steps):
            losses = training.step()
            if self.told is not None:
                self.told(number + 1, config.steps, losses)
        return training

    def _fit_belief(self, seed: int) -> FittedBelief:
        began = time.process_time()
        moves = [one[1:] for one in self.returns]
        parameters, smoothed = fit_belief(moves, self.config.jepa.belief, self._schedule(seed), self._tell_likelihood())
        return FittedBelief(parameters, smoothed, time.process_time() - began)

    def fit_other_belief(self, seed: int, structure: BeliefConfig) -> tuple[Belief, float]:
        """Fit a belief of another structure, which no encoder shares: the filter and its CPU seconds.

        With the schedule of its own emission, unless these fits were given one.
        """
        began = time.process_time()
        moves = [one[1:] for one in self.returns]
        given = self._schedule(seed)
        schedule = BeliefTraining.of(structure.emission, seed) if given == BeliefTraining(seed=seed) else given
        parameters = fit_belief(moves, structure, schedule, self._tell_likelihood())[0]
        return parameters, time.process_time() - began

    def _schedule(self, seed: int) -> BeliefTraining:
        return replace(self.config.schedule, seed=seed)

    def _tell_likelihood(self) -> Callable[[int, int, float], None] | None:
        told = self.told
        return None if told is None else (lambda i, n, value: told(i, n, {"belief log-likelihood": value}))

    def _read_belief(self, path: Path, settings: Mapping[str, Any]) -> FittedBelief | None:
        if not path.exists():
            return None
        try:
            manifest, members = storage.read(path, (TENSORS,))
            if differs(manifest, settings, self._code):
                return None
            arrays = load_tensors(members[TENSORS])
            own = {name.removeprefix("filter."): value for name, value in arrays.items() if name.startswith("filter.")}
            smoothed = Smoothed(
                **{name: arrays[name] for name in SMOOTHED}, log_likelihood=float(manifest["log_likelihood"])
            )
            return FittedBelief(belief_of(own), smoothed, float(manifest["cpu_seconds"]))
        except (ArtefactError, KeyError):
            return None


def labelled(material: Material, series: Sequence[Bars], regimes: int) -> Material:
    """Put the true regimes in the place of the smoothed belief: what the trunk can do when it is told the answer.

    Raises:
        DataError: bars without labels.
    """
    truth = []
    for bars in series:
        if bars.labels is None:
            raise DataError(f"{bars.source or bars.symbols[0]} has no true regimes to be supervised by")
        truth.append(torch.from_numpy(np.eye(regimes, dtype=np.float32)[bars.labels]))
    return replace(material, posterior=truth)


def clipped(made: JEPAEncoder, bars: Bars) -> Floats:
    """Return the embedding as an environment serves it: ``(T, D)``, cut at five deviations."""
    return np.clip(made.embed(bars).astype(np.float64), -CLIP, CLIP)


def odds_of(belief: Belief, bars: Bars) -> Floats:
    """Return the odds of a fitted belief after each bar: ``(T, K)``; before the first return its long-run shares."""
    odds = belief.filter().table(bar_returns(bars)[1:])
    return np.concatenate([belief.stationary[None], odds])


def _seedless(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "seed"}
