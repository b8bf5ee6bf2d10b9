"""Measure the defragmentation encoder on series whose regimes are known, beside controls that learn nothing.

Same-regime share of the nearest 16, k-means accuracy (needs scikit-learn), the chain, the predictor, alpha with the
coverage of its interval, novelty; and CPU time of fit, chain and answers.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markets.errors import ConfigError
from markets.storage import replace_file
from scripts import folders

_log = logging.getLogger(__name__)

PARTS = ("cost", "quality")
ROWS = ("ours", "untrained", "learned", "weighted", "moments")
COLUMNS = (
    ("same_regime", "same regime, top 16"), ("kmeans", "k-means"), ("switches", "switches"), ("path", "path / time's"),
    ("kendall", "Kendall"), ("ic", "IC of the 16"),
)  # fmt: skip
LINES = (
    ("pairs of one regime", "order", ("chain", "time", "random")),
    (
        "predictor's skill", "predictor",
        ("chain_on_chain", "chain_on_time", "time_on_chain", "time_on_time", "random_on_time"),
    ),
    ("alpha IC", "alpha", ("ic", "ic_filter", "ic_oracle")),
    ("coverage", "alpha", ("coverage_0.8", "coverage_0.95", "coverage_of_regime_0.8", "coverage_of_regime_0.95")),
    ("confidence AUC", "novelty", ("five-fold", "white noise", "reversed", "held out")),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--dwells", default="2,8,32", metavar="N,...", help="mean stays in a regime (default 2,8,32)")
    parser.add_argument("--seeds", default="50,51,52,53,54", metavar="N,...", help="default 50,51,52,53,54")
    parser.add_argument("--train-blocks", type=int, default=512, help="fitted on (default 512)")
    parser.add_argument("--test-blocks", type=int, default=512, help="held out after them (default 512)")
    parser.add_argument("--hierarchy", default="1", metavar="M,...", help="scales in blocks, from 1 (default 1)")
    parser.add_argument("--only", choices=PARTS, help="one part (default: both)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write defrag-bench.json there")


def run(options: argparse.Namespace) -> int:
    """Measure, print and write."""
    import torch

    from encoders.defrag_bench import DefragBench, cost, quality
    from encoders.defrag_config import DefragConfig

    torch.set_num_threads(1)
    engine = DefragConfig(hierarchy=_numbers(options.hierarchy, "--hierarchy", int))
    bench = DefragBench(
        dwells=_numbers(options.dwells, "--dwells", float), seeds=_numbers(options.seeds, "--seeds", int),
        train_blocks=options.train_blocks, test_blocks=options.test_blocks, engine=engine,
    )  # fmt: skip
    if options.out is not None:
        folders.make(options.out)
    result: dict[str, Any] = {"settings": asdict(bench)}
    if options.only != "quality":
        result["cost"] = cost(bench.engine, _log.info)
    if options.only != "cost":
        result["quality"] = quality(bench, _log.info)
    text = json.dumps(_plain(result), indent=1, allow_nan=False) + "\n"
    if options.out is not None:
        replace_file(options.out / "defrag-bench.json", text.encode())
    if options.json:
        sys.stdout.write(text)
    else:
        _show(result)
    return 0


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from encoders.defrag_bench import CLAIMS

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140)
    for dwell, part in result.get("quality", {}).items():
        mean = part["mean"]
        view = Table("embedding", *(title for _, title in COLUMNS), title=f"mean stay {dwell} blocks, {_seeds(part)}")
        for row in ROWS:
            view.add_row(row, *(_figure(mean[f"embedding.{row}.{name}"]) for name, _ in COLUMNS))
        console.print(view)
        for title, group, names in LINES:
            texts = (f"{name.replace('_', ' ')} {_figure(mean[f'{group}.{name}'])}" for name in names)
            console.print(f"{title}: " + ", ".join(texts))
    if "cost" in result:
        view = Table("cost", "here", "the document, on an M2 Pro")
        for name, value in result["cost"].items():
            view.add_row(name.replace("_", " "), f"{value:.4g}", CLAIMS.get(name, ""))
        console.print(view)


def _seeds(part: dict[str, Any]) -> str:
    seeds = list(part["seeds"])
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of seeds {', '.join(seeds)} ± half the 95 % interval"


def _figure(found: list[float]) -> str:
    mean, _, high = found
    if math.isnan(mean):
        return "needs scikit-learn"
    digits = 0 if abs(mean) >= 10 else 3
    return f"{mean:.{digits}f}" + ("" if math.isnan(high) else f" ± {high - mean:.{digits}f}")


def _numbers(text: str, flag: str, kind: type[Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{flag} {text!r} is not a list of numbers such as 8,32") from error


def _plain(value: Any) -> Any:
    """Return what JSON can hold: nan becomes null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
