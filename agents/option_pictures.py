"""Pictures of the option studies, one a study (extra ``viz``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markets.errors import require


def draw(study: str, result: dict[str, Any], path: Path) -> None:
    """Draw the result of ``calibration``, ``fairness`` or ``fills`` into a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "viz")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    PICTURES[study](figure.add_subplot(), result)
    figure.savefig(path, dpi=120)


def _calibration(axes: Any, result: dict[str, Any]) -> None:
    for iv in ("grid", "vix"):
        rows = [row for row in result["by_time"] if row["iv"] == iv and row["smile"] == "default"]
        axes.plot(range(len(rows)), [row["median error"] for row in rows], marker="o", label=f"iv={iv}")
        axes.set_xticks(range(len(rows)), [row["at"] for row in rows])
    axes.set(xlabel="New York", ylabel="median |error of the mid|, USD per share", title="model against quoted mids")
    axes.set_ylim(bottom=0.0)
    axes.legend()


def _fairness(axes: Any, result: dict[str, Any]) -> None:
    rows = result["rows"]
    figures = [row["payoff / price"] for row in rows]
    spread = [[f[0] - f[1] for f in figures], [f[2] - f[0] for f in figures]]
    axes.errorbar(range(len(rows)), [f[0] for f in figures], spread, fmt="o")
    axes.axhspan(*result["bands"]["payoff"], alpha=0.15)
    names = [f"{row['market'].split('?')[-1]}\nminute {row['minute']}" for row in rows]
    axes.set_xticks(range(len(rows)), names, fontsize=6)
    axes.set(ylabel="payoff / price of straddles, 95 %", title="at-the-money straddles held to the close")


def _fills(axes: Any, result: dict[str, Any]) -> None:
    for shift, fill in ((-0.2, "limit"), (0.2, "market")):
        rows = [row for row in result["rows"] if row["fill"] == fill]
        bars = [(f"{row['side']}, {name}", row[name]) for row in rows for name in ("cost", "at the fill", "selection")]
        value = [figure[0] for _, figure in bars]
        spread = [[f[0] - f[1] for _, f in bars], [f[2] - f[0] for _, f in bars]]
        axes.bar([k + shift for k in range(len(bars))], value, 0.38, yerr=spread, label=fill)
        axes.set_xticks(range(len(bars)), [name for name, _ in bars], fontsize=7)
    axes.set(ylabel="USD per contract, 95 %", title="limit against market orders on the same decisions")
    axes.legend()


PICTURES = {"calibration": _calibration, "fairness": _fairness, "fills": _fills}
