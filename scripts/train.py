"""Train an agent on bars and save it: one file, agent.zip, with the weights that were best on validation.

Exit status: 0, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM. After either signal a checkpoint and the agent so
far are saved, and --resume goes on from there, as it does after a kill; a second signal quits at once.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from markets.errors import ConfigError
from scripts import folders
from scripts.arguments import Terminated, add_env_arguments, pairs, run_log, terminable, whole
from scripts.signals import add_signals, register

TERMINATED = 143  # exit status after SIGTERM, as shells count it: 128 + 15

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--env", required=True, metavar="ID", help="registered id, such as PerpFutures-v0")
    parser.add_argument("--algo", required=True, metavar="NAME", help="ppo, a2c, recurrent_ppo, tqc or maskable_ppo")
    parser.add_argument("--bars", metavar="SPEC", help="kind:path?key=value; the synthetic market without")
    parser.add_argument(
        "--steps", type=whole, default=1_000_000,
        help="environment steps over all lanes (default 1,000,000), rounded up to whole rollouts: bars of a rollout x "
        "lanes, 64 x 256 = 16,384 for ppo unless --set n_steps or --lanes say otherwise",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where agent.zip, logs and TensorBoard go"
    )
    add_env_arguments(parser)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="hyperparameter, repeatable")
    parser.add_argument("--lanes", type=int, default=0, help="parallel accounts (default: the algorithm's)")
    parser.add_argument("--evaluations", type=int, default=10, help="how often the validation split is scored")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads; more than one helps only on an idle machine"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, from its newest training checkpoint"
    )
    parser.add_argument(
        "--checkpoint-every", type=whole, default=0, metavar="STEPS",
        help="steps between training checkpoints, of which the last two are kept (default 100,000)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the agent and the run that --out holds")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_signals(parser)


def run(options: argparse.Namespace) -> int:
    """Train and say where the agent is."""
    from agents.recipe import TrainingConfig, describe, resolve
    from agents.sb3 import check_actions
    from agents.training import train
    from envs.make import family_of, game_of

    register(options)
    arguments = pairs(options.env_arg, "--env-arg")
    if options.bars is not None:
        arguments["bars"] = options.bars
    config = TrainingConfig(
        env=options.env,
        algo=options.algo,
        steps=options.steps,
        seed=options.seed,
        out=options.out,
        arguments=arguments,
        settings=pairs(options.set, "--set"),
        lanes=options.lanes,
        evaluations=options.evaluations,
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
        device=options.device,
        threads=options.threads,
        quiet=options.quiet,
    )
    family, game_config = resolve(config.env, config.arguments)
    game = game_of(family, game_config)  # what is wrong with names and bars comes before --out
    check_actions(config.algo, family_of(family).action_space(game_config), game.masks is not None)
    _check_out(options)
    folders.make(options.out)
    with run_log(options.out, "training") as log:
        _log.info("log file: %s", log)
        _log.info("%s", ", ".join(f"{key}={value}" for key, value in describe(config).items()))
        try:
            with terminable():
                train(config)
        except KeyboardInterrupt as stopped:
            terminated = isinstance(stopped, Terminated)
            _log.info("ended by %s; %s", "SIGTERM" if terminated else "Ctrl-C", _way_on(options.out))
            if terminated:
                return TERMINATED
            raise
    _log.info("evaluate it with: regimegym evaluate %s", options.out)
    _log.info("watch it with:    tensorboard --logdir %s", options.out / "tensorboard")
    return 0


def _check_out(options: argparse.Namespace) -> None:
    """Refuse to write over what a folder holds unless told what to do with it."""
    if options.resume and options.overwrite:
        raise ConfigError("--resume goes on with the run in --out, --overwrite replaces it: pass one of them")
    if options.resume:
        folders.check_resume(options.out)
    what = folders.occupied(options.out)
    if what and not (options.resume or options.overwrite):
        raise ConfigError(
            f"--out {options.out} holds {what} already: choose another folder, pass --overwrite, or --resume to go on"
        )


def _way_on(out: Path) -> str:
    """Say from which step the run goes on, as far as a checkpoint is there."""
    steps = [int(path.stem.rpartition("-")[2]) for path in out.glob(folders.BEGUN)]
    if not steps:
        return "no checkpoint was written yet: the same command with --resume begins anew"
    return f"go on with the same command and --resume, from the checkpoint of step {max(steps):,}"
