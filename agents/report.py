"""Reports of an evaluation: one table, as text rows, Markdown and JSON, and a plot of equity and drawdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from markets.errors import require

COLUMNS = (
    "agent", "total return [95 %]", "Sharpe [95 %]", "max drawdown", "exposure", "turnover/yr", "fees", "spread+impact",
    "funding", "liquidations", "return at 0x/2x/5x costs", "break-even",
)  # fmt: skip


NARROW = (0, 1, 2, 3, 4, 5, 9)  # of COLUMNS, where a terminal has no room for all


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of the report as text, one per agent, in the order of ``COLUMNS``."""
    return [[name, *_cells(row)] for name, row in rows.items()]


def markdown(evaluation: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table and what it rests on as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in table(rows)]
    return "\n".join([*lines, "", *notes(evaluation)]) + "\n"


def notes(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the sentences that belong under the table."""
    arguments = evaluation.get("arguments", {})
    game = ", ".join(f"{key}={value}" for key, value in arguments.items() if key != "bars")
    seen, eyes = evaluation.get("in_sample_until"), evaluation.get("encoder")
    sentences = [
        *(
            [f"**IN SAMPLE**: scaler or encoder were fitted on bars up to {seen[:16]} UTC, which are of this split."]
            if seen
            else []
        ),
        *([f"`{evaluation['env']}` with {game or 'default arguments'}."] if "env" in evaluation else []),
        f"Split `{evaluation['split']}` of `{evaluation['source']}`, {evaluation['first'][:16]} to "
        f"{evaluation['last'][:16]} UTC.",
        *([f"Encoder `{eyes['name']}`, SHA-256 {eyes['sha256'][:16]}."] if eyes else []),
        f"Returns per bar, annualised with {evaluation['periods_per_year']:.0f} bars a year; after a termination the "
        "rest counts as flat.",
        "Intervals of single agents: stationary bootstrap of the walk (mean block one week, 2,000 draws); of rows over "
        "several runs: interquartile mean with a percentile bootstrap over runs, silent on other periods.",
        "Buy-and-hold, always-short and volatility-targeted long are unlevered (leverage 1, fully margined).",
        "Orders follow equity, so that costs move later fills too: a walk at higher costs can end higher.",
        "Money in the quote currency. Break-even: the multiple of fee, spread and impact at which the return is 0.",
    ]
    if evaluation["split"] == "test":
        sentences.append(f"This test range has been read {evaluation['touches']} time(s) on this machine.")
    return sentences


def plot(evaluation: Mapping[str, Any], path: Path) -> Path:
    """Draw equity (log scale) and drawdown of every walk at cost scale 1 and save a PNG (extra ``viz``)."""
    require("matplotlib", "viz")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    walks: Mapping[str, Any] = evaluation["walks"]
    seen = [1.0, 1.0]
    for name, walk in walks.items():
        base = walk.scales.index(1.0)
        curve = np.maximum(walk.equity[:, base] / walk.equity[0, base], 1e-3)
        style = {"linewidth": 1.0, "alpha": 0.75} if name in evaluation["baselines"] else {"linewidth": 1.6}
        line = upper.plot(walk.time, curve, label=name, **style)[0]
        lower.plot(walk.time, 1.0 - curve / np.maximum.accumulate(curve), color=line.get_color(), **style)
        if name != "random":  # which costs take out of any picture
            seen = [min(seen[0], curve.min()), max(seen[1], curve.max())]
    upper.set_yscale("log")
    upper.set_ylim(seen[0] / 1.2, seen[1] * 1.2)
    upper.set_ylabel("equity / start")
    upper.legend(loc="best", fontsize=8, ncols=2)
    upper.set_title(f"{evaluation['split']} split, {evaluation['first'][:10]} to {evaluation['last'][:10]}")
    upper.grid(alpha=0.3)
    lower.set_ylabel("drawdown")
    lower.invert_yaxis()
    lower.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def _cells(row: Mapping[str, Any]) -> Sequence[str]:
    scaled = row["total_return_at_cost_scale"]
    return (
        _with_interval(row["total_return"], row.get("total_return_interval"), 100.0, "%"),
        _with_interval(row["sharpe"], row.get("sharpe_interval"), 1.0, ""),
        f"{100 * row['max_drawdown']:.1f} %",
        f"{row['mean_exposure']:+.2f}x",
        f"{row['turnover_per_year']:,.0f}x",
        f"{row['fee']:,.0f}",
        f"{row['spread_cost'] + row['impact_cost']:,.0f}",
        f"{row['funding']:,.0f}",
        f"{row['liquidations']:.1f}".removesuffix(".0") + (f" ({row['ended_by']})" if row["ended_by"] else ""),
        " / ".join(f"{100 * scaled[key]:.1f} %" for key in ("0", "2", "5")),
        _break_even(row),
    )


def _with_interval(value: float, interval: Sequence[float] | None, scale: float, unit: str) -> str:
    digits = 1 if unit else 2
    text = f"{scale * value:.{digits}f}{' ' + unit if unit else ''}"
    if interval is None:
        return text
    return f"{text} [{scale * interval[0]:.{digits}f}, {scale * interval[1]:.{digits}f}]"


def _break_even(row: Mapping[str, Any]) -> str:
    if row["turnover_per_year"] == 0.0:
        return "-"
    value = row.get("break_even_cost_scale")
    return "> 5x" if value is None else f"{value:.2f}x"
