"""Pretrain an encoder on bars: writes encoder.zip, a card and TensorBoard; the best step on validation is kept."""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path

from markets.errors import ConfigError, unknown
from scripts.arguments import pairs, run_log, terminable

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--encoder", default="jepa", choices=["jepa"], help="kind of encoder (default jepa)")
    parser.add_argument(
        "--bars", action="append", required=True, metavar="SPEC", help="kind:path?key=value, repeatable"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where encoder.zip and its card go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=800, help="optimiser steps (default 800)")
    parser.add_argument("--channels", default="return,volatility", help="what is read of a bar; also: volume")
    parser.add_argument("--regimes", type=int, default=0, help="number of regimes (default: by likelihood)")
    parser.add_argument(
        "--bank-cap", type=float, metavar="SHARE", help="cap of the belief's running variances; .5 on real bars"
    )
    parser.add_argument(
        "--dwell-floor", type=float, default=64.0, metavar="BARS", help="shortest mean spell of a regime"
    )
    parser.add_argument(
        "--emission", default="student", metavar="NAME", help="density of a regime's next return: student or neural"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="field of the configuration")
    parser.add_argument("--about", default="", metavar="TEXT", help="what the bars are and whose, for the card")
    parser.add_argument("--resume", action="store_true", help="go on with a training that was killed in --out")
    parser.add_argument("--overwrite", action="store_true", help="replace the encoder that --out holds")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Train and say where the encoder is."""
    from tqdm.auto import tqdm

    from encoders.belief import BeliefConfig
    from encoders.jepa_training import JEPAConfig
    from encoders.pretrain import PretrainConfig, pretrain, torch_threads
    from markets.sources import load

    if (options.out / "encoder.zip").exists() and not options.overwrite:
        raise ConfigError(f"--out {options.out} holds an encoder already: choose another folder or pass --overwrite")
    own = ("channels", "belief", "steps", "seed", "device", "amp")  # flags of their own
    more = pairs(options.set, "--set")
    valid = [name for name in JEPAConfig.__dataclass_fields__ if name not in own]
    for name in more:
        if name not in valid:
            raise unknown("--set field", name, valid)
    torch_threads(options.threads)
    belief = BeliefConfig(
        regimes=options.regimes or 6, bank_cap=options.bank_cap, dwell_floor=options.dwell_floor,
        emission=options.emission,
    )  # fmt: skip
    jepa = JEPAConfig(
        channels=tuple(options.channels.split(",")), belief=belief, steps=options.steps, seed=options.seed,
        device=options.device, amp=options.amp, **more,
    )  # fmt: skip
    config = PretrainConfig(jepa=jepa, choose=options.regimes == 0, command=_command(options), about=options.about)
    with run_log(options.out, "pretrain") as log, terminable(), tqdm(disable=options.quiet or None, unit="step") as bar:
        _log.info("log file: %s", log)
        made = pretrain([load(spec) for spec in options.bars], config, options.out, options.resume, _Shown(bar))
    validation = made.facts["validation"]
    _log.info(
        "saved %s: %d regimes, R2 of volatility %.3f (two past volatilities %.3f)",
        options.out / "encoder.zip", made.regimes, validation["volatility_r2"], validation["two_past_volatilities_r2"],
    )  # fmt: skip
    _log.info("use it with: gym.make('PerpFutures-v0', encoded='jepa', encoder=%r, bars=...)", str(options.out))
    return 0


class _Shown:
    """Moves the bar, whose length changes from the belief to the encoder."""

    def __init__(self, bar: object) -> None:
        self.bar = bar

    def __call__(self, step: int, total: int, figures: dict[str, float]) -> None:
        bar: object = self.bar
        bar.total = total  # type: ignore[attr-defined]
        bar.n = step  # type: ignore[attr-defined]
        bar.set_postfix({name: f"{value:.4f}" for name, value in figures.items()}, refresh=False)  # type: ignore[attr-defined]
        bar.update(0)  # type: ignore[attr-defined]


def _command(options: argparse.Namespace) -> str:
    """Write the command that makes these weights again."""
    words = ["regimegym", "pretrain", "--encoder", options.encoder]
    for spec in options.bars:
        words += ["--bars", spec]
    words += ["--channels", options.channels, "--regimes", str(options.regimes), "--steps", str(options.steps)]
    if options.bank_cap is not None:
        words += ["--bank-cap", f"{options.bank_cap:g}"]
    words += ["--dwell-floor", f"{options.dwell_floor:g}", "--emission", options.emission, "--seed", str(options.seed)]
    for pair in options.set:
        words += ["--set", pair]
    if options.about:
        words += ["--about", options.about]
    return shlex.join([*words, "--out", "DIR"])
