"""What a table of encoders keeps on disk: one file per finished row and seed, so that a killed run goes on from there.

A file is ``rows/NAME-SEED.zip`` in the form of :mod:`markets.storage`: the settings that the row depends on, the
version of the code that computed it, its figures, and the clusters of the scored test rows, from which the agreement of
seeds is computed. A file made with other settings or other code is not used: the row is computed again.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from markets import storage
from markets.errors import ArtefactError

CLUSTERS = "clusters.npy"
HOUSE = ("markets", "encoders")  # packages whose code decides what a row says


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one row says for one seed.

    Attributes:
        figures: by name; one that does not exist for the row is absent.
        clusters: ``(N,)`` of the scored test rows, all series end to end.
    """

    figures: Mapping[str, float]
    clusters: NDArray[np.int64]


class Store:
    """The finished rows in ``folder``, as far as they were computed with these settings and this code."""

    def __init__(self, folder: Path, code: str) -> None:
        self.folder, self.code = folder / "rows", code

    def path(self, name: str, seed: int) -> Path:
        """Return where a row of a seed lies."""
        return self.folder / f"{name}-{seed}.zip"

    def write(self, name: str, seed: int, settings: Mapping[str, Any], outcome: Outcome) -> None:
        """Keep an outcome, atomically; a figure that is not a number is kept as null."""
        figures = {key: value if math.isfinite(value) else None for key, value in outcome.figures.items()}
        manifest = {"row": name, "seed": seed, "settings": plain(settings), "code": self.code, "figures": figures}
        buffer = io.BytesIO()
        np.save(buffer, outcome.clusters.astype(np.int16), allow_pickle=False)
        storage.write(self.path(name, seed), manifest, {CLUSTERS: buffer.getvalue()})

    def read(self, name: str, seed: int, settings: Mapping[str, Any]) -> Outcome | str:
        """Return the outcome, or why there is none: empty where nobody computed it yet."""
        path = self.path(name, seed)
        if not path.exists():
            return ""
        try:
            manifest, members = storage.read(path, (CLUSTERS,))
            with storage.naming(path, storage.MANIFEST):
                reason = differs(manifest, settings, self.code)
                if reason:
                    return reason
                figures = {
                    str(key): math.nan if value is None else float(value) for key, value in manifest["figures"].items()
                }
            with storage.naming(path, CLUSTERS):
                return Outcome(figures, np.load(io.BytesIO(members[CLUSTERS]), allow_pickle=False).astype(np.int64))
        except ArtefactError as error:
            return str(error)


def differs(manifest: Mapping[str, Any], settings: Mapping[str, Any], code: str) -> str:
    """Say what a file was made with that is not so now; empty where all is the same."""
    before, now = manifest["settings"], plain(settings)
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return f"{name}={before.get(name)!r} before, {now.get(name)!r} now"
    return "" if manifest["code"] == code else "computed by another version of the code"


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back, nested ones by dotted names."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else str(name), inner)
        else:
            flat[prefix] = value

    walk("", json.loads(json.dumps(settings)))
    return flat


@cache
def code_version(module: str) -> str:
    """Hash the code of a module and of every module of ours it imports, comments and docstrings left out."""
    return hash_of_code(_closure(module))


def hash_of_code(trees: Mapping[str, ast.Module]) -> str:
    """Hash parsed modules by name; what only a reader sees does not count."""
    digest = hashlib.sha256()
    for name, tree in sorted(trees.items()):
        digest.update(name.encode())
        digest.update(ast.dump(_without_docstrings(tree)).encode())
    return digest.hexdigest()[:16]


def _closure(module: str) -> dict[str, ast.Module]:
    """Parse a module and, from there on, every module of ours that one of them imports."""
    found: dict[str, ast.Module] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name.split(".")[0] not in HOUSE:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        found[name] = tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting.append(node.module)
                waiting += [
                    f"{node.module}.{alias.name}" for alias in node.names if _is_module(node.module, alias.name)
                ]
    return found


def _is_module(package: str, name: str) -> bool:
    if package not in HOUSE:
        return False
    return importlib.util.find_spec(f"{package}.{name}") is not None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree
