"""Figures of a Koopman encoder that cannot fool, because each stands beside what proves nothing (torch).

Identity deviation, skew, eigenvalues near 1 and the action on centroids are met by M = I and by a net that never
trained: alone they say nothing. ``CryptoKoopmanJEPA.analyze_predictor_properties`` gives each beside the same figure
of M = I on the same latents and of the untrained twin; the spectrum of the frozen latents (EDMD), which no predictor's
start can flatter, their effective rank and their deviation show whether anything was learnt.
Letters: N rows, k dimensions, M the predictor's matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from encoders.centroids import kmeans

NEAR = 0.05
RIDGE = 1e-3


def identity_deviation(matrix: Tensor) -> float:
    """``||M - I||_F / ||M||_F``."""
    return float(torch.linalg.norm(matrix - torch.eye(len(matrix), dtype=matrix.dtype)) / torch.linalg.norm(matrix))


def symmetry_measure(matrix: Tensor) -> float:
    """``||M - M^T||_F / ||M||_F``: the skew, 0 for a symmetric M."""
    return float(torch.linalg.norm(matrix - matrix.T) / torch.linalg.norm(matrix))


def eigenvalues_near_one(matrix: Tensor, tolerance: float = NEAR) -> int:
    """Count ``|lambda - 1| <= tolerance`` in the complex plane (``| |lambda| - 1 |`` would pass every rotation)."""
    return int(((torch.linalg.eigvals(matrix) - 1.0).abs() <= tolerance).sum())


def centroid_action(matrix: Tensor, centres: Tensor) -> float:
    """Mean of ``||M c - c|| / ||c||`` over centres ``(R, k)``."""
    centres = centres.to(matrix.dtype)
    moved = torch.linalg.norm(centres @ matrix.T - centres, dim=1)
    return float((moved / torch.linalg.norm(centres, dim=1).clamp_min(1e-30)).mean())


def edmd_spectrum(now: Tensor, later: Tensor, ridge: float = RIDGE) -> tuple[Tensor, float]:
    """Moduli of the least-squares Koopman matrix of frozen latents ``(N, k)``, largest first, and its forecast's R2."""
    mean, deviation = now.double().mean(0), now.double().std(0) + 1e-12
    a, b = (now.double() - mean) / deviation, (later.double() - mean) / deviation
    gram = a.T @ a / len(a) + ridge * torch.eye(a.shape[1], dtype=torch.float64)
    matrix = torch.linalg.solve(gram, a.T @ b / len(a))
    error = (b - a @ matrix).square().sum() / b.square().sum().clamp_min(1e-30)
    return torch.linalg.eigvals(matrix).abs().sort(descending=True).values, float(1.0 - error)


def effective_rank(z: Tensor) -> float:
    """Exponential of the entropy of the shares of variance along the principal axes of ``(N, k)``: 1 to k."""
    power = torch.linalg.svdvals(z.double() - z.double().mean(0)).square()
    shares = power / power.sum().clamp_min(1e-300)
    shares = shares[shares > 1e-12]
    return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 1.0


def latent_std(z: Tensor) -> float:
    """Mean over dimensions of the deviation over rows."""
    return float(z.double().std(0).mean())


def figures(
    matrix: Tensor, latents: tuple[Tensor, Tensor] | None = None, regimes: int = 6, seed: int = 0
) -> dict[str, Any]:
    """Return every figure of one predictor matrix and, where given, of latents now and D bars later ``(N, k)``.

    Returns:
        ``identity_deviation``, ``symmetry_measure`` (fractions), ``eigenvalues_near_one`` (count); with latents also
        ``centroid_action`` (fraction, over ``regimes`` k-means centres), ``edmd_spectrum`` (the eight largest moduli),
        ``edmd_r2``, ``effective_rank``, ``latent_std``.
    """
    out: dict[str, Any] = {
        "identity_deviation": identity_deviation(matrix),
        "symmetry_measure": symmetry_measure(matrix),
        "eigenvalues_near_one": eigenvalues_near_one(matrix),
    }
    if latents is not None:
        now, later = latents
        moduli, r2 = edmd_spectrum(now, later)
        out |= {
            "centroid_action": centroid_action(matrix, _raw_centres(now, regimes, seed)),
            "edmd_spectrum": [float(value) for value in moduli[:8]],
            "edmd_r2": r2,
            "effective_rank": effective_rank(now),
            "latent_std": latent_std(now),
        }
    return out


def _raw_centres(z: Tensor, regimes: int, seed: int) -> Tensor:
    """Centres found on standardised latents, in the latents' own units, where M acts."""
    mean, deviation = z.double().mean(0), z.double().std(0).clamp_min(1e-12)
    return kmeans((z.double() - mean) / deviation, regimes, seed) * deviation + mean
