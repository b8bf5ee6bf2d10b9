"""Draw what an encoder sees as PNGs: embedding in two dimensions, regimes over the price, spectra (extra viz)."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from markets.errors import ConfigError, require
from scripts import folders
from scripts.arguments import whole

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("encoder", metavar="DIR_OR_NAME", help="what regimegym pretrain wrote, or shipped weights")
    parser.add_argument(
        "--bars", metavar="SPEC", help="bars to embed (default where the market is generated: an unseen seed)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the PNGs go (default: pictures in its DIR)")
    parser.add_argument(
        "--timeline", type=whole, default=2000, metavar="BARS", help="last bars shown over the price (default 2000)"
    )
    parser.add_argument("--seed", type=whole, default=0, help="of t-SNE (default 0)")


def run(options: argparse.Namespace) -> int:
    """Draw and say where the pictures are."""
    require("matplotlib", "viz")
    import torch

    from encoders.encoder import load
    from encoders.measure import default_encoder
    from encoders.pictures import draw
    from encoders.unseen import bars_for, cautions

    if options.seed < 0:
        raise ConfigError(f"--seed {options.seed} must be at least 0")
    torch.set_num_threads(1)
    encoder = default_encoder(load(options.encoder))
    bars = bars_for(encoder.provenance, options.bars)
    for sentence in cautions(encoder.provenance, bars):
        _log.warning("%s", sentence)
    given = Path(options.encoder)
    out = options.out or ((given if given.is_dir() else Path(given.stem)) / "pictures")
    folders.make(out)
    _log.info("bars: %s", bars.source)
    for path in draw(encoder, bars, out, options.seed, options.timeline):
        _log.info("%s", path)
    return 0
