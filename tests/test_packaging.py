"""What is declared is what is imported, and nothing in the repository knows the machine it was written on."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import envs
import regimegym

ROOT = Path(regimegym.__file__).resolve().parent
OURS = {*regimegym.PACKAGES, "regimegym"}
DISTRIBUTIONS = {  # import name -> distribution, where they differ
    "sklearn": "scikit-learn", "stable_baselines3": "stable-baselines3", "sb3_contrib": "sb3-contrib",
    "xgboost": "xgboost-cpu", "alpaca": "alpaca-py", "exchange_calendars": "exchange-calendars",
}  # fmt: skip


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.strip().splitlines()]


def core() -> list[Requirement]:
    return requirements(settings()["options"]["install_requires"])


def extras() -> dict[str, list[Requirement]]:
    return {name: requirements(text) for name, text in settings()["options.extras_require"].items()}


def sources() -> list[Path]:
    found = [path for package in regimegym.PACKAGES for path in (ROOT / package).rglob("*.py")]
    return [*found, ROOT / "regimegym.py"]


def imported(text: str) -> set[str]:
    """The first part of every absolute import, of ``import_module("x")`` and of ``require("x", ...)``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "require"):
                names.add(str(node.args[0].value).split(".")[0])
    return names


def undeclared(names: Iterable[str]) -> set[str]:
    declared = {canonicalize_name(item.name) for item in [*core(), *(one for row in extras().values() for one in row)]}
    foreign = set(names) - set(sys.stdlib_module_names) - OURS
    return {name for name in foreign if canonicalize_name(DISTRIBUTIONS.get(name, name)) not in declared}


# Declarations


def test_the_version_is_written_alike_everywhere() -> None:
    assert settings()["metadata"]["version"] == regimegym.__version__
    assert regimegym.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    Version(regimegym.__version__)


def test_the_installed_distribution_is_this_version() -> None:
    try:
        installed = importlib.metadata.version("regimegym")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("regimegym is not installed, only on the path")
    assert installed == regimegym.__version__


def test_every_import_is_declared_in_the_core_or_in_an_extra() -> None:
    names = {name for path in sources() for name in imported(path.read_text(encoding="utf-8"))}
    assert {"numpy", "gymnasium", "torch"} <= names, "imports are not found: the test is empty"
    rivals = {
        "gym_anytrading",
        "gym_trading_env",
        "torchtrade",
    }  # the benchmark compares with them where a user has them
    assert undeclared(names) - rivals == set()


@pytest.mark.parametrize(
    "text",
    [
        "import leftpad", "from leftpad.core import pad", "def f():\n    import leftpad.core as core",
        "import importlib\nimportlib.import_module('leftpad')", "require('leftpad', 'viz')",
        "if TYPE_CHECKING:\n    from leftpad import pad",
    ],
)  # fmt: skip
def test_an_import_that_nobody_declared_is_caught(text: str) -> None:
    assert undeclared(imported(text)) == {"leftpad"}


def test_what_a_plain_installation_imports_at_the_top_of_a_module_is_in_the_core() -> None:
    declared = {canonicalize_name(item.name) for item in core()}
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tops = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = imported("\n".join(ast.unparse(node) for node in tops)) - set(sys.stdlib_module_names) - OURS
        for name in names:
            assert canonicalize_name(DISTRIBUTIONS.get(name, name)) in declared, f"{path.relative_to(ROOT)}: {name}"


def test_the_extra_that_an_error_names_exists_and_brings_the_module() -> None:
    found = 0
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require" and len(node.args) == 2:
                module, extra = (ast.literal_eval(argument) for argument in node.args)
                brought = {canonicalize_name(item.name) for item in extras()[extra]}
                assert canonicalize_name(DISTRIBUTIONS.get(module, module)) in brought
                found += 1
    assert found


def test_the_extra_all_holds_every_other_extra() -> None:
    (everything,) = extras()["all"]
    assert everything.name == "regimegym"
    assert everything.extras == set(extras()) - {"all"}


def pins(text: str) -> dict[str, Version]:
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    pairs = [line.split("==") for line in lines if line]
    assert all(len(pair) == 2 for pair in pairs), "a line is not NAME==VERSION"
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def misfits(pinned: dict[str, Version]) -> list[str]:
    """Declared requirements without a pin, or with one outside their range."""
    wrong = []
    for item in [*core(), *(one for name, row in extras().items() if name != "all" for one in row)]:
        version = pinned.get(canonicalize_name(item.name))
        if version is None or version not in item.specifier:
            wrong.append(f"{item} against {version}")
    return wrong


