"""List the registered environments, their arguments and the columns of their observations."""

from __future__ import annotations

import argparse
import inspect
import sys
from dataclasses import fields


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--columns", action="store_true", help="print the observation columns as Markdown")
    parser.add_argument(
        "--arguments", action="store_true", help="print the arguments of each family and their defaults"
    )


def run(options: argparse.Namespace) -> int:
    """Print what was asked for."""
    import gymnasium as gym

    import envs
    from envs.make import family_of

    write = sys.stdout.write
    for name in envs.ids():
        kind = family_of(gym.spec(name).kwargs["family"])
        write(f"{name:24s} {(kind.env.__doc__ or '').splitlines()[0]}\n")
        if options.arguments:
            for item in fields(kind.config):
                write(f"    {item.name} = {item.default!r}\n")
            write(f"\n{inspect.getdoc(kind.config)}\n\n")
        if options.columns:
            write("\n| column | formula | unit | served | bounds | look-back |\n|---|---|---|---|---|---|\n")
            for row in kind.columns():
                write("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n")
            write("\n")
    return 0
