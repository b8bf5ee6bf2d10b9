"""Put saved agents (policies and signals) into one that votes, weighs by recent skill, and sizes by confidence.

Base weights by role: rl .30, tft .25, lstm_cnn .20, mean_reversion .10, garch .10, boosting .05, sentiment 0; members
of a role share its weight, absent roles are left out and the rest is scaled to sum to 1. regimegym evaluate walks the
members, the ensemble and the baselines in one table.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from markets.errors import ConfigError
from scripts import folders
from scripts.arguments import add_env_arguments, pairs
from scripts.signals import add_signals, register

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--members",
        nargs="+",
        type=Path,
        required=True,
        metavar="DIR",
        help="agents of regimegym train and signals fit",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where ensemble.zip goes")
    parser.add_argument(
        "--env",
        metavar="ID",
        help="where it acts (default: as the first policy does, one with an encoder before those without)",
    )
    parser.add_argument("--bars", metavar="SPEC", help="other bars than the first member's")
    add_env_arguments(parser)
    parser.add_argument("--weight", action="append", default=[], metavar="ROLE=W", help="weight of a role, repeatable")
    parser.add_argument("--role", action="append", default=[], metavar="DIR=ROLE", help="role of a member, repeatable")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="combine=vote|select, adaptive, threshold, floor, full, max_size, unsure=keep|flat, days, cost, ...",
    )  # fmt: skip
    add_signals(parser)


def run(options: argparse.Namespace) -> int:
    """Build and save."""
    from agents.ensemble_artefact import build, save
    from agents.ensemble_settings import settings_of

    register(options)
    arguments = pairs(options.env_arg, "--env-arg")
    if options.bars is not None:
        arguments["bars"] = options.bars
    roles = pairs(options.role, "--role")
    for name, role in roles.items():
        if not isinstance(role, str) or not role:
            raise ConfigError(f"--role {name}={role}: a role is a name")
    ensemble = build(
        options.members, settings_of(pairs(options.set, "--set")), pairs(options.weight, "--weight"), roles, arguments,
        options.env,
    )  # fmt: skip
    folders.check_holds_no_other(options.out, folders.ENSEMBLE)
    folders.make(options.out)
    path = save(options.out, ensemble, options.members)
    for member, role, weight in zip(ensemble.members, ensemble.roles, ensemble.base, strict=True):
        _log.info("%-24s %-16s weight %.3f", member.name, role, weight)
    _log.info("saved %s; evaluate it with: regimegym evaluate %s", path, options.out)
    return 0
