"""Report of the leverage study: tables in Markdown, and a picture of differences and curves (extra ``viz``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.bootstrap import interquartile_mean
from agents.leverage_walks import ARMS
from agents.metrics import RUIN
from markets.errors import require

SHOWN = {  # score -> title, digits
    "max_drawdown": ("maximum drawdown", 3), "log_growth": ("log growth", 3), "sharpe": ("Sharpe", 2),
    "worst_day": ("worst 24 bars", 3), "liquidations": ("liquidations; of an arm: of all seeds", 2),
    "mean_absolute_exposure": ("mean absolute exposure", 3), "mean_leverage": ("mean leverage asked", 2),
    "turnover_per_year": ("turnover a year", 0), "costs_per_year": ("costs a year, of equity", 3),
    "cut_novelty": ("share of bars cut as unlike the training range", 3), "ruined": ("ruined; of an arm: seeds", 2),
}  # fmt: skip
COUNTED = ("liquidations", "ruined")  # shown as totals, since a mean of the middle seeds hides what happens seldom


def markdown(result: dict[str, Any]) -> str:
    """Return tables of a result of :func:`agents.leverage_study.run`: a section for each range and player."""
    seeds = result["seeds"]
    whose = "one market, so that intervals over seeds are about trainings" if result["one_market"] else "a market each"
    lines = [
        f"Bars `{result['bars']}`; {len(seeds)} seeds ({seeds[0]} to {seeds[-1]}), {whose}; {result['steps']:,} steps "
        f"of PPO at leverage {result['leverage']:g}. Interquartile means with 95 % intervals over seeds; differences "
        "are paired by seed.",
    ]
    if result.get("quick"):
        lines.append("\nQuick: too few seeds and steps to say anything.")
    for where, players in result["ranges"].items():
        for player, part in players.items():
            lines += ["", f"## {player}, {where}, {part['bars']:,} bars", ""]
            agrees = f"agrees within {result['tolerance']:.1%} in {part['matched']} of {len(seeds)} seeds."
            idle = f" In {part['idle']} it holds nothing, so that nothing is compared there." if part["idle"] else ""
            lines += [f"Mean absolute exposure on validation {agrees}{idle}", "", *_table(part)]
            lines += [] if "over_time" not in part else ["", *_over_time(part["over_time"])]
    return "\n".join(lines) + "\n"


def _table(part: dict[str, Any]) -> list[str]:
    pairs = list(part["differences"])
    rows = ["| | " + " | ".join((*ARMS, *pairs)) + " |", "|---" * (1 + len(ARMS) + len(pairs)) + "|"]
    for name, (title, digits) in SHOWN.items():
        cells = [f"{part['arms'][arm][name]['iqm']:.{digits}f}" for arm in ARMS]
        if name in COUNTED:
            cells = [f"{sum(part['arms'][arm][name]['values']):.0f}" for arm in ARMS]
        cells += [span(part["differences"][pair][name], digits) for pair in pairs]
        rows.append(f"| {title} | " + " | ".join(cells) + " |")
    return rows


def _over_time(parts: Mapping[str, Any]) -> list[str]:
    block = next(iter(next(iter(parts.values())).values()))["mean_block"]
    rows = [f"The same differences with 95 % intervals over *time* (blocks of {block:.0f} bars on average, all seeds):"]
    rows += ["", "| | " + " | ".join(parts) + " |", "|---" * (1 + len(parts)) + "|"]
    for name in next(iter(parts.values())):
        title, digits = SHOWN[name]
        rows.append(f"| {title} | " + " | ".join(span(part[name], digits) for part in parts.values()) + " |")
    return rows


def span(part: Mapping[str, Any], digits: int) -> str:
    """Write a difference with its interval; without one where nothing differed from seed to seed."""
    low, high = part["interval"]
    if high - low < 1e-12:
        return f"{part['iqm']:+.{digits}f}"
    return f"{part['iqm']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def draw(result: dict[str, Any], gains: Mapping[str, NDArray[np.float64]], path: Path) -> None:
    """Draw differences with intervals and the curves of each range and player into a PNG.

    Args:
        gains: ``PLAYER ARM RANGE`` -> simple returns ``(N, T)``, from :func:`agents.leverage_study.curves`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "viz")
    from matplotlib.figure import Figure

    cases = [(where, player) for where, players in result["ranges"].items() for player in players]
    figure = Figure(figsize=(4.0 * max(len(cases), 2), 7.5), layout="constrained")
    grid = figure.add_gridspec(2, 2 * len(cases))
    for place, (name, title) in enumerate((("max_drawdown", "maximum drawdown"), ("log_growth", "log growth"))):
        axes = figure.add_subplot(grid[0, place * len(cases) : (place + 1) * len(cases)])
        _differences(axes, result, cases, name)
        axes.set_title(f"{title}:\ndifference, paired by seed, 95 %", fontsize=10)
    for place, (where, player) in enumerate(cases):
        axes = figure.add_subplot(grid[1, 2 * place : 2 * place + 2])
        for arm, style in zip(ARMS, ("-", "-", ":"), strict=True):
            growth = np.log1p(np.maximum(gains[f"{player} {arm} {where}"], RUIN - 1.0)).cumsum(axis=1)
            step = max(1, growth.shape[1] // 400)
            shown = np.arange(0, growth.shape[1], step)
            axes.plot(shown, [interquartile_mean(column) for column in growth.T[::step]], style, label=arm)
        axes.axhline(0.0, color="grey", linewidth=0.8)
        axes.set(title=f"{player}, {where}", xlabel="bars", ylabel="log equity, mean of the middle seeds")
        axes.legend()
    figure.savefig(path, dpi=110)


def _differences(axes: Any, result: dict[str, Any], cases: list[tuple[str, str]], name: str) -> None:
    labels: list[str] = []
    for where, player in cases:
        for pair, parts in result["ranges"][where][player]["differences"].items():
            place, part = len(labels), parts[name]
            low, high = part["interval"]
            axes.scatter([place] * len(part["values"]), part["values"], s=12, alpha=0.5, color="tab:blue")
            axes.errorbar(
                [place], [part["iqm"]], [[max(part["iqm"] - low, 0.0)], [max(high - part["iqm"], 0.0)]], fmt="o",
                color="black", capsize=4,
            )  # fmt: skip
            labels.append(f"{player}, {where}\n{pair}")
    axes.axhline(0.0, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(labels)), labels, fontsize=7, rotation=30, ha="right")
