"""Reports of an evaluation: one table, as text rows, Markdown and JSON, a plot, and the ledger of sessions and trades.

The columns depend on what was traded: of options by session there is the result of a day, what became of the trades and
how many actions were illegal, and no funding or liquidation.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents import daily
from agents.option_samples import FITTED_FROM, FITTED_UNTIL
from agents.significance import FEW
from markets.errors import require
from markets.session_calendar import SESSIONS_PER_YEAR
from markets.storage import replace_file

COLUMNS = (
    "agent", "total return [95 %]", "Sharpe [95 %]", "DSR", "max drawdown", "exposure", "turnover/yr", "fees",
    "spread+impact", "funding", "liquidations", "return at 0x/2x/5x costs", "break-even",
)  # fmt: skip
PORTFOLIO_COLUMNS = (*COLUMNS[:9], "borrow", "ended by", *COLUMNS[11:])  # of coins and cash
SESSION_COLUMNS = (
    "agent", "total return [95 %]", "P&L/session [95 %]", "Sharpe [95 %]", "DSR", "max drawdown", "trades (won)",
    "sold/forced/settled", "exposure", "turnover/yr", "fees", "spread", "illegal", "return at 0x/2x/5x costs",
    "break-even",
)  # fmt: skip
REGIME_COLUMNS = (
    "agent", "regime", "steps", "entries", "return", "mean/step, bp [95 %]", "sd/step, bp", "Sharpe",
    "max drawdown", "exposure (absolute)", "turnover/yr", "costs", "funding", "transition cost, bp",
)  # fmt: skip
NARROW = (0, 1, 2, 3, 4, 5, 6, 10)  # of COLUMNS, where a terminal has no room for all
NARROW_SESSIONS = (0, 1, 2, 3, 4, 5, 6, 12)


def columns(rows: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the column headings that fit the rows."""
    if any("borrow" in row for row in rows.values()):
        return PORTFOLIO_COLUMNS
    return SESSION_COLUMNS if any("sessions" in row for row in rows.values()) else COLUMNS


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of the report as text, one per agent, in the order of :func:`columns`."""
    cells = _session_cells if columns(rows) == SESSION_COLUMNS else _cells
    return [[name, *cells(row)] for name, row in rows.items()]


def markdown(evaluation: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table and what it rests on as Markdown."""
    headings = columns(rows)
    lines = [line for sentence in flags(evaluation) for line in (sentence, "")]
    lines += _grid(headings, table(rows))
    lines += ["", *notes(evaluation)]
    if "by_regime" in evaluation:
        lines += ["", *_grid(regime_columns(evaluation["by_regime"]), regime_table(evaluation["by_regime"])), ""]
        lines += regime_notes(evaluation["by_regime"])
    return "\n".join(lines) + "\n"


def flags(evaluation: Mapping[str, Any]) -> list[str]:
    """Return what has to be known before the table is read: that the test range is no fresh one."""
    again, others = evaluation["touches"] - 1, evaluation.get("overlapping_touches", 0)
    if evaluation["split"] != "test" or (again < 1 and not others):
        return []
    known = [f"{again} time(s)" if again > 0 else "", f"{others} time(s) at other dates that overlap" if others else ""]
    return [
        f"**READ BEFORE**: this test range was read {' and '.join(filter(None, known))} on this machine before this "
        "evaluation; what was chosen after looking at it is no test."
    ]


