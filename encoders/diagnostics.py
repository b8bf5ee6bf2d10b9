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
from encoders.probes import edmd_spectrum, effective_rank, latent_std

NEAR = 0.05


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
        points = now.double().numpy()
        moduli, r2 = edmd_spectrum(points, later.double().numpy())
        out |= {
            "centroid_action": centroid_action(matrix, _raw_centres(now, regimes, seed)),
            "edmd_spectrum": [float(value) for value in moduli[:8]],
            "edmd_r2": r2,
            "effective_rank": effective_rank(points),
            "latent_std": latent_std(points)[1],
        }
    return out


def _raw_centres(z: Tensor, regimes: int, seed: int) -> Tensor:
    """Centres found on standardised latents, in the latents' own units, where M acts."""
    mean, deviation = z.double().mean(0), z.double().std(0).clamp_min(1e-12)
    return kmeans((z.double() - mean) / deviation, regimes, seed) * deviation + mean
