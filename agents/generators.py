"""Random generators as plain values: what a training draws from, written down and put back.

Stable-Baselines3 draws from torch's, numpy's and Python's global generators and from the action space's own; each lane
draws its episode starts from a generator of its own. States are JSON, except the two long ones, which are arrays.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from markets.errors import ArtefactError

Arrays = dict[str, NDArray[Any]]


def globals_state(device: torch.device) -> tuple[Arrays, dict[str, Any]]:
    """Return the state of the process's generators: arrays, and what JSON can hold."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - what SB3 draws from
    arrays = {"torch": torch.get_rng_state().numpy().copy(), "numpy": np.array(keys)}
    if device.type == "cuda":
        arrays["cuda"] = torch.cuda.get_rng_state(device).numpy().copy()
    version, words, next_gauss = random.getstate()
    return arrays, {
        "numpy": [kind, int(position), int(has_gauss), float(gauss)],
        "python": [version, list(words), next_gauss],
    }


def restore_globals(arrays: Arrays, plain: dict[str, Any], device: torch.device) -> None:
    """Put the process's generators back where :func:`globals_state` found them.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: not such a state.
    """
    torch.set_rng_state(torch.from_numpy(arrays["torch"].copy()))
    if device.type == "cuda" and "cuda" in arrays:
        torch.cuda.set_rng_state(torch.from_numpy(arrays["cuda"].copy()), device)
    kind, position, has_gauss, gauss = plain["numpy"]
    np.random.set_state((kind, arrays["numpy"], position, has_gauss, gauss))  # noqa: NPY002
    version, words, next_gauss = plain["python"]
    random.setstate((version, tuple(words), next_gauss))


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """Return a numpy generator's state as plain values."""
    return dict(generator.bit_generator.state)


def restore_generator(generator: np.random.Generator, state: dict[str, Any]) -> None:
    """Put a numpy generator back.

    Raises:
        ArtefactError: the state of another kind of generator.
        KeyError, TypeError, ValueError: not a state.
    """
    kind = type(generator.bit_generator).__name__
    if state["bit_generator"] != kind:
        raise ArtefactError(f"holds a generator of kind {state['bit_generator']!r}, expected {kind!r}")
    generator.bit_generator.state = state
