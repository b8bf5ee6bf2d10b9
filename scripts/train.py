"""Train an agent on bars and save it: one file, agent.zip, with the checkpoint that was best on validation."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from markets.errors import ConfigError
from scripts.arguments import add_env_arguments, pairs, run_log, terminable, whole

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--env", required=True, metavar="ID", help="registered id, such as PerpFutures-v0")
    parser.add_argument("--algo", required=True, metavar="NAME", help="ppo or a2c")
    parser.add_argument("--bars", metavar="SPEC", help="kind:path?key=value; the synthetic market without")
    parser.add_argument(
        "--steps", type=whole, default=1_000_000, help="environment steps over all lanes (default 1,000,000)"
    )
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
    parser.add_argument("--overwrite", action="store_true", help="replace the agent that --out holds")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Train and say where the agent is."""
    from agents.training import TrainingConfig, describe, resolve, train

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
        device=options.device,
        threads=options.threads,
        quiet=options.quiet,
    )
    resolve(config.env, config.arguments)  # name errors before anything is written
    if (options.out / "agent.zip").exists() and not options.overwrite:
        raise ConfigError(f"--out {options.out} holds an agent already: choose another folder or pass --overwrite")
    with run_log(options.out, "training") as log, terminable():
        _log.info("log file: %s", log)
        _log.info("%s", ", ".join(f"{key}={value}" for key, value in describe(config).items()))
        train(config)
    _log.info("evaluate it with: regimegym evaluate %s", options.out)
    _log.info("watch it with:    tensorboard --logdir %s", options.out / "tensorboard")
    return 0
