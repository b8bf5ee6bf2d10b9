"""The schedule that every Koopman encoder and its control share: batches, AdamW with one cycle, seeded generators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from encoders.koopman_config import KoopmanConfig
from encoders.koopman_data import CryptoPriceDataset
from encoders.koopman_jepa import CryptoKoopmanJEPA
from encoders.layers import Autoencoder
from markets.errors import ConfigError, DataError


class seeded:  # noqa: N801  a context manager, used like a function
    """Seed torch's generators inside, leave them as they were outside."""

    def __init__(self, seed: int, device: torch.device) -> None:
        devices = [device.index or 0] if device.type == "cuda" else []
        self._seed, self._fork = seed, torch.random.fork_rng(devices=devices)

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)


def batches_of(dataset: CryptoPriceDataset, config: KoopmanConfig, epochs: int, seed: int) -> Iterator[Tensor]:
    """Give the pairs of each batch: every epoch a new order, cut after ``steps_per_epoch``; a last part is left out."""
    if len(dataset) < 2:
        raise DataError(f"{len(dataset)} pairs of windows are too few to train on")
    generator = torch.Generator().manual_seed(seed)
    size = min(config.batch_size, len(dataset))
    steps = len(dataset) // size
    steps = steps if config.steps_per_epoch is None else min(steps, config.steps_per_epoch)
    for _ in range(epochs):
        yield from torch.randperm(len(dataset), generator=generator)[: steps * size].split(size)


def optimiser_of(model: nn.Module, config: KoopmanConfig, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """Return AdamW over what is trained, and one cycle of the learning rate over ``steps``."""
    trained = [value for value in model.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=steps + 1)


def train_step(model: nn.Module, loss: Tensor, optimiser: torch.optim.Optimizer, schedule: Any, clip: float) -> None:
    """Take one step with clipped gradients; raises ``ConfigError`` where the loss is not finite."""
    if not bool(torch.isfinite(loss)):
        raise ConfigError(f"the loss is {float(loss)}: lower learning_rate or clip")
    optimiser.zero_grad(set_to_none=True)
    if loss.requires_grad:
        loss.backward()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], clip)
    optimiser.step()
    schedule.step()


def fit_autoencoder(config: KoopmanConfig, dataset: CryptoPriceDataset, seed: int = 0) -> CryptoKoopmanJEPA:
    """Train the matched control, same trunk, windows, batches and schedule, to give its window back.

    Returns:
        A model whose encoder is the control's; its predictor never trained.
    """
    model = CryptoKoopmanJEPA.from_config(config, seed)
    with seeded(seed, torch.device("cpu")):
        control = Autoencoder(model.encoder, config.latent_dim)
        control.train()
        batches = list(batches_of(dataset, config, config.epochs, seed))
        optimiser, schedule = optimiser_of(control, config, len(batches))
        for pairs in batches:
            x = dataset.contexts(pairs)
            train_step(control, (control(x) - x).square().mean(), optimiser, schedule, config.clip)
    model.channels = dataset.channels
    model.eval()
    return model
