"""The engine behind the verbs of a bench of defragmentation encoders, so that any two implementations can be compared.

Verbs: ``fit(x)``, ``embed(w)``, ``order(z)``, ``fill(z, ts)``, ``neighbours(z)``, ``predict(w)``. Outcomes are made
here, as the bench hands over none: the sum of feature 0 (the return) over the block that follows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encoders.defrag import ChronosDefragEngine
from encoders.defrag_config import DefragConfig

Array = NDArray[np.float32]


class DefragAdapter:
    """One engine; arguments are those of the bench."""

    name = "regimegym"

    def __init__(
        self,
        n_feat: int = 6,
        block_len: int = 64,
        latent_dim: int = 64,
        capacity: int = 8192,
        top_k: int = 16,
        epochs: int = 30,
        seed: int = 42,
    ) -> None:
        self.engine = ChronosDefragEngine(
            DefragConfig(
                input_dim=n_feat, block_len=block_len, latent_dim=latent_dim, registry_capacity=capacity, top_k=top_k,
                epochs=epochs, predictor_epochs=epochs, label_horizon=block_len, seed=seed,
            )
        )  # fmt: skip

    def fit(self, x: Array) -> None:
        """Fit on ``(T, F)``; the outcome of a tick is the sum of feature 0 over the next block."""
        length = self.engine.config.block_len
        summed = np.concatenate([[0.0], np.cumsum(x[:, 0], dtype=np.float64)])
        outcomes = np.full(len(x), np.nan)
        outcomes[: max(0, len(x) - length)] = summed[1 + length :] - summed[1:-length]
        self.engine.fit(x, None if np.isinf(outcomes).any() else outcomes)

    def embed(self, w: Array) -> Array:
        """Return ``(N, D)`` embeddings of ``(N, L, F)`` windows."""
        windows = np.asarray(w, np.float32)
        if self.engine.is_fitted:
            windows = self.engine.fitted.scaler.apply(windows)
        return self.engine.encoder.embed(windows)

    def order(self, z: Array) -> NDArray[np.int64]:
        """Return the pseudo-timeline of unit rows."""
        return self.engine.router.build_pseudo_timeline(z)

    def fill(self, z: Array, ts: NDArray[np.int64]) -> None:
        """Replace the registry; ``ts`` are first ticks of blocks, whose outcomes of the fit are kept."""
        router = self.engine.router
        known = dict(zip(router.ends[: router.size].tolist(), router.outcomes[: router.size].tolist(), strict=True))
        ends = np.asarray(ts, np.int64) + self.engine.config.block_len - 1
        router.clear()
        router.add(np.asarray(z, np.float32), ends, np.array([known.get(int(end), np.nan) for end in ends]))

    def neighbours(self, z: Array) -> NDArray[np.int64]:
        """Return ``(B, k)`` registry rows for ``(B, D)`` queries at the tick after everything in it is known."""
        router, config = self.engine.router, self.engine.config
        now = int(router.ends[: router.size].max()) + config.label_horizon
        return np.stack([router.query(row, now).rows for row in np.asarray(z, np.float32)])

    def predict(self, w: Array) -> tuple[float, float]:
        """Return alpha and confidence of one live window."""
        answer = self.engine.predict_live(w)
        return float(answer.alpha_prediction), float(answer.regime_confidence)
