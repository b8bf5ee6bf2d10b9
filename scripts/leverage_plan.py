"""The leverage study on the command line: ``regimegym compare --plan leverage``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

from markets.errors import ConfigError, MissingExtraError
from markets.storage import replace_file
from scripts import folders
from scripts.arguments import pairs, run_log, terminable

if TYPE_CHECKING:
    from agents.leverage_study import Study

OF_OTHERS = ("env", "arm", "algo", "lanes", "encoder", "defrag_encoder")  # flags that the plan decides itself
PICTURE, TABLES = "leverage.png", "leverage.md"

_log = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> int:
    """Play what is missing, write and print."""
    from tqdm.auto import tqdm

    from agents import leverage_report, leverage_study

    study = study_of(options)
    leverage_study.check(study)  # before a folder is made
    folders.make(options.out)
    with (
        run_log(options.out, "compare"), terminable(),
        tqdm(total=study.steps * study.seeds, unit="step", unit_scale=True, disable=options.quiet or None) as bar,
    ):  # fmt: skip
        result = {**leverage_study.run(study, _log.info, bar.update), "quick": options.quick}
    text = leverage_report.markdown(result)
    replace_file(options.out / TABLES, text.encode())
    try:
        leverage_report.draw(result, leverage_study.curves(study), options.out / PICTURE)
    except MissingExtraError as error:
        _log.warning("no picture: %s", error)
    sys.stdout.write(json.dumps(result, indent=1) + "\n" if options.json else text)
    return 0


def study_of(options: argparse.Namespace) -> Study:
    """Read the flags.

    Raises:
        ConfigError: a flag that is not of this plan.
    """
    from agents import leverage_study

    given = [name for name in OF_OTHERS if getattr(options, name) not in (None, [], 0, "ppo")]
    if given:
        flag = given[0].replace("_", "-")
        raise ConfigError(f"--{flag} is not of --plan leverage; arguments of the environment are --env-arg")
    arguments = pairs(options.env_arg, "--env-arg")
    if options.bars is not None and "bars" in arguments:
        raise ConfigError("bars are given twice, by --bars and by --env-arg")
    chosen: dict[str, Any] = dict(leverage_study.QUICK) if options.quick else {}
    bars = arguments.pop("bars", options.bars)
    chosen |= {} if bars is None else {"bars": bars}
    chosen |= {name: getattr(options, name) for name in ("steps", "seeds") if getattr(options, name) is not None}
    return leverage_study.Study(
        out=options.out, arguments=arguments, first_seed=options.first_seed, settings=pairs(options.set, "--set"),
        control=pairs(options.control, "--control"), split=options.split, device=options.device,
        threads=options.threads, **chosen,
    )  # fmt: skip
