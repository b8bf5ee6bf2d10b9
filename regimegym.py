"""RegimeGym: Gymnasium environments and RL agents for regime-aware trading.

``import regimegym`` (or ``gym.make("regimegym:PerpFutures-v0")``) registers every environment id. The same module is
the command line: ``regimegym train ...`` or ``python -m regimegym train ...``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

__version__ = "0.1.0"

PACKAGES = ("markets", "encoders", "envs", "agents", "scripts")
VERBS = {
    "demo": "train and evaluate on a synthetic market, one to three minutes",
    "train": "train an agent on bars and save it",
    "signals": "fit classical signals (pairs, GARCH, boosting, sentiment), or report what they find in bars",
    "ensemble": "put saved agents into one that votes, weighs and sizes, and save it",
    "evaluate": "walk saved agents and every baseline through a split",
    "walk-forward": "retrain fold by fold and stitch the out-of-sample record",
    "pretrain": "train an encoder on bars and save it with its card",
    "encoder-card": "print the card of an encoder, every figure measured anew",
    "visualize": "draw what an encoder sees: embedding, regimes over the price, spectra",
    "encoder-table": "score every encoder beside its controls, on a market with true regimes or on your bars",
    "defrag-bench": "measure the defragmentation encoder beside controls on series whose regimes are known",
    "defrag-monitor": "watch the stream of a deployed defragmentation encoder: is a refit due?",
    "envs": "list the registered environments and their columns",
    "data-doctor": "find (and with --fix repair) defects of a candle file",
    "lookahead": "prove that an environment, feature, encoder or policy cannot see the future",
    "learnability": "show that an environment can be learned when the answer is revealed, and not otherwise",
    "option-study": "measure same-day options: model against quotes, fairness, what limit and market orders cost",
    "ablate": "measure what observation columns are worth: train with and without them on the same seeds",
    "compare": "train arms beside each other on the same seeds and compare them; the regime gap",
    "benchmark": "measure speed as CPU-time ratios against reference loops",
}


def _check_packages() -> None:
    """Refuse to run when a folder of the user's hides one of our packages: it would fail later, and obscurely."""
    home = Path(__file__).resolve().parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or ())] if spec else []
        if home / name not in places:
            found = places[0] if places else "nothing"
            raise ImportError(
                f"the import name {name!r} belongs to RegimeGym ({home / name}), but Python finds {found}. "
                "Rename that folder, or run from another one."
            )


_check_packages()

import envs  # noqa: E402
from markets.bars import Bars  # noqa: E402
from markets.errors import RegimeGymError, unknown  # noqa: E402
from markets.sources import load as load_bars  # noqa: E402
from markets.sources.memory import register_bars  # noqa: E402
from scripts.parser import Parser  # noqa: E402

__all__ = ["Bars", "RegimeGymError", "envs", "load_bars", "main", "register_bars"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit status (2 for bad input, 130 after Ctrl-C)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="regimegym", description=__doc__.split("\n\n")[0])
    parser.add_argument("--version", action="version", version=f"regimegym {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, text in VERBS.items():
        verbs.add_parser(name, help=text, add_help=False)
    if not words or words[0].startswith("-"):
        parser.parse_args(words or ["--help"])
        return 0
    if words[0] not in VERBS:
        sys.stderr.write(f"regimegym: {unknown('verb', words[0], VERBS)}\n")
        return 2
    script = importlib.import_module(f"scripts.{words[0].replace('-', '_')}")
    command = Parser(prog=f"regimegym {words[0]}", description=script.__doc__)
    script.add_arguments(command)
    options = command.parse_args(words[1:])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return int(script.run(options))
    except (RegimeGymError, OSError) as error:
        sys.stderr.write(f"regimegym {words[0]}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"regimegym {words[0]}: stopped\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
