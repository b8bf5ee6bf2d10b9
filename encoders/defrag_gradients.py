"""The gradient's norm, bounded before every step of both trainers, and how large it was before and after (torch)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class GradientClip:
    """Scales gradients down to a norm of ``limit`` at most, and keeps the largest norms it has seen.

    Attributes:
        before, after: largest norm of a step, as it came and as the optimiser took it.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], limit: float) -> None:
        self.parameters, self.limit = list(parameters), limit
        self.before, self.after = 0.0, 0.0

    def __call__(self) -> None:
        """Clip what the last backward pass left."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.limit)
        kept = [torch.linalg.vector_norm(p.grad) for p in self.parameters if p.grad is not None]
        self.before = max(self.before, float(norm))
        self.after = max(self.after, float(torch.linalg.vector_norm(torch.stack(kept))))

    @property
    def largest(self) -> tuple[float, float]:
        """``(before, after)``."""
        return self.before, self.after
