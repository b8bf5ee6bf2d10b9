"""Picture of a comparison of arms: every run, interquartile means, and the paired differences (extra ``viz``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markets.errors import require


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw a result of :func:`agents.arm_comparison.run` into a PNG.

    Left: the score of each seed and the interquartile mean with its interval. Right: differences from the first arm.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "viz")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(result["arms"])
    for place, name in enumerate(names):
        scores = [row["score"] for row in result["runs"][name]]
        left.scatter([place] * len(scores), scores, s=12, alpha=0.5, color="tab:blue")
    _intervals(left, result["arms"])
    left.set(ylabel="log growth of an episode", title=f"arms over {len(result['seeds'])} seeds, {result['split']}")
    _intervals(right, result["differences"])
    right.axhline(0.0, color="grey", linewidth=0.8)
    right.set(ylabel=f"difference from {result['base']}", title="differences, paired by seed, 95 %")
    figure.savefig(path, dpi=120)


def _intervals(axes: Any, parts: dict[str, Any]) -> None:
    values = [part["iqm"] for part in parts.values()]
    bounds = [part["interval"] for part in parts.values()]
    spread = [
        [max(value - low, 0.0) for value, (low, _) in zip(values, bounds, strict=True)],
        [max(high - value, 0.0) for value, (_, high) in zip(values, bounds, strict=True)],
    ]
    axes.errorbar(range(len(values)), values, spread, fmt="o", color="black", capsize=4)
    axes.set_xticks(range(len(values)), list(parts))
