"""Pretraining of the default encoder on bars: validation, early stop, collapse alarm, resume, TensorBoard, card.

The last share of every series is kept for validation. The weights kept are those whose embedding best forecasts the log
volatility of the next D bars there (ridge on the training rows); a training whose embedding knows less than the same
ridge on the volatility of the last 16 and 64 bars, or whose latents shrank to a point, fails loudly.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders import encoder as files
from encoders.belief_training import choose_regimes
from encoders.box_trunk import LOOK_BACK, BoxTrunk
from encoders.card import card
from encoders.channels import bar_returns
from encoders.controls import hash_of, predictor_figures
from encoders.jepa import JEPAEncoder
from encoders.jepa_training import JEPAConfig, JEPATraining, finish, prepare, provenance_of
from encoders.koopman_resume import Progressed, finish_progress, load_progress, save_progress
from encoders.koopman_training import CollapseError
from encoders.volatility_probes import future_log_volatility, log_volatility, ridge_r2
from markets.bars import Bars
from markets.errors import ConfigError, DataError

Floats = NDArray[np.float64]

SHRUNK = 1e-3  # of the untrained deviation
PAST = (16, 64)  # bars of the reference volatilities
STRIDE = 8  # rows scored

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What ``regimegym pretrain`` is told.

    ``choose`` takes the number of regimes by validation likelihood; ``about`` is a sentence on the bars, for the card.
    """

    jepa: JEPAConfig
    validation: float = 0.1
    every: int = 100
    choose: bool = False
    command: str = ""
    about: str = ""

    def __post_init__(self) -> None:
        if not 0.0 < self.validation < 0.5:
            raise ConfigError(f"validation={self.validation!r} must be a share between 0 and 0.5")
        if self.jepa.steps < 1:
            raise ConfigError(f"steps={self.jepa.steps!r} must be at least 1: weights are judged after a step")
        if not isinstance(self.every, int) or self.every < 1:
            raise ConfigError(f"every={self.every!r} must be a whole number of at least 1")


class _Judge:
    """Scores an embedding on the validation rows of every series."""

    def __init__(self, series: Sequence[Bars], cuts: Sequence[int], horizon: int) -> None:
        self.parts: list[tuple[Bars, NDArray[np.int64], NDArray[np.int64]]] = []
        self.target, self.past = [], []
        for bars, cut in zip(series, cuts, strict=True):
            rows = np.arange(LOOK_BACK + 1, len(bars) - horizon, STRIDE)
            self.parts.append((bars, rows[rows < cut - horizon], rows[rows >= cut]))
            returns = bar_returns(bars)
            self.target.append(future_log_volatility(returns, horizon))
            self.past.append(log_volatility(returns, PAST))
        self.reference = self._score(self.past)

    def _score(self, columns: Sequence[Floats]) -> float:
        train, judged, wanted, seen = [], [], [], []
        for values, target, (_, early, late) in zip(columns, self.target, self.parts, strict=True):
            train.append(values[early])
            wanted.append(target[early])
            judged.append(values[late])
            seen.append(target[late])
        return ridge_r2(np.concatenate(train), np.concatenate(wanted), np.concatenate(judged), np.concatenate(seen))

    def check(self, training: JEPATraining) -> dict[str, float]:
        """R2 of the present weights, and the deviation of their latents."""
        trunk = BoxTrunk(training.net.trunk.weights())
        scaler = training.material.scaler
        embedded = [trunk.embed(scaler.of_bars(bars)).astype(np.float64) for bars, _, _ in self.parts]
        spread = float(np.mean([one[LOOK_BACK:].std(axis=0).mean() for one in embedded]))
        return {"volatility_r2": self._score(embedded), "latent_std": spread}