def test_every_declared_package_is_pinned_inside_its_range() -> None:
    assert misfits(pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))) == []


def test_a_pin_outside_its_range_or_none_is_caught() -> None:
    good = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert len(misfits({**good, "gymnasium": Version("1.2.1")})) == 1
    assert len(misfits({**good, "numpy": Version("3.0")})) == 1
    assert len(misfits({name: version for name, version in good.items() if name != "tqdm"})) == 1


def test_the_interpreter_is_one_of_the_declared_ones() -> None:
    declared = settings()["options"]["python_requires"]
    version = ".".join(map(str, sys.version_info[:2]))
    assert Version(version) in Requirement(f"python {declared}").specifier
    assert f"Python :: {version}" in settings()["metadata"]["classifiers"]


def test_every_package_says_that_it_is_typed() -> None:
    for package in regimegym.PACKAGES:
        assert (ROOT / package / "py.typed").is_file(), package
    assert "py.typed" in settings()["options.package_data"]["*"]


def test_every_package_is_found_by_the_build() -> None:
    include = settings()["options.packages.find"]["include"].split()
    for package in regimegym.PACKAGES:
        assert {package, f"{package}.*"} <= set(include)
        assert (ROOT / package / "__init__.py").is_file(), package


def test_the_command_is_declared() -> None:
    assert settings()["options.entry_points"]["console_scripts"].strip() == "regimegym = regimegym:main"


# What the repository gives away

HOMES = r"(?<![\w.:$}/])/(?:home|Users|root|mnt|media|srv|private|workspace|workspaces)/[\w.-]+"
DRIVES = r"(?<![\w])[A-Za-z]:\\(?:Users|Documents)"
INDEXES = r"(?i)--(?:extra-)?index-url|PIP_(?:EXTRA_)?INDEX_URL|files\.pythonhosted\.org|https?://[^\s)>\"']*/simple\b"


def places_of_this_checkout() -> list[str]:
    """Folders that only this machine knows: of the checkout, of its interpreter and of the user."""
    places = [ROOT, Path(sys.prefix), Path.home()]
    common = {"", "/", "/usr", "/usr/local", "/opt", "/tmp", "/app", "/src"}
    return [str(place) for place in [*places, ROOT.parent] if str(place) not in common]


def leaks(text: str) -> list[str]:
    own = [rf"(?<![\w.:$}}/]){re.escape(place)}(?=[/\s\"'`),;:]|$)" for place in places_of_this_checkout()]
    return [match.group() for pattern in (HOMES, DRIVES, INDEXES, *own) for match in re.finditer(pattern, text)]


def committed() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_committed_file_names_a_place_on_a_machine_or_a_package_index() -> None:
    found, read = {}, 0
    for path in committed():
        if not path.is_file() or path == Path(__file__).resolve():
            continue
        data = path.read_bytes()
        if b"\0" in data:
            continue
        read += 1
        if leaked := leaks(data.decode("utf-8")):
            found[str(path.relative_to(ROOT))] = leaked
    assert read > 30
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "data = '/home/someone/bars.csv'", "see /Users/someone/x", "C:\\Users\\someone", "pip install --index-url x",
        "https://mirror.example.org/pypi/simple numpy", f"cd {ROOT}", f"{sys.prefix}/bin/python", "(/root/.cache/x)",
    ],
)  # fmt: skip
def test_a_place_or_an_index_is_caught(text: str) -> None:
    assert leaks(text)


@pytest.mark.parametrize(
    "text",
    [
        "#!/usr/bin/env bash", "exec </dev/null", "https://example.org/home/x/", "a/home/of/its/own", "fee / equity",
        "$HOME/x", "~/.cache/regimegym",
    ],
)  # fmt: skip
def test_ordinary_paths_and_addresses_are_let_through(text: str) -> None:
    assert leaks(text) == []


def test_the_readme_mentions_every_registered_id() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("README.md is not there yet")
    text = readme.read_text(encoding="utf-8")
    assert [name for name in envs.ids() if name not in text] == []


def test_the_readme_mentions_every_verb_of_the_command_line() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("README.md is not there yet")
    text = readme.read_text(encoding="utf-8")
    assert [verb for verb in regimegym.VERBS if not re.search(rf"(regimegym|make) {verb}\b", text)] == []
