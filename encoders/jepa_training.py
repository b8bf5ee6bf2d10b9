"""Training of the default encoder: JEPA, label-free future statistics, and regimes distilled from the belief.

One dense pass over sequences of 1,280 bars gives an embedding z_t at every bar; the losses, with their weights::

    JEPA     |M z_t - z'_{t+D}|^2            z' of the EMA target, M starts as the identity, D = 64
    future   |head(z_t) - y_t|^2             y: standardised log volatility, 2 mean / deviation, 2 lag-1 autocorrelation
                                             of the next D returns
    belief   cross-entropy(softmax(W z_t), q_t),  q the belief filter's smoothed posterior of the training bars

Smoothing and the targets look into the future inside the training range only. The published figures of all three
together stand beside each alone (weights of 0), since the future head alone brings most of it.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from encoders.belief import BeliefConfig
from encoders.belief_training import BeliefTraining, Smoothed, fit_belief
from encoders.box_trunk import BOXES, LOOK_BACK, WIDTH, TrunkWeights
from encoders.channels import CHANNELS, ChannelScaler, bar_returns
from encoders.encoder import Provenance, interval_name, is_generated, seed_of
from encoders.forgetting import forgetting
from encoders.jepa import WARM_UP, JEPAEncoder
from encoders.kmeans_head import centres
from encoders.odds import Belief
from encoders.regimes import KMeansHead, SoftmaxHead
from encoders.scale_jitter import jittered, valid
from markets.bars import Bars
from markets.errors import ConfigError, DataError

Floats = NDArray[np.float64]
Told = Callable[[int, int, dict[str, float]], None]  # step, of how many, losses

_log = logging.getLogger(__name__)

FUTURES = 3
SMALLEST = 1e-12


@dataclass(frozen=True, kw_only=True)
class JEPAConfig:
    """Structure and schedule of the default encoder.

    Attributes:
        channels: what is read of a bar. hidden, inner, latent: sizes of the trunk. horizon: D, bars.
        w_jepa, w_future, w_belief: weights of the losses.
        scale_jitter: deviation of the log scale that changes half of the sequences (:mod:`encoders.scale_jitter`).
        steps, rate, sequences, length: optimiser steps, peak learning rate, sequences a step and their bars.
        ema: of the target, at the first and the last step.
        belief: structure of the belief filter; its schedule is that of its emission (:class:`BeliefTraining`).
    """

    channels: tuple[str, ...] = CHANNELS[:2]
    hidden: int = 48
    inner: int = 64
    latent: int = 32
    horizon: int = 64
    w_jepa: float = 1.0
    w_future: float = 1.0
    w_belief: float = 1.0
    scale_jitter: float = 0.0
    steps: int = 800
    rate: float = 4e-3
    weight_decay: float = 1e-3
    sequences: int = 12
    length: int = 1280
    ema: tuple[float, float] = (0.99, 0.996)
    belief: BeliefConfig = field(default_factory=BeliefConfig)
    seed: int = 0
    device: str = "cpu"
    amp: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("hidden", 1), ("inner", 1), ("latent", 1), ("horizon", 2), ("steps", 0), ("sequences", 1), ("length", 1),
            ("seed", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
        for name in ("rate", "weight_decay", "w_jepa", "w_future", "w_belief"):
            value = getattr(self, name)
            good = isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value < math.inf
            if not good or (name == "rate" and value == 0.0):
                raise ConfigError(f"{name}={value!r} must be a number {'above' if name == 'rate' else 'of at least'} 0")
        ema = self.ema
        if not isinstance(ema, tuple | list) or len(ema) != 2 or not all(
            isinstance(one, int | float) and 0.0 <= one <= 1.0 for one in ema
        ):  # fmt: skip
            raise ConfigError(f"ema={ema!r} must be two numbers from 0 to 1")
        check_device(self.device)
        if not valid(self.scale_jitter):
            raise ConfigError(f"scale_jitter={self.scale_jitter!r} must be a number from 0 to 2")
        if self.length < LOOK_BACK + self.horizon + 2:
            raise ConfigError(f"length={self.length} must be at least {LOOK_BACK + self.horizon + 2} bars")


def check_device(name: str) -> None:
    """Refuse what torch cannot train on here, before anything else is fitted.

    Raises:
        ConfigError: no device of torch, or CUDA where there is none.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device={name!r} is not a device of torch, such as cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}: torch finds no CUDA device here; use cpu")


