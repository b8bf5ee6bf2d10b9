"""Two-sided quotes of single option contracts, read from a table and checked: what is left out is counted by reason.

A table has one row a quote: ``timestamp`` (UTC), ``strike``, ``bid`` and ``ask`` in points of an index, and, where they
are known, ``right`` (C or P) and ``forward_parity``, the forward that put-call parity gives at that time. Names count
without their case.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from markets.errors import DataError
from markets.session_calendar import FIRST_YEAR, place_in_session

NEEDED = ("timestamp", "strike", "bid", "ask")
CALENDAR_BEGINS = np.datetime64(f"{FIRST_YEAR}-01-01", "ns")
NEAR = 0.5  # of the forward: a strike below is no strike of the same index


def read(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the first usable quote of each contract and minute of a session, and how many rows each reason left out.

    Returns:
        ``minute`` of the session, ``minutes`` that it has, ``bid`` and ``ask`` in points; and a count for each reason:
        the first that applies to a row.

    Raises:
        DataError: a column is missing or holds something else, or no quote is left.
    """
    from markets.frames import column_names, numbers, read_times

    names = column_names(table)
    for name in NEEDED:
        if name not in names:
            raise DataError(f"quotes: column {name!r} is missing; the columns are {', '.join(map(str, table.columns))}")
    if not len(table):
        raise DataError("quotes: the table has no rows")
    time = read_times(table[names["timestamp"]], "timestamp")
    frame = pd.DataFrame({name: numbers(table[names[name]], name) for name in ("strike", "bid", "ask")})
    if "forward_parity" in names:
        forward = numbers(table[names["forward_parity"]], "forward_parity")
    else:
        forward = frame["strike"].to_numpy()
    known = time >= CALENDAR_BEGINS
    frame["minute"], frame["minutes"] = -1, 0
    if known.any():
        _, minute, minutes = place_in_session(time[known])
        frame.loc[known, "minute"], frame.loc[known, "minutes"] = minute, minutes
    numeric = frame[["strike", "bid", "ask"]].to_numpy()
    reasons = {
        "outside the sessions": (frame["minute"] < 0).to_numpy(),
        "without a number": ~np.isfinite(numeric).all(axis=1) | (numeric < 0.0).any(axis=1),
        "crossed": (frame["bid"] > frame["ask"]).to_numpy(),
        "at a price of 0": (frame["bid"] + frame["ask"] <= 0.0).to_numpy(),
        "far from the parity forward": ~(frame["strike"] > NEAR * forward).to_numpy(),
    }
    kept, left_out = np.ones(len(frame), bool), {}
    for reason, wrong in reasons.items():
        left_out[reason] = int((kept & wrong).sum())
        kept &= ~wrong
    if not kept.any():
        said = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        raise DataError(f"quotes: none of {len(frame)} rows is usable: {said}")
    right = table[names["right"]].astype(str).str.upper().to_numpy() if "right" in names else np.full(len(frame), "")
    contract = pd.DataFrame({"m": time.astype("datetime64[m]"), "k": frame["strike"], "r": right})[kept]
    first = ~contract.duplicated().to_numpy()
    left_out["later in their minute"] = int((~first).sum())
    return frame[kept][first].drop(columns="strike").reset_index(drop=True), left_out
