"""Infos as numbers: what a policy could read beside the observation, one lane and one replay after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MANY = 64  # numbers of an array that become columns of their own; a longer one becomes one column, its hash
FINAL = ("final_obs", "final_info")  # of lanes that ended, beside the infos of lanes that go on


class InfoColumns:
    """Numeric entries of infos as columns; the first replay says which there are.

    Attributes:
        names: ``info[key]``, ``info[key.inner]`` and ``info[key][3]``; None before the first replay.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] | None = None

    def table(self, infos: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        """Return ``(R, C)`` numbers of R infos, NaN where one has no such entry."""
        lines = [numbers(info) for info in infos]
        if self.names is None:
            self.names = tuple(dict.fromkeys(name for line in lines for name in line))
        values = [[line.get(name, np.nan) for name in self.names] for line in lines]
        return np.array(values, np.float64).reshape(len(lines), len(self.names))

    def stack(self, calls: Sequence[Mapping[str, NDArray[np.float64]]], lanes: int) -> NDArray[np.float64]:
        """Return ``(S, N, C)`` numbers of S calls of N lanes, as :func:`batch` reads them."""
        if self.names is None:
            self.names = tuple(dict.fromkeys(name for call in calls for name in call))
        nothing = np.full(lanes, np.nan)
        values = [[call.get(name, nothing) for name in self.names] for call in calls]
        return np.array(values, np.float64).reshape(len(calls), len(self.names), lanes).swapaxes(1, 2)


def numbers(info: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numeric entries of an info by name; times and texts are left out."""
    found: dict[str, float] = {}
    for key, value in info.items():
        name = f"{prefix}{key}"
        if type(value) is float:  # nearly all
            found[f"info[{name}]"] = value
        elif isinstance(value, Mapping):
            found |= numbers(value, f"{name}.")
        elif isinstance(value, bool | int | float | np.number | np.bool_):
            found[f"info[{name}]"] = float(value)
        elif isinstance(value, np.ndarray | list | tuple):
            found |= _entries(f"info[{name}]", value)
    return found


def _entries(name: str, value: Any) -> dict[str, float]:
    try:
        array = np.asarray(value)
    except ValueError:  # a list of things of different shapes
        return {}
    if array.dtype.kind not in "biuf":
        return {}
    if array.size > MANY:
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
        return {f"{name}[:]": float(int.from_bytes(digest[:6], "big"))}
    return {f"{name}[{place}]": float(number) for place, number in enumerate(array.ravel().tolist())}


def batch(infos: Mapping[str, Any], lanes: int, prefix: str = "") -> dict[str, NDArray[np.float64]]:
    """Return the numeric entries of N lanes' infos by name: ``(N,)``, NaN where Gymnasium masks a lane."""
    found: dict[str, NDArray[np.float64]] = {}
    for key, value in infos.items():
        if key in FINAL or (key.startswith("_") and key[1:] in infos):
            continue
        if isinstance(value, Mapping):
            parts = batch(value, lanes, f"{prefix}{key}.")
        elif isinstance(value, np.ndarray) and value.shape == (lanes,) and value.dtype.kind in "biuf":
            parts = {f"info[{prefix}{key}]": value.astype(np.float64)}
        elif isinstance(value, np.ndarray | list | tuple) and len(value) == lanes:
            parts = _gathered([numbers({key: part}, prefix) for part in value])
        else:
            continue
        mask = infos.get(f"_{key}")
        found |= parts if mask is None else {name: np.where(mask, part, np.nan) for name, part in parts.items()}
    return found


def _gathered(lines: Sequence[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: np.array([line.get(name, np.nan) for line in lines]) for name in names}
