"""Fills a table of encoders row by row and seed by seed, and writes it: ``table.json``, ``table.md``, ``table.png``.

Every finished row of a seed is kept at once (:mod:`encoders.table_store`); what is there already, made with the same
settings by the same code, is not computed again. Means over seeds stand with half the width of their 95 % interval
(Student's t); rows that are the same whatever the seed show none.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from encoders.clustering import seed_agreement
from encoders.table_rows import Benchmark, Row
from encoders.table_store import Outcome, Store
from markets import storage
from markets.errors import ConfigError, require

Progress = Callable[[int, int, str, int], None]  # finished, of how many, row, seed

_log = logging.getLogger(__name__)

LEVEL = 0.95
LOCK = ".encoder-table.lock"


@dataclass(frozen=True)
class Column:
    """A column: the figure's name, its head in the table, digits behind the point, and whether intervals are shown."""

    figure: str
    head: str
    digits: int = 3
    interval: bool = True


MARKET_COLUMNS = (
    Column("purity", "purity"), Column("ari", "ARI"), Column("nmi", "NMI"), Column("probe", "probe"),
    Column("probe_balanced", "probe, balanced"), Column("edmd_error", "EDMD error"), Column("delay", "delay, bars", 0),
    Column("flip", "flips", 1), Column("agreement", "seeds agree"), Column("train_cpu", "train, CPU s", 0, False),
    Column("us_per_bar", "us/bar", 2, False),
)  # fmt: skip
REAL_COLUMNS = (
    Column("r2", "R2"), Column("over_har", "R2 - HAR"), Column("eta2", "eta2"), Column("persistence", "persistence"),
    Column("dwell", "dwell, bars", 0), Column("agreement", "seeds agree"),
    Column("train_cpu", "train, CPU s", 0, False),
)  # fmt: skip
OPERATOR_COLUMNS = (
    Column("identity_deviation", "identity deviation"), Column("symmetry_measure", "skew"),
    Column("centroid_action", "centroid action"), Column("eigenvalues_near_one", "eigenvalues near 1", 1),
)  # fmt: skip


def fill(
    benchmark: Benchmark, rows: Sequence[Row], seeds: int, folder: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Compute what is missing and return the table; ``table.json`` and ``table.md`` are renewed after each seed.

    Args:
        seeds: 0 .. seeds - 1 are trained; a row that no seed changes is computed for the first only.

    Raises:
        ConfigError: no seed, or another process fills this folder.
    """
    if seeds < 1:
        raise ConfigError(f"seeds={seeds!r} must be at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder, benchmark.code)
    found: dict[str, dict[int, Outcome]] = {row.name: {} for row in rows}
    work = [(seed, row) for seed in range(seeds) for row in rows if row.seeded or seed == 0]
    with storage.locked(folder / LOCK, "another process fills this table"):
        for number, (seed, row) in enumerate(work):
            if progress is not None:
                progress(number, len(work), row.name, seed)
            kept = store.read(row.name, seed, row.settings)
            if isinstance(kept, str):
                if kept:
                    _log.info("%s, seed %d is computed again: %s", row.name, seed, kept)
                kept = benchmark.judge(row.fit(seed), seed)
                store.write(row.name, seed, row.settings, kept)
            found[row.name][seed] = kept
            if number + 1 == len(work) or work[number + 1][0] != seed:
                table = summary(benchmark, rows, found, seeds)
                write(table, folder)
        if progress is not None:
            progress(len(work), len(work), "", 0)
    return table


def summary(
    benchmark: Benchmark, rows: Sequence[Row], found: Mapping[str, Mapping[int, Outcome]], seeds: int
) -> dict[str, Any]:
    """Return the table as plain values: per row every seed's figures, their means, intervals and agreement."""
    lines = []
    for row in rows:
        outcomes = found[row.name]
        if not outcomes:
            continue
        names = list(dict.fromkeys(name for one in outcomes.values() for name in one.figures))
        columns = {name: [one.figures.get(name, math.nan) for one in outcomes.values()] for name in names}
        means = {name: float(np.mean(values)) for name, values in columns.items()}
        widths = {name: half_width(values) for name, values in columns.items()} if row.seeded else {}
        if len(outcomes) > 1:
            means["agreement"] = seed_agreement([one.clusters for one in outcomes.values()])
        lines.append(
            {
                "name": row.name, "title": row.title, "seeded": row.seeded,
                "seeds": {str(seed): _plain(one.figures) for seed, one in outcomes.items()},
                "mean": _plain(means), "half_width": _plain(widths),
            }
        )  # fmt: skip
    return {
        "settings": json.loads(json.dumps(benchmark.settings)), "code": benchmark.code, "seeds": seeds, "level": LEVEL,
        "columns": [asdict(column) for column in _columns(lines)], "rows": lines,
        "notes": benchmark.notes(),
    }  # fmt: skip


def half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean, by Student's t; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    require("scipy", "models")
    from scipy.stats import t

    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(t.ppf(0.5 + LEVEL / 2, len(values) - 1)) * spread


def write(table: Mapping[str, Any], folder: Path) -> None:
    """Write ``table.json`` and ``table.md``, each in one move."""
    _replace(folder / "table.json", json.dumps(table, indent=1, allow_nan=False) + "\n")
    _replace(folder / "table.md", markdown(table))


def markdown(table: Mapping[str, Any]) -> str:
    """Write the table for README and cards: a line a row, then the sentences that belong to it."""
    columns = [Column(**column) for column in table["columns"]]
    parts = [_grid(table["rows"], columns)]
    operators = [row for row in table["rows"] if OPERATOR_COLUMNS[0].figure in row["mean"]]
    if operators:
        parts.append("Figures of the predictor's matrix M, which prove nothing alone:\n\n" + _operators(operators))
    counts = {len(row["seeds"]) for row in table["rows"] if row["seeded"]}
    seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts, default=0)}"
    parts.append(
        f"Means over {seeds} of {table['seeds']} training seeds, ± half the width of the "
        f"{table['level']:.0%} interval over seeds (Student's t); rows without it are the same whatever the seed."
    )
    return "\n\n".join([*parts, *table["notes"]]) + "\n"


