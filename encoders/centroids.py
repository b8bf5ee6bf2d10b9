"""Regime odds of an embedding: k-means centres of the standardised training embeddings, and a soft assignment (torch).

Ids are ordered by training volatility (0 is the calmest), so that they do not permute between runs. Letters: N points,
k dimensions, R regimes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from markets.errors import ConfigError, DataError

FURTHEST = 20.0  # deviations at which embeddings that were not fitted on are cut
STARTS, STEPS = 10, 100


def kmeans(points: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return ``(R, k)`` centres of ``(N, k)`` points: Lloyd's steps from k-means++ starts, the best of ten.

    Raises:
        DataError: fewer points than centres, or a point that is not finite.
    """
    if len(points) < count:
        raise DataError(f"{len(points)} points cannot make {count} clusters")
    if not bool(torch.isfinite(points).all()):
        raise DataError("an embedding holds a number that is not finite")
    generator = torch.Generator().manual_seed(seed)
    points = points.detach().cpu().double()
    best, least = points[:count], float("inf")
    for _ in range(STARTS):
        centres = _plus_plus(points, count, generator)
        for _ in range(STEPS):
            nearest = torch.cdist(points, centres).argmin(1)
            sizes = torch.bincount(nearest, minlength=count)
            moved = torch.zeros_like(centres).index_add_(0, nearest, points) / sizes.clamp_min(1)[:, None]
            moved[sizes == 0] = centres[sizes == 0]  # a centre that lost all its points stays where it is
            still = bool((moved - centres).abs().max() < 1e-6)
            centres = moved
            if still:
                break
        inertia = float(torch.cdist(points, centres).min(1).values.square().sum())
        if inertia < least:
            best, least = centres, inertia
    return best


def _plus_plus(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    chosen = [points[int(torch.randint(len(points), (1,), generator=generator))]]
    distance = (points - chosen[0]).square().sum(1)
    while len(chosen) < count:
        weights = distance if float(distance.sum()) > 0.0 else torch.ones_like(distance)
        chosen.append(points[int(torch.multinomial(weights, 1, generator=generator))])
        distance = torch.minimum(distance, (points - chosen[-1]).square().sum(1))
    return torch.stack(chosen)


class CentroidHead(nn.Module):
    """``softmax(- d_j^2 / 2 s)`` over the centres, d in training deviations, s the mean squared distance within.

    Not a layer that gradients train: :meth:`fit` sets its buffers after training; ``fitted`` says whether it did.
    """

    def __init__(self, latent: int, regimes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("deviation", torch.ones(latent))
        self.register_buffer("centres", torch.zeros(regimes, latent))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("is_fitted", torch.zeros((), dtype=torch.bool))
        self.mean: Tensor
        self.deviation: Tensor
        self.centres: Tensor
        self.spread: Tensor
        self.is_fitted: Tensor

    @property
    def fitted(self) -> bool:
        """Whether centres were fitted."""
        return bool(self.is_fitted)

    def fit(self, z: Tensor, volatility: Tensor, seed: int = 0) -> None:
        """Fit on training embeddings ``(N, k)`` and the volatility at each, by which regimes are ordered."""
        points = z.detach().cpu().double()
        mean, deviation = points.mean(0), points.std(0).clamp_min(1e-12)
        scaled = (points - mean) / deviation
        centres = kmeans(scaled, len(self.centres), seed)
        distance, nearest = torch.cdist(scaled, centres).min(1)
        level = torch.tensor([float(volatility[nearest == j].double().mean()) for j in range(len(centres))])
        order = torch.argsort(torch.nan_to_num(level, nan=float("inf")))
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        self.centres.copy_(centres[order])
        self.spread.copy_(distance.square().mean().clamp_min(1e-12))
        self.is_fitted.fill_(True)

    def standardise(self, z: Tensor) -> Tensor:
        """Return embeddings in training deviations, cut at 20."""
        return ((z - self.mean) / self.deviation).clamp(-FURTHEST, FURTHEST)

    def forward(self, z: Tensor) -> Tensor:
        """Return odds ``(B, R)`` of raw embeddings ``(B, k)``.

        Raises:
            ConfigError: nothing was fitted.
        """
        if not self.fitted:
            raise ConfigError("no regimes were fitted: train the encoder first")
        squared = (self.standardise(z)[:, None] - self.centres).square().sum(2)
        return torch.softmax(-squared / (2.0 * self.spread), 1)
