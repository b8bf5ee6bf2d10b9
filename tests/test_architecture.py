"""The house keeps its order: imports point backwards, heavy libraries stay out of light packages, nothing is unpickled.

Imports are read from the source (AST), so one inside a function counts as well; so does the text
``"package.module:name"`` by which a table names what to import later.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("markets", "encoders", "envs", "agents", "scripts")
SB3 = frozenset({"stable_baselines3", "sb3_contrib"})
FORBIDDEN = {  # package: top-level modules that none of its files may import, not even inside a function
    "markets": SB3 | {"torch", "gymnasium"},
    "encoders": SB3 | {"gymnasium"},
    "envs": SB3,
}
LATE_ONLY = {"envs": frozenset({"torch"})}  # package: modules that only a function may import
PICKLES = frozenset({"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"})
QUIET = ("markets", "encoders", "envs", "agents")
REFERENCE = re.compile(rf"({'|'.join(ORDER)})(\.\w+)*:\w+")

Check = Callable[[str, str], list[str]]  # package, source text -> what is wrong


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[str, int, bool]]:
    """Each imported module's dotted name, its line, and whether it is imported when the file is."""
    late = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, id(node) not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module), node.lineno, id(node) not in late
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("import_module", "require"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield str(argument.value), node.lineno, id(node) not in late


def wrong_arrows(package: str, text: str) -> list[str]:
    """Imports of a package that comes later in the order."""
    tree = ast.parse(text)
    names = [(name, line) for name, line, _ in imported(tree)]
    names += [
        (node.value, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and REFERENCE.fullmatch(node.value)
    ]
    later = ORDER[ORDER.index(package) + 1 :]
    return [f"line {line}: {name}" for name, line in names if re.split(r"[.:]", name)[0] in later]


def heavy_imports(package: str, text: str) -> list[str]:
    """Imports of libraries that the package must not use, or must not load when it is imported."""
    return [
        f"line {line}: {name}"
        for name, line, early in imported(ast.parse(text))
        if name.split(".")[0] in FORBIDDEN.get(package, ())
        or (early and name.split(".")[0] in LATE_ONLY.get(package, ()))
    ]


def pickles(package: str, text: str) -> list[str]:
    """Imports of a library whose files can run code when they are read."""
    return [f"line {line}: {name}" for name, line, _ in imported(ast.parse(text)) if name.split(".")[0] in PICKLES]


def prints(package: str, text: str) -> list[str]:
    """Calls of ``print``."""
    return [
        f"line {node.lineno}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def globally_seeded(package: str, text: str) -> list[str]:
    """Uses of numpy's or Python's global random state, and warnings filters, anywhere."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    named = [(ast.unparse(node.func), node.lineno) for node in calls]
    wrong = re.compile(
        r"(np|numpy)\.random\.(?!default_rng|Generator|SeedSequence|PCG64)\w+|random\.seed|warnings\.(simple)?filter\w*"
    )
    return [f"line {line}: {name}" for name, line in named if wrong.fullmatch(name)]


def everywhere(check: Check, packages: tuple[str, ...]) -> list[str]:
    """Run a check over every file of some packages."""
    return [
        f"{path.relative_to(ROOT)}, {finding}"
        for package in packages
        for path in files(package)
        for finding in check(package, path.read_text())
    ]


def test_every_package_of_the_order_has_files() -> None:
    assert [package for package in ORDER if not files(package)] == []


def test_imports_point_only_backwards() -> None:
    assert everywhere(wrong_arrows, ORDER) == []


def test_light_packages_import_no_heavy_library() -> None:
    assert everywhere(heavy_imports, ORDER) == []


def test_nothing_that_can_run_code_when_read_is_imported() -> None:
    assert everywhere(pickles, ORDER) == []


def test_only_the_command_line_prints() -> None:
    assert everywhere(prints, QUIET) == []


def test_no_package_touches_global_random_state_or_warnings_filters() -> None:
    allowed = ("agents/generators.py, ",)  # a resumed training puts the state back that a killed one drew from
    assert [finding for finding in everywhere(globally_seeded, ORDER) if not finding.startswith(allowed)] == []


@pytest.mark.parametrize(
    ("check", "package", "text"),
    [
        (wrong_arrows, "markets", "import envs"),
        (wrong_arrows, "markets", "from encoders.encoder import Encoder"),
        (wrong_arrows, "envs", "def f():\n    from agents.agent import Agent"),
        (wrong_arrows, "encoders", "TABLE = {'a': 'envs.make:build'}"),
        (wrong_arrows, "agents", "import importlib\nimportlib.import_module('scripts.train')"),
        (heavy_imports, "markets", "import torch"),
        (heavy_imports, "markets", "def f():\n    import gymnasium as gym"),
        (heavy_imports, "encoders", "from gymnasium import spaces"),
        (heavy_imports, "envs", "from stable_baselines3.common.vec_env import VecEnv"),
        (heavy_imports, "envs", "def f():\n    import sb3_contrib"),
        (heavy_imports, "envs", "import torch.nn as nn"),
        (heavy_imports, "envs", "if True:\n    import torch"),
        (pickles, "agents", "import pickle"),
        (pickles, "agents", "def f():\n    from cloudpickle import loads"),
        (prints, "agents", "print('equity', 1.0)"),
        (prints, "envs", "def step():\n    return print()"),
        (globally_seeded, "envs", "import numpy as np\nnp.random.seed(0)"),
        (globally_seeded, "markets", "import numpy as np\nx = np.random.normal()"),
        (globally_seeded, "markets", "import warnings\nwarnings.filterwarnings('ignore')"),
    ],
)  # fmt: skip
def test_each_check_catches_a_planted_fault(check: Check, package: str, text: str) -> None:
    assert len(check(package, text)) == 1


@pytest.mark.parametrize(
    ("check", "package", "text"),
    [
        (wrong_arrows, "scripts", "import markets, encoders, envs, agents"),
        (wrong_arrows, "envs", "from envs.make import build\nT = 'envs.perp_futures:PerpFutures'\nS = 'agents: all'"),
        (heavy_imports, "agents", "import torch, stable_baselines3"),
        (heavy_imports, "envs", "def f():\n    import torch"),
        (heavy_imports, "encoders", "import torch"),
        (prints, "envs", "'print(1)'  # print(2)"),
        (globally_seeded, "envs", "import numpy as np\nrng = np.random.default_rng(0)\nrng.normal()"),
    ],
)  # fmt: skip
def test_no_check_flags_what_is_allowed(check: Check, package: str, text: str) -> None:
    assert check(package, text) == []


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_the_environments_loads_neither_torch_nor_stable_baselines() -> None:
    assert loaded_by("import envs").isdisjoint(SB3 | {"torch", "tensorboard"})


def test_importing_markets_loads_no_gymnasium_either() -> None:
    light = loaded_by("import markets.perpetual, markets.features, markets.sources, markets.synthetic")
    assert light.isdisjoint(SB3 | {"torch", "gymnasium"})


def test_the_import_probe_sees_what_is_loaded() -> None:
    assert {"gymnasium", "envs"} <= loaded_by("import envs")
    assert "wave" in loaded_by("import wave")
    assert "wave" not in loaded_by("import envs")
