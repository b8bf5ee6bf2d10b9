"""The encoder's forward pass in numpy: valid dilated convolutions, pooled mean and deviation, joined with moments.

``x (N, L, F)`` scaled blocks; three valid (unpadded) convolutions of width 5, dilations 1, 2, 4, ReLU, the last two
residual; mean and deviation over the positions that remain; a linear head; unit length. Beside it the block's moments
(mean, log deviation, lag-1 autocorrelation of each feature), standardised on the training range, each times its
persistence r_j, the correlation between a block and the next; unit length::

    u = unit(W_h [mean_t y, std_t y] + b_h)     z = [sqrt(w) unit(r m), sqrt(1 - w) u]     |z| = 1

Position t of a convolution reads ticks t - 28 .. t of its own block: causal, and free of what padding would invent.
A moment that does not outlast its block is the noise of its ticks, and standardising alone gives it as much weight as
one that a regime moves. The learned part sees what moments cannot (order, interplay); it needs about a
thousand blocks to add to them. Nothing here needs torch; training is :mod:`encoders.defrag_training`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.defrag_config import DILATIONS, KERNEL, MOMENTS, DefragConfig
from markets.errors import ArtefactError

Array = NDArray[np.float32]

CHUNK = 128  # blocks a pass: the work space stays in the processor's cache
FLOOR = 1e-6  # of a variance and of a norm
STILL = (
    1e-2  # added to a moment's deviation, in training deviations: of a block that stands still its log would be noise
)
LEAST_PERSISTENCE = 0.01  # of a moment: where none persists all count alike


@dataclass(frozen=True, eq=False)
class EncoderWeights:
    """Weights of the learned part, as torch names and shapes them.

    Attributes:
        a_weight: ``(H, F, 5)``; b_weight, c_weight: ``(H, H, 5)``; head_weight: ``(D', 2 H)``; biases beside.
    """

    a_weight: Array
    a_bias: Array
    b_weight: Array
    b_bias: Array
    c_weight: Array
    c_bias: Array
    head_weight: Array
    head_bias: Array

    def __post_init__(self) -> None:
        hidden, features = self.a_weight.shape[:2]
        latent = self.head_weight.shape[0]
        expected = {
            "a_weight": (hidden, features, KERNEL), "a_bias": (hidden,), "b_weight": (hidden, hidden, KERNEL),
            "b_bias": (hidden,), "c_weight": (hidden, hidden, KERNEL), "c_bias": (hidden,),
            "head_weight": (latent, 2 * hidden), "head_bias": (latent,),
        }  # fmt: skip
        for name, shape in expected.items():
            found = getattr(self, name)
            if found.shape != shape or found.dtype != np.float32:
                raise ArtefactError(f"tensor {name!r} is {found.dtype} {found.shape}, expected float32 {shape}")
            if not np.isfinite(found).all():
                raise ArtefactError(f"tensor {name!r} holds a number that is not finite")

    @classmethod
    def initial(cls, config: DefragConfig, generator: np.random.Generator) -> EncoderWeights:
        """Draw Xavier-uniform weights, ``bound = sqrt(6 / (fan_in + fan_out))``, and zero biases."""

        def draw(*shape: int) -> Array:
            fans = (shape[0] + shape[1]) * (shape[2] if len(shape) == 3 else 1)
            bound = (6.0 / fans) ** 0.5
            return generator.uniform(-bound, bound, shape).astype(np.float32)

        def zeros(size: int) -> Array:
            return np.zeros(size, np.float32)

        hidden, latent = config.hidden, config.learned_dim
        return cls(
            draw(hidden, config.input_dim, KERNEL), zeros(hidden), draw(hidden, hidden, KERNEL), zeros(hidden),
            draw(hidden, hidden, KERNEL), zeros(hidden), draw(latent, 2 * hidden), zeros(latent),
        )  # fmt: skip

    def arrays(self) -> dict[str, Array]:
        """Return the weights by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True, eq=False)
class MomentScale:
    """Of each moment over the training blocks, ``(3 F,)``: mean, deviation, and persistence from 0.01 to 1."""

    mean: Array
    deviation: Array
    persistence: Array

    def __post_init__(self) -> None:
        if not (self.mean.ndim == 1 and self.mean.shape == self.deviation.shape == self.persistence.shape):
            raise ArtefactError("moments: mean, deviation and persistence must be three rows of one length")
        if not (self.deviation > 0.0).all():
            raise ArtefactError("moments: a deviation is not above 0")
        if not ((self.persistence > 0.0) & (self.persistence <= 1.0)).all():
            raise ArtefactError("moments: a persistence is not above 0 and at most 1")

    @classmethod
    def neutral(cls, features: int) -> MomentScale:
        """Return the scale that changes nothing."""
        return cls(
            np.zeros(MOMENTS * features, np.float32),
            np.ones(MOMENTS * features, np.float32),
            np.ones(MOMENTS * features, np.float32),
        )

    @classmethod
    def fit(cls, moments: Array) -> MomentScale:
        """Fit on ``(N, 3 F)`` moments of training blocks in order of time."""
        wide = moments.astype(np.float64)
        deviation = wide.std(0)
        deviation = np.where(deviation > FLOOR, deviation, 1.0)
        apart = (wide - wide.mean(0)) / deviation
        persistence = np.clip((apart[1:] * apart[:-1]).mean(0), LEAST_PERSISTENCE, 1.0)
        parts = (wide.mean(0), deviation, persistence)
        return cls(*(part.astype(np.float32) for part in parts))

    def apply(self, moments: Array) -> Array:
        """Standardise."""
        result: Array = (moments - self.mean) / self.deviation
        return result


