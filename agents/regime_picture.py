"""Picture of the report by regime: a row of panels for each regime, a panel for each figure, agents below each other.

Names stand at the left, once a row, so that many agents or long names need no legend. Panels below each other share
their scale, so that regimes are compared by looking down; only the mean return has one of each regime's own, since the
interval of a rare regime would flatten all others.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markets.errors import require

LINE, MORE = 0.17, 0.11  # inches of an agent, and of each further line of its name
LONGEST = 34  # letters of a name in one line
TALLEST = 30_000  # pixels of a picture
FAR = 2.0  # inches of a row from which the numbers under the last one are too far away
DPI = 120
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """One figure.

    Attributes:
        title: with its unit. value: of a row of the report. linear: up to which number the scale is linear and from
            there logarithmic where figures reach ten times as far: who trades every bar would flatten everybody else.
    """

    title: str
    value: Callable[[Row], float]
    linear: float | None = None


MEAN = Panel("mean return a step, bp\n(own scale a regime)", lambda row: 1e4 * row["mean_return"])
PANELS = (
    MEAN,
    Panel("max drawdown, %", lambda row: 100 * row["max_drawdown"]),
    Panel("turnover a year,\ntimes equity", lambda row: row["turnover_per_year"], 10.0),
    Panel("mean |exposure|,\ntimes equity", lambda row: row["mean_absolute_exposure"]),
    Panel("costs, money", lambda row: row["costs"], 100.0),
    Panel("funding paid, money", lambda row: row["funding"], 100.0),
    Panel("interest on\nborrowing, money", lambda row: row["borrow"], 100.0),
    Panel("transition cost,\nbp an entry", lambda row: 1e4 * row["transition_cost"]),
)


def draw(evaluation: Mapping[str, Any], path: Path) -> Path:
    """Draw ``by_regime`` of an evaluation into a PNG (extra ``viz``) and return its path.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    made = figure(evaluation)
    made.savefig(path, dpi=min(DPI, TALLEST / made.get_figheight()))
    return path


def figure(evaluation: Mapping[str, Any]) -> Any:
    """Return the matplotlib figure of :func:`draw`; ``evaluation`` is what :func:`agents.comparison.compare` returns.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "viz")
    from matplotlib.figure import Figure

    found, baselines = evaluation["by_regime"], set(evaluation["baselines"])
    rows: Mapping[str, Mapping[str, Row]] = found["rows"]
    agents = list(rows)[::-1]  # the first one is drawn at the top
    regimes = list(dict.fromkeys(name for by_name in rows.values() for name in by_name))
    colours = {name: f"C{place % 10}" for place, name in enumerate(regimes)}
    panels = [panel for panel in PANELS if _has(panel, rows)]
    lines = max(_short(name).count("\n") for name in agents)
    band = max((LINE + MORE * lines) * len(agents), 0.9) + 0.45
    whole: Any = Figure(figsize=(13.5, 1.9 + band * len(regimes) * (1.0 if band < FAR else 1.08)), layout="constrained")
    whole.get_layout_engine().set(hspace=0.02, h_pad=0.04)
    top, below = whole.subfigures(2, 1, height_ratios=(1.0, band * len(regimes) + 0.5))
    whole.suptitle(_title(evaluation), fontsize=10)
    _shares(top.add_subplot(), next(iter(rows.values())), colours)
    grid = below.subplots(len(regimes), len(panels), sharey=True, squeeze=False)
    for axes_row, regime in zip(grid, regimes, strict=True):
        for axes, panel in zip(axes_row, panels, strict=True):
            _fill(axes, panel, [rows[name].get(regime) for name in agents], colours[regime], agents, baselines)
        axes_row[0].set_yticks(range(len(agents)), [_short(name) for name in agents], fontsize=7)
        axes_row[0].set_ylim(-0.7, len(agents) - 0.3)
        axes_row[0].set_title(" ", fontsize=9)  # the heading's room: itself it would widen the first column
        axes_row[0].annotate(
            _heading(regime, [rows[name][regime] for name in rows if regime in rows[name]]), (0.0, 1.0), (0, 4),
            xycoords="axes fraction", textcoords="offset points", fontsize=9, fontweight="bold",
            color=colours[regime], annotation_clip=False,
        ).set_in_layout(False)  # fmt: skip
    for axes_column, panel in zip(grid.T, panels, strict=True):
        for axes in axes_column if band > FAR else axes_column[-1:]:
            axes.set_xlabel(panel.title, fontsize=8)
        if panel is not MEAN:
            _share_scale(axes_column, panel, rows, band > FAR)
    return whole


def _has(panel: Panel, rows: Mapping[str, Mapping[str, Row]]) -> bool:
    """Say whether the family of the agents has the figure at all."""
    try:
        for by_name in rows.values():
            for row in by_name.values():
                panel.value(row)
    except KeyError:
        return False
    return True


def _title(evaluation: Mapping[str, Any]) -> str:
    found = evaluation["by_regime"]
    told = "true regimes" if found["source"] == "true" else f"most likely regimes by {found['source']}"
    whose = f" of {found['asset']}" if found["asset"] else ""
    dates = f"{evaluation['split']} split, {evaluation['first'][:10]} to {evaluation['last'][:10]}"
    marks = "agents filled, baselines hollow; lines: 95 % intervals of the mean by block bootstrap"
    return "\n".join([*textwrap.wrap(f"{dates}: {told}{whose}", 150), marks])


def _shares(axes: Any, rows: Mapping[str, Row], colours: Mapping[str, str]) -> None:
    """Draw which part of the steps each regime has as one bar; steps are the market's, the same for every agent."""
    left = 0.0
    for name, row in rows.items():
        share = 100 * row["share"]
        axes.barh([0], [share], left=[left], height=0.8, color=colours[name], edgecolor="white")
        if share >= 4.0:  # narrower ones have their share in the heading of their row
            room = max(int(share * 1.5), 6)
            words = textwrap.shorten(name, room, placeholder="...") if share < 12 else textwrap.fill(name, room)
            axes.text(left + share / 2, 0, f"{words}\n{share:.0f} %", ha="center", va="center", fontsize=7, color="w")
        left += share
    axes.set(xlim=(0.0, max(left, 100.0)), ylim=(-0.5, 0.5), yticks=[])
    axes.set_xlabel("share of steps, %", fontsize=8)
    axes.tick_params(labelsize=7)


