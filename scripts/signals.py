"""Fit a classical signal and save it as an agent, or report what the signals find in some bars.

fit: fit --signal NAME on the training range of --env's bars and save it to --out; regimegym evaluate takes it.
report: cointegration, GARCH and boosting of the training range of --bars; several --bars are put side by side.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from markets.errors import ConfigError
from scripts import folders
from scripts.arguments import add_env_arguments, pairs

OWN = {"signal": "fit", "set": "fit", "out": "fit", "env_arg": "fit", "json": "report", "train_end": "report"}
_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("task", choices=("fit", "report"))
    parser.add_argument(
        "--bars", action="append", default=[], metavar="SPEC", help="kind:path?key=value; report: repeatable"
    )
    parser.add_argument("--signal", metavar="NAME", help="fit: mean_reversion, garch, boosting or sentiment")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="fit: setting of the signal")
    parser.add_argument("--env", default="PerpFutures-v0", metavar="ID", help="fit: where it acts (PerpFutures-v0)")
    add_env_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="fit: where signal.zip goes")
    parser.add_argument("--train-end", metavar="DATE", help="report: end of the training range (with --validation-end)")
    parser.add_argument("--validation-end", metavar="DATE", help="report: end of the validation range")
    parser.add_argument("--json", action="store_true", help="report: print JSON instead of lines")
    add_signals(parser)


def add_signals(parser: argparse.ArgumentParser) -> None:
    """Add ``--signals module:Class``, repeatable: models of the user's own."""
    parser.add_argument(
        "--signals", action="append", default=[], metavar="MODULE:CLASS",
        help="a signal model of your own, known by its name from here on; repeatable",
    )  # fmt: skip


def register(options: argparse.Namespace) -> None:
    """Make the user's own signal models known."""
    from encoders import signals

    for place in options.signals:
        signals.register(place)


def run(options: argparse.Namespace) -> int:
    """Fit or report."""
    for name, task in OWN.items():
        if getattr(options, name) and options.task != task:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is of {task}, not of {options.task}: leave it out")
    register(options)
    return _fit(options) if options.task == "fit" else _report(options)


def _fit(options: argparse.Namespace) -> int:
    from agents.signals.agent import fit_signal, save
    from encoders import signals

    if options.signal is None or options.out is None or len(options.bars) > 1:
        raise ConfigError("fit needs --signal NAME, --out DIR and at most one --bars SPEC")
    arguments: dict[str, Any] = pairs(options.env_arg, "--env-arg")
    if options.bars:
        arguments["bars"] = options.bars[0]
    model = signals.make(options.signal, **pairs(options.set, "--set"))
    agent = fit_signal(model, options.env, arguments)
    folders.check_holds_no_other(options.out, folders.SIGNAL)
    folders.make(options.out)
    path = save(options.out, agent)
    _log.info("%s: %s", model.name, json.dumps(model.report()))
    if model.status():
        _log.warning("%s: %s", model.name, model.status())
    _log.info("saved %s; evaluate it with: regimegym evaluate %s", path, options.out)
    return 0


def _report(options: argparse.Namespace) -> int:
    from agents.signals.report import report, text
    from encoders.signals.model import side_by_side
    from markets import sources

    if not options.bars:
        raise ConfigError("report needs --bars SPEC, two for a pair")
    parts = [sources.load(specification) for specification in options.bars]
    bars = parts[0] if len(parts) == 1 else side_by_side(parts)
    result = report(bars, options.train_end, options.validation_end)
    sys.stdout.write(json.dumps(result, indent=1) + "\n" if options.json else text(result))
    return 0
