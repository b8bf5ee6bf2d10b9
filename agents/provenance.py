"""Where an agent comes from: versions of the libraries, and the commit of the code that trained it."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

LIBRARIES = (
    "regimegym", "gymnasium", "stable-baselines3", "sb3-contrib", "torch", "numpy", "pandas", "numba",
)  # fmt: skip
HOME = Path(__file__).resolve().parent.parent


def versions() -> dict[str, str]:
    """Return the version of every library that takes part in training, and Python's."""
    return {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()}


@functools.cache
def commit(root: Path = HOME) -> str | None:
    """Return the commit of a git checkout, with ``-dirty`` where files differ from it; None for an installed package.

    Only a checkout of its own counts: a package installed below somebody else's repository has no commit.
    """
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