def _heading(regime: str, rows: list[Row]) -> str:
    steps, entries = (sorted({row[name] for row in rows}) for name in ("steps", "entries"))
    steps_words, entry_words = (" to ".join(dict.fromkeys(f"{n:,}" for n in (x[0], x[-1]))) for x in (steps, entries))
    return f"{regime}: {steps_words} steps ({100 * rows[0]['share']:.1f} %), {entry_words} entries"


def _fill(axes: Any, panel: Panel, rows: list[Row | None], colour: str, agents: list[str], baselines: set[str]) -> None:
    """Draw one figure of every agent in one regime: agents filled, baselines hollow, none where it has no step."""
    for place, (name, row) in enumerate(zip(agents, rows, strict=True)):
        if row is None:
            continue
        value = panel.value(row)
        if panel is MEAN and row["mean_return_interval"] is not None:
            low, high = (1e4 * bound for bound in row["mean_return_interval"])
            axes.plot([low, high], [place, place], color=colour, linewidth=1.2, solid_capstyle="butt")
        inside = "white" if name in baselines else colour
        axes.plot([value], [place], "o", markersize=4.5, color=colour, markerfacecolor=inside, clip_on=False)
    axes.axvline(0.0, color="grey", linewidth=0.7)
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(labelsize=7)


def _share_scale(axes_column: Any, panel: Panel, rows: Mapping[str, Mapping[str, Row]], each: bool) -> None:
    """Give the panels of one figure the same scale, with numbers under each of them or only the last."""
    largest = max(abs(panel.value(row)) for by_name in rows.values() for row in by_name.values())
    for axes in axes_column[:-1]:
        axes.sharex(axes_column[-1])
        axes.tick_params(labelbottom=each)
    if panel.linear is not None and largest > 10.0 * panel.linear:
        axes_column[-1].set_xscale("symlog", linthresh=panel.linear)
    axes_column[-1].autoscale(axis="x")


def _short(name: str) -> str:
    return "\n".join(textwrap.wrap(name, LONGEST))
