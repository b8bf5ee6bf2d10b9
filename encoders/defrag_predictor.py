"""The predictor on the pseudo-timeline, forward pass in numpy: gated linear units and a gated linear recurrence.

From the embeddings ``z_1 .. z_n`` of consecutive positions it foretells the next one's::

    u_i = (V z_i + a) sigmoid(G z_i + b)            gated linear unit
    f_i = sigmoid(F u_i + c);  h_i = f_i h_{i-1} + (1 - f_i) u_i
    y   = unit(z_n + (O h_n + d) sigmoid(P h_n + e))

It says how a neighbourhood goes on in the latent space, and nothing of prices: its output is no alpha. Sources: GLU,
Dauphin et al. 2017 (arXiv 1612.08083); recurrence, Martin and Cundy 2018 (arXiv 1709.04057). Training:
:mod:`encoders.defrag_predictor_training`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from encoders.defrag_encoder import unit
from markets.errors import ArtefactError

Array = NDArray[np.float32]

MATRICES = ("value", "gate", "keep", "out", "out_gate")
WIDTH = 64  # of u and h


@dataclass(frozen=True, eq=False)
class PredictorWeights:
    """Matrices ``(rows, columns)`` and a bias for each."""

    value: Array
    value_bias: Array
    gate: Array
    gate_bias: Array
    keep: Array
    keep_bias: Array
    out: Array
    out_bias: Array
    out_gate: Array
    out_gate_bias: Array

    def __post_init__(self) -> None:
        width, latent = self.value.shape
        shapes = {"value": (width, latent), "gate": (width, latent), "keep": (width, width), "out": (latent, width)}
        shapes["out_gate"] = (latent, width)
        for name in MATRICES:
            for part, shape in ((name, shapes[name]), (f"{name}_bias", shapes[name][:1])):
                found = getattr(self, part)
                if found.shape != shape or found.dtype != np.float32 or not np.isfinite(found).all():
                    raise ArtefactError(
                        f"tensor {part!r} must be finite float32 {shape}, is {found.dtype} {found.shape}"
                    )

    @classmethod
    def initial(cls, latent: int, generator: np.random.Generator) -> PredictorWeights:
        """Draw Xavier-uniform matrices and zero biases; the last one small, so that it begins as persistence."""

        def draw(rows: int, columns: int, size: float = 1.0) -> Array:
            bound = size * (6.0 / (rows + columns)) ** 0.5
            return generator.uniform(-bound, bound, (rows, columns)).astype(np.float32)

        wide, narrow = np.zeros(WIDTH, np.float32), np.zeros(latent, np.float32)
        return cls(
            draw(WIDTH, latent), wide, draw(WIDTH, latent), wide, draw(WIDTH, WIDTH), wide,
            draw(latent, WIDTH, 0.1), narrow, draw(latent, WIDTH), narrow,
        )  # fmt: skip

    def arrays(self) -> dict[str, Array]:
        """Return the weights by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


class TemporalPredictor:
    """Foretells the next embedding of a sequence."""

    def __init__(self, weights: PredictorWeights) -> None:
        self.weights = weights
        self._value, self._gate, self._keep, self._out, self._out_gate = (
            np.ascontiguousarray(getattr(weights, name).T) for name in MATRICES
        )

    def infer(self, sequence: Array) -> Array:
        """Return the unit row ``(D,)`` that follows ``(n, D)`` rows."""
        w = self.weights
        u = (sequence @ self._value + w.value_bias) * _sigmoid(sequence @ self._gate + w.gate_bias)
        keep = _sigmoid(u @ self._keep + w.keep_bias)
        new = (1.0 - keep) * u
        hidden = np.zeros(u.shape[1], np.float32)
        for kept, fresh in zip(keep, new, strict=True):
            hidden = kept * hidden + fresh
        change = (hidden @ self._out + w.out_bias) * _sigmoid(hidden @ self._out_gate + w.out_gate_bias)
        return unit((sequence[-1] + change)[None])[0]


def _sigmoid(x: Array) -> Array:
    result: Array = np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1.0))
    return result
