"""Every row of the catalogue of hostile cases has a test that names it, and every invariant a twin that can fail it.

A test names its rows at the beginning of its docstring: ``E13, E14. ...``; a twin, which plants a fault that the test
of the row must find, says ``Twin of E13 and E14. ...``. Functions of a table ``SCENARIOS`` count as the tests that run
them. A test that is skipped without a condition, or expected to fail, names nothing.

| rows | what they are about |
|---|---|
| E01 - E09 | the contract of an environment: checkers, spaces, copies, resets, lanes, closing |
| E10 - E18 | determinism and information: seeds, global state, the future, the warm-up, probes, fitted ranges |
| E20 - E30, E32 | accounting: worked examples, identities, conservation, costs, scale, symmetry, leverage |
| E40 - E49 | hostile data |
| E50 - E58, E62 - E64 | hostile actions and settings |
| E31, E60, E61 | options: payoffs, cut-offs, orders that do not fill; of the contract rules so far |
| E70 - E72 | encoders in environments: spaces, no state, weights that do not fit |
| C01 - C09, C11 - C16 | checkpoints and models |
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent


def numbered(letter: str, *ranges: tuple[int, int]) -> tuple[str, ...]:
    return tuple(f"{letter}{number:02d}" for first, last in ranges for number in range(first, last + 1))


# E19 does not exist; E59 is about a family that is not built yet.
ENVIRONMENTS = numbered("E", (1, 18), (20, 32), (40, 58), (60, 64))
CHECKPOINTS = numbered("C", (1, 9), (11, 16))  # C10 would be about YAML, which nothing reads
ENCODERS = numbered("E", (70, 74))
REQUIRED = (*ENVIRONMENTS, *ENCODERS, *CHECKPOINTS)
NO_TWIN = {"E09"}  # not an invariant: a process that hangs is ended
EXAMPLES = (  # worked ones of the specification
    *(f"P-{number:02d}" for number in range(1, 24)), "P-06s", "R-01",
    *(f"O-{number:02d}" for number in range(1, 13)), "O-20", "O-21", "O-22",
)  # fmt: skip

ROWS = r"[EC]\d\d(?:(?:, | and )[EC]\d\d)*"


def counted(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Test functions of a module, and the scenarios that its table runs."""
    scenarios = {
        name.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == "SCENARIOS"
        for name in ast.walk(node.value)
        if isinstance(name, ast.Name)
    }
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and (node.name.startswith("test_") or node.name in scenarios):
            marks = {ast.unparse(mark).split("(")[0].split(".")[-1] for mark in node.decorator_list}
            if not marks & {"skip", "xfail"}:
                yield node


def named(sources: Iterable[str]) -> tuple[dict[str, set[str]], dict[str, set[str]], set[str]]:
    """Rows -> tests that name them, rows -> twins, and the worked examples that tests of E20 name."""
    tests: dict[str, set[str]] = {}
    twins: dict[str, set[str]] = {}
    examples: set[str] = set()
    for source in sources:
        for node in counted(ast.parse(source)):
            text = ast.get_docstring(node) or ""
            found = re.match(rf"(Twin of )?({ROWS})\.(?:\s|$)", text)
            if not found:
                continue
            rows = re.findall(r"[EC]\d\d", found[2])
            for row in rows:
                (twins if found[1] else tests).setdefault(row, set()).add(node.name)
            if "E20" in rows and not found[1]:
                examples |= set(spelt_out(text))
    return tests, twins, examples


def spelt_out(text: str) -> Iterator[str]:
    """Identifiers such as P-09; ``P-01 to P-06`` is every one from the first to the last."""
    for letter, first, last in re.findall(r"([PO])-(\d\d) to \1-(\d\d)", text):
        yield from (f"{letter}-{number:02d}" for number in range(int(first), int(last) + 1))
    yield from re.findall(r"[PRO]-\d\ds?", text)


def files() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(TESTS.glob("test_*.py"))]


def test_every_row_is_named_by_a_test() -> None:
    tests, _, _ = named(files())
    assert [row for row in REQUIRED if row not in tests] == []


def test_every_invariant_has_a_twin_that_plants_a_fault() -> None:
    _, twins, _ = named(files())
    assert [row for row in REQUIRED if row not in twins and row not in NO_TWIN] == []


def test_no_test_names_a_row_that_is_not_listed() -> None:
    tests, twins, _ = named(files())
    assert sorted({*tests, *twins} - {*ENVIRONMENTS, *CHECKPOINTS, *ENCODERS}) == []


def test_every_worked_example_that_exists_by_now_is_named() -> None:
    _, _, examples = named(files())
    assert [example for example in EXAMPLES if example not in examples] == []


@pytest.mark.parametrize(
    "source",
    [
        "def test_x():\n    pass",
        "def test_x():\n    'about E13. and more'",
        "def test_x():\n    'E13 and something'",
        "def helper():\n    'E13. Not a test.'",
        "@pytest.mark.skip\ndef test_x():\n    'E13. Never runs.'",
        "@pytest.mark.xfail(strict=True, reason='a bug')\ndef test_x():\n    'E13. Fails.'",
        "SCENARIOS = (other,)\ndef scenario():\n    'E13. Not in the table.'",
    ],
)
def test_a_test_that_does_not_run_or_does_not_begin_with_the_row_names_nothing(source: str) -> None:
    assert named([source]) == ({}, {}, set())


def test_rows_twins_scenarios_and_examples_are_read() -> None:
    source = (
        "SCENARIOS: tuple = (one,)\n"
        "def one():\n    'E13, E14 and C01. What happens.'\n"
        "def test_mutant():\n    'Twin of E13.'\n"
        "@pytest.mark.slow\n@pytest.mark.parametrize('a', [1])\n"
        "def test_x(a):\n    'E20. P-01 to P-03, P-06s, O-11 to O-12 and R-01.'\n"
    )
    tests, twins, examples = named([source])
    assert tests == {"E13": {"one"}, "E14": {"one"}, "C01": {"one"}, "E20": {"test_x"}}
    assert twins == {"E13": {"test_mutant"}}
    assert examples == {"P-01", "P-02", "P-03", "P-06s", "O-11", "O-12", "R-01"}