def block_moments(values: NDArray[np.floating[Any]]) -> Array:
    """Return mean, log deviation and lag-1 autocorrelation of each feature: ``(N, L, F)`` to ``(N, 3 F)``."""
    length = values.shape[1]
    mean = values.mean(1)
    apart = values - mean[:, None]
    deviation = np.sqrt(np.einsum("nlf,nlf->nf", apart, apart) / length) + np.float32(STILL)
    follow = np.einsum("nlf,nlf->nf", apart[:, 1:], apart[:, :-1]) / (length - 1)
    return np.concatenate([mean, np.log(deviation), follow / deviation**2], 1).astype(np.float32)


class RegimeEncoder:
    """Embeds scaled blocks: ``(N, L, F)`` to unit rows ``(N, D)``."""

    def __init__(self, weights: EncoderWeights, scale: MomentScale, moments_weight: float) -> None:
        self.weights, self.scale, self.moments_weight = weights, scale, moments_weight
        if scale.mean.shape != (MOMENTS * weights.a_weight.shape[1],):
            raise ArtefactError(f"moments of shape {scale.mean.shape} for {weights.a_weight.shape[1]} features")
        self._taps = [
            np.ascontiguousarray(weight.transpose(2, 1, 0))  # (5, in, H): one product a tap
            for weight in (weights.a_weight, weights.b_weight, weights.c_weight)
        ]
        self._biases = (weights.a_bias, weights.b_bias, weights.c_bias)
        self._head = np.ascontiguousarray(weights.head_weight.T)

    def embed(self, values: Array, moments: Array | None = None) -> Array:
        """Return unit embeddings; ``moments`` are standardised ones where they are known already."""
        learned = np.concatenate([self._learned(values[i : i + CHUNK]) for i in range(0, len(values), CHUNK)])
        if self.moments_weight == 0.0:
            return learned
        if moments is None:
            moments = self.moments(values)
        shares = np.float32(self.moments_weight**0.5), np.float32((1.0 - self.moments_weight) ** 0.5)
        return np.concatenate([shares[0] * unit(moments * self.scale.persistence), shares[1] * learned], 1)

    def moments(self, values: Array) -> Array:
        """Return standardised moments ``(N, 3 F)``, not of unit length: how far out a block is."""
        return self.scale.apply(block_moments(values))

    def _learned(self, values: Array) -> Array:
        hidden = _convolve(values, self._taps[0], DILATIONS[0], self._biases[0])
        for taps, dilation, bias in zip(self._taps[1:], DILATIONS[1:], self._biases[1:], strict=True):
            after = _convolve(hidden, taps, dilation, bias)
            after += hidden[:, (KERNEL - 1) * dilation :]
            hidden = after
        mean = hidden.mean(1)
        apart = hidden - mean[:, None]
        deviation = np.sqrt(np.einsum("nlh,nlh->nh", apart, apart) / hidden.shape[1] + np.float32(FLOOR))
        return unit(np.concatenate([mean, deviation], 1) @ self._head + self.weights.head_bias)


def unit(rows: Array) -> Array:
    """Scale rows to length 1; one of (nearly) zeros, a block like the mean of all, becomes the first axis."""
    norm = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    nothing = norm <= FLOOR
    if nothing.any():
        rows, norm = rows.copy(), np.where(nothing, np.float32(1.0), norm)
        rows[nothing] = np.eye(1, rows.shape[1], dtype=np.float32)
    result: Array = rows / norm[:, None]
    return result


def _convolve(values: Array, taps: Array, dilation: int, bias: Array) -> Array:
    """Valid convolution and ReLU: ``(N, L, C)`` to ``(N, L - 4 dilation, H)``."""
    count, length, width = values.shape
    kept = length - (len(taps) - 1) * dilation
    wide = np.empty((count, kept, len(taps), width), np.float32)
    for tap in range(len(taps)):
        wide[:, :, tap] = values[:, tap * dilation : tap * dilation + kept]
    out: Array = wide.reshape(count * kept, -1) @ taps.reshape(-1, taps.shape[2])
    out += bias
    np.maximum(out, 0.0, out=out)
    return out.reshape(count, kept, -1)
