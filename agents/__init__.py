"""The players: everything that turns observations into actions, and how they are trained, saved and scored."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Offer ``agents.load`` and ``agents.save`` without importing torch until they are used."""
    if name in ("load", "save"):
        from agents import artefact

        return getattr(artefact, name)
    raise AttributeError(f"module 'agents' has no attribute {name!r}")
