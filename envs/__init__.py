"""The game: registered Gymnasium environments. Importing this package registers every id (and loads no torch)."""

from __future__ import annotations

import gymnasium as gym

from envs.make import FAMILIES

ENCODERS = {"": "", "-JEPA": "jepa"}  # the encoder part of an id -> kind of encoder; "" is the plain environment


def ids() -> tuple[str, ...]:
    """Return every registered id."""
    return tuple(f"{family}{encoder}-v0" for family in FAMILIES for encoder in ENCODERS)


def register() -> None:
    """Register every id once; a second call changes nothing."""
    for family in FAMILIES:
        for encoder, kind in ENCODERS.items():
            name = f"{family}{encoder}-v0"
            if name not in gym.registry:
                gym.register(
                    id=name,
                    entry_point="envs.make:build",
                    vector_entry_point="envs.make:build_vector",
                    kwargs={"family": family, **({"encoded": kind} if kind else {})},
                )


register()