class TorchTrunk(nn.Module):
    """The trunk of :mod:`encoders.box_trunk` with gradients: ``(B, C, L)`` to ``(B, L - LOOK_BACK, D)``."""

    def __init__(self, config: JEPAConfig) -> None:
        super().__init__()
        self.a = nn.Conv1d(len(config.channels), config.hidden, WIDTH)
        self.b = nn.Conv1d(config.hidden, config.hidden, WIDTH)
        self.c = nn.Linear(len(BOXES) * config.hidden, config.inner)
        self.d = nn.Linear(config.inner, config.latent)

    def forward(self, channels: Tensor) -> Tensor:
        """Embed every bar that has a full look-back."""
        hidden = functional.relu(self.b(functional.relu(self.a(channels))))
        sums = functional.pad(torch.cumsum(hidden.double(), dim=2), (1, 0))
        longest, total = BOXES[-1], sums.shape[2]
        ends = sums[:, :, longest:]
        means = [((ends - sums[:, :, longest - box : total - box]) / box).to(hidden.dtype) for box in BOXES]
        embedding: Tensor = self.d(functional.relu(self.c(torch.cat(means, dim=1).transpose(1, 2))))
        return embedding

    def weights(self) -> TrunkWeights:
        """Return numpy copies."""
        arrays = {
            f"{layer}_{part}": getattr(getattr(self, layer), part).detach().cpu().float().numpy().copy()
            for layer in "abcd"
            for part in ("weight", "bias")
        }
        return TrunkWeights(**arrays)


@dataclass(frozen=True, eq=False)
class Material:
    """Training series prepared: channels ``(C, T)``, targets ``(T - D, 3)``, smoothed posterior ``(T, K)`` each.

    ``spread`` is the deviation of the log volatility to come, by which it is scaled.
    """

    channels: list[Tensor]
    futures: list[Tensor]
    posterior: list[Tensor]
    scaler: ChannelScaler
    belief: Belief
    log_likelihood: float
    spread: float


def future_statistics(returns: Floats, horizon: int) -> Floats:
    """Statistics of the next D returns at every bar that has them: ``(T - D, 3)``.

    Log volatility, twice the mean in deviations, twice the lag-1 autocorrelation.
    """
    windows = np.lib.stride_tricks.sliding_window_view(returns[1:], horizon)
    mean = windows.mean(axis=1)
    variance = np.maximum(windows.var(axis=1), SMALLEST)
    pairs = np.lib.stride_tricks.sliding_window_view(returns[1:-1] * returns[2:], horizon - 1)[: len(mean)]
    autocorrelation = (pairs.mean(axis=1) - mean**2) / variance
    return np.stack([0.5 * np.log(variance), 2.0 * mean / np.sqrt(variance), 2.0 * autocorrelation], axis=1)


def prepare(
    series: Sequence[Bars],
    config: JEPAConfig,
    told: Told | None = None,
    fitted: tuple[Belief, Smoothed] | None = None,
) -> Material:
    """Fit scaler and belief on the series and compute what the losses need.

    Args:
        fitted: what :func:`fit_belief` gave for the returns of the same series, first bars left out, so that several
            trainings share one fit.

    Raises:
        DataError: a series is shorter than a training sequence, or does not move.
    """
    least = max(config.length, WARM_UP) + config.horizon + 1  # a sequence, and rows to standardise the embedding by
    for bars in series:
        if len(bars) < least:
            raise DataError(f"{bars.source or bars.symbols[0]} has {len(bars)} bars; training takes at least {least}")
    returns = [bar_returns(bars) for bars in series]
    scaler = ChannelScaler.fit([one[1:] for one in returns], config.channels)
    tell = None if told is None else (lambda i, n, value: told(i, n, {"belief log-likelihood": value}))
    if fitted is None:
        moves = [one[1:] for one in returns]
        fitted = fit_belief(moves, config.belief, BeliefTraining.of(config.belief.emission, config.seed), tell)
    belief, smoothed = fitted
    if smoothed.posterior.shape != (sum(len(one) - 1 for one in returns), config.belief.regimes):
        raise DataError(f"the fitted belief has a posterior {smoothed.posterior.shape} that is not of these series")
    futures = [future_statistics(one, config.horizon) for one in returns]
    level, spread = np.concatenate(futures)[:, 0].mean(), max(float(np.concatenate(futures)[:, 0].std()), SMALLEST)
    for one in futures:
        one[:, 0] = (one[:, 0] - level) / spread
    posterior, place = [], 0
    for one in returns:
        part = smoothed.posterior[place : place + len(one) - 1]
        posterior.append(torch.from_numpy(np.concatenate([part[:1], part]).astype(np.float32)))
        place += len(one) - 1
    return Material(
        [torch.from_numpy(scaler.of_bars(bars).T.copy()) for bars in series],
        [torch.from_numpy(one.astype(np.float32)) for one in futures],
        posterior, scaler, belief, smoothed.log_likelihood, spread,
    )  # fmt: skip