def plot(table: Mapping[str, Any], figure: str, path: Path) -> Path:
    """Draw a figure of every row with its interval and save a PNG (extra ``viz``)."""
    require("matplotlib", "viz")
    from matplotlib.figure import Figure

    rows = [row for row in table["rows"] if row["mean"].get(figure) is not None][::-1]
    canvas = Figure(figsize=(9, 0.34 * len(rows) + 1.2), layout="constrained")
    axes = canvas.subplots()
    widths = [row["half_width"].get(figure) or 0.0 for row in rows]
    axes.barh([row["title"] for row in rows], [row["mean"][figure] for row in rows], xerr=widths, capsize=3, height=0.7)
    axes.set_xlabel(next((one["head"] for one in table["columns"] if one["figure"] == figure), figure))
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    canvas.savefig(path, dpi=120)
    return path


def _columns(rows: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Return the columns of the table that these figures are of, without those that no row has."""
    real = any("r2" in row["mean"] for row in rows)
    offered = REAL_COLUMNS if real else MARKET_COLUMNS
    return tuple(column for column in offered if any(row["mean"].get(column.figure) is not None for row in rows))


def _grid(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    lines = ["| row | " + " | ".join(column.head for column in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [_cell(row, one) for one in columns]
        lines.append(f"| {row['title']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _operators(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the figures of M beside the same of M = I on these latents and of the untrained net."""
    lines = []
    for row in rows:
        for prefix, text in (("", ""), ("at_identity_", ", M = I"), ("untrained_", ", untrained")):
            part = {
                kind: {name.removeprefix(prefix): value for name, value in row[kind].items() if name.startswith(prefix)}
                for kind in ("mean", "half_width")
            }
            lines.append({"title": row["title"] + text, **part})
    return _grid(lines, OPERATOR_COLUMNS)


def _cell(row: Mapping[str, Any], column: Column) -> str:
    mean, width = row["mean"].get(column.figure), row["half_width"].get(column.figure)
    if mean is None:
        return "-"
    text = f"{round(mean, column.digits) + 0.0:.{column.digits}f}"  # no minus before a zero
    return text if width is None or not column.interval else f"{text} ± {width:.{column.digits}f}"


def _plain(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in figures.items()}


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
