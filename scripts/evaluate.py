"""Walk saved agents and every baseline through a split: table, equity and drawdown plot, JSON; by regime too if asked.

Where an episode is a session, the ledger of trades and the results of every session come as CSV files too.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from markets.errors import InSampleError, MissingExtraError
from markets.storage import replace_file
from scripts import folders
from scripts.arguments import add_env_arguments, pairs
from scripts.signals import add_signals, register

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("agents", nargs="+", type=Path, metavar="DIR", help="directories of train, signals or ensemble")
    parser.add_argument("--split", default="test", help="train, validation or test (default; each reading is logged)")
    parser.add_argument("--bars", metavar="SPEC", help="other bars than the agents were trained on")
    add_env_arguments(parser)
    parser.add_argument(
        "--by-regime", action="store_true",
        help="report every agent by regime too: the true one of generated bars, else the encoder's most likely one",
    )  # fmt: skip
    parser.add_argument(
        "--choose", action="store_true",
        help="say which agent is best by validation, beside the table of another split (validation says it unasked)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the report goes (default: the first agent's DIR)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_signals(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate and write the report."""
    import torch

    from agents import regime_picture, report
    from agents.comparison import compare

    register(options)
    torch.set_num_threads(1)  # one observation at a time: threads that wait for each other cost more than they give
    changes = pairs(options.env_arg, "--env-arg")
    if options.bars is not None:
        changes["bars"] = options.bars
    if options.out is not None:
        folders.make(options.out)
    try:
        result = compare(options.agents, options.split, changes, options.quiet, options.by_regime, options.choose)
    except InSampleError as error:
        raise InSampleError(f"{error}; on the command line: --env-arg allow_in_sample=true") from error
    first = options.agents[0]
    out = options.out or (first.parent if first.is_file() else first)
    name = f"evaluation-{options.split}"
    ledger = report.write_ledger(result, out, name)
    content = {key: value for key, value in result.items() if key != "walks"} | {"flags": report.flags(result)}
    if ledger:
        content["ledger"] = ledger
    replace_file(out / f"{name}.json", json.dumps(content, indent=1, allow_nan=False).encode())
    replace_file(out / f"{name}.md", report.markdown(result, result["table"]).encode())
    if options.json:
        sys.stdout.write(json.dumps(content, indent=1, allow_nan=False) + "\n")
    else:
        show(result)
    try:
        _log.info("plot: %s", report.plot(result, out / f"{name}.png"))
        if "by_regime" in result:
            _log.info("plot by regime: %s", regime_picture.draw(result, out / f"{name}-by-regime.png"))
    except MissingExtraError as error:
        _log.warning("no plot: %s", error)
    _log.info("table: %s, numbers: %s", out / f"{name}.md", out / f"{name}.json")
    for what, file in ledger.items():
        _log.info("%s: %s", what, out / file)
    return 0


def show(result: dict[str, Any]) -> None:
    """Print the table and its notes to the terminal."""
    from rich.console import Console
    from rich.table import Table

    from agents import report

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200)
    headings = report.columns(result["table"])
    narrow = report.NARROW if headings == report.COLUMNS else report.NARROW_SESSIONS
    places = range(len(headings)) if console.width >= 190 else narrow
    for sentence in report.flags(result):
        console.print(sentence, style="bold", markup=False)
    view = Table(*(headings[place] for place in places), show_lines=False)
    for cells in report.table(result["table"]):
        view.add_row(*(cells[place] for place in places))
    console.print(view)
    for sentence in report.notes(result):
        console.print(sentence, style="dim")
    if "by_regime" in result:
        view = Table(*report.regime_columns(result["by_regime"]))
        for cells in report.regime_table(result["by_regime"]):
            view.add_row(*cells)
        console.print(view)
        for sentence in report.regime_notes(result["by_regime"]):
            console.print(sentence, style="dim")