class JEPANet(nn.Module):
    """Trunk, predictor and heads that are trained together."""

    def __init__(self, config: JEPAConfig) -> None:
        super().__init__()
        self.trunk = TorchTrunk(config)
        self.predictor = nn.Linear(config.latent, config.latent, bias=False)
        nn.init.eye_(self.predictor.weight)
        self.future = nn.Linear(config.latent, FUTURES)
        self.regime = nn.Linear(config.latent, config.belief.regimes)


class JEPATraining:
    """One training, step by step, so that a caller can save, stop and go on."""

    network: type[JEPANet] = JEPANet

    def __init__(self, material: Material, config: JEPAConfig) -> None:
        self.material, self.config = material, config
        if config.latent < config.belief.regimes:
            _log.warning(
                "latent=%d is below the %d regimes: an embedding of fewer dimensions has no direction for each of them",
                config.latent, config.belief.regimes,
            )  # fmt: skip
        torch.manual_seed(config.seed)
        self.device = torch.device(config.device)
        self.net = self.network(config).to(self.device)
        self.target = copy.deepcopy(self.net.trunk)
        self.untrained = copy.deepcopy(self.net).cpu()
        total = max(config.steps, 2)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=config.rate, weight_decay=config.weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, config.rate, total_steps=total)
        self.both = nn.ModuleDict({"net": self.net, "target": self.target})  # all that a training has to keep
        self.done = 0
        rooms = [one.shape[1] - config.length - config.horizon + 1 for one in material.channels]
        self._rooms = torch.tensor(rooms, dtype=torch.float64)

    def step(self) -> dict[str, float]:
        """Take one optimiser step and return the losses."""
        config = self.config
        channels, futures, posterior = self._batch()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.amp):
            embedding = self.net.trunk(channels)
        losses = self.losses(embedding.float(), channels, futures, posterior)
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        first, last = config.ema
        keep = first + (last - first) * self.done / max(config.steps, 1)
        with torch.no_grad():
            for mine, new in zip(self.target.parameters(), self.net.trunk.parameters(), strict=True):
                mine.mul_(keep).add_(new, alpha=1.0 - keep)
        self.done += 1
        return {name: float(value.detach()) for name, value in losses.items()}

    def losses(self, embedding: Tensor, channels: Tensor, futures: Tensor, posterior: Tensor) -> dict[str, Tensor]:
        """Return the weighted losses of a batch: ``embedding (B, L', D)`` of ``channels (B, C, L)``, its targets."""
        config = self.config
        losses: dict[str, Tensor] = {}
        if config.w_jepa:
            with torch.no_grad():
                ahead = self.target(channels)[:, config.horizon :]
            predicted = self.net.predictor(embedding[:, : -config.horizon])
            losses["jepa"] = config.w_jepa * ((predicted - ahead) ** 2).sum(dim=2).mean()
        if config.w_future:
            losses["future"] = config.w_future * ((self.net.future(embedding) - futures) ** 2).sum(dim=2).mean()
        if config.w_belief:
            logs = functional.log_softmax(self.net.regime(embedding), dim=2)
            losses["belief"] = -config.w_belief * (posterior * logs).sum(dim=2).mean()
        return losses

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        config, material = self.config, self.material
        channels, futures, posterior = [], [], []
        for _ in range(config.sequences):
            series = int(torch.multinomial(self._rooms, 1))
            begin = int(torch.randint(int(self._rooms[series]), (1,)))
            end = begin + config.length
            channels.append(material.channels[series][:, begin:end])
            futures.append(material.futures[series][begin + LOOK_BACK : end])
            posterior.append(material.posterior[series][begin + LOOK_BACK : end])
        first, second, third = (torch.stack(part).to(self.device) for part in (channels, futures, posterior))
        if config.scale_jitter:
            return jittered(first, second, third, material.scaler, material.spread, config.scale_jitter)
        return first, second, third


