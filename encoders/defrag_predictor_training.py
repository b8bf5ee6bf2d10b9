"""Training of the predictor on the pseudo-timeline (torch): next position's embedding, one minus cosine.

The order that a chain gives mixes past and future: it belongs to the training range, and nothing of it is held out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.defrag_config import DefragConfig
from encoders.defrag_encoder import FLOOR
from encoders.defrag_gradients import GradientClip
from encoders.defrag_predictor import PredictorWeights
from markets.errors import DataError

Array = NDArray[np.float32]

SEQUENCE = 16  # positions that the recurrence runs over
BATCH = 64  # sequences a step


class PredictorNetwork(nn.Module):
    """:class:`encoders.defrag_predictor.TemporalPredictor` with gradients, for every position of a batch at once."""

    def __init__(self, weights: PredictorWeights) -> None:
        super().__init__()
        self.parts = nn.ParameterDict(
            {k: nn.Parameter(torch.from_numpy(v.copy())) for k, v in weights.arrays().items()}
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return the foretold next rows of ``(B, n, D)``, the same shape."""
        u = self._linear("value", z) * torch.sigmoid(self._linear("gate", z))
        keep = torch.sigmoid(self._linear("keep", u))
        new = (1.0 - keep) * u
        hidden = torch.zeros_like(u[:, 0])
        states = []
        for i in range(z.shape[1]):
            hidden = keep[:, i] * hidden + new[:, i]
            states.append(hidden)
        h = torch.stack(states, 1)
        change = self._linear("out", h) * torch.sigmoid(self._linear("out_gate", h))
        return F.normalize(z + change, dim=2, eps=FLOOR)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.parts[name], self.parts[f"{name}_bias"])

    def weights(self) -> PredictorWeights:
        """Return the weights for serving."""
        return PredictorWeights(**{k: v.detach().numpy().copy() for k, v in self.parts.items()})


@dataclass(frozen=True)
class PredictorFit:
    """What training gave; ``persistence`` is the loss of "the next is as this one" on the same positions."""

    weights: PredictorWeights
    history: tuple[float, ...]
    persistence: float
    gradient: tuple[float, float]


def train_predictor(
    z: Array, order: NDArray[np.int64], config: DefragConfig, generator: np.random.Generator
) -> PredictorFit:
    """Train on ``(N, D)`` rows in ``order``.

    Raises:
        DataError: a loss that is not finite.
    """
    network = PredictorNetwork(PredictorWeights.initial(z.shape[1], generator))
    chain = torch.from_numpy(z[order])
    length = min(SEQUENCE, len(chain) - 1)
    sequences = chain.unfold(0, length + 1, 1).transpose(1, 2)  # (N - length, length + 1, D), a view
    step = max(1, length // 2)
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    clip = GradientClip(network.parameters(), config.clip)
    history = []
    for epoch in range(config.predictor_epochs):
        begins = np.arange(int(generator.integers(0, min(step, len(sequences)))), len(sequences), step)
        parts = max(1, len(begins) // BATCH)
        total = 0.0
        for part in np.array_split(generator.permutation(begins), parts):
            rows = sequences[torch.from_numpy(part)]
            loss = _apart(network(rows[:, :-1]), rows[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            clip()
            optimizer.step()
            total += float(loss.detach()) / parts
        if not math.isfinite(total):
            raise DataError(f"the predictor's loss is {total} in epoch {epoch}: lower learning_rate")
        history.append(total)
    return PredictorFit(network.weights(), tuple(history), float(_apart(chain[:-1], chain[1:])), clip.largest)


def _apart(foretold: Tensor, actual: Tensor) -> Tensor:
    return 1.0 - (foretold * actual).sum(-1).mean()
