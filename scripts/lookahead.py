"""Prove that an environment, feature, encoder or policy cannot see the future: replace it, replay, compare bits."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from markets import sources
from markets.errors import ConfigError
from scripts.arguments import add_env_arguments, pairs, whole
from scripts.signals import add_signals, register


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--env", metavar="ID", help="a registered environment")
    subject.add_argument(
        "--module",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="Python files that define table(bars), make_env(bars), make_vector_env(bars), normalise(array), "
        "make_policy(bars) or a policy",
    )
    parser.add_argument(
        "--bars", metavar="SPEC", help="the market (default: 3,000 synthetic hours, 12 sessions of minutes for ZeroDTE)"
    )
    add_env_arguments(parser)
    parser.add_argument("--first-row", type=whole, metavar="N", help="bar of the first observation of make_env")
    parser.add_argument("--trials", type=whole, default=20, help="random places at which the future is replaced")
    parser.add_argument("--seed", type=whole, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_signals(parser)


def run(options: argparse.Namespace) -> int:
    """Look for the future; exit status 1 where it was found."""
    from agents import lookahead

    register(options)
    bars = sources.load(options.bars or lookahead.bars_for(options.env))
    settings = {"first_row": options.first_row, "trials": options.trials, "seed": options.seed}
    arguments = pairs(options.env_arg, "--env-arg")
    if options.module and arguments:
        raise ConfigError("--env-arg goes with --env; a module builds its own environment")
    if options.env:
        results = [lookahead.check_id(options.env, bars, arguments, **settings)]
        settings.pop("first_row")  # lanes begin where their infos say
        lanes = lookahead.check_id_lanes(options.env, bars, arguments, **settings)
        results += [] if lanes is None else [lanes]
    else:
        results = [leaks for path in options.module for leaks in lookahead.check_module(path, bars, **settings)]
    if options.json:
        sys.stdout.write(json.dumps([leaks.to_json() for leaks in results], indent=1) + "\n")
    else:
        sys.stdout.write("\n".join(map(str, results)) + "\n")
    return int(any(results))