def finish(
    training: JEPATraining, series: Sequence[Bars], provenance: Provenance, facts: dict[str, Any]
) -> JEPAEncoder:
    """Make the encoder that is served: weights, training statistics, heads on the standardised embedding."""
    return _encoder(training.net, training.material, series, provenance, facts, training.config)


def untrained(training: JEPATraining, series: Sequence[Bars], provenance: Provenance) -> JEPAEncoder:
    """Make the same encoder with the weights it began with: the control of every figure."""
    return _encoder(training.untrained, training.material, series, provenance, {}, training.config)


def _encoder(
    net: JEPANet,
    material: Material,
    series: Sequence[Bars],
    provenance: Provenance,
    facts: dict[str, Any],
    config: JEPAConfig,
) -> JEPAEncoder:
    trunk = net.trunk.weights()
    latent, regimes = config.latent, config.belief.regimes
    blank = JEPAEncoder(
        material.scaler, trunk, np.zeros(latent, np.float32), np.ones(latent, np.float32),
        SoftmaxHead(np.zeros((regimes, latent)), np.zeros(regimes)), KMeansHead(np.zeros((regimes, latent)), 1.0),
        material.belief, provenance,
    )  # fmt: skip
    raw = np.concatenate([blank.embed(bars)[WARM_UP:] for bars in series]).astype(np.float64)
    returns = np.concatenate([bar_returns(bars)[WARM_UP:] for bars in series])
    mean, deviation = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-9)
    weight = net.regime.weight.detach().cpu().double().numpy()
    bias = net.regime.bias.detach().cpu().double().numpy() + weight @ mean  # of the standardised embedding
    return JEPAEncoder(
        material.scaler, trunk, mean.astype(np.float32), deviation.astype(np.float32),
        SoftmaxHead(weight * deviation, bias), centres((raw - mean) / deviation, returns, regimes, config.seed),
        material.belief, provenance, facts,
        memory=max(forgetting(blank.filter, bar_returns(bars)[1:]) for bars in series),
    )  # fmt: skip


def provenance_of(series: Sequence[Bars]) -> Provenance:
    """Describe training bars; they have to be of one market and one interval.

    Raises:
        ConfigError: of several.
    """
    markets, intervals = {bars.market for bars in series}, {interval_name(bars.interval) for bars in series}
    if len(markets) != 1 or len(intervals) != 1:
        raise ConfigError(f"training bars are of several markets or intervals: {sorted(markets)}, {sorted(intervals)}")
    seeds = tuple(sorted({seed for bars in series if (seed := seed_of(bars)) is not None}))
    real = [bars for bars in series if not is_generated(bars.market, bars.source)]
    end = max(bars.close_time[-1] for bars in real or series)  # generated bars have dates of no meaning
    return Provenance(markets.pop(), intervals.pop(), str(end), tuple(bars.source for bars in series), seeds)


def train(
    series: Sequence[Bars],
    config: JEPAConfig | None = None,
    told: Told | None = None,
    facts: dict[str, Any] | None = None,
) -> tuple[JEPAEncoder, JEPATraining]:
    """Fit belief, scaler and trunk on S series of bars, and return the encoder and its training."""
    config = config or JEPAConfig()
    training = JEPATraining(prepare(series, config, told), config)
    for number in range(config.steps):
        losses = training.step()
        if told is not None:
            told(number + 1, config.steps, losses)
    return finish(training, series, provenance_of(series), facts or {}), training
