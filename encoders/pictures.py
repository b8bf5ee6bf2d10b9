"""Pictures of what an encoder sees: its embedding in two dimensions, regimes over the price, spectra (extra ``viz``).

Colours are the regimes of the belief, ordered by volatility; all pictures are of the same bars, and equal for equal
seeds. The plane of t-SNE keeps neighbours, not distances: islands and their sizes mean nothing, and need the extra
``models``; principal components are always drawn.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from encoders.change_odds import LIKELY, change_flags, usual_window
from encoders.controls import untrained_of
from encoders.jepa import JEPAEncoder
from encoders.odds import describe
from encoders.probes import edmd_eigenvalues
from markets.bars import Bars
from markets.errors import ConfigError, DataError, MissingExtraError, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
Colours = list[str]

DPI = 150
POINTS = 2000  # of the embedding, evenly spaced
TIMELINE = 2000  # bars, the last ones: more cannot be told apart on a page
PERPLEXITY = 30.0
FEWEST = 4 * int(PERPLEXITY)  # points that t-SNE makes a picture of
STRIDE = 8  # bars between the rows of a spectrum

_log = logging.getLogger(__name__)


def draw(encoder: JEPAEncoder, bars: Bars, folder: Path, seed: int = 0, timeline: int = TIMELINE) -> list[Path]:
    """Write ``embedding.png``, ``regimes.png`` and ``spectrum.png`` into ``folder`` and return their paths.

    Args:
        seed: of t-SNE. timeline: last bars shown over the price.

    Raises:
        MissingExtraError: matplotlib is not installed. DataError: too few bars. ConfigError: a timeline of no bars.
    """
    require("matplotlib", "viz")
    lag = encoder.facts["config"]["horizon"] if "config" in encoder.facts else 64
    if not isinstance(timeline, int) or timeline < 2:
        raise ConfigError(f"timeline={timeline!r} must be a whole number of at least 2 bars")
    least = encoder.warm_up + FEWEST * STRIDE + lag
    if len(bars) < least:
        raise DataError(f"{len(bars)} bars are too few for pictures of this encoder: {least} are needed")
    return [
        _embedding(encoder, bars, folder / "embedding.png", seed),
        _timeline(encoder, bars, folder / "regimes.png", timeline),
        _spectrum(encoder, bars, folder / "spectrum.png", lag),
    ]


def principal_components(rows: Floats) -> tuple[Floats, Floats]:
    """Return ``(N, 2)`` principal components of ``(N, D)`` rows, and the share of variance of each.

    The sign of a component is that of its largest loading, so that a picture does not flip from run to run.
    """
    centred = rows - rows.mean(axis=0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2][np.arange(2), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    return centred @ axes.T, (values**2 / max(float((values**2).sum()), 1e-300))[:2]


def neighbour_plane(rows: Floats, seed: int = 0) -> Floats:
    """Return ``(N, 2)`` coordinates by t-SNE of ``(N, D)`` rows (extra ``models``); the same for the same seed."""
    require("sklearn", "models")
    from sklearn.manifold import TSNE

    return np.asarray(TSNE(2, perplexity=PERPLEXITY, init="pca", random_state=seed).fit_transform(rows), np.float64)


def _embedding(encoder: JEPAEncoder, bars: Bars, path: Path, seed: int) -> Path:
    from matplotlib.figure import Figure

    step = max(1, -(-(len(bars) - encoder.warm_up) // POINTS))
    rows = np.arange(encoder.warm_up, len(bars), step)
    points = encoder.embed(bars)[rows].astype(np.float64)
    plane, shares = principal_components(points)
    planes = [(f"principal components ({shares.sum():.0%} of the variance)", "component", plane)]
    try:
        planes.append(("t-SNE (neighbours, not distances)", "t-SNE", neighbour_plane(points, seed)))
    except MissingExtraError as error:
        _log.warning("no t-SNE: %s", error)
    paints = [("regime of the belief", encoder.odds(bars, "belief")[rows].argmax(axis=1), _names(encoder))]
    if bars.labels is not None:
        paints.append(("true regime", bars.labels[rows].astype(np.int64), list(bars.label_names)))
    figure = Figure(figsize=(6.2 * len(planes) + 2.2, 5.4 * len(paints)), layout="constrained")
    axes = figure.subplots(len(paints), len(planes), squeeze=False)
    for row, (what, regime, names) in zip(axes, paints, strict=True):
        colours = _colours(len(names), what == "true regime")
        for axis, (title, label, values) in zip(row, planes, strict=True):
            order = np.random.default_rng(seed).permutation(len(values))  # or the last regime would cover the others
            tones = np.array(colours)[regime[order]]
            axis.scatter(values[order, 0], values[order, 1], c=tones, s=9, alpha=0.75, linewidths=0)
            axis.set_title(f"{title}, coloured by {what}", fontsize=10)
            axis.set_xlabel(f"{label} 1")
            axis.set_ylabel(f"{label} 2")
            axis.grid(alpha=0.2)
        _legend(row[-1], names, colours, what)
    figure.suptitle(
        f"Embedding of {len(rows):,} of {len(bars):,} bars, {_when(bars, rows[0])} to {_when(bars, rows[-1])}"
    )
    figure.savefig(path, dpi=DPI)
    return path


def _timeline(encoder: JEPAEncoder, bars: Bars, path: Path, count: int) -> Path:
    from matplotlib.figure import Figure

    begin = max(encoder.warm_up, len(bars) - count)
    shown = slice(begin, len(bars))
    odds = encoder.odds(bars, "belief")[shown]
    change = encoder.change_odds(bars)
    flagged = np.flatnonzero(change_flags(change)[shown])
    change = change[shown]
    time, close, regime = bars.close_time[shown], bars.close[shown, 0], odds.argmax(axis=1)
    names, colours = _names(encoder), _colours(encoder.regimes)
    heights = (4.0, 1.6, 1.2) if bars.labels is None else (4.0, 1.6, 1.2, 0.35)
    figure = Figure(figsize=(14, 1.15 * sum(heights) + 1.2), layout="constrained")
    axes: list[Axes] = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    _shade(axes[0], time, regime, colours, 0.45)
    axes[0].plot(time, close, color="black", linewidth=0.9)
    axes[0].set_yscale("log" if close.max() > 3.0 * close.min() else "linear")
    axes[0].set_ylabel(f"close of {bars.symbols[0]}")
    axes[0].set_title(f"Most likely regime over the price, {_when(bars, begin)} to {_when(bars, len(bars) - 1)}")
    _legend(axes[0], names, colours, "regime of the belief")
    axes[1].stackplot(time, odds.T, colors=colours, linewidth=0)
    axes[1].set_ylim(0.0, 1.0)
    axes[1].set_ylabel("odds")
    axes[2].plot(time, change, color="black", linewidth=0.8)
    axes[2].plot(time[flagged], change[flagged], "v", color="crimson", markersize=5, label=f"reaches {LIKELY:.0%}")
    axes[2].set_ylim(0.0, 1.05)
    axes[2].set_ylabel(f"P(changed in\nlast {usual_window(encoder.belief.transition)} bars)", fontsize=9)
    axes[2].legend(loc="upper left", bbox_to_anchor=(1.005, 1.0), fontsize=8, frameon=False)
    axes[2].grid(alpha=0.3)
    if bars.labels is not None:
        own = _colours(len(bars.label_names), True)
        _shade(axes[3], time, bars.labels[shown].astype(np.int64), own, 1.0)
        axes[3].set_yticks([])
        axes[3].set_ylabel("truth", rotation=0, ha="right", va="center")
        _legend(axes[3], list(bars.label_names), own, "")
    axes[-1].set_xlabel("close of the bar, UTC")
    axes[-1].set_xlim(time[0], time[-1])
    figure.savefig(path, dpi=DPI)
    return path


def _spectrum(encoder: JEPAEncoder, bars: Bars, path: Path, lag: int) -> Path:
    from matplotlib.figure import Figure

    rows = np.arange(encoder.warm_up, len(bars) - lag, STRIDE)
    channels = encoder.scaler.of_bars(bars)
    chain = np.linalg.eigvals(np.linalg.matrix_power(encoder.belief.transition, lag))
    embedding = encoder.trunk.embed(channels).astype(np.float64)
    sets: list[tuple[str, Any, str, str]] = [
        (f"chain of the belief, P^{lag}", chain, "o", "tab:red"),
        ("embedding (EDMD)", edmd_eigenvalues(embedding[rows], embedding[rows + lag])[0], "D", "tab:blue"),
    ]
    untrained = untrained_of(encoder)
    if untrained is not None:
        values = untrained.trunk.embed(channels).astype(np.float64)
        found = edmd_eigenvalues(values[rows], values[rows + lag])[0]
        sets.append(("untrained embedding (EDMD)", found, "x", "tab:gray"))
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    plane, moduli = figure.subplots(1, 2, width_ratios=(1, 1.15))
    angle = np.linspace(0.0, 2.0 * np.pi, 400)
    plane.plot(np.cos(angle), np.sin(angle), color="black", linewidth=0.8)
    for name, values, marker, colour in sets:
        face = colour if marker == "x" else "none"
        style = {"marker": marker, "s": 46, "linewidths": 1.5, "alpha": 0.85}
        plane.scatter(values.real, values.imag, edgecolors=None if marker == "x" else colour, c=face, **style)
        ordered = np.sort(np.abs(values))[::-1][int(values is chain) :][:12]  # the chain's first is the constant's
        style = {"marker": marker, "markerfacecolor": "none", "linewidth": 1.0, "color": colour, "alpha": 0.85}
        moduli.plot(np.arange(1, len(ordered) + 1), ordered, label=name, **style)
    plane.axhline(0.0, color="black", linewidth=0.4)
    plane.axvline(0.0, color="black", linewidth=0.4)
    plane.set_aspect("equal")
    plane.set_xlim(-1.12, 1.12)
    plane.set_ylim(-1.12, 1.12)
    plane.set_xlabel("real part")
    plane.set_ylabel("imaginary part")
    plane.set_title(f"Eigenvalues at a lag of {lag} bars, unit circle", fontsize=10)
    moduli.set_ylim(0.0, 1.08)
    moduli.set_xticks(range(1, 13))
    moduli.set_xlabel("eigenvalue, largest first")
    moduli.set_ylabel("modulus")
    moduli.set_title("Moduli, without the chain's 1 (a centred embedding has no constant)", fontsize=10)
    moduli.legend(fontsize=9)
    moduli.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)
    return path


def _names(encoder: JEPAEncoder) -> list[str]:
    return [f"{row['regime']}: {row['volatility']:.2f} % a bar" for row in describe(encoder.belief)]


def _colours(count: int, other: bool = False) -> Colours:
    """Return a colour a regime: cold to hot for those ordered by volatility, ``other`` ones for names without order."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if other:
        return [to_hex(colormaps["tab20" if count > 10 else "tab10"](k % 20)) for k in range(count)]
    return [to_hex(colormaps["turbo"](value)) for value in np.linspace(0.1, 0.92, count)]


def _shade(axis: Axes, time: NDArray[Any], regime: NDArray[np.int64], colours: Colours, alpha: float) -> None:
    """Colour the background spell by spell."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(regime)) + 1])
    for start, stop in zip(starts, np.append(starts[1:], len(regime) - 1), strict=True):
        axis.axvspan(time[start], time[stop], color=colours[regime[start]], alpha=alpha, linewidth=0)


def _legend(axis: Axes, names: list[str], colours: Colours, title: str) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)]
    axis.legend(handles=handles, title=title, loc="upper left", bbox_to_anchor=(1.005, 1.0), fontsize=8, frameon=False)


def _when(bars: Bars, row: int) -> str:
    return str(bars.close_time[row])[:10]
