"""Measure what observation columns are worth: train with and without them on the same seeds, and compare.

Both arms of a seed begin with the same weights on the same market and are scored, with their last weights, on the
validation split. Prints both arms and the paired difference with a 95 % t-interval over the seeds. Runs that --out
holds already are kept, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from scripts import folders
from scripts.arguments import add_env_arguments, pairs, run_log, terminable, whole
from scripts.signals import add_signals, register

LISTED = 12  # columns that go along with a hidden one; all of them are in ablation.json

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--env", required=True, metavar="ID", help="registered id, such as ZeroDTE-v0")
    parser.add_argument("--hide", required=True, metavar="NAME,...", help="observation columns of the hidden arm")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where runs and ablation.json go")
    parser.add_argument(
        "--bars", metavar="SPEC", help="kind:path?key=value, {seed} stands for the seed; the env's own without"
    )
    parser.add_argument("--algo", default="ppo", metavar="NAME", help="ppo (default) or a2c")
    parser.add_argument("--steps", type=whole, default=500_000, help="of each training (default 500,000)")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each arm, seeds 0 .. N-1 (default 5)")
    parser.add_argument("--revealed", action="store_true", help="show the return of the next bar in both arms as well")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="hyperparameter, repeatable")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    add_env_arguments(parser)
    add_signals(parser)


def run(options: argparse.Namespace) -> int:
    """Train what is missing, write and print."""
    from agents.ablation import AblationConfig, check
    from agents.ablation import run as measure

    register(options)
    arguments = pairs(options.env_arg, "--env-arg")
    if options.bars is not None:
        arguments["bars"] = options.bars
    config = AblationConfig(
        env=options.env, hide=options.hide, out=options.out, seeds=options.seeds, steps=options.steps,
        algo=options.algo, arguments=arguments, settings=pairs(options.set, "--set"), revealed=options.revealed,
    )  # fmt: skip
    check(config)  # before a folder is made
    folders.make(options.out)
    with run_log(options.out, "ablation"), terminable():
        result = measure(config, _log.info)
    if options.json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        show(result)
    return 0


def show(result: dict[str, Any]) -> None:
    """Print a row per seed, the means with their intervals, and what the hidden columns leave behind."""
    from rich.console import Console
    from rich.table import Table

    view = Table("seed", "shown", "hidden", "shown - hidden", "costs shown", "costs hidden")
    shown, hidden = result["runs"]["shown"], result["runs"]["hidden"]
    for seed, (one, other) in enumerate(zip(shown, hidden, strict=True)):
        view.add_row(
            str(seed), f"{one['mean']:+.3e}", f"{other['mean']:+.3e}", f"{one['mean'] - other['mean']:+.3e}",
            f"{one['costs']:.3e}", f"{other['costs']:.3e}",
        )  # fmt: skip
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    console.print(f"{result['env']}: mean log growth of a validation episode, with and without {result['hide']}")
    console.print(view)
    for name, part in (*result["means"].items(), ("shown - hidden", result["difference"])):
        low, high = part["interval"]
        console.print(f"{name}: {part['mean']:+.3e}, {part['level']:.0%} t-interval {low:+.3e} .. {high:+.3e}")
    lines = [f"{name} ({column} {rank:+.2f})" for name, (column, rank) in result["remains"].items()]
    left = ", ".join(lines[:LISTED]) + (f" and {len(lines) - LISTED} more" if len(lines) > LISTED else "")
    console.print(f"shown columns that go along with a hidden one (rank correlation): {left or 'none'}", style="dim")
