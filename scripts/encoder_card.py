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

    from encoders.card import card, content
    from encoders.encoder import load
    from encoders.measure import default_encoder, measure
    from encoders.unseen import bars_for
    from markets.storage import replace_file

    if options.seed < 0:
        raise ConfigError(f"--seed {options.seed} must be at least 0")
    if options.out is not None and options.out.is_dir():
        raise ConfigError(f"--out {options.out} is a folder: name a file, such as {options.out / 'card.md'}")
    torch.set_num_threads(1)
    encoder = default_encoder(load(options.encoder))
    measured = measure(encoder, bars_for(encoder.provenance, options.bars), options.seed)
    text = card(encoder, measured)
    if options.json:
        text = json.dumps(content(encoder, measured), indent=1, allow_nan=False) + "\n"
    if options.out is not None:
        replace_file(options.out, text.encode())
    sys.stdout.write(text)
    return 0
