"""Training of the defragmentation encoder (torch): windows of the training range, positives, losses, schedule.

A pass shifts all blocks by one random number of ticks and takes each with its positive; an epoch is as many passes as
``epoch_steps`` batches need, so that few blocks are not trained in a handful of steps. The positive of a window is the
window ``lag`` block lengths later and never shares a tick with it. The loss of a batch::

    InfoNCE(projected queries, projected keys) + w_e max(0, H_target - H(z)) + w_c continuity(z, z')

Random numbers come from the generator that is handed in; the process's global states are neither read nor set.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.defrag_config import DILATIONS, DefragConfig
from encoders.defrag_encoder import FLOOR, EncoderWeights
from encoders.defrag_gradients import GradientClip
from encoders.defrag_losses import continuity_reg, info_nce, temporal_entropy_reg
from markets.errors import DataError

Array = NDArray[np.float32]
Told = Callable[[int, int, dict[str, float]], None]  # epoch, of how many, losses

PROJECTED = 32  # columns in which positives are told from negatives
LOWEST, HIGHEST = math.log(0.01), math.log(1.0)  # of the learned log temperature
WARM_UP = 0.1  # share of the steps in which the learning rate rises

_log = logging.getLogger(__name__)


class RegimeNetwork(nn.Module):
    """The learned part of :class:`encoders.defrag_encoder.RegimeEncoder` with gradients, and a projection head."""

    def __init__(self, weights: EncoderWeights, temperature: float, generator: np.random.Generator) -> None:
        super().__init__()
        arrays = weights.arrays()
        self.trunk = nn.ParameterDict({k: nn.Parameter(torch.from_numpy(v.copy())) for k, v in arrays.items()})
        latent = weights.head_weight.shape[0]
        self.project_in = nn.Parameter(_xavier(generator, latent, latent))
        self.project_out = nn.Parameter(_xavier(generator, PROJECTED, latent))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, x: Tensor) -> Tensor:
        """Return unit rows ``(B, D')`` of windows ``(B, F, L)``."""
        w = self.trunk
        hidden = F.relu(F.conv1d(x, w["a_weight"], w["a_bias"], dilation=DILATIONS[0]))
        for name, dilation in zip("bc", DILATIONS[1:], strict=True):
            after = F.relu(F.conv1d(hidden, w[f"{name}_weight"], w[f"{name}_bias"], dilation=dilation))
            hidden = after + hidden[:, :, hidden.shape[2] - after.shape[2] :]
        deviation = torch.sqrt(hidden.var(2, correction=0) + FLOOR)
        pooled = torch.cat([hidden.mean(2), deviation], 1)
        return F.normalize(pooled @ w["head_weight"].T + w["head_bias"], dim=1, eps=FLOOR)

    def project(self, z: Tensor) -> Tensor:
        """Return unit rows ``(B, 32)`` for the contrast."""
        return F.normalize(F.relu(z @ self.project_in.T) @ self.project_out.T, dim=1, eps=FLOOR)

    def weights(self) -> EncoderWeights:
        """Return the weights for serving."""
        return EncoderWeights(**{k: v.detach().numpy().copy() for k, v in self.trunk.items()})


@dataclass(frozen=True)
class EncoderFit:
    """What training gave: weights, learned temperature, each epoch's mean losses, largest gradient norms."""

    weights: EncoderWeights
    temperature: float
    history: tuple[dict[str, float], ...]
    gradient: tuple[float, float]


def train_encoder(
    ticks: Array, config: DefragConfig, weights: EncoderWeights, generator: np.random.Generator,
    told: Told | None = None, series: Sequence[int] | None = None,
) -> EncoderFit:  # fmt: skip
    """Train on ``(T, F)`` scaled ticks of whole blocks.

    Args:
        series: blocks of each series, where ``ticks`` are several end to end: no pair straddles two.

    Raises:
        DataError: too few blocks for the lag, or a loss that is not finite.
    """
    length, lag = config.block_len, config.lag if config.positives == "adjacent" else 1
    starts, lasts = _pairs((len(ticks) // length,) if series is None else series, lag, length)
    pairs = len(starts)
    if pairs < 2:
        blocks = len(ticks) // length
        raise DataError(
            f"{blocks} blocks leave fewer than 2 pairs that are lag={lag} blocks apart: lag at most {blocks - 2}"
        )
    network = RegimeNetwork(weights, config.temperature, generator)
    windows = torch.from_numpy(np.ascontiguousarray(ticks)).unfold(0, length, 1)  # (T - L + 1, F, L), a view
    parts = max(1, round(pairs / config.batch_size))
    passes = -(-config.epoch_steps // parts)
    steps = config.epochs * passes * parts
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    clip = GradientClip(network.parameters(), config.clip)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
    history = []
    for epoch in range(config.epochs):
        total = {"info_nce": 0.0, "entropy": 0.0, "continuity": 0.0}
        for part in _offsets(starts, lasts, length, passes, parts, generator):
            losses = _losses(network, windows, part, config, lag * length, generator)
            loss = losses["info_nce"] + config.entropy_weight * losses["entropy"]
            loss = loss + config.continuity_weight * losses["continuity"]
            optimizer.zero_grad()
            loss.backward()
            clip()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                network.log_temperature.clamp_(LOWEST, HIGHEST)
            for name, value in losses.items():
                total[name] += float(value.detach()) / (passes * parts)
        if not math.isfinite(sum(total.values())):
            raise DataError(f"the encoder's loss is {total} in epoch {epoch}: lower learning_rate, or scaler='robust'")
        history.append(total)
        if told is not None:
            told(epoch + 1, config.epochs, total)
    return EncoderFit(network.weights(), float(network.log_temperature.detach().exp()), tuple(history), clip.largest)


def _losses(
    network: RegimeNetwork, windows: Tensor, offsets: NDArray[np.int64], config: DefragConfig, apart: int,
    generator: np.random.Generator,
) -> dict[str, Tensor]:  # fmt: skip
    # a window that is one's positive and another's query is embedded once
    ticks, place = np.unique(np.concatenate([offsets, offsets + apart]), return_inverse=True)
    both = network(windows[torch.from_numpy(ticks)])[torch.from_numpy(place)]
    z, later = both.chunk(2)
    if config.positives == "adjacent":
        first, second = z, later
    else:
        here = windows[torch.from_numpy(offsets)]
        twice = torch.cat([augmented(here, config, generator), augmented(here, config, generator)])
        first, second = network(twice).chunk(2)
    contrast = info_nce(network.project(first), network.project(second), network.log_temperature)
    return {"info_nce": contrast, "entropy": temporal_entropy_reg(z), "continuity": continuity_reg(z, later)}


def _pairs(series: Sequence[int], lag: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First tick of every pair's first window, and the last tick it may be shifted to inside its series."""
    firsts = np.append(0, np.cumsum(series))
    starts = [length * np.arange(first, first + count - lag) for first, count in zip(firsts[:-1], series, strict=True)]
    lasts = [
        np.full(max(count - lag, 0), (first + count - 1 - lag) * length)
        for first, count in zip(firsts[:-1], series, strict=True)
    ]
    return np.concatenate(starts), np.concatenate(lasts)


def _offsets(
    starts: NDArray[np.int64], lasts: NDArray[np.int64], length: int, passes: int, parts: int,
    generator: np.random.Generator,
) -> Iterator[NDArray[np.int64]]:  # fmt: skip
    """First ticks of each batch's windows: every pass shifts all blocks by one random offset and shuffles them."""
    for _ in range(passes):
        drawn = np.minimum(starts + generator.integers(0, length), lasts)
        yield from np.array_split(generator.permutation(drawn), parts)


def augmented(x: Tensor, config: DefragConfig, generator: np.random.Generator) -> Tensor:
    """Return windows ``(B, F, L)`` shifted cyclically, each by its own number of ticks, with Gaussian jitter added."""
    length = x.shape[2]
    shift = generator.integers(-config.max_shift, config.max_shift + 1, len(x))
    index = torch.from_numpy((np.arange(length)[None] - shift[:, None]) % length)
    moved = torch.gather(x, 2, index[:, None].expand_as(x))
    noise = generator.standard_normal(tuple(x.shape), np.float32) * np.float32(config.jitter)
    return moved + torch.from_numpy(noise)


def _share(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear rise, then half a cosine to 0."""
    rise = max(1.0, WARM_UP * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def _xavier(generator: np.random.Generator, rows: int, columns: int) -> Tensor:
    bound = math.sqrt(6.0 / (rows + columns))
    return torch.from_numpy(generator.uniform(-bound, bound, (rows, columns)).astype(np.float32))