def pretrain(
    series: Sequence[Bars],
    config: PretrainConfig,
    out: Path,
    resume: bool = False,
    told: Callable[[int, int, dict[str, float]], None] | None = None,
) -> JEPAEncoder:
    """Train on S series of bars, write ``out/encoder.zip`` and ``out/card.md``, and return the encoder.

    Raises:
        ConfigError: bars of several markets or intervals, or other settings than those of the training to resume.
        DataError: too few bars. CollapseError: the embedding says nothing.
    """
    jepa = config.jepa
    provenance = provenance_of(series)
    cuts = [int(len(bars) * (1.0 - config.validation)) for bars in series]
    for bars, cut in zip(series, cuts, strict=True):
        if len(bars) - cut < 2 * (jepa.horizon + STRIDE):
            raise DataError(
                f"{bars.source or bars.symbols[0]}: {len(bars)} bars leave {len(bars) - cut} to validate on"
            )
    early = [bars.between(0, cut) for bars, cut in zip(series, cuts, strict=True)]
    scores: dict[int, float] = {}
    if config.choose:
        late = [bar_returns(bars)[cut + 1 :] for bars, cut in zip(series, cuts, strict=True)]
        known = [bar_returns(bars)[1:] for bars in early]
        count, scores = choose_regimes(known, late, jepa.belief, seed=jepa.seed)
        jepa = replace(jepa, belief=replace(jepa.belief, regimes=count))
    started = time.process_time()
    training = JEPATraining(prepare(early, jepa, told), jepa)
    judge = _Judge(series, cuts, jepa.horizon)
    plan = {
        **json.loads(json.dumps(asdict(jepa))), "bars": [bars.hash for bars in series], "every": config.every,
        "validation": config.validation,
    }  # fmt: skip
    done = load_progress(out, plan, training.both, training.optimizer, training.schedule) if resume else None
    if resume:
        said = (
            "nothing to resume, starting" if done is None else f"goes on after step {len(done.history) * config.every}"
        )
        _log.info("%s: %s", out, said)
    if done is None:
        done = Progressed(judge.check(training)["latent_std"], dict(training.net.state_dict()))
    training.done = len(done.history) * config.every
    _run(training, judge, config, out, plan, done, told)
    best = done.history[done.best]
    training.net.load_state_dict(done.kept)
    if best["latent_std"] < SHRUNK * done.start:
        raise CollapseError(f"latents shrank from a deviation of {done.start:.3g} to {best['latent_std']:.3g}")
    if not best["volatility_r2"] >= judge.reference:
        raise CollapseError(
            f"the embedding explains {best['volatility_r2']:.3f} of the volatility of the next {jepa.horizon} bars on "
            f"validation rows, two past volatilities {judge.reference:.3f}: it has learned nothing of use"
        )
    if best["volatility_r2"] < 0.0:
        _log.warning(
            "R2 of volatility is below 0 on the validation rows, for the embedding as for two past volatilities: "
            "they are unlike the bars before them, or too few to choose a step by"
        )
    facts = {
        "command": config.command, "about": config.about, "seed": jepa.seed,
        "config": json.loads(json.dumps(asdict(jepa))),
        "bars": [{"source": bars.source, "symbol": bars.symbols[0], "first": str(bars.time[0]),
                  "last": str(bars.close_time[-1]), "count": len(bars)} for bars in series],
        "validation": {"share": config.validation, "volatility_r2": best["volatility_r2"],
                       "two_past_volatilities_r2": judge.reference, "latent_std": best["latent_std"],
                       "untrained_latent_std": done.start,
                       "best_step": min((done.best + 1) * config.every, jepa.steps)},
        "regimes_by_likelihood": {str(count): value for count, value in scores.items()},
        "predictor": predictor_figures(training, early),
        "untrained_sha256": hash_of(training.untrained.trunk.weights()),
        "cpu_seconds": round(time.process_time() - started, 1),
    }  # fmt: skip
    made = finish(training, early, provenance, facts)
    files.save(made, out)
    (out / "card.md").write_text(card(made), encoding="utf-8")
    finish_progress(out)
    return made


def _run(
    training: JEPATraining,
    judge: _Judge,
    config: PretrainConfig,
    out: Path,
    plan: dict[str, Any],
    done: Progressed,
    told: Callable[[int, int, dict[str, float]], None] | None,
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    out.mkdir(parents=True, exist_ok=True)
    steps = training.config.steps
    with SummaryWriter(str(out / "tensorboard")) as board:
        while training.done < steps:
            losses = training.step()
            if told is not None:
                told(training.done, steps, losses)
            if training.done % config.every and training.done < steps:
                continue
            figures = judge.check(training)
            for name, value in {**losses, **figures}.items():
                board.add_scalar(f"pretrain/{name}", value, training.done)
            done.history.append(figures)
            if done.best < 0 or figures["volatility_r2"] > done.history[done.best]["volatility_r2"]:
                done.best = len(done.history) - 1
                done.kept = {name: value.detach().clone() for name, value in training.net.state_dict().items()}
            save_progress(out, plan, done, training.both, training.optimizer, training.schedule)


def torch_threads(threads: int) -> None:
    """Set torch's threads for a training; raises ``ConfigError`` for fewer than one."""
    if threads < 1:
        raise ConfigError(f"threads={threads!r} must be at least 1")
    torch.set_num_threads(threads)
