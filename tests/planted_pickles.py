"""Pickles that leave a mark when they are executed, in the forms in which they travel."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

KINDS = ("pickle", "protocol 0", "torch", "numpy")


class Bomb:
    """Unpickling it creates a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def payloads(marker: Path) -> dict[str, bytes]:
    """One planted file of each of ``KINDS``; executed, it makes ``marker``."""
    checkpoint, array = io.BytesIO(), io.BytesIO()
    torch.save({"log_std": Bomb(marker)}, checkpoint)
    np.save(array, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    return {
        "pickle": pickle.dumps(Bomb(marker)), "protocol 0": pickle.dumps(Bomb(marker), 0),
        "torch": checkpoint.getvalue(), "numpy": array.getvalue(),
    }  # fmt: skip
