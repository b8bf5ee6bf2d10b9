"""What several verbs share on the command line: environment arguments as KEY=VALUE, and the log file of a run."""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from markets.errors import ConfigError


def add_env_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--env-arg KEY=VALUE``, repeatable."""
    parser.add_argument(
        "--env-arg", action="append", default=[], metavar="KEY=VALUE", help="argument of the environment, repeatable"
    )


def pairs(words: Sequence[str], flag: str) -> dict[str, Any]:
    """Read ``KEY=VALUE`` words; values are JSON where they parse as such, else text.

    Raises:
        ConfigError: a word without ``=``, or a key given twice.
    """
    result: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{flag} {word!r} is not KEY=VALUE")
        if key in result:
            raise ConfigError(f"{flag} {key!r} is given twice")
        result[key] = value(text)
    return result


def value(text: str) -> Any:
    """Read a number, true/false, null or a JSON list; everything else (dates, names) is text."""
    named = {"True": True, "False": False, "None": None}
    if text in named:
        return named[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def whole(text: str) -> int:
    """Read a whole number, also one written as 1e6 or 1_000_000."""
    number = float(text)
    if not math.isfinite(number) or number != int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(number)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


@contextmanager
def terminable() -> Iterator[None]:
    """Treat SIGTERM (a batch scheduler, ``kill``, ``timeout``) as Ctrl-C, so that a run saves before it ends.

    Raises:
        Terminated: inside, when the signal arrives.
    """

    def stop(*_: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: the program around us owns the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def run_log(directory: Path, name: str) -> Iterator[Path]:
    """Write every log line of a run to ``directory/name.log`` as well."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.log"
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)  # also where the host program set up its own
    try:
        yield path
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()
