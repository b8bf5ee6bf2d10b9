"""Train PPO on a synthetic market and evaluate it on bars it never saw, against the baselines: one to three minutes."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from scripts.arguments import whole

_log = logging.getLogger(__name__)
STEPS = 3_000_000
# Four times the usual distance between regimes, so that a minute of training has something to find.
BARS = "synthetic:crypto?seed=0&interval=1h&bars=40000&separation=4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR")
    parser.add_argument("--steps", type=whole, default=STEPS)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Train, then evaluate on the test split."""
    import regimegym

    quiet = ["--quiet"] if options.quiet else []
    _log.info(
        "a synthetic market with exaggerated regimes: it shows that the machinery works, not that markets can be beaten"
    )
    status = regimegym.main(
        ["train", "--env", "PerpFutures-v0", "--algo", "ppo", "--steps", str(options.steps), "--seed", "0",
         "--bars", BARS, "--overwrite", "--env-arg", "leverage=1", "--env-arg", "rebalance_band=0.25",
         "--out", str(options.out), "--threads", str(options.threads), "--evaluations", "5", *quiet]
    )  # fmt: skip
    if status == 0:
        status = regimegym.main(["evaluate", str(options.out), "--split", "test", *quiet])
    return status
