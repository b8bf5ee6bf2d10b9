"""Settings of a Koopman encoder, and the named configurations.

=============  =====================================================================================================
``paper``      the paper's trunk and windows (768 / 256, overlapping), flat, linear M from the identity, JEPA loss alone
``koopman``    256 / 64, averages over several ends of the window, JEPA loss alone: the one that finds regimes
``source``     the source document's network (BatchNorm, dropout) and its five losses in its own, partly degenerate form
=============  =====================================================================================================

Learning rate, batch, steps and seeds are published by neither paper nor source: these are ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from encoders.koopman_data import KOOPMAN_CHANNELS
from encoders.layers import POOLINGS, PREDICTORS
from encoders.losses import FORMS, SOURCE_WEIGHTS, resolve_weights
from markets.errors import ArtefactError, ConfigError, unknown

JEPA_ONLY = {name: float(name == "alpha_jepa") for name in SOURCE_WEIGHTS}


@dataclass(frozen=True, kw_only=True)
class KoopmanConfig:
    """Every setting of a Koopman encoder and of its training.

    Attributes:
        channels: what is read of a bar. context_window: W bars. prediction_horizon: bars to the target's end.
        overlap: context and target share bars, as in the paper.
        latent_dim: k; a warning says where it is below ``regimes``. pooling, batch_norm, dropout: of the trunk.
        predictor_type: ``linear`` (M) or ``mlp``. init_identity: start at M = I.
        ema_decay: share that the target keeps a step. regimes: R of the regime heads. temperature: of their softmax.
        weights: of the five losses. form: ``sound`` or ``source``.
        epochs: at most. steps_per_epoch: batches an epoch at most, the data once where None.
        patience: epochs without a better validation before training stops, never where None.
    """

    channels: tuple[str, ...] = KOOPMAN_CHANNELS
    context_window: int = 768
    prediction_horizon: int = 256
    overlap: bool = True
    latent_dim: int = 32
    pooling: str = "flatten"
    batch_norm: bool = True
    dropout: float = 0.1
    predictor_type: str = "linear"
    init_identity: bool = True
    ema_decay: float = 0.996
    regimes: int = 6
    temperature: float = 0.1
    alpha_jepa: float = 1.0
    alpha_regime: float = 0.3
    alpha_direction: float = 0.2
    alpha_volatility: float = 0.5
    alpha_spectral: float = 0.1
    form: str = "sound"
    epochs: int = 12
    steps_per_epoch: int | None = 50
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    clip: float = 1.0
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("pooling", self.pooling, POOLINGS),
            ("predictor_type", self.predictor_type, PREDICTORS),
            ("form of the losses", self.form, FORMS),
            *(("channel", channel, KOOPMAN_CHANNELS) for channel in self.channels),
        ):
            if value not in choices:
                raise unknown(name, value, choices)
        for name in ("context_window", "prediction_horizon", "latent_dim", "regimes", "epochs", "batch_size"):
            _whole(name, getattr(self, name), 2 if name in ("batch_size", "regimes") else 1)
        for name in ("steps_per_epoch", "patience"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        for name in ("temperature", "learning_rate", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{name}={value!r} must be a finite number above 0")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(f"ema_decay={self.ema_decay!r} must be in [0, 1): at 1 the target never moves")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0.0):
            raise ConfigError(f"weight_decay={self.weight_decay!r} must be a finite number of at least 0")
        resolve_weights(self.weights)
        if self.latent_dim < self.regimes:
            warnings.warn(
                f"latent_dim={self.latent_dim} is below regimes={self.regimes}: so few dimensions cannot hold an "
                f"indicator for each regime; take latent_dim of at least {self.regimes}",
                stacklevel=3,
            )

    @property
    def weights(self) -> dict[str, float]:
        """The five loss weights."""
        return {name: getattr(self, name) for name in SOURCE_WEIGHTS}

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return {**asdict(self), "channels": list(self.channels)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> KoopmanConfig:
        """Read back.

        Raises:
            ArtefactError: a setting that is unknown or has the wrong type.
        """
        try:
            return cls(**{**content, "channels": tuple(content["channels"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"settings of the encoder: {error}") from error


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")


SOURCE = KoopmanConfig(form="source")
PAPER = replace(KoopmanConfig(batch_norm=False, dropout=0.0), **cast(dict[str, Any], JEPA_ONLY))
KOOPMAN = replace(PAPER, context_window=256, prediction_horizon=64, pooling="mix")
CONFIGS = {"paper": PAPER, "koopman": KOOPMAN, "source": SOURCE}


def koopman_config(name: str, **changes: Any) -> KoopmanConfig:
    """Return a named configuration with changes.

    Raises:
        UnknownNameError: neither a configuration nor a setting of this name.
    """
    if name not in CONFIGS:
        raise unknown("configuration", name, CONFIGS)
    for field in changes:
        if field not in KoopmanConfig.__dataclass_fields__:
            raise unknown("setting of the encoder", field, KoopmanConfig.__dataclass_fields__)
    return replace(CONFIGS[name], **changes)
