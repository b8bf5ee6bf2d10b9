"""Retrain again and again and test each agent on what follows: one out-of-sample record, stitched from the folds.

Each fold trains on the past, chooses its checkpoint on the last part of it, and is tested on the bars after that.
Prints every fold and the stitched record beside every baseline, with 95 % intervals. Finished folds in --out are kept,
so that the same command goes on where it was stopped. Not for ZeroDTE, whose episodes are sessions.
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

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--env", required=True, metavar="ID", help="registered id, such as PerpFutures-v0")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where folds and walk-forward.json go")
    parser.add_argument("--bars", metavar="SPEC", help="kind:path?key=value; the synthetic market without")
    parser.add_argument("--algo", default="ppo", metavar="NAME", help="ppo (default), a2c, recurrent_ppo or tqc")
    parser.add_argument("--steps", type=whole, default=500_000, help="of each fold's training (default 500,000)")
    parser.add_argument("--folds", type=int, default=5, help="tests, one after the other (default 5)")
    parser.add_argument("--first", type=float, default=0.5, help="share of bars before the first test (default 0.5)")
    parser.add_argument(
        "--validation", type=float, default=0.25, help="share of each fit that chooses the checkpoint (default 0.25)"
    )
    parser.add_argument(
        "--embargo-bars", type=whole, default=0, metavar="N", help="bars left out before each test (default: none)"
    )
    parser.add_argument(
        "--rolling", action="store_true", help="fit on as many bars in every fold, instead of from the first bar on"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="hyperparameter, repeatable")
    parser.add_argument("--lanes", type=int, default=0, help="parallel accounts (default: the algorithm's)")
    parser.add_argument("--evaluations", type=int, default=10, help="how often the validation slice is scored")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    add_env_arguments(parser)
    add_signals(parser)


def run(options: argparse.Namespace) -> int:
    """Train and test what is missing, write and print."""
    from agents.walk_forward import WalkForwardConfig, prepare
    from agents.walk_forward import run as measure

    register(options)
    arguments = pairs(options.env_arg, "--env-arg")
    if options.bars is not None:
        arguments["bars"] = options.bars
    config = WalkForwardConfig(
        env=options.env, algo=options.algo, steps=options.steps, out=options.out, seed=options.seed,
        folds=options.folds, first=options.first, validation=options.validation, embargo_bars=options.embargo_bars,
        anchored=not options.rolling, arguments=arguments, settings=pairs(options.set, "--set"), lanes=options.lanes,
        evaluations=options.evaluations, device=options.device,
    )  # fmt: skip
    prepare(config)  # before a folder is made
    folders.make(options.out)
    with run_log(options.out, "walk-forward"), terminable():
        result = measure(config, _log.info)
    if options.json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        show(result)
    return 0


def show(result: dict[str, Any]) -> None:
    """Print a row per fold, and the stitched record beside the baselines."""
    from rich.console import Console
    from rich.table import Table

    from agents.report import with_interval

    def cells(row: dict[str, Any]) -> tuple[str, str]:
        returns = with_interval(row["total_return"], row["total_return_interval"], 100.0, "%")
        return returns, with_interval(row["sharpe"], row["sharpe_interval"], 1.0, "")

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    view = Table("fold", "fit until", "test", "chosen at", "validation Sharpe", "return [95 %]", "Sharpe [95 %]")
    for place, row in enumerate(result["folds"], 1):
        chosen = row["chosen_on_validation"] or {"steps": 0, "sharpe": float("nan")}
        view.add_row(
            str(place), row["validation"][1][:10], f"{row['test'][0][:10]} to {row['test'][1][:10]}",
            f"{chosen['steps']:,}", f"{chosen['sharpe']:.2f}", *cells(row["scores"]["agent"]),
        )  # fmt: skip
    again = sum(row["touches"] > 1 for row in result["folds"])
    if again:
        said = "their tests were read on this machine before; what was chosen after looking at them is no test."
        console.print(f"**READ BEFORE**: {again} of {len(result['folds'])} folds: {said}", style="bold", markup=False)
    console.print(f"{result['env']} on {result['source']}, {result['scheme']}, embargo {result['embargo_bars']} bars")
    console.print(view)
    view = Table("stitched", "return [95 %]", "Sharpe [95 %]", "DSR", "max drawdown")
    for name, row in result["table"].items():
        deflated = row.get("deflated_sharpe")
        shown = "-" if deflated is None else f"{deflated:.3f}"
        view.add_row(name, *cells(row), shown, f"{100 * row['max_drawdown']:.1f} %")
    console.print(view)
    console.print(
        f"{result['table']['agent']['bars']:,} bars out of sample; each fold starts flat. Stationary bootstrap, blocks "
        f"of one week. DSR: deflated over {result['runs']} walk-forward run(s) known on these bars.",
        style="dim",
    )
