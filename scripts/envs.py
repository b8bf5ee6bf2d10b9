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
        given = gym.spec(name).kwargs
        kind, encoded = family_of(given["family"]), given.get("encoded", "")
        told = f" Observes the {encoded} encoder's embedding and regime odds as well." if encoded else ""
        controlled = given.get("leverage_control", "")
        told += " Its leverage follows the regimes." if controlled else ""
        write(f"{name:24s} {(kind.env.__doc__ or '').splitlines()[0]}{told}\n")
        if options.arguments:
            for item in fields(kind.config):
                write(f"    {item.name} = {given.get(item.name, item.default)!r}\n")
            write(f"\n{inspect.getdoc(kind.config)}\n\n")
        if options.columns and controlled:
            write(f"\nThe columns of {name.replace('-RegimeLeverage', '')}, then one more:\n")
            write(_leverage())
        elif options.columns and encoded:
            write(f"\nThe columns of {given['family']}-v0, then the encoder's, by market and interval of the bars:\n")
            write(_encoders(encoded))
            write(_meanings(encoded))
        elif options.columns:
            write("\n| column | formula | unit | served | bounds | look-back |\n|---|---|---|---|---|---|\n")
            for row in kind.columns():
                write("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n")
            write("\n")
    if options.columns:
        write(_signals())
    return 0


def _leverage() -> str:
    """Describe what a controlled leverage appends, as Markdown."""
    from envs.leverage import COLUMN

    return (
        "\n| column | formula | unit | served | bounds | look-back |\n|---|---|---|---|---|---|\n"
        f"| {COLUMN} | leverage asked for the next action / max_leverage (`envs.leverage`) | fraction | as is | 0 .. 1 "
        "| patience_bars - 1 + transition_bars |\n\n"
    )


def _signals() -> str:
    """Describe what the signals of the package append where an environment is told to, as Markdown."""
    from encoders.signals import SIGNALS, signal_kind

    lines = [
        "`signals=NAME` of any id appends these, of several coins one column each (`ETH_garch_direction`); formulas",
        "with the settings of a model that is named. ZeroDTE plays sessions, and takes models that understand them.",
        "",
        "| column | formula | unit | served | bounds | look-back | sessions |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in SIGNALS:
        kind = signal_kind(name)
        for column, formula, unit, bounds, back in kind.described:
            cells = (f"{name}_{column}", formula, unit, "as is", bounds, back, "yes" if kind.sessions else "no")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _meanings(kind: str) -> str:
    """Describe the columns of an encoder whose names say something, as Markdown; empty where they are numbered."""
    from encoders.encoder import kind_of

    described = getattr(kind_of(kind), "described", ())
    if not described:
        return ""
    lines = ["| columns | what they say | bounds |", "|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in described]
    return "\n".join([*lines, "", ""])


def _encoders(kind: str) -> str:
    """Describe what the shipped weights of a kind append, as Markdown."""
    from encoders.encoder import load, shipped

    lines = [
        "",
        "| weights | columns before the odds | odds of the regimes, 0 .. 1 | warm-up, bars | fitted on |",
    ]
    lines.append("|---|---|---|---|---|")
    for name in shipped():
        encoder = load(name)
        if encoder.kind == kind:
            split = len(encoder.names) - encoder.regimes
            latent, odds = encoder.names[:split], encoder.names[split:]
            origin = encoder.provenance
            seeds = f"seeds {origin.seeds[0]} - {origin.seeds[-1]}" if origin.seeds else ""
            real = f"bars closed by {origin.train_end[:10]}" if origin.has_real else ""
            fitted = " and ".join(part for part in (real, seeds) if part)
            lines.append(
                f"| {name} | {latent[0]} .. {latent[-1]} | {odds[0]} .. {odds[-1]} | {encoder.warm_up:,} | {fitted} |"
            )
    return "\n".join([*lines, "", ""])
