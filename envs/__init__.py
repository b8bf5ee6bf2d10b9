"""The game: registered Gymnasium environments. Importing this package registers every id (and loads no torch)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from envs.make import FAMILIES

CONTROLLED = ("PerpFutures",)  # families whose leverage an encoder's regimes can control
CONTROL = {"leverage": 2.0, "leverage_control": "regime"}  # base leverage, and who scales it
ENCODERS = {
    "": "",
    "-JEPA": "jepa",
    "-Defrag": "defrag",
}  # the encoder part of an id -> kind of encoder; "" is the plain environment


def ids() -> tuple[str, ...]:
    """Return every registered id."""
    return tuple(_arguments())


def register() -> None:
    """Register every id once; a second call changes nothing."""
    for name, arguments in _arguments().items():
        if name not in gym.registry:
            gym.register(
                id=name,
                entry_point="envs.make:build",
                vector_entry_point="envs.make:build_vector",
                kwargs=arguments,
            )


def _arguments() -> dict[str, dict[str, Any]]:
    """Return the arguments that each id stands for."""
    found: dict[str, dict[str, Any]] = {}
    for family in FAMILIES:
        for encoder, kind in ENCODERS.items():
            arguments = {"family": family, **({"encoded": kind} if kind else {})}
            found[f"{family}{encoder}-v0"] = arguments
            if kind and family in CONTROLLED:
                found[f"{family}{encoder}-RegimeLeverage-v0"] = {**arguments, **CONTROL}
    return found


register()
