"""Differences between what is expected and what is found, one readable line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTHING = object()


def differences(expected: Mapping[str, Any], found: Mapping[str, Any], path: str = "") -> list[str]:
    """Compare two nested tables of plain values; a line reads ``arguments.leverage: expected 3.0, found 5.0``."""
    lines: list[str] = []
    for key in dict.fromkeys((*expected, *found)):
        want, have = expected.get(key, NOTHING), found.get(key, NOTHING)
        if isinstance(want, Mapping) and isinstance(have, Mapping):
            lines += differences(want, have, f"{path}{key}.")
        elif want != have:
            lines.append(f"{path}{key}: expected {_shown(want)}, found {_shown(have)}")
    return lines


def _shown(value: Any) -> str:
    if value is NOTHING:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
