"""Pretraining of the windowed Koopman encoders on bars: ``paper``, ``koopman`` and ``source``, with a card.

The last share of each series is validated on, after a purge of a window and its target. What is written is a checkpoint
for :func:`encoders.koopman_checkpoint.load_model`: the source's class with its own methods. Environments are served by
the default encoder, which embeds a history in one pass; a windowed one reads every window anew, 50 times as dear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from encoders.jepa_training import provenance_of
from encoders.koopman_checkpoint import save_checkpoint
from encoders.koopman_config import KoopmanConfig
from encoders.koopman_data import CryptoPriceDataset
from encoders.koopman_jepa import CryptoKoopmanJEPA
from encoders.koopman_training import JEPATrainer, TrainingReport
from markets import storage
from markets.bars import Bars
from markets.errors import DataError

Told = Callable[[int, int, dict[str, float]], None]

FIGURES = (  # of the card: key, words
    ("identity_deviation", "identity deviation of M"), ("symmetry_measure", "skew of M"),
    ("eigenvalues_near_one", "eigenvalues near 1 (complex distance at most .05)"),
    ("centroid_action", "action of M on k-means centroids"), ("latent_std", "deviation of the latents"),
    ("effective_rank", "effective rank of the latents"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WindowPretrain:
    """What ``regimegym pretrain --config koopman`` is told; ``name`` and ``command`` are for the card."""

    name: str
    config: KoopmanConfig
    validation: float = 0.1
    seed: int = 0
    device: str = "cpu"
    amp: bool = False
    command: str = ""
    about: str = ""


def pretrain_windows(
    series: Sequence[Bars], plan: WindowPretrain, out: Path, resume: bool = False, told: Told | None = None
) -> tuple[CryptoKoopmanJEPA, TrainingReport]:
    """Train on S series of bars; write checkpoint, ``card.md`` and TensorBoard into ``out``.

    Raises:
        ConfigError: bars of several markets or intervals, or other settings than those of the training to resume.
        DataError: too few bars. CollapseError: the latents say nothing.
    """
    from torch.utils.tensorboard import SummaryWriter

    provenance, config = provenance_of(series), plan.config
    train, late = _split(series, plan)
    model = CryptoKoopmanJEPA.from_config(config, plan.seed)
    out.mkdir(parents=True, exist_ok=True)
    with SummaryWriter(str(out / "tensorboard")) as board:

        def show(epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
            for key, value in figures.items():
                board.add_scalar(f"pretrain/{key}", value, epoch)
            if told is not None:
                told(epoch, epochs, dict(figures))

        trainer = JEPATrainer(
            model, train, late, directory=out, device=plan.device, amp=plan.amp, seed=plan.seed, progress=show
        )
        report = trainer.fit(resume=resume)
    known = model.to("cpu").analyze_predictor_properties(train, plan.seed) if config.predictor_type == "linear" else {}
    facts = {
        "configuration": plan.name, "command": plan.command, "about": plan.about, "seed": plan.seed,
        "market": provenance.market, "interval": provenance.interval, "train_end": provenance.train_end,
        "bars": [{"source": bars.source, "symbol": bars.symbols[0], "count": len(bars)} for bars in series],
        "best_epoch": report.best_epoch, "volatility_r2": report.volatility_r2, "ridge_r2": report.ridge_r2,
        "cpu_seconds": round(report.cpu_seconds, 1), "predictor": _plain(known),
    }  # fmt: skip
    save_checkpoint(out, model, facts)
    storage.replace_file(out / "card.md", window_card(facts).encode())
    return model, report


def _split(series: Sequence[Bars], plan: WindowPretrain) -> tuple[CryptoPriceDataset, CryptoPriceDataset]:
    """Return training and validation pairs; no training target reaches into a validation context."""
    config = plan.config
    shift = config.prediction_horizon if config.overlap else max(config.prediction_horizon, config.context_window)
    parts: list[list[Any]] = [[], [], [], []]
    for bars in series:
        cut = int(len(bars) * (1.0 - plan.validation))
        if min(cut, len(bars) - cut) < config.context_window + shift + 1:
            raise DataError(
                f"{bars.source or bars.symbols[0]}: {len(bars)} bars leave {len(bars) - cut} to validate on, and a "
                f"pair of windows takes {config.context_window + shift + 1}: pass more bars"
            )
        for place, rows in ((0, slice(0, cut)), (2, slice(cut, None))):
            parts[place].append(bars.close[rows, 0])
            parts[place + 1].append(bars.time[rows])
    windows = (config.context_window, config.prediction_horizon)
    train = CryptoPriceDataset(parts[0], parts[1], *windows, overlap=config.overlap, names=config.channels)
    late = CryptoPriceDataset(
        parts[2], parts[3], *windows, overlap=config.overlap, names=config.channels, channels=train.channels
    )
    return train, late


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what JSON can hold: numbers, and tables of numbers."""
    out: dict[str, Any] = {}
    for key, value in found.items():
        if isinstance(value, Mapping):
            out[key] = _plain(value)
        elif isinstance(value, int | float) and np.isfinite(value):
            out[key] = value
    return out


def window_card(facts: Mapping[str, Any]) -> str:
    """Write the card of a windowed encoder from the facts of its checkpoint."""
    bars = "\n".join(f"- {one['symbol']}: {one['count']:,} bars (`{one['source']}`)" for one in facts["bars"])
    about = f"\n{facts['about']}.\n" if facts["about"] else ""
    found = facts["predictor"]
    rows = "\n".join(
        f"| {words} | {_shown(found.get(key))} | {_shown(found['at_identity'].get(key))} | "
        f"{_shown(found['untrained'].get(key))} |"
        for key, words in FIGURES
        if found and key in found
    )
    figures = f"| | trained | M = I | untrained net |\n|---|---|---|---|\n{rows}" if rows else "An MLP has no matrix M."
    return f"""# Encoder card

Koopman-JEPA, configuration `{facts["configuration"]}`, windows; market `{facts["market"]}` at `{facts["interval"]}`,
fitted on bars up to {facts["train_end"][:16]} UTC.

## Data

{bars}
{about}
## Command

    {facts["command"]}

Seed {facts["seed"]}, {facts["cpu_seconds"]:.0f} s of CPU time.

## Scores on the validation range

| forecast of the log volatility to come | R2 |
|---|---|
| latents, epoch {facts["best_epoch"] + 1} | {facts["volatility_r2"]:.3f} |
| volatility of the last 16 and 64 bars | {facts["ridge_r2"]:.3f} |

## The predictor

{figures}

The last two columns prove nothing: a net that never trained meets every figure on M.
"""


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:d}" if isinstance(value, int) else f"{value:.4g}"
