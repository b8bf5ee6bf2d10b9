"""Print the card of an encoder: data, command, stored scores, and every figure measured anew on bars."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from markets.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("encoder", metavar="NAME_OR_DIR", help="shipped weights, or what regimegym pretrain wrote")
    parser.add_argument(
        "--bars",
        metavar="SPEC",
        help="bars to measure on (default where the market is generated: an unseen seed)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the card there as well")
    parser.add_argument("--seed", type=int, default=0, help="of checked places and k-means (default 0)")
    parser.add_argument("--json", action="store_true", help="JSON instead of Markdown")


def run(options: argparse.Namespace) -> int:
    """Measure, print and write."""
    import torch

    from encoders import card as jepa_card
    from encoders import defrag_card
    from encoders.defrag_market import DefragEncoder
    from encoders.defrag_measure import measure as measure_defrag
    from encoders.encoder import load
    from encoders.measure import default_encoder, measure
    from encoders.unseen import bars_for
    from markets.storage import replace_file

    if options.seed < 0:
        raise ConfigError(f"--seed {options.seed} must be at least 0")
    if options.out is not None and options.out.is_dir():
        raise ConfigError(f"--out {options.out} is a folder: name a file, such as {options.out / 'card.md'}")
    torch.set_num_threads(1)
    encoder = load(options.encoder)
    bars = bars_for(encoder.provenance, options.bars)
    if isinstance(encoder, DefragEncoder):
        measured = measure_defrag(encoder, bars, options.seed)
        text, values = defrag_card.card(encoder, measured), defrag_card.content(encoder, measured)
    else:
        default = default_encoder(encoder)
        measured = measure(default, bars, options.seed)
        text, values = jepa_card.card(default, measured), jepa_card.content(default, measured)
    if options.json:
        text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    if options.out is not None:
        replace_file(options.out, text.encode())
    sys.stdout.write(text)
    return 0
