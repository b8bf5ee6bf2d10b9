"""The one way a function is compiled and cached.

numba keys a cached kernel by the file of the function itself, not by the files of what it calls: after an edit of
a contract rule a loop in another file would still run the old rule. :func:`compiled` therefore adds a fingerprint
of every source file that can hold a rule to the cache stamp. ``fastmath`` stays off, so that compiled code, plain
Python (``NUMBA_DISABLE_JIT=1``) and every processor give the same bits.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])

# Without numba's reference counting of the arrays that rules hand to each other a step costs half.
OPTIONS: dict[str, Any] = {"error_model": "numpy", "_nrt": False}

_ROOMS = ("markets", "encoders", "envs")
_log = logging.getLogger(__name__)


@functools.cache
def fingerprint() -> str:
    """Return a hash of every source file under the packages that hold compiled rules."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def compiled(function: F) -> F:
    """Compile ``function`` lazily with numba, with an on-disk cache that an edit of any rule invalidates.

    Works without a writable cache place (compiles in memory) and with the JIT disabled (returns the function). A
    compiled function may not allocate arrays.
    """
    try:
        dispatcher = njit(function, cache=True, **OPTIONS)
    except RuntimeError:  # no writable place for a cache: a read-only installation without a home folder
        return njit(function, **OPTIONS)
    try:
        entry = dispatcher._cache._cache_file
        entry._source_stamp = (entry._source_stamp, fingerprint())
    except AttributeError:  # numba moved the private name, or the JIT is off: correct, but uncached
        return njit(function, **OPTIONS)
    return dispatcher


def is_cached(function: Any) -> bool:
    """Return True when ``function`` runs without compiling: compiled here, cached on disk, or the JIT is off."""
    if not hasattr(function, "signatures") or function.signatures:
        return True
    try:
        return bool(function._cache._cache_file._load_index())
    except AttributeError:
        return False
