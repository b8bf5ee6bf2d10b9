"""A text file that was cut inside its last number, which still reads as a number: only the text can tell."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

from markets.errors import DataError
from markets.raw_table import Finding

BINARY = (".parquet", ".pq", ".zip", ".bz2", ".xz", ".zst", ".tar")  # endings of files that are not looked into
TAIL = 65_536  # bytes at the end that are looked at
LINES = 500  # last lines that the last one is compared with
LEAST = 5  # lines without which nothing can be compared
RARE = 0.02  # share of numbers as short as the last one up to which it counts as cut
BLOCK = 1 << 20  # bytes unpacked at a time


def find_cut(file: Path, rows: int) -> list[Finding]:
    """Report the last row of a CSV file (plain or ``.gz``) whose last number is cut off, as far as that can be told.

    Suspected is only a file whose last line does not end. Its last number must have fewer decimals than all but one in
    fifty of those above it (where none has decimals: fewer digits). A cut after a whole number takes nothing away,
    and one that leaves a usual number of decimals cannot be told.

    Args:
        file: what was read. ``rows``: of the table it gave.

    Raises:
        DataError: the file cannot be unpacked.
    """
    text = "" if file.suffix.lower() in BINARY else _tail(file)
    if not text or text.endswith(("\n", "\r")):
        return []
    *others, last = list(csv.reader(text.splitlines()[-LINES - 1 :]))
    column = [row[-1].strip() for row in others[1:] if len(row) == len(last)]  # the first may be half a line, or names
    value = last[-1].strip()
    if len(column) < LEAST or not all(map(_is_number, [value, *column])) or not _shorter(value, column):
        return []
    detail = f"the file ends in the middle of a line, and its last number, {value!r}, is shorter than the others: cut"
    return [Finding("cut_line", "", rows - 1, 1, detail, "warning", repairable=True)]


def _shorter(value: str, others: list[str]) -> bool:
    """Say whether a number is shorter than nearly all others."""
    length = _decimals if any(map(_decimals, others)) else _digits
    return sum(length(other) <= length(value) for other in others) <= RARE * len(others)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _decimals(text: str) -> int:
    return len(text.lower().partition("e")[0].partition(".")[2])


def _digits(text: str) -> int:
    return len(text.lstrip("-"))


def _tail(file: Path) -> str:
    """Return the last ``TAIL`` bytes of a file, unpacked, as text."""
    try:
        if file.suffix.lower() != ".gz":
            with file.open("rb") as stream:
                stream.seek(max(file.stat().st_size - TAIL, 0))
                return stream.read().decode("utf-8", errors="replace")
        end = b""
        with gzip.open(file) as stream:
            while block := stream.read(BLOCK):
                end = (end + block)[-TAIL:]
        return end.decode("utf-8", errors="replace")
    except (OSError, EOFError) as error:
        raise DataError(f"{file} cannot be read as csv: {error}") from error
