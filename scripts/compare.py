"""Train arms beside each other, every arm with every seed on one market, and compare them seed by seed.

An arm is --arm NAME:key=value,... with arguments of its environment (env=ID for another id); differences are from the
first arm: interquartile means with paired bootstrap intervals over seeds. The last weights of each run are scored on
--split. Runs that --out holds are kept, so that the same command goes on where it was stopped. Two plans are
comparisons of their own. --plan regime-gap: how much of what knowing the regime is worth does an encoder give? --plan
leverage: does leverage by regime help a policy that holds as much without it? Saved agents are compared by regimegym
evaluate.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markets.errors import ConfigError, MissingExtraError
from markets.storage import replace_file
from scripts import folders, leverage_plan
from scripts.arguments import add_env_arguments, pairs, run_log, terminable, value, whole
from scripts.signals import add_signals, register

if TYPE_CHECKING:
    from agents.arm_comparison import Comparison

OF_ARMS = ("env", "arm", "bars", "algo", "env_arg", "lanes")  # flags that a plan decides itself
PICTURE = "compare.png"

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add = parser.add_argument
    add("--plan", choices=["regime-gap", "leverage"], help="a built-in comparison instead of --env and --arm")
    add("--env", metavar="ID", help="registered id of every arm that names no other")
    add("--arm", action="append", default=[], metavar="NAME:key=value,...", help="an arm, repeatable; the first one is "
        "what the others are compared with; NAME alone takes the environment as it is")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="where runs, compare.json and compare.png go")
    add("--bars", metavar="SPEC", help="kind:path?key=value, {seed} stands for the seed; the env's own without")
    add("--algo", default="ppo", metavar="NAME", help="ppo (default) or a2c")
    add("--steps", type=whole, help="of each training (default 500,000; of the plans 600,000 and 300,000)")
    add("--seeds", type=int, help="trainings of each arm (default 5; of the plans 10)")
    add("--first-seed", type=int, default=0, help="the seeds are this one and those after it (default 0)")
    add("--split", default="validation", help="validation (default), or test, whose reading is written down")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="hyperparameter of every arm, repeatable")
    add("--lanes", type=int, default=0, help="parallel accounts (default: the algorithm's)")
    add("--encoder", metavar="DIR", help="of --plan regime-gap: weights of other seeds; pretrained in --out without")
    add("--defrag-encoder", metavar="DIR", help="of --plan regime-gap: the same for the defragmentation encoder")
    add("--control", action="append", default=[], metavar="KEY=VALUE", help="of --plan leverage: setting of the "
        "controller beside what is calibrated, such as patience_bars=6; repeatable")  # fmt: skip
    add("--quick", action="store_true", help="of a plan: 2 seeds and few steps, to see that it runs; no result")
    add("--device", default="cpu", help="cpu (default), cuda, ...")
    add("--threads", type=int, default=1, help="torch threads")
    add("--json", action="store_true", help="print JSON instead of the tables")
    add("--quiet", action="store_true", help="no progress bar")
    add_env_arguments(parser)
    add_signals(parser)


def run(options: argparse.Namespace) -> int:
    """Train what is missing, write and print."""
    from tqdm.auto import tqdm

    from agents import arm_comparison

    register(options)
    if options.plan == "leverage":
        return leverage_plan.run(options)
    if options.control:
        raise ConfigError("--control is of --plan leverage; an arm takes leverage_control=regime?...")
    comparison = _plan(options) if options.plan else _arms(options)
    arm_comparison.check(comparison)  # before a folder is made
    folders.make(options.out)
    total = comparison.total_steps
    with (
        run_log(options.out, "compare"), terminable(),
        tqdm(total=total, unit="step", unit_scale=True, disable=options.quiet or None) as bar,
    ):  # fmt: skip
        result = arm_comparison.run(comparison, _log.info, bar.update)
    if options.plan:
        from agents.regime_gap import judged

        result["regime_gap"] = {**judged(result), "quick": options.quick}
        text = json.dumps(result["regime_gap"], indent=1) + "\n"
        replace_file(options.out / "regime-gap.json", text.encode())
    _draw(result, options.out / PICTURE)
    if options.json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        show(result)
    return 0


def _plan(options: argparse.Namespace) -> Comparison:
    from agents import regime_gap

    given = [name for name in OF_ARMS if getattr(options, name) not in (None, [], 0, "ppo")]
    if given:
        flag = "--" + given[0].replace("_", "-")
        raise ConfigError(f"{flag} is not of --plan {options.plan}, which says itself what is compared")
    chosen: dict[str, Any] = dict(regime_gap.QUICK) if options.quick else {}
    chosen |= {name: getattr(options, name) for name in ("steps", "seeds") if getattr(options, name) is not None}
    encoder, defrag = options.encoder, options.defrag_encoder
    if encoder is None or defrag is None:
        folders.make(options.out)
        with run_log(options.out, "compare"), terminable():
            encoder = encoder or regime_gap.pretrained(options.out / "encoder", quick=options.quick)
            defrag = defrag or regime_gap.pretrained_defrag(options.out / "defrag-encoder", quick=options.quick)
    return regime_gap.plan(
        options.out, encoder, defrag, first_seed=options.first_seed, settings=pairs(options.set, "--set"),
        split=options.split, device=options.device, threads=options.threads, **chosen,
    )  # fmt: skip


def _arms(options: argparse.Namespace) -> Comparison:
    from agents.arm_comparison import Comparison
    from agents.arms import Arm, Recipe, parse_arm

    for name, plans in (
        ("encoder", "regime-gap; an arm takes encoder=DIR"), ("defrag_encoder", "regime-gap; an arm takes encoder=DIR"),
        ("quick", "regime-gap and leverage"),
    ):  # fmt: skip
        if getattr(options, name):
            raise ConfigError(f"--{name.replace('_', '-')} is of --plan {plans}")
    if options.env is None or len(options.arm) < 2:
        raise ConfigError("pass --env ID and at least two --arm NAME:key=value,..., or --plan regime-gap")
    shared = pairs(options.env_arg, "--env-arg")
    if options.bars is not None and "bars" in shared:
        raise ConfigError("bars are given twice, by --bars and by --env-arg")
    bars = shared.pop("bars", options.bars)
    arms = []
    for text in options.arm:
        name, env, texts = parse_arm(text, options.env)
        arms.append(Arm(name=name, env=env, arguments={**shared, **{key: value(word) for key, word in texts.items()}}))
    recipe = Recipe(
        algo=options.algo, settings=pairs(options.set, "--set"), lanes=options.lanes, device=options.device,
        split=options.split, **({} if options.steps is None else {"steps": options.steps}),
    )  # fmt: skip
    return Comparison(
        arms=tuple(arms), recipe=recipe, bars=bars, out=options.out, first_seed=options.first_seed,
        threads=options.threads, **({} if options.seeds is None else {"seeds": options.seeds}),
    )  # fmt: skip


def _draw(result: dict[str, Any], path: Path) -> None:
    from agents.comparison_picture import draw

    try:
        draw(result, path)
    except MissingExtraError as error:
        _log.warning("no picture: %s", error)


def show(result: dict[str, Any]) -> None:
    """Print a row per arm with its difference from the first one, and what a plan says."""
    from rich.console import Console
    from rich.table import Table

    view = Table("arm", "columns", "score [95 %]", f"difference from {result['base']} [95 %]", "costs", "ruined")
    for name, part in result["arms"].items():
        runs = result["runs"][name]
        costs = sum(row["costs"] for row in runs) / len(runs)
        ruined = sum(row["ruined"] for row in runs)
        other = _span(result["differences"][name]) if name in result["differences"] else "-"
        view.add_row(name, str(len(result["columns"][name])), _span(part), other, f"{costs:.4f}", str(ruined))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    console.print(
        f"log growth of an episode on {result['split']}, interquartile mean of {len(result['seeds'])} seeds, "
        f"{result['steps']:,} steps each, bars {result['bars'] or 'of the environment'}"
    )
    console.print(view)
    if "regime_gap" in result:
        _show_gap(result["regime_gap"], console)


def _show_gap(gap: dict[str, Any], console: Any) -> None:
    if gap["quick"]:
        console.print("quick: too few seeds and steps to say anything", style="bold")
    pairs = [name for name in gap if " - " in name]
    console.print(f"gap D - A: {_span(gap['gap'])};  " + ";  ".join(f"{name}: {_span(gap[name])}" for name in pairs))
    for name, part in gap["closed"].items():
        if part["refused"]:
            console.print(f"({name} - A) / (D - A): not said, {part['refused']}")
            continue
        low, high = ("infinite" if bound is None else f"{bound:.1%}" for bound in part["interval"])
        console.print(f"({name} - A) / (D - A): {part['value']:.1%} [{low} .. {high}]")
    regrets = ", ".join(f"{name} {_span(part)}" for name, part in gap["regret"].items())
    console.print(f"regret from F: {regrets}")


def _span(part: dict[str, Any]) -> str:
    low, high = part["interval"]
    return f"{part['iqm']:+.4f} [{low:+.4f} .. {high:+.4f}]"
