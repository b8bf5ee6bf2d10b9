"""Pretrain an encoder on bars: writes its weights, a card and TensorBoard; the best step on validation is kept."""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path
from typing import Any

from markets.errors import ConfigError, unknown
from scripts.arguments import pairs, run_log, terminable

DEFAULTS = {"steps": 800, "channels": "return,volatility", "dwell_floor": 64.0, "emission": "student"}
NOT_DEFRAG = ("config", "steps", "bank_cap", "dwell_floor", "emission", "resume", "device", "amp")
OF_DEFRAG = ("components", "neighbours", "horizon", "own_blocks", "evidence", "validation")
NOT_BLOCK = {  # of the engine's memory and forecast, which an encoder of bars does not have, or flags of their own
    "input_dim", "label_horizon", "seed", "registry_capacity", "top_k", "decay", "chain", "predictor_epochs",
    "hierarchy", "interval_level",
}  # fmt: skip
ONLY_DEFAULT = ("steps", "bank_cap", "dwell_floor", "emission")  # flags that a windowed encoder has no use for

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add = parser.add_argument
    add("--encoder", default="jepa", choices=["jepa", "defrag"], help="kind of encoder (default jepa)")
    add(
        "--config", default="default", metavar="NAME",
        help="default (dense, for environments), or the source's windowed encoder: koopman, paper, source",
    )  # fmt: skip
    add("--bars", action="append", required=True, metavar="SPEC", help="kind:path?key=value, repeatable")
    add("--out", type=Path, required=True, metavar="DIR", help="where the weights and their card go")
    add("--seed", type=int, default=0)
    add("--steps", type=int, help="optimiser steps (default 800)")
    add("--channels", help="what is read of a bar (default return,volatility; also volume, windowed ones: price)")
    add("--regimes", type=int, default=0, help="number of regimes (default: by likelihood; windowed and defrag: 6)")
    add("--bank-cap", type=float, metavar="SHARE", help="cap of the belief's running variances; .5 on real bars")
    add("--dwell-floor", type=float, metavar="BARS", help="shortest mean spell of a regime (default 64)")
    add("--emission", metavar="NAME", help="density of a regime's next return: student (default) or neural")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="field of the configuration")
    add("--about", default="", metavar="TEXT", help="what the bars are and whose, for the card")
    add(
        "--resume",
        action="store_true",
        help="go on with a training that was killed in --out (not of defrag, which takes seconds)",
    )
    add("--overwrite", action="store_true", help="replace the encoder that --out holds")
    add("--device", default="cpu", help="cpu, cuda, ...")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--threads", type=int, default=1, help="torch threads")
    add("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Train and say where the encoder is."""
    from tqdm.auto import tqdm

    from encoders.pretrain import torch_threads

    for name in ("encoder.zip", "manifest.json"):
        if (options.out / name).exists() and not options.overwrite:
            raise ConfigError(f"--out {options.out} holds an encoder: choose another folder or pass --overwrite")
    if options.encoder == "defrag":
        train = _defrag(options)
    else:
        train = _default(options) if options.config == "default" else _windows(options)
    torch_threads(options.threads)
    with run_log(options.out, "pretrain") as log, terminable(), tqdm(disable=options.quiet or None, unit="step") as bar:
        _log.info("log file: %s", log)
        _log.info("%s", train(_Shown(bar)))
    return 0


def _default(options: argparse.Namespace) -> Any:
    """Return the training of the default encoder; what it returns says what came of it."""
    from encoders.belief import BeliefConfig
    from encoders.jepa_training import JEPAConfig
    from encoders.pretrain import PretrainConfig, pretrain
    from markets.sources import load

    for name, value in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    own = ("channels", "belief", "steps", "seed", "device", "amp")  # flags of their own
    more = pairs(options.set, "--set")
    valid = [name for name in JEPAConfig.__dataclass_fields__ if name not in own]
    for name in more:
        if name not in valid:
            raise unknown("--set field", name, valid)
    belief = BeliefConfig(
        regimes=options.regimes or 6, bank_cap=options.bank_cap, dwell_floor=options.dwell_floor,
        emission=options.emission,
    )  # fmt: skip
    jepa = JEPAConfig(
        channels=tuple(options.channels.split(",")), belief=belief, steps=options.steps, seed=options.seed,
        device=options.device, amp=options.amp, **more,
    )  # fmt: skip
    config = PretrainConfig(jepa=jepa, choose=options.regimes == 0, command=_command(options), about=options.about)

    def train(shown: Any) -> str:
        made = pretrain([load(spec) for spec in options.bars], config, options.out, options.resume, shown)
        scores = made.facts["validation"]
        return (
            f"saved {options.out / 'encoder.zip'}: {made.regimes} regimes, R2 of volatility "
            f"{scores['volatility_r2']:.3f} (two past volatilities {scores['two_past_volatilities_r2']:.3f})\n"
            f"use it with: gym.make('PerpFutures-v0', encoded='jepa', encoder={str(options.out)!r}, bars=...)"
        )

    return train


def _defrag(options: argparse.Namespace) -> Any:
    """Return the training of the defragmentation encoder."""
    from encoders.defrag_config import DefragConfig
    from encoders.defrag_pretrain import DefragPretrain, pretrain
    from markets.sources import load

    for name in NOT_DEFRAG:
        if getattr(options, name) not in (None, False, "default", "cpu"):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is not of --encoder defrag, which takes --channels, --regimes, --seed and --set")
    more = pairs(options.set, "--set")
    plan, block = set(OF_DEFRAG), set(DefragConfig.__dataclass_fields__) - NOT_BLOCK
    for name in more:
        if name not in plan | block:
            raise unknown("--set field", name, sorted(plan | block))
    channels = str(DEFAULTS["channels"]) if options.channels is None else options.channels
    config = DefragPretrain(
        channels=tuple(channels.split(",")), regimes=options.regimes or 6,
        block={name: value for name, value in more.items() if name in block}, seed=options.seed,
        command=_command(options), about=options.about,
        **{name: value for name, value in more.items() if name in plan},
    )  # fmt: skip

    def train(shown: Any) -> str:
        made = pretrain([load(spec) for spec in options.bars], config, options.out, shown)
        scores = made.facts["validation"]
        return (
            f"saved {options.out / 'encoder.zip'}: {made.regimes} regimes, {made.facts['remembered']:,} blocks "
            f"remembered, R2 of volatility {scores['volatility_r2']:.3f} (two past volatilities "
            f"{scores['two_past_volatilities_r2']:.3f})\n"
            f"use it with: gym.make('PerpFutures-v0', encoded='defrag', encoder={str(options.out)!r}, bars=...)"
        )

    return train


def _windows(options: argparse.Namespace) -> Any:
    """Return the training of a windowed encoder of the source."""
    from encoders.koopman_config import CONFIGS, koopman_config
    from encoders.koopman_pretrain import WindowPretrain, pretrain_windows
    from markets.sources import load

    if options.config not in CONFIGS:
        raise unknown("configuration", options.config, ("default", *CONFIGS))
    for name in ONLY_DEFAULT:
        if getattr(options, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{flag} is of --config default; --config {options.config} takes --set epochs=12 and so on"
            )
    more = pairs(options.set, "--set")
    if options.channels is not None:
        more["channels"] = tuple(options.channels.split(","))
    if options.regimes:
        more["regimes"] = options.regimes
    plan = WindowPretrain(
        name=options.config, config=koopman_config(options.config, **more), seed=options.seed, device=options.device,
        amp=options.amp, command=_command(options), about=options.about,
    )  # fmt: skip

    def train(shown: Any) -> str:
        _, report = pretrain_windows([load(spec) for spec in options.bars], plan, options.out, options.resume, shown)
        return (
            f"saved {options.out}: R2 of volatility {report.volatility_r2:.3f} (two past volatilities "
            f"{report.ridge_r2:.3f})\nload it with: encoders.koopman_checkpoint.load_model({str(options.out)!r})"
        )

    return train


class _Shown:
    """Moves the bar, whose length changes from the belief to the encoder."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def __call__(self, step: int, total: int, figures: dict[str, float]) -> None:
        self.bar.total, self.bar.n = total, step
        self.bar.set_postfix({name: f"{value:.4f}" for name, value in figures.items()}, refresh=False)
        self.bar.update(0)


def _command(options: argparse.Namespace) -> str:
    """Write the command that makes these weights again."""
    words = ["regimegym", "pretrain", "--encoder", options.encoder]
    windowed = options.config != "default" or options.encoder == "defrag"
    words += ["--config", options.config] if options.config != "default" else []
    for spec in options.bars:
        words += ["--bars", spec]
    for name in ("channels", "regimes", "steps", "bank_cap", "dwell_floor", "emission"):
        value = getattr(options, name)
        if value is not None and (value or not windowed):
            words += ["--" + name.replace("_", "-"), f"{value:g}" if isinstance(value, float) else str(value)]
    words += ["--seed", str(options.seed)]
    words += [] if options.device == "cpu" else ["--device", options.device]
    words += ["--amp"] if options.amp else []
    for pair in options.set:
        words += ["--set", pair]
    if options.about:
        words += ["--about", options.about]
    return shlex.join([*words, "--out", "DIR"])
