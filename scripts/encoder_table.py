"""Make the table of encoders that README and cards quote; what is finished in --out is not computed again.

With --market regimes every row is trained on closes alone of the public training series and scored on the public test
series against their true regimes. With --bars it is fitted on real bars up to --train-end and scored up to --test-end
by what it knows of the volatility to come.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markets.errors import ConfigError, MissingExtraError
from markets.synthetic_regimes import LEVELS
from markets.synthetic_stress import STRESSES
from scripts import folders
from scripts.arguments import run_log, terminable

if TYPE_CHECKING:
    from encoders.table_bars import RealBars
    from encoders.table_fits import FitConfig
    from encoders.table_market import Market
    from encoders.table_rows import Benchmark

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--market", choices=["regimes"], help="synthetic market with true regimes")
    what.add_argument("--bars", action="append", metavar="SPEC", help="kind:path?key=value, repeatable")
    parser.add_argument("--level", choices=[*LEVELS, *STRESSES], help="of --market (default market)")
    parser.add_argument("--train-end", metavar="DATE", help="of --bars: last day that is fitted on")
    parser.add_argument("--test-end", metavar="DATE", help="of --bars: last day that is scored")
    parser.add_argument("--seeds", type=int, default=5, help="training seeds 0 .. N-1 (default 5)")
    parser.add_argument("--rows", metavar="NAME,...", help="only these rows (default: all)")
    parser.add_argument("--steps", type=int, help="optimiser steps of the encoder (default: of the recipe)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the table and its parts go")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Compute what is missing, write and print the table."""
    from tqdm.auto import tqdm

    from encoders.encoder_table import fill, plot
    from encoders.pretrain import torch_threads
    from encoders.table_rows import chosen

    torch_threads(1)
    folders.make(options.out)
    with run_log(options.out, "encoder-table"), terminable(), tqdm(disable=options.quiet or None, unit="row") as bar:
        shown = _Shown(bar)
        benchmark, figure = _benchmark(options, shown)
        rows = chosen(benchmark.rows, options.rows.split(",") if options.rows else None)
        table = fill(benchmark, rows, options.seeds, options.out, shown.row)
    try:
        plot(table, figure, options.out / "table.png")
    except MissingExtraError as error:
        _log.warning("no table.png: %s", error)
    sys.stdout.write((options.out / "table.md").read_text(encoding="utf-8"))
    return 0


def _benchmark(options: argparse.Namespace, shown: _Shown) -> tuple[Benchmark, str]:
    """Build what is asked for, and say which figure its plot shows."""
    if options.bars is None:
        return _market(options, shown), "ari"
    return _real(options, shown), "r2"


def _market(options: argparse.Namespace, shown: _Shown) -> Market:
    from encoders.table_market import Market, MarketConfig

    for flag, value in (("--train-end", options.train_end), ("--test-end", options.test_end)):
        if value is not None:
            raise ConfigError(f"{flag} {value}: is of --bars; --market has fixed series to train and to score on")
    config = MarketConfig(level=options.level or "market")
    return Market(replace(config, fits=_fits(options, config.fits)), options.out, shown.step)


def _real(options: argparse.Namespace, shown: _Shown) -> RealBars:
    from encoders.table_bars import RealBars, RealConfig
    from markets.sources import load

    if options.level is not None:
        raise ConfigError(f"--level {options.level}: is of --market, not of --bars")
    for flag, value in (("--train-end", options.train_end), ("--test-end", options.test_end)):
        if value is None:
            raise ConfigError(f"{flag} DATE is needed with --bars")
    config = RealConfig(train_end=options.train_end, test_end=options.test_end)
    config = replace(config, fits=_fits(options, config.fits))
    return RealBars([load(spec) for spec in options.bars], config, options.out, shown.step)


def _fits(options: argparse.Namespace, recipe: FitConfig) -> FitConfig:
    return recipe if options.steps is None else replace(recipe, jepa=replace(recipe.jepa, steps=options.steps))


class _Shown:
    """Moves the bar by rows, and says beside it how far the training in progress is."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def row(self, done: int, total: int, name: str, seed: int) -> None:
        """Count a finished row."""
        self.bar.total, self.bar.n = total, done
        self.bar.set_description(f"{name}, seed {seed}" if name else "done", refresh=False)
        self.bar.set_postfix_str("", refresh=False)
        self.bar.update(0)

    def step(self, step: int, total: int, figures: dict[str, float]) -> None:
        """Say how far a training is."""
        if step % 20 == 0 or step == total:
            text = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            self.bar.set_postfix_str(f"{step} of {total}, {text}")
