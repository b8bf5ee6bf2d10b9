"""Layers of the Koopman encoders: the strided trunk, the two predictors and the autoencoder control (torch).

Letters: B batch, C channels, W bars of a window, k latent dimensions. Sources: Ruiz-Morales et al. 2026,
arXiv 2511.09783 (trunk and predictors); averages over several ends of the window instead of a flat map are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from markets.errors import ConfigError, unknown

WIDTHS = (16, 32, 64, 128)
KERNELS = (7, 5, 3, 3)
STRIDE = 2
POOLINGS = ("flatten", "mix")
PREDICTORS = ("linear", "mlp")
SHARES = (1, 2, 4, 8)  # "mix" averages the last 1, 1/2, 1/4 and 1/8 of the final map


class StridedTrunk(nn.Module):
    """Embeds one window of bars: ``(B, C, W)`` to ``(B, k)``.

    Four convolutions (16, 32, 64, 128 channels, kernels 7, 5, 3, 3, stride 2, zero padding of the window), each with
    ReLU, then a linear layer. Padding on both sides cannot leak: the window ends at the bar it describes.

    Args:
        window: W; ``flatten`` reads exactly so many bars, ``mix`` any number from 16 on.
        pooling: ``flatten`` joins the whole final map, as the paper; ``mix`` its averages over several ends.
        batch_norm, dropout: between convolution and ReLU and after it. The paper has neither, the source both.

    Raises:
        ConfigError: a window shorter than 16 bars, a dropout outside [0, 1). UnknownNameError: unknown pooling.
    """

    def __init__(
        self,
        channels: int,
        latent: int,
        window: int,
        pooling: str = "flatten",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise unknown("pooling", pooling, POOLINGS)
        if window < STRIDE ** len(WIDTHS):
            raise ConfigError(f"window={window!r} must be at least {STRIDE ** len(WIDTHS)} bars")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"dropout={dropout!r} must be in [0, 1)")
        self.channels, self.window, self.pooling = channels, window, pooling
        layers: list[nn.Module] = []
        before, length = channels, window
        for width, kernel in zip(WIDTHS, KERNELS, strict=True):
            layers.append(nn.Conv1d(before, width, kernel, STRIDE, kernel // 2))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(nn.ReLU())
            if dropout > 0.0:
                layers.append(nn.Dropout(dropout))
            before, length = width, (length - 1) // STRIDE + 1
        self.convolutions = nn.Sequential(*layers)
        self.project = nn.Linear(WIDTHS[-1] * (length if pooling == "flatten" else len(SHARES)), latent)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, k)`` latents of ``(B, C, W)`` channels.

        Raises:
            ConfigError: another number of channels or, where the map is flattened, of bars.
        """
        fits = x.ndim == 3 and x.shape[1] == self.channels
        fits = fits and (x.shape[2] == self.window if self.pooling == "flatten" else x.shape[2] >= 16)
        if not fits:
            raise ConfigError(f"windows of shape {tuple(x.shape)}, expected (B, {self.channels}, {self.window})")
        features = self.convolutions(x)
        if self.pooling == "flatten":
            out: Tensor = self.project(features.flatten(1))
            return out
        length = features.shape[2]
        ends = [features[:, :, length - max(1, length // share) :].mean(2) for share in SHARES]
        out = self.project(torch.cat(ends, 1))
        return out


class LinearPredictor(nn.Module):
    """``g(z) = M z`` without bias: the Koopman matrix on the latents.

    Args:
        init_identity: start at M = I, else at random (uniform of variance 1 / (3 k), torch's default).
    """

    def __init__(self, latent: int, init_identity: bool = True) -> None:
        super().__init__()
        bound = latent**-0.5
        start = torch.eye(latent) if init_identity else torch.empty(latent, latent).uniform_(-bound, bound)
        self.matrix = nn.Parameter(start)

    def forward(self, z: Tensor) -> Tensor:
        """Return ``M z`` for rows ``(B, k)``."""
        return z @ self.matrix.T

    def get_eigenvalues(self) -> Tensor:
        """Return the k complex eigenvalues of M, largest modulus first (no gradient)."""
        values = torch.linalg.eigvals(self.matrix.detach().double().cpu())
        return values[torch.argsort(values.abs(), descending=True, stable=True)]


class MLPPredictor(nn.Module):
    """``g(z)`` with two hidden layers, each 2k wide; it has no matrix and so no eigenvalues."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        wide = 2 * latent
        self.layers = nn.Sequential(
            nn.Linear(latent, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, latent)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return the prediction for rows ``(B, k)``."""
        out: Tensor = self.layers(z)
        return out

    @property
    def matrix(self) -> Tensor:
        """Refuse: there is none.

        Raises:
            ConfigError: always.
        """
        # an AttributeError's cousin would be swallowed by nn.Module.__getattr__; a ConfigError is not
        raise ConfigError("an MLP predictor has no matrix M: eigenvalues and M's figures need predictor_type='linear'")

    def get_eigenvalues(self) -> Tensor:
        """Refuse: a nonlinear map has no eigenvalues.

        Raises:
            ConfigError: always.
        """
        return self.matrix


class Autoencoder(nn.Module):
    """The control of "does predicting matter?": the same trunk trained to give its own window back.

    The decoder mirrors the trunk: a linear layer, then four transposed convolutions of stride 2.
    """

    def __init__(self, trunk: StridedTrunk, latent: int) -> None:
        super().__init__()
        factor = STRIDE ** len(WIDTHS)
        if trunk.window % factor:
            raise ConfigError(f"context_window={trunk.window} must be a multiple of {factor} for the autoencoder")
        self.encoder = trunk
        self._map = (WIDTHS[-1], trunk.window // factor)
        self.expand = nn.Linear(latent, self._map[0] * self._map[1])
        widths = (*reversed(WIDTHS[:-1]), trunk.channels)
        layers: list[nn.Module] = []
        before = WIDTHS[-1]
        for width, kernel in zip(widths, reversed(KERNELS), strict=True):
            layers += [nn.ReLU(), nn.ConvTranspose1d(before, width, kernel, STRIDE, kernel // 2, output_padding=1)]
            before = width
        self.deconvolutions = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction ``(B, C, W)``."""
        out: Tensor = self.deconvolutions(self.expand(self.encoder(x)).unflatten(1, self._map))
        return out
