"""Measure speed as CPU-time ratios against reference loops, in one process and on one thread."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from scripts.arguments import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--env", default="PerpFutures-v0", metavar="ID")
    parser.add_argument("--rounds", type=whole, default=7, help="interleaved rounds, of which the median is taken")
    parser.add_argument("--no-training", action="store_true", help="leave PPO end to end out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def run(options: argparse.Namespace) -> int:
    """Measure and print; exit status 1 when a bound is missed."""
    from agents.benchmark import run as measure

    result = measure(options.env, options.rounds, training=not options.no_training)
    if options.json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        show(result)
    return int(any(part["holds"] is False for part in (*result["rows"], *result["facts"])))


def show(result: dict[str, Any]) -> None:
    """Print the rows as a table, and a line a fact."""
    from rich.console import Console
    from rich.table import Table

    view = Table("comparison", "actions", "ns/step", "steps/s", "reference ns", "ratio", "bound", "goal")
    for row in result["rows"]:
        bound = "-" if row["bound"] is None else f"{row['bound']:g} {_word(row['holds'])}"
        goal = "-" if row["goal"] is None else f"{row['goal']:g}"
        view.add_row(
            row["name"], row["stream"], f"{row['nanoseconds']:,.0f}", f"{row['steps_per_second']:,.0f}",
            f"{row['reference']:,.1f}", f"{row['ratio']:.4f}", bound, goal,
        )  # fmt: skip
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 180)
    console.print(view)
    for name, reason in result["no_row_for"].items():
        console.print(f"no row for {name}: {reason}", highlight=False)
    for fact in result["facts"]:
        bound = "" if fact["bound"] is None else f", at most {fact['bound']:g} {_word(fact['holds'])}"
        console.print(f"{fact['name']}: {fact['value']:,.3g}{bound}", highlight=False)


def _word(holds: bool) -> str:
    return "met" if holds else "MISSED"
