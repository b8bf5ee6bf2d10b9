"""Training of the Koopman encoders: one schedule, validation that looks at latents, and a loud alarm for collapse.

The loss alone cannot be trusted: it is smallest where every latent is the same. After each epoch the latents' deviation
is compared with the untrained net's, and a ridge regression of the volatility to come, fitted on training latents, is
scored on validation ones, beside the same regression on the volatility of the last 16 and 64 bars.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders.koopman_checkpoint import save_checkpoint
from encoders.koopman_data import CryptoPriceDataset
from encoders.koopman_jepa import CryptoKoopmanJEPA
from encoders.koopman_resume import Progressed, finish_progress, load_progress, save_progress
from encoders.koopman_schedule import batches_of, optimiser_of, seeded, train_step
from encoders.losses import jepa_split, linear_conditional_mean, resolve_weights
from encoders.probes import effective_rank, latent_std
from markets.errors import ConfigError, RegimeGymError

_log = logging.getLogger(__name__)

Progress = Callable[[int, int, Mapping[str, float]], None]  # epoch, of how many, its figures

SHRUNK = 1e-3  # of the untrained deviation: below it the latents are one point
REGIME_ROWS = 8192  # pairs that the regime centres are fitted on
PAST_BARS = (16, 64)
SLACK = 0.02  # of R2: sound encoders were seen .0005 below the ridge on 2,048 rows, an untrained one .05
RIDGE = 1e-2


class CollapseError(RegimeGymError):
    """The latents say nothing: they shrank to a point, or know less of volatility than two running volatilities."""


@dataclass(frozen=True, eq=False)
class TrainingReport:
    """What a training did.

    Attributes:
        history: figures of each epoch. best_epoch: the one whose weights the model has now.
        cpu_seconds: of this process. volatility_r2, ridge_r2: of the future log volatility on validation rows, from
            latents and from two past volatilities; NaN without a validation set.
    """

    history: tuple[Mapping[str, float], ...]
    best_epoch: int
    cpu_seconds: float
    volatility_r2: float
    ridge_r2: float


class JEPATrainer:
    """Trains a model on windows, validates each epoch, keeps the best epoch, fits the regime centres at the end.

    Args:
        val_dataset: later bars, scaled by the training set (``channels=train.channels``); its first context must begin
            after the last training target ends. Without one nothing stops early and only the deviation is watched.
        directory: where the best epoch is written at the end (:mod:`encoders.koopman_checkpoint`), and meanwhile what
            :meth:`fit` needs to resume; nowhere where None.
        device: of torch. amp: bfloat16 autocast (``torch.amp``); the losses stay float32, no scaler is needed.
        seed: of batches and dropout; the global generators are left as they were.
        require_volatility: whether knowing clearly less of volatility than the ridge is a collapse.

    Raises:
        ConfigError: sets of other windows, channels or scales than the model's; an unknown device.
    """

    def __init__(
        self,
        model: CryptoKoopmanJEPA,
        train_dataset: CryptoPriceDataset,
        val_dataset: CryptoPriceDataset | None = None,
        *,
        directory: str | Path | None = None,
        device: str = "cpu",
        amp: bool = False,
        seed: int = 0,
        require_volatility: bool = True,
        progress: Progress | None = None,
    ) -> None:
        for name, data in (("train", train_dataset), ("validation", val_dataset)):
            if data is not None and data.channels.names != model.config.channels:
                raise ConfigError(f"{name} set reads {data.channels.names}, the model {model.config.channels}")
            if data is not None and data.window != model.config.context_window:
                raise ConfigError(f"{name} windows: {data.window} bars, the model reads {model.config.context_window}")
        if val_dataset is not None and val_dataset.channels != train_dataset.channels:
            raise ConfigError("the validation set has scales of its own: hand it channels=train_dataset.channels")
        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise ConfigError(f"device={device!r}: {error}") from error
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device={device!r}: no CUDA device is available; use 'cpu'")
        self.model = model.to(self.device)
        self.train_dataset, self.val_dataset = train_dataset, val_dataset
        self.directory, self.amp, self.seed = directory, amp, seed
        self.require_volatility, self.progress = require_volatility, progress

    def fit(
        self, num_epochs: int | None = None, loss_weights: Mapping[str, float] | None = None, *, resume: bool = False
    ) -> TrainingReport:
        """Train for at most ``num_epochs`` (the configuration's where None).

        Args:
            loss_weights: ``alpha_jepa``, ``alpha_regime``, ``alpha_direction``, ``alpha_volatility``,
                ``alpha_spectral``; those not named keep the configuration's.
            resume: go on where a training into the same directory was stopped, to the same bits (on the same machine).

        Raises:
            CollapseError: latents shrank below 1e-3 of their untrained deviation, or the best epoch's know less of the
                volatility to come than a ridge on the last 16 and 64 bars, by more than .02 of R2. No checkpoint is
                written then.
            ConfigError: a loss that is not finite; ``resume`` with other settings. ArtefactError: a damaged state.
        """
        config, model = self.model.config, self.model
        weights = resolve_weights({**config.weights, **(loss_weights or {})})
        epochs = config.epochs if num_epochs is None else num_epochs
        if epochs < 1:
            raise ConfigError(f"num_epochs={num_epochs!r} must be at least 1")
        if resume and self.directory is None:
            raise ConfigError("resume=True needs the directory of the training that was stopped")
        model.channels = self.train_dataset.channels
        begun = time.process_time()
        ridge = math.nan if self.val_dataset is None else past_volatility_r2(self.train_dataset, self.val_dataset)
        with seeded(self.seed, self.device):
            done = self._run(epochs, weights, ridge, resume, begun)
        best, history, kept = done.best, done.history, done.kept
        model.load_state_dict(kept)
        model.eval()
        report = TrainingReport(tuple(history), best, done.cpu_seconds, history[best]["volatility_r2"], ridge)
        if self.val_dataset is not None and self.require_volatility and not report.volatility_r2 >= ridge - SLACK:
            raise CollapseError(
                f"the latents explain {report.volatility_r2:.3f} of the variance of the volatility to come, a ridge on "
                f"the volatility of the last 16 and 64 bars {ridge:.3f}: the encoder learnt less than two numbers know"
            )
        self._fit_regimes()
        if self.directory is not None:
            facts = {"best_epoch": best, "volatility_r2": report.volatility_r2, "ridge_r2": ridge, "seed": self.seed}
            known = {name: value for name, value in facts.items() if math.isfinite(value)}
            save_checkpoint(self.directory, model, known)
            finish_progress(self.directory)
        return report

    def _run(self, epochs: int, weights: dict[str, float], ridge: float, resume: bool, begun: float) -> Progressed:
        """Train epoch by epoch, from the start or from where a killed training stopped."""
        model, config, data = self.model, self.model.config, self.train_dataset
        plan = {**config.to_json(), **weights, "epochs": epochs, "seed": self.seed, "amp": self.amp, "pairs": len(data)}
        batches = list(batches_of(data, config, epochs, self.seed))
        per_epoch = len(batches) // epochs
        optimiser, schedule = optimiser_of(model, config, len(batches))
        done = None
        if resume and self.directory is not None:
            done = load_progress(self.directory, plan, model, optimiser, schedule)
        if resume:
            said = "nothing to resume, starting" if done is None else f"goes on after epoch {len(done.history)}"
            _log.info("%s: %s", self.directory, said)
        if done is None:
            start = latent_std(model.encode(data.contexts(data.even_pairs())).cpu().double().numpy())[1]
            done = Progressed(start, copy.deepcopy(model.state_dict()))
        spent = done.cpu_seconds
        for epoch in range(len(done.history), epochs):
            if self._is_over(done):
                break
            losses = self._epoch(batches[epoch * per_epoch : (epoch + 1) * per_epoch], weights, optimiser, schedule)
            done.history.append({**losses, **self.validate(), "ridge_r2": ridge})
            figures = done.history[-1]
            _check_deviation(figures["latent_std"], done.start, epoch)
            least = done.history[done.best]["volatility_r2"] if done.best >= 0 else -math.inf
            if self.val_dataset is None or figures["volatility_r2"] > least:
                done.best, done.kept = epoch, copy.deepcopy(model.state_dict())
            done.cpu_seconds = spent + time.process_time() - begun
            if self.directory is not None:
                save_progress(self.directory, plan, done, model, optimiser, schedule)
            if self.progress is not None:
                self.progress(epoch + 1, epochs, figures)
        return done

    def _is_over(self, done: Progressed) -> bool:
        patience = self.model.config.patience
        return patience is not None and self.val_dataset is not None and len(done.history) - 1 - done.best >= patience

    def _epoch(
        self, batches: Sequence[Tensor], weights: Mapping[str, float], optimiser: torch.optim.Optimizer, schedule: Any
    ) -> dict[str, float]:
        """Train on these batches and return the means of the losses."""
        model = self.model
        model.train()
        sums: dict[str, float] = {}
        for pairs in batches:
            batch = {name: value.to(self.device) for name, value in self.train_dataset.batch(pairs).items()}
            with self.autocast():
                terms = model.compute_koopman_crypto_loss(batch, weights)
            train_step(model, terms["total"], optimiser, schedule, model.config.clip)
            model.update_target()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        return {name: value / len(batches) for name, value in sums.items()}

    def validate(self) -> dict[str, float]:
        """Return the latents' figures: deviation, rank, the loss and its split, R2 of the volatility to come."""
        train, judged = self.train_dataset, self.val_dataset or self.train_dataset
        pairs = judged.even_pairs()
        z = self.model.encode(judged.contexts(pairs))
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            parts = judged.targets(pairs).split(1024)
            target = torch.cat([self.model.target_encoder(x.to(self.device)) for x in parts])
            ahead = self.model.predictor(z)
        self.model.train(was_training)
        error, noise = math.nan, math.nan
        if len(z) > z.shape[1] + 1:
            error, noise = (float(v) for v in jepa_split(ahead, target, linear_conditional_mean(z, target)))
        r2 = math.nan
        if self.val_dataset is not None:
            known = train.even_pairs()
            known_z = self.model.encode(train.contexts(known)).cpu()
            r2 = ridge_r2(known_z, train.future_volatility(known), z.cpu(), judged.future_volatility(pairs))
        return {
            "validation_jepa": float((ahead - target).square().sum(1).mean()),
            "validation_prediction": error,
            "validation_stochasticity": noise,
            "latent_std": latent_std(z.cpu().double().numpy())[1],
            "effective_rank": effective_rank(z.cpu().double().numpy()),
            "volatility_r2": r2,
        }

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the network runs."""
        return torch.amp.autocast(self.device.type, dtype=torch.bfloat16) if self.amp else nullcontext()

    def _fit_regimes(self) -> None:
        data = self.train_dataset
        pairs = data.even_pairs(REGIME_ROWS)
        if len(pairs) >= self.model.config.regimes:
            z = torch.cat([self.model.encode(data.contexts(part)).cpu() for part in pairs.split(1024)])
            self.model.centroids.fit(z, data.past_volatility(pairs, PAST_BARS[-1]), self.seed)


def ridge_r2(known: Tensor, known_target: Tensor, rows: Tensor, target: Tensor) -> float:
    """R2 on ``rows (N, k)`` of a ridge regression fitted on ``known (M, k)``, both in deviations of ``known``."""
    mean, deviation = known.double().mean(0), known.double().std(0).clamp_min(1e-12)
    a, b = (known.double() - mean) / deviation, (rows.double() - mean) / deviation
    level = known_target.double().mean()
    gram = a.T @ a / len(a) + RIDGE * torch.eye(a.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, a.T @ (known_target.double() - level) / len(a))
    error = (target.double() - level - b @ weights).square().mean()
    return float(1.0 - error / target.double().var(correction=0).clamp_min(1e-30))


def past_volatility_r2(train: CryptoPriceDataset, judged: CryptoPriceDataset) -> float:
    """R2 of the volatility to come from the log volatility of the last 16 and 64 bars: what any encoder must beat."""
    (known, known_target), (rows, target) = (
        (torch.stack([data.past_volatility(pairs, bars) for bars in PAST_BARS], 1), data.future_volatility(pairs))
        for data, pairs in ((train, train.even_pairs()), (judged, judged.even_pairs()))
    )
    return ridge_r2(known, known_target, rows, target)


def _check_deviation(now: float, start: float, epoch: int) -> None:
    if not now >= SHRUNK * start:
        raise CollapseError(
            f"epoch {epoch}: the latents' deviation is {now:.2e}, below {SHRUNK:g} of the untrained {start:.2e}: "
            f"they shrank to a point. Is the target moving too fast (ema_decay)?"
        )
