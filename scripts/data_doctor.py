"""Find the defects of a candle file before it is used, and with --fix write a repaired copy.

Exit status: 0 without errors (there may be warnings), 1 where an error remains, 2 where the file cannot be read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from markets.bars import PRICES
from markets.cut_file import find_cut
from markets.doctor import Finding, diagnose, treat
from markets.errors import ConfigError
from markets.frames import RATE_NAMES, STAMPS, column_names
from markets.sources import find
from markets.sources.files import read_renames
from markets.sources.tables import encode, of_symbol, read_table

ENDINGS = (".csv", ".csv.gz", ".npz", ".parquet", ".pq")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("file", metavar="FILE", help="candles: .csv, .csv.gz, .npz or .parquet, also in REGIMEGYM_DATA")
    parser.add_argument("--symbol", metavar="NAME", help="which asset of a file that holds several")
    parser.add_argument("--funding", metavar="FILE", help="funding events to look at as well")
    parser.add_argument("--interval", metavar="LENGTH", help="bar length such as 1h (default: the most frequent step)")
    parser.add_argument("--stamp", choices=STAMPS, default="open", help="what the time of a row is (default: open)")
    parser.add_argument(
        "--market", default="crypto", metavar="KIND", help="kind of market: spy has sessions, nights are no gaps then"
    )
    parser.add_argument("--rename", default="", metavar="OLD:NEW", help="columns to rename, separated by commas")
    parser.add_argument(
        "--fix", type=Path, metavar="OUT", help="write a repaired file, such as fixed.csv; never over an existing one"
    )
    parser.add_argument("--now", metavar="TIME", help="when the file was made (UTC, default: now); later bars are open")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(options: argparse.Namespace) -> int:
    """Diagnose, repair if asked, and report."""
    if options.fix is not None:
        _check_target(options.fix)
    renames = read_renames(options.rename)
    place = find(options.file)
    frame = of_symbol(read_table(place).rename(columns=renames), options.symbol, options.file)
    _check_candles(options.file, frame)
    funding = None if options.funding is None else read_table(find(options.funding)).rename(columns=renames)
    how = {"interval": options.interval, "now": options.now, "stamp": options.stamp, "funding": funding}
    how["market"] = options.market
    cut = [] if options.symbol else find_cut(place, len(frame))
    findings = sorted([*diagnose(frame, **how), *cut], key=lambda finding: finding.severity)
    report: dict[str, Any] = {
        "file": str(place),
        "bytes": place.stat().st_size,
        "rows": len(frame),
        "findings": findings,
        "remaining": findings,
    }
    if options.fix is not None:
        fixed, done, left = treat(frame, **how, outside=cut)
        _write(fixed, options.fix)
        report |= {"repairs": done, "remaining": left, "written": str(options.fix), "rows_written": len(fixed)}
        report["bytes_written"] = options.fix.stat().st_size
    _show(report, options.json)
    return int(any(finding.severity == "error" for finding in report["remaining"]))


def _check_candles(file: str, frame: pd.DataFrame) -> None:
    """Say where a file of funding events goes: as candles, every column would be missing."""
    names = column_names(frame)
    rates = [names[name] for name in RATE_NAMES if name in names]
    if rates and not any(name in names for name in PRICES):
        raise ConfigError(
            f"{file} has a column {rates[0]!r} and no prices: it looks like funding events. "
            f"Pass it beside its candles: regimegym data-doctor CANDLES --funding {file}"
        )


def _check_target(target: Path) -> None:
    if not target.name.lower().endswith(ENDINGS):
        raise ConfigError(f"--fix {target}: the ending must be one of {', '.join(ENDINGS)}")
    if target.exists():
        raise ConfigError(f"--fix {target} exists already: nothing is overwritten, name a new file")


def _write(frame: pd.DataFrame, target: Path) -> None:
    """Write a table to a temporary name first, so that an interrupted run leaves no half file behind."""
    content = encode(frame, target.name)
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(content)
    _check_target(target)
    os.replace(partial, target)


def _show(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(report, indent=1, default=asdict) + "\n")
        return
    lines = [f"{report['file']}: {report['rows']} rows, {_size(report['bytes'])}", *map(_line, report["findings"])]
    if not report["findings"]:
        lines.append("clean: nothing found")
    for sentence in report.get("repairs", []):
        lines.append(f"repaired: {sentence}")
    if "written" in report:
        size = _size(report["bytes_written"])
        lines.append(
            f"written: {report['written']}, {report['rows_written']} rows, {size}, {len(report['repairs'])} repairs"
        )
        lines += [f"remains: {_line(finding)}" for finding in report["remaining"]]
    sys.stdout.write("\n".join(lines) + "\n")


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 10_000 else f"{count} bytes"


def _line(finding: Finding) -> str:
    mend = " [--fix repairs it]" if finding.repairable else ""
    column = f" {finding.column}" if finding.column else ""
    return f"{finding.severity}: {finding.kind}{column} ({finding.count}): {finding.detail}{mend}"
