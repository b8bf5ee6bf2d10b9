"""Train PPO on a synthetic market and evaluate it on bars it never saw, against the baselines: one to three minutes."""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path

from scripts import folders
from scripts.arguments import whole

_log = logging.getLogger(__name__)
OUT = Path("runs/demo")
STOPPED = (130, 143)  # exit statuses of train after Ctrl-C and SIGTERM, which saved a checkpoint
STEPS = 3_000_000
# Four times the usual distance between regimes, so that a minute of training has something to find.
BARS = "synthetic:crypto?seed=0&interval=1h&bars=40000&separation=4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"default: {OUT}, or the first free of {OUT}-2, {OUT}-3, ..."
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the agent and the run that the folder holds")
    parser.add_argument("--steps", type=whole, default=STEPS)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Train, then evaluate on the test split."""
    import regimegym

    out = options.out or (OUT if options.overwrite else folders.free(OUT))
    quiet = ["--quiet"] if options.quiet else []
    _log.info(
        "a synthetic market with exaggerated regimes: it shows that the machinery works, not that markets can be beaten"
    )
    if out != (options.out or OUT):
        _log.info("%s holds an earlier demo, which is kept: this one goes to %s (or pass --overwrite)", OUT, out)
    words = (
        ["train", "--env", "PerpFutures-v0", "--algo", "ppo", "--steps", str(options.steps), "--seed", "0",
         "--bars", BARS, "--env-arg", "leverage=1", "--env-arg", "rebalance_band=0.25",
         "--out", str(out), "--threads", str(options.threads), "--evaluations", "5", *quiet]
    )  # fmt: skip
    status = regimegym.main([*words, *(["--overwrite"] if options.overwrite else [])])
    if status in STOPPED:
        _log.info("which is here: regimegym %s --resume", shlex.join(words))
    if status == 0:
        status = regimegym.main(["evaluate", str(out), "--split", "test", *quiet])
    return status
