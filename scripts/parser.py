"""The argument parser of every verb: what it refuses, it names with the nearest flag that exists."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """argparse that says which flag was probably meant, where a setting goes, and what an empty flag wants."""

    _words: tuple[str, ...] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Remember the words, for the message."""
        self._words = tuple(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End with status 2 and a message that says what to write instead."""
        hints = [self._wanted(message), *(self._hint(word) for word in self._strange())]
        super().error(". ".join([message, *(hint for hint in hints if hint)]))

    def _strange(self) -> list[str]:
        """Return the flags that were given and that neither exist nor abbreviate one that does."""
        words = (word.partition("=")[0] for word in self._words if word.startswith("--") and word != "--")
        valid: Sequence[str] = tuple(self._option_string_actions)
        return [word for word in words if not any(flag.startswith(word) for flag in valid)]

    def _hint(self, word: str) -> str:
        name = word.lstrip("-").replace("-", "_")
        for flag, names in (("--set", _hyperparameters), ("--env-arg", _arguments)):
            if flag in self._option_string_actions and name in names():
                return f"{word}: write {flag} {name}=VALUE"
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        close = difflib.get_close_matches(word, flags, n=1, cutoff=0.5)
        return f"{word}: did you mean {close[0]}?" if close else ""

    def _wanted(self, message: str) -> str:
        """Say what a flag without its value is for."""
        if not message.endswith("expected one argument"):
            return ""
        for flag, action in self._option_string_actions.items():
            if f" {flag}" in message.replace("/", " ").replace(":", " ").replace("argument", ""):
                word = action.metavar or action.dest.upper()
                return f"Write {flag} {word}: {action.help}" if action.help else f"Write {flag} {word}"
        return ""


def _hyperparameters() -> frozenset[str]:
    from agents.hyperparameters import RANGES

    return frozenset(RANGES)


def _arguments() -> frozenset[str]:
    from envs.make import FAMILIES, family_of

    return frozenset(name for family in FAMILIES for name in family_of(family).config.__dataclass_fields__)