def regime_columns(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the headings of the report by regime: a portfolio of coins borrows and has no funding."""
    borrows = any("borrow" in row for rows in found["rows"].values() for row in rows.values())
    return tuple("borrow" if borrows and name == "funding" else name for name in REGIME_COLUMNS)


def regime_table(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the report by regime as text, in the order of :func:`regime_columns`."""
    return [[name, regime, *_regime_cells(row)] for name, rows in found["rows"].items() for regime, row in rows.items()]


def regime_notes(found: Mapping[str, Any]) -> list[str]:
    """Return the sentences that belong under the table by regime."""
    true, whose = found["source"] == "true", f" of {found['asset']}" if found["asset"] else ""
    return [
        f"Regimes: the true one{whose} in the bar in which a step traded."
        if true
        else f"Regimes: the most likely one{whose} by {found['source']} at the close before a step traded.",
        f"Drawdown of a regime's own steps, one after the other. Transition cost: fees, spread and impact in the first "
        f"{found['window']} bars after each change into the regime, in basis points of equity per entry, and "
        "their share of all costs paid in it. Funding, borrow: positive is paid.",
        "Interval of the mean: stationary bootstrap of the whole walk (mean block one week, or a tenth of the regime's "
        "steps if that is less, 2,000 draws).",
    ]


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


def _regime_cells(row: Mapping[str, Any]) -> Sequence[str]:
    return (
        f"{row['steps']:,} ({100 * row['share']:.0f} %)",
        f"{row['entries']:,}",
        f"{100 * row['total_return']:.1f} %",
        with_interval(row["mean_return"], row["mean_return_interval"], 1e4, ""),
        f"{1e4 * row['deviation']:.1f}",
        f"{row['sharpe']:.2f}",
        f"{100 * row['max_drawdown']:.1f} %",
        f"{row['mean_exposure']:+.2f}x ({row['mean_absolute_exposure']:.2f}x)",
        f"{row['turnover_per_year']:,.0f}x",
        f"{row['costs']:,.0f}",
        f"{row['borrow' if 'borrow' in row else 'funding']:,.0f}" if {"borrow", "funding"} & set(row) else "-",
        f"{1e4 * row['transition_cost']:.2f} ({100 * row['transition_share']:.0f} %)",
    )


def notes(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the sentences that belong under the table."""
    arguments = evaluation.get("arguments", {})
    game = ", ".join(f"{key}={value}" for key, value in arguments.items() if key != "bars")
    seen, eyes = evaluation.get("in_sample_until"), evaluation.get("encoder")
    sentences = [
        *(
            [f"**IN SAMPLE**: scaler, encoder or signals know bars up to {seen[:16]} UTC, which are of this split."]
            if seen
            else []
        ),
        *_of_model(evaluation.get("model_in_sample", [])),
        *([f"`{evaluation['env']}` with {game or 'default arguments'}."] if "env" in evaluation else []),
        f"Split `{evaluation['split']}` of `{evaluation['source']}`, {evaluation['first'][:16]} to "
        f"{evaluation['last'][:16]} UTC.",
        *([f"Encoder `{eyes['name']}`, SHA-256 {eyes['sha256'][:16]}."] if eyes else []),
        *(_of_bars(evaluation) if evaluation.get("sessions") is None else _of_sessions(evaluation)),
        *_of_trials(evaluation),
        *_of_selection(evaluation.get("selection")),
    ]
    sentences += evaluation.get("remarks", [])
    if evaluation["split"] == "test":
        sentences.append(f"This test range has been read {evaluation['touches']} time(s) on this machine.")
    return sentences


def _of_model(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    what = f"default {' and '.join(names)} {'was' if len(names) == 1 else 'were'}"
    return [
        f"**IN SAMPLE**: the option model's {what} fitted on sessions of {str(FITTED_FROM)[:7]} to "
        f"{str(FITTED_UNTIL)[:7]}, some of which are of this split."
    ]


def _of_trials(evaluation: Mapping[str, Any]) -> list[str]:
    """Return what was tried on the bars, and what that does to the table."""
    trials, found = evaluation.get("trials"), evaluation.get("overfitting")
    if trials is None:
        return []
    tried = (
        f"Tried on these bars as far as this machine knows: {trials['configurations']} configuration(s), "
        f"{trials['runs']} run(s) with their seeds, signals and ensembles included. DSR, deflated Sharpe ratio: the "
        "probability that the true "
    )
    if trials["runs"] > 1:
        spread = (
            f"the spread of {trials['scored']} validation Sharpe ratios"
            + (", but no less than that of ratios without skill, 1/sqrt(T)" if trials["scored"] < FEW else "")
            if trials["scored"] > 1
            else "the spread of ratios without skill, 1/sqrt(T)"
        )
        tried += (
            f"one is above {trials['chance_sharpe']:.2f} a year, what the best of {trials['runs']} shows by luck with "
            f"{spread}. So many trials without skill and without anything in common need {trials['minimum_years']:.1f} "
            f"years for the best not to show a ratio of 1; this split has {trials['years']:.1f}. "
        )
    else:
        tried += "one is above 0, since one trial leaves nothing to choose from. "
    sentences = [f"{tried}Returns are taken as independent."]
    if found is not None:
        sentences.append(
            f"PBO {found['probability']:.2f}: probability of overfitting by CSCV over the {found['strategies']} agents "
            f"of this table (no baselines), {found['blocks']} blocks of {found['periods'] // found['blocks']} periods, "
            f"{found['ways']:,} ways; 0.5 is what strategies without skill have"
            f"{', and so few say little' if found['strategies'] < FEW else ''}."
        )
    return sentences


SHOWN = 8  # candidates named in a sentence


def _of_selection(found: Mapping[str, Any] | None) -> list[str]:
    """Return which agent validation would go on with, and how little that may mean."""
    if found is None:
        return []
    shown = [
        f"{name} {with_interval(row['sharpe'], row['interval'], 1.0, '')} ({row['class']})"
        for name, row in found["candidates"].items()
    ]
    shown[SHOWN:] = [f"{len(shown) - SHOWN} more in the JSON"] if len(shown) > SHOWN else []
    lead = "ahead of the second" if found["ahead"] else "not surely ahead of the second"
    sure = "its interval lies above 0" if found["skilled"] else "its interval does not lie above 0"
    earned = found["candidates"][found["chosen"]]["class"] == "earning"
    verdict = f"{sure}, {lead}" if earned else "nobody earned anything that counts"
    sentences = [
        f"**Best by validation** ({found['first'][:10]} to {found['last'][:10]}): {found['chosen']}; {verdict}. "
        f"Sharpe [95 %]: {', '.join(shown)}. Earning comes before flat and flat before losing, then the highest lower "
        "bound counts; who hardly trades is flat. Intervals are not corrected for the choice, DSR is."
    ]
    if found["seen_by"]:
        seen = found["seen_by"]
        who = ", ".join(seen) if len(seen) <= SHOWN else f"{len(seen)} of {len(found['candidates'])}"
        sentences.append(f"Weights of {who} were chosen on validation before, which flatters them in it.")
    if found["in_sample"]:
        sentences.append("**IN SAMPLE**: scaler or encoder were fitted on bars of the validation split.")
    return sentences


def _of_bars(evaluation: Mapping[str, Any]) -> list[str]:
    return [
        f"Returns per bar, annualised with {evaluation['periods_per_year']:.0f} bars a year; after a termination the "
        "rest counts as flat.",
        "Intervals of single agents: stationary bootstrap of the walk (mean block one week, 2,000 draws); of rows over "
        "several runs: interquartile mean with a percentile bootstrap over runs, silent on other periods.",
        "Held: bought once and left alone; daily: equal weights, restored at midnight UTC."
        if columns(evaluation.get("rows", {})) == PORTFOLIO_COLUMNS
        else "Buy-and-hold, always-short and volatility-targeted long are unlevered (leverage 1, fully margined).",
        "Orders follow equity, so that costs move later fills too: a walk at higher costs can end higher.",
        "Money in the quote currency. Break-even: the multiple of fee, spread and impact at which the return is 0.",
    ]


def _of_sessions(evaluation: Mapping[str, Any]) -> list[str]:
    return [
        f"{evaluation['sessions']} sessions, each from the same start equity. Total return: the sessions' growth, "
        f"chained. Returns per session, annualised with {SESSIONS_PER_YEAR} a year; drawdown by the minute.",
        "Intervals of single agents: stationary bootstrap of whole sessions (mean block one week, 2,000 draws); of "
        "rows over several runs: interquartile mean with a percentile bootstrap over runs, silent on other periods.",
        "Illegal: actions outside the mask, which the environment held. Agents that take masks are given them.",
        "Random legal draws from the legal actions in a tenth of the minutes; call and put at open buy at the money in "
        "the first half hour and hold to the forced exit.",
        "Cost scales multiply fee and spread; a spread is never less than a tick, which 0x pays as well. Limits are "
        "pegged to the quotes, so that another scale fills other orders: its return is that of another path, not of "
        "the same trades at other costs.",
        "Money in the quote currency. Break-even: the multiple of fee and spread at which the return is 0.",
    ]


def write_ledger(evaluation: Mapping[str, Any], folder: Path, name: str) -> dict[str, str]:
    """Write the trades and the sessions of every walk at cost scale 1 to ``folder/NAME-trades.csv`` and
    ``NAME-sessions.csv``.

    Returns:
        ``trades`` and ``sessions`` with the file's name; empty where an episode is no session.
    """
    written = {}
    for what, (headings, rows) in daily.tables(evaluation["walks"]).items():
        written[what] = f"{name}-{what}.csv"
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, headings)
        writer.writeheader()
        writer.writerows(rows)
        replace_file(folder / written[what], text.getvalue().encode())
    return written


def plot(evaluation: Mapping[str, Any], path: Path) -> Path:
    """Draw equity (log scale) and drawdown of every walk at cost scale 1 and save a PNG (extra ``viz``)."""
    require("matplotlib", "viz")
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

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
        if not name.startswith("random"):  # which costs take out of any picture
            seen = [min(seen[0], curve.min()), max(seen[1], curve.max())]
    upper.set_yscale("log")
    upper.set_ylim(seen[0] / 1.2, seen[1] * 1.2)
    if seen[1] < 10.0 * seen[0]:  # less than a decade would have one number beside it
        upper.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)))
        upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        upper.yaxis.set_minor_formatter(NullFormatter())
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
        with_interval(row["total_return"], row.get("total_return_interval"), 100.0, "%"),
        with_interval(row["sharpe"], row.get("sharpe_interval"), 1.0, ""),
        _deflated(row),
        f"{100 * row['max_drawdown']:.1f} %",
        f"{row['mean_exposure']:+.2f}x",
        f"{row['turnover_per_year']:,.0f}x",
        f"{row['fee']:,.0f}",
        f"{row['spread_cost'] + row['impact_cost']:,.0f}",
        f"{row['borrow' if 'borrow' in row else 'funding']:,.0f}",
        _ended(row),
        " / ".join(f"{100 * scaled[key]:.1f} %" for key in ("0", "2", "5")),
        _break_even(row),
    )


def _ended(row: Mapping[str, Any]) -> str:
    """Say how often an account was liquidated, where that exists, and what ended its walk."""
    if "liquidations" not in row:
        return str(row["ended_by"]) or "-"
    return f"{row['liquidations']:.1f}".removesuffix(".0") + (f" ({row['ended_by']})" if row["ended_by"] else "")


def _session_cells(row: Mapping[str, Any]) -> Sequence[str]:
    scaled, ends = row["total_return_at_cost_scale"], ("trades_sold", "trades_forced_exit", "trades_settled")
    return (
        with_interval(row["total_return"], row.get("total_return_interval"), 100.0, "%"),
        with_interval(row["mean_session_pnl"], row.get("mean_session_pnl_interval"), 1.0, "USD"),
        with_interval(row["sharpe"], row.get("sharpe_interval"), 1.0, ""),
        _deflated(row),
        f"{100 * row['max_drawdown']:.1f} %",
        f"{row['trades']:,.0f} ({100 * row['trades_won']:.0f} %)",
        " / ".join(f"{row[name]:,.0f}" for name in ends),
        f"{100 * row['mean_exposure']:.2f} %",
        f"{row['turnover_per_year']:,.1f}x",
        f"{row['fee']:,.0f}",
        f"{row['spread_cost']:,.0f}",
        f"{row['illegal_actions']:,.0f}",
        " / ".join(f"{100 * scaled[key]:.1f} %" for key in ("0", "2", "5")),
        _break_even(row),
    )


def with_interval(value: float, interval: Sequence[float] | None, scale: float, unit: str) -> str:
    """Return a number and its interval as text, both times ``scale``; without a unit with two digits."""
    digits = 1 if unit else 2
    text = f"{scale * value:.{digits}f}{' ' + unit if unit else ''}"
    if interval is None:
        return text
    return f"{text} [{scale * interval[0]:.{digits}f}, {scale * interval[1]:.{digits}f}]"


def _deflated(row: Mapping[str, Any]) -> str:
    value = row.get("deflated_sharpe")
    return "-" if value is None else f"{value:.3f}"


def _break_even(row: Mapping[str, Any]) -> str:
    if row["turnover_per_year"] == 0.0:
        return "-"
    value = row.get("break_even_cost_scale")
    return "> 5x" if value is None else f"{value:.2f}x"
