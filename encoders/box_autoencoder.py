"""The control of "does prediction matter?": the default encoder's trunk, trained to give its own window back.

Same trunk and starting weights, same series, batches, schedule and number of steps as
:class:`~encoders.jepa_training.JEPATraining`; only the loss differs. A decoder of two linear layers maps the embedding
to the channels of the last 256 bars, which is what the trunk's longest mean reads::

    L = mean (d(z_t) - [x_{t-255}, .., x_t])^2         over bars t, channels and the 256 bars
"""

from __future__ import annotations

from torch import Tensor, nn

from encoders.box_trunk import BOXES, LOOK_BACK
from encoders.jepa_training import JEPAConfig, JEPANet, JEPATraining

WINDOW = BOXES[-1]  # bars that are given back


class AutoencoderNet(JEPANet):
    """The net of the default encoder with a decoder; its predictor and heads are not trained."""

    def __init__(self, config: JEPAConfig) -> None:
        super().__init__(config)
        self.decoder = nn.Sequential(
            nn.Linear(config.latent, config.inner), nn.ReLU(), nn.Linear(config.inner, len(config.channels) * WINDOW)
        )


class AutoencoderTraining(JEPATraining):
    """Training of the control, step by step."""

    network = AutoencoderNet

    def losses(self, embedding: Tensor, channels: Tensor, futures: Tensor, posterior: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error of the windows that end at the embedded bars; the targets are not read."""
        assert isinstance(self.net, AutoencoderNet)
        windows = channels[:, :, LOOK_BACK + 1 - WINDOW :].unfold(2, WINDOW, 1)  # (B, C, L', 256)
        given = self.net.decoder(embedding).unflatten(2, (channels.shape[1], WINDOW))  # (B, L', C, 256)
        return {"reconstruction": ((given - windows.transpose(1, 2)) ** 2).mean()}
