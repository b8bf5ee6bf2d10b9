"""Losses of the defragmentation encoder: InfoNCE, and entropy and continuity terms that have a gradient (torch).

Letters: B batch, D embedding. The source document (ChronosDefrag) has all three names. Its entropy term, the row
entropy of a softmax of cosines, never leaves zero for B above 2 and is largest in total collapse; its continuity term
is least in total collapse. Ours are zero or small where embeddings spread, and rise as they collapse.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from markets.errors import ConfigError

EPSILON = 1e-6


def info_nce(queries: Tensor, keys: Tensor, log_temperature: Tensor) -> Tensor:
    """Symmetric InfoNCE of unit rows ``(B, D)``: row i of ``keys`` is the positive of row i of ``queries``.

    ``S = Q K' exp(-log_temperature)``; ``(CE(S, diag) + CE(S', diag)) / 2``. Source: van den Oord et al. 2018
    (arXiv 1807.03748); symmetric as in CLIP (arXiv 2103.00020).

    Raises:
        ConfigError: fewer than two rows, or two shapes: there is no negative.
    """
    if queries.shape != keys.shape or queries.ndim != 2 or len(queries) < 2:
        raise ConfigError(
            f"InfoNCE needs two batches of one shape with at least 2 rows, got {tuple(queries.shape)} and "
            f"{tuple(keys.shape)}"
        )
    scores = queries @ keys.T * torch.exp(-log_temperature)
    own = torch.arange(len(queries))
    return 0.5 * (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own))


def gram_entropy(z: Tensor) -> Tensor:
    """Order-2 Renyi entropy of a batch of unit rows, in nats: ``-log mean_ij (z_i . z_j)^2``.

    0 where all rows lie on one line, ``log min(B, D)`` where they fill the space evenly. Source: Sanchez Giraldo, Rao
    and Principe 2015, "Measures of entropy from data using infinitely divisible kernels" (the Gram matrix Z Z' / B).
    """
    second = z.T @ z / len(z)
    return -torch.log(second.square().sum().clamp_min(EPSILON))


def temporal_entropy_reg(z: Tensor) -> Tensor:
    """``max(0, H_target - H(Z))`` with ``H_target = log(min(B, D)) / 2``: zero where rows spread, positive in collapse.

    The threshold is the source's, adapted to the batch; the entropy is :func:`gram_entropy` (see the module).
    """
    target = 0.5 * math.log(min(z.shape))
    return torch.relu(target - gram_entropy(z))


def continuity_reg(before: Tensor, after: Tensor) -> Tensor:
    """Mean squared jump between adjacent blocks as a share of the mean squared distance between any two.

    ``mean_i |b_i - a_i|^2 / mean_ij |b_i - a_j|^2``, both plus 1e-6: below 1 where the map is smooth in time, 1 where
    neighbours are no nearer than strangers, so also in collapse. The plain numerator (the source's) would reward
    collapse. ``before``, ``after``: ``(B, D)`` embeddings of truly adjacent blocks.
    """
    jump = (after - before).square().sum(1).mean()
    apart = before.square().sum(1).mean() + after.square().sum(1).mean() - 2.0 * before.mean(0) @ after.mean(0)
    return (jump + EPSILON) / (apart + EPSILON)
