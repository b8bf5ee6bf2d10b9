"""Measure same-day options: the model against quotes, whether they are fairly priced, and what trading them costs.

calibration: the model's mids against a grid of quoted mids by time of day and moneyness, with iv=grid and iv=vix, with
the default smile and with the one that was fitted before September 2024; with --quotes the spreads as well.
fairness: at-the-money straddles on generated sessions, held to the close: payoff over price, realised over implied, and
what buyer and seller lose beside spread and fees; exit status 1 where that does not hold.
fills: limit orders against market orders on the same random decisions: cost, fill rate, adverse selection.

Intervals are 95 %, by bootstrap over sessions.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markets.errors import ConfigError
from markets.storage import replace_file
from scripts import folders
from scripts.arguments import add_env_arguments, pairs, whole

STUDIES = ("calibration", "fairness", "fills")
SESSIONS, MOST_SESSIONS, MOST_SEEDS, DIGITS = 2_000, 50_000, 1_000, 15
OWN = {  # flags that only some studies read
    "grid": ("calibration",), "quotes": ("calibration",), "points": ("calibration",), "minutes": ("fairness",),
    "bars": ("calibration", "fills"), "sessions": ("fairness", "fills"), "seeds": ("fairness", "fills"),
    "env_arg": ("fairness", "fills"),
}  # fmt: skip
_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--bars", metavar="SPEC", help="one-minute bars with sessions: of calibration, and of fills")
    parser.add_argument("--grid", metavar="FILE", help="calibration: option mids (timestamp, strike, right, mid)")
    parser.add_argument("--quotes", metavar="FILE", help="calibration: two-sided quotes (timestamp, strike, bid, ask)")
    parser.add_argument("--points", type=float, help="calibration: index points of --quotes per USD (default 10.025)")
    parser.add_argument("--sessions", type=whole, help="generated sessions a seed (default 2,000)")
    parser.add_argument("--seeds", metavar="A..B", help="fairness: seeds of markets (1..5); fills: of decisions (0..2)")
    parser.add_argument("--minutes", metavar="M,...", help="fairness: bars at whose close is bought (default 0)")
    add_env_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write STUDY.json and STUDY.txt there")
    parser.add_argument("--png", action="store_true", help="with --out: STUDY.png as well (extra viz)")


def run(options: argparse.Namespace) -> int:
    """Measure and print; exit status 1 where options are not fairly priced."""
    for name, studies in OWN.items():
        if getattr(options, name) not in (None, []) and options.study not in studies:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is of {' and '.join(studies)}, not of {options.study}: leave it out")
    if options.png and options.out is None:
        raise ConfigError("--png needs --out DIR to write to")
    if options.out is not None:
        folders.make(options.out)
    result = {"calibration": _calibration, "fairness": _fairness, "fills": _fills}[options.study](options)
    text = json.dumps(result, indent=1) + "\n"
    table = _shown(options.study, result)
    if options.out is not None:
        replace_file(options.out / f"{options.study}.json", text.encode())
        replace_file(options.out / f"{options.study}.txt", table.encode())
        if options.png:
            from agents.option_pictures import draw

            draw(options.study, result, options.out / f"{options.study}.png")
    sys.stdout.write(text if options.json else table)
    return int(not result.get("holds", True))


def _calibration(options: argparse.Namespace) -> dict[str, Any]:
    from agents.option_calibration import calibrate
    from markets import sources
    from markets.sources.tables import read_table

    if options.bars is None or options.grid is None:
        raise ConfigError("calibration needs --bars SPEC and --grid FILE")
    if options.points is not None and options.quotes is None:
        raise ConfigError(f"--points {options.points:g} is of --quotes FILE: give both or leave it out")
    kind, _, given = sources.parse(options.bars)
    specification = options.bars
    if "grid" not in given and kind in ("parquet", "npz", "csv"):
        specification += ("&" if given else "?") + f"grid={options.grid}"
    quotes = None if options.quotes is None else read_table(sources.find(options.quotes))
    more = {} if options.points is None else {"points": options.points}
    return calibrate(sources.load(specification), read_table(sources.find(options.grid)), quotes, **more)


def _fairness(options: argparse.Namespace) -> dict[str, Any]:
    from agents.option_fairness import fairness, markets_of

    settings = pairs(options.env_arg, "--env-arg")
    if "bars" in settings:
        raise ConfigError(f"--env-arg bars={settings['bars']!r}: fairness is of the generated markets of --seeds")
    markets = markets_of(_sessions(options), _range("1..5" if options.seeds is None else options.seeds, "--seeds"))
    words = "0" if options.minutes is None else options.minutes
    return fairness(markets, [_number(word, "--minutes") for word in words.split(",")], settings)


def _fills(options: argparse.Namespace) -> dict[str, Any]:
    from agents.option_shortfall import shortfall

    if options.bars is not None and options.sessions is not None:
        raise ConfigError("--sessions is of generated bars: leave it out with --bars")
    settings = pairs(options.env_arg, "--env-arg")
    if "bars" in settings:
        raise ConfigError(f"--env-arg bars={settings['bars']!r}: give the bars of fills with --bars")
    bars = f"synthetic:spy?seed=1&sessions={_sessions(options)}" if options.bars is None else options.bars
    return shortfall(bars, _range("0..2" if options.seeds is None else options.seeds, "--seeds"), settings)


def _sessions(options: argparse.Namespace) -> int:
    """Return the sessions of a generated market; nanoseconds since 1970 end after 61,000 of them from 2020 on."""
    count = SESSIONS if options.sessions is None else int(options.sessions)
    if not 1 <= count <= MOST_SESSIONS:
        raise ConfigError(f"--sessions {count} must be from 1 to {MOST_SESSIONS:,}")
    return count


def _range(text: str, flag: str) -> list[int]:
    """Read ``A..B``, or a number alone."""
    first, dots, last = text.partition("..")
    begin = _number(first, flag)
    end = _number(last, flag) if dots else begin
    if end < begin:
        raise ConfigError(f"{flag} {text!r} ends before it begins")
    if end - begin >= MOST_SEEDS:
        raise ConfigError(f"{flag} {text!r} are {end - begin + 1:,} numbers: at most {MOST_SEEDS:,}")
    return list(range(begin, end + 1))


def _number(text: str, flag: str) -> int:
    if not text.strip().isdecimal() or len(text) > DIGITS:
        raise ConfigError(f"{flag}: {text!r} is not a whole number from 0 of at most {DIGITS} digits")
    return int(text)


# --- tables -----------------------------------------------------------------------------------------------------------


def _shown(study: str, result: dict[str, Any]) -> str:
    """Write the result as text."""
    if study == "calibration":
        parts = [f"{result['snapshots']} snapshots, {result['snapshots_left_out']} left out; errors in USD per share"]
        if "quotes" in result:
            reasons = (f"{count} {reason}" for reason, count in result["quotes_left_out"].items() if count)
            parts.append(f"{result['quotes']} quotes; left out: {', '.join(reasons) or 'none'}")
        for name in ("mids", "by_time", "by_moneyness", "spreads"):
            if name in result:
                parts += [f"\n{name.replace('_', ' ')}", _table(result[name])]
        for iv in ("grid", "vix"):
            parts += [f"\nmedian error by time and moneyness, iv={iv}, default smile", _pivot(result, iv)]
        parts.append(
            "\nvix_ratio, and the default smile, were fitted to November 2023 .. June 2025: in sample before 2025-07."
        )
        return "\n".join(parts) + "\n"
    if study == "fairness":
        bands = result["bands"]
        failed = ", ".join(f"minute {minute}" for minute in result["fails"])
        verdict = "holds" if result["holds"] else f"DOES NOT HOLD ({failed})"
        note = (
            f"payoff / price within {bands['payoff']}, realised / implied within {bands['realised']}, and what buyer "
            f"and seller lose is spread and fees (USD per share), within the interval: {verdict}"
        )
        return _table(result["rows"]) + "\n" + note + "\n"
    lines = [
        _table(
            result["rows"],
            ("fill", "side", "orders", "fill rate", "cost", "at the fill", "selection", "missed", "forced contracts"),
        )
    ]
    lines.append("USD per contract; cost against the mid at the decision, fee included")
    lines += [f"{side}: market order minus limit order {_cell(value)}" for side, value in result["saved"].items()]
    lines += [
        f"first minute, quote an {name} number of ticks wide: {_cell(part['filled'])} of {part['orders']} orders"
        for name, part in result["first_minute"].items()
    ]
    return "\n".join(lines) + "\n"


def _pivot(result: dict[str, Any], iv: str) -> str:
    rows = [row for row in result["by_time_and_moneyness"] if row["iv"] == iv]
    buckets = list(dict.fromkeys(row["z"] for row in result["by_moneyness"] if row["iv"] == iv))
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        lines.setdefault(row["at"], {"at": row["at"]})[row["z"]] = row["median error"]
    return _table(list(lines.values()), ("at", *buckets))


def _table(rows: Sequence[dict[str, Any]], names: Iterable[str] | None = None) -> str:
    if not rows:
        return "none"
    columns = list(names or rows[0])
    cells = [columns, *([_cell(row.get(name, "-")) for name in columns] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _cell(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
