"""Koopman-JEPA: a window of prices to a latent whose future a nearly constant linear map predicts (torch).

An online encoder f, a predictor g (``M z``, M = I at the start) and a slow copy f' of the encoder::

    L = || g(f(x_t)) - sg f'(x_{t+D}) ||^2,      theta' <- a theta' + (1 - a) theta  after each step

In the Koopman reading M estimates ``E[psi(x_{t+D}) | x_t]`` on the latents psi. Source: Ruiz-Morales et al. 2026, arXiv
2511.09783; heads and additional losses after the source document (:mod:`encoders.losses`). Differences: the target
network always runs in evaluation mode; regime odds come from centres of the training embeddings once they are fitted,
because a classifier that no loss trains says nothing. Every figure on M alone is met by an untrained net: read
:mod:`encoders.diagnostics` before believing one.

==================================================  =======================================================
what is seen                                        the setting to change
==================================================  =======================================================
M drifts from the identity                          ``init_identity=True``, ``alpha_spectral`` up (costs clusters)
latents shrink to a point (``CollapseError``)       ``ema_decay`` towards .996 .. .999; never 0
no clusters                                         ``pooling="mix"``, ``context_window`` near a regime's spell
fewer clusters than regimes                         ``latent_dim`` at least ``regimes`` (a warning says so)
==================================================  =======================================================
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.centroids import CentroidHead
from encoders.diagnostics import figures
from encoders.koopman_config import KoopmanConfig
from encoders.koopman_data import (
    KOOPMAN_CHANNELS,
    PROBE_ROWS,
    CryptoPriceDataset,
    WindowChannels,
    as_prices,
    create_crypto_feature_tensor,
)
from encoders.layers import LinearPredictor, MLPPredictor, StridedTrunk
from encoders.losses import KoopmanOutputs, compute_koopman_crypto_loss
from markets.errors import ConfigError

Array = NDArray[np.float32]


class CryptoKoopmanJEPA(nn.Module):
    """Encoder, predictor, slow target and heads.

    The bare call is the source's network (BatchNorm, dropout, 768 / 256); :meth:`from_config` builds a named one.

    Attributes:
        config: every setting. channels: scales of what is read, set by training or loading.

    Args:
        input_channels: 1 to 3: return, volatility, relative price (the source says both 1 and 3).
        latent_dim: k. predictor_type: ``linear`` or ``mlp``. init_identity: M = I at the start.
        seed: of the starting weights; the global generator is left as it was. None draws from the global one.
        settings: any other field of :class:`KoopmanConfig`.
    """

    def __init__(
        self,
        input_channels: int = 3,
        latent_dim: int = 32,
        predictor_type: str = "linear",
        init_identity: bool = True,
        *,
        seed: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if not 1 <= input_channels <= len(KOOPMAN_CHANNELS):
            raise ConfigError(f"input_channels={input_channels!r} must be from 1 to {len(KOOPMAN_CHANNELS)}")
        names = tuple(settings.pop("channels", KOOPMAN_CHANNELS[:input_channels]))
        if len(names) != input_channels:
            raise ConfigError(f"channels={names!r} are not input_channels={input_channels}")
        self.config = config = KoopmanConfig(
            channels=names,
            latent_dim=latent_dim,
            predictor_type=predictor_type,
            init_identity=init_identity,
            **settings,
        )
        self.channels: WindowChannels | None = None
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.encoder = StridedTrunk(
                input_channels, latent_dim, config.context_window, config.pooling, config.batch_norm, config.dropout
            )
            self.predictor: LinearPredictor | MLPPredictor = (
                LinearPredictor(latent_dim, init_identity) if predictor_type == "linear" else MLPPredictor(latent_dim)
            )
            self.classifier = nn.Linear(latent_dim, config.regimes)
            self.volatility_head = nn.Linear(latent_dim, 1)
            self.direction_head = nn.Linear(latent_dim, 1)
        self.centroids = CentroidHead(latent_dim, config.regimes)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False).eval()

    @classmethod
    def from_config(cls, config: KoopmanConfig, seed: int | None = None) -> CryptoKoopmanJEPA:
        """Build the network of a configuration."""
        return cls(len(config.channels), seed=seed, **{**asdict(config), "channels": config.channels})

    def train(self, mode: bool = True) -> CryptoKoopmanJEPA:
        """Switch to training or evaluation; the target stays in evaluation."""
        super().train(mode)
        self.target_encoder.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return ``z (B, k)`` of windows ``(B, C, W)``."""
        z: Tensor = self.encoder(x)
        return z

    def outputs(self, batch: Mapping[str, Tensor]) -> KoopmanOutputs:
        """Return everything the losses read of a batch, in float32 whatever the autocast."""
        z = self.encoder(batch["x_context"]).float()
        with torch.no_grad():
            target = self.target_encoder(batch["x_target"]).float()
        ahead = self.predictor(z).float()
        linear = isinstance(self.predictor, LinearPredictor)
        return KoopmanOutputs(
            z_context=z,
            z_prediction=ahead,
            z_target=target,
            regime_context=self.classifier(z).float(),
            regime_prediction=self.classifier(ahead).float(),
            volatility_context=self.volatility_head(z).float().squeeze(1),
            volatility_prediction=self.volatility_head(ahead).float().squeeze(1),
            direction=self.direction_head(ahead).float().squeeze(1),
            matrix=self.predictor.matrix if linear else None,
        )

    def compute_koopman_crypto_loss(
        self, batch: Mapping[str, Tensor], loss_weights: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """Return the five terms and ``total`` for a batch, with the configured weights where none are given."""
        weights = {**self.config.weights, **(loss_weights or {})}
        config = self.config
        return compute_koopman_crypto_loss(self.outputs(batch), batch, weights, config.form, config.temperature)

    @torch.no_grad()
    def update_target(self) -> None:
        """Move the target: ``theta' <- a theta' + (1 - a) theta``; buffers (of BatchNorm) are copied whole."""
        keep = self.config.ema_decay
        for slow, fast in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
            slow.mul_(keep).add_(fast, alpha=1.0 - keep)
        for kept, seen in zip(self.target_encoder.buffers(), self.encoder.buffers(), strict=True):
            kept.copy_(seen)

    @torch.no_grad()
    def encode(self, x: Tensor, batch: int = 1024) -> Tensor:
        """Return ``z (B, k)`` float32 in evaluation mode, without gradient, ``batch`` windows at a time."""
        was_training = self.training
        self.eval()
        device = next(self.parameters()).device
        try:
            return torch.cat([self.encoder(part.to(device)).float() for part in x.split(batch)])
        finally:
            self.train(was_training)

    @torch.no_grad()
    def extract_regime_embeddings(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``z (B, k)`` and regime odds ``(B, R)`` of windows ``(B, C, W)``; rows add up to 1.

        The odds are those of the fitted centres, ordered by volatility; before any training those of the source's
        ``softmax(classifier(z) / temperature)``, which then mean nothing.
        """
        z = self.encode(x)
        if self.centroids.fitted:
            return z, self.centroids(z)
        return z, torch.softmax(self.classifier(z) / self.config.temperature, 1)

    def encode_price_history(self, prices: Any, timestamps: Any = None) -> tuple[Array, Array]:
        """Return ``z (k,)`` and regime odds ``(R,)`` at the last of the closes ``(T,)``, T at least W.

        Raises:
            DataError: too few prices, prices that are no prices, timestamps out of order.
            ConfigError: a model without scales (neither trained nor loaded).
        """
        x = create_crypto_feature_tensor(prices, timestamps, channels=self.scales(), window=self.config.context_window)
        z, odds = self.extract_regime_embeddings(x[None])
        return z[0].cpu().numpy(), odds[0].cpu().numpy()

    def encode_rows(self, prices: Any, rows: Any = None, window: int | None = None) -> tuple[Array, Array]:
        """Return ``z (N, k)`` and odds ``(N, R)`` at many bars of one history, row t from bars up to t only.

        Args:
            rows: bars, each at least W - 1; all from there on where None.
            window: bars each embedding reads where the trunk leaves the choice (``pooling="mix"``), else W.
        """
        closes = as_prices(prices)
        window = self.config.context_window if window is None else window
        ends = torch.arange(window - 1, len(closes)) if rows is None else torch.as_tensor(np.asarray(rows, np.int64))
        if not len(ends) or int(ends.min()) < window - 1 or int(ends.max()) >= len(closes):
            raise ConfigError(f"rows must be from {window - 1} to {len(closes) - 1}: each reads {window} bars")
        channels = self.scales()
        bars = channels.bars(closes)
        parts = [self.extract_regime_embeddings(channels.windows(bars, part, window)) for part in ends.split(1024)]
        return torch.cat([z for z, _ in parts]).cpu().numpy(), torch.cat([odds for _, odds in parts]).cpu().numpy()

    def analyze_predictor_properties(
        self, dataset: CryptoPriceDataset | None = None, seed: int = 0, rows: int = PROBE_ROWS
    ) -> dict[str, Any]:
        """Return M's figures, and with a dataset those of the latents, beside the same for M = I and untrained.

        Args:
            dataset: pairs of windows, of which ``rows`` are taken evenly. seed: of the untrained twin and of k-means.

        Returns:
            The keys of :func:`encoders.diagnostics.figures`; under ``at_identity`` and ``untrained`` the same keys for
            M = I on these latents and for a fresh network of the same configuration.

        Raises:
            ConfigError: a predictor that has no matrix.
        """
        matrix, regimes = self.predictor.matrix.detach().double().cpu(), self.config.regimes
        twin = CryptoKoopmanJEPA.from_config(self.config, seed)
        latents = twins = None
        if dataset is not None:
            pairs = dataset.even_pairs(rows)
            latents, twins = self.encode_pairs(dataset, pairs), twin.encode_pairs(dataset, pairs)
        identity = torch.eye(len(matrix), dtype=matrix.dtype)
        return {
            **figures(matrix, latents, regimes, seed),
            "at_identity": figures(identity, latents, regimes, seed),
            "untrained": figures(twin.predictor.matrix.detach().double(), twins, regimes, seed),
        }

    def encode_pairs(self, dataset: CryptoPriceDataset, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents of contexts and of targets, both by the online encoder: ``(N, k)`` on the CPU."""
        return self.encode(dataset.contexts(pairs)).cpu(), self.encode(dataset.targets(pairs)).cpu()

    def scales(self) -> WindowChannels:
        """Return the scales of the channels.

        Raises:
            ConfigError: there are none yet.
        """
        if self.channels is None:
            raise ConfigError("the model has no scales of its channels: train it, load it, or set model.channels")
        return self.channels


def encode_multiple_tokens(
    model: CryptoKoopmanJEPA, token_data: Mapping[str, tuple[Any, Any]]
) -> dict[str, tuple[Array, Array]]:
    """Return ``{token: (z (k,), odds (R,))}`` of ``{token: (prices, timestamps)}``, all in one pass of the network."""
    if not token_data:
        return {}
    window, channels = model.config.context_window, model.scales()
    x = torch.stack(
        [
            create_crypto_feature_tensor(prices, times, channels=channels, window=window)
            for prices, times in token_data.values()
        ]
    )
    z, odds = (values.cpu().numpy() for values in model.extract_regime_embeddings(x))
    return {token: (z[i], odds[i]) for i, token in enumerate(token_data)}
