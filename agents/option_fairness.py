"""Are same-day options fairly priced? At-the-money straddles, held from a minute of the session to its close.

Deviations, smile and quotes are those of :class:`envs.zero_dte.ZeroDTEEnv`; the straddle is priced beside it, since it
has no short positions. With S the price when the straddle is bought and sd the deviation to the close::

    payoff / price     |S_T - K| over the call's mid and the put's          fair: 1
    realised / implied ln(S_T / S) / sd, its standard deviation               fair: 1
    buyer              |S_T - K| - both asks - fees     seller                both bids - |S_T - K| - fees

Where options are fair, buyer and seller both lose half a spread and a fee for each of two contracts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.recipe import resolve
from agents.session_intervals import deviation, mean, session_interval
from envs import zero_dte_columns as columns
from envs.make import game_of
from envs.simulation import Game
from envs.zero_dte_kernel import contract_quote
from markets import sources
from markets.bars import Bars
from markets.compiled import compiled
from markets.errors import ConfigError
from markets.option_prices import CALL, PUT
from markets.sessions import sessions_of

Floats = NDArray[np.float64]

ENV = "ZeroDTE-v0"
PAYOFF_BAND, REALISED_BAND = (0.92, 1.04), (1.0, 1.2)
STRADDLE = ("payoff", "mid", "bid", "ask", "realised")


def straddles(game: Game, minute: int) -> Floats:
    """Return ``(S, 5)`` of each whole session: payoff, mid, bid, ask in USD per share, and realised over implied.

    The straddle is of the strike nearest to the close of bar ``minute``.

    Raises:
        ConfigError: the sessions are over by then, or none is whole.
    """
    found = sessions_of(game.bars)
    if not found.complete.any():
        raise ConfigError(f"{game.bars.source!r} has no whole session")
    longest = int(found.rows[found.complete].max())
    if not 0 <= minute <= longest - 2:
        raise ConfigError(
            f"minute={minute!r} must be from 0 to {longest - 2}: of the sessions' {longest} minutes one has to follow"
        )
    chosen = found.complete & (found.rows > minute + 1)
    rows = (found.first + minute)[chosen]
    out = np.empty((len(rows), len(STRADDLE)))
    _straddles(game.market, game.contract, rows, out)
    return out


@compiled
def _straddles(market: Floats, contract: Floats, rows: NDArray[np.int64], out: Floats) -> None:
    for i in range(rows.shape[0]):
        m = market[rows[i]]
        last = market[int(m[columns.LAST_OF_SESSION]), columns.CLOSE]
        spot, strike = m[columns.CLOSE], m[columns.CALL_STRIKE]
        for k in range(3):
            out[i, k + 1] = 0.0
        for right in (CALL, PUT):
            mid, bid, ask = contract_quote(
                right, strike, spot, m[columns.DEVIATION], m[columns.SLOPE], m[columns.CURVATURE], m[columns.FACTOR],
                contract,
            )  # fmt: skip
            out[i, 1] += mid
            out[i, 2] += bid
            out[i, 3] += ask
        out[i, 0] = abs(last - strike)
        out[i, 4] = np.log(last / spot) / m[columns.DEVIATION]


def fairness(
    sources_or_bars: Sequence[str | Bars],
    minutes: Sequence[int] = (0,),
    settings: Mapping[str, Any] | None = None,
    draws: int = 1000,
) -> dict[str, Any]:
    """Measure straddles of some markets, each alone and all together, with 95 % intervals over sessions.

    Args:
        sources_or_bars: markets. minutes: number of the bar at whose close the straddle is bought.
        settings: more arguments of the environment, such as ``{"iv": "grid"}``. draws: bootstrap resamples.

    Returns:
        ``rows``, and ``holds``: every pooled row lies within the bands, and what buyer and seller lose is what spread
        and fees say, within the interval; ``fails``: minutes of the pooled rows that do not.

    Raises:
        UnknownNameError: a setting that the environment does not have. ConfigError: a minute outside the sessions.
    """
    rows: list[dict[str, Any]] = []
    for minute in minutes:
        parts, fee = [], 0.0
        for given in sources_or_bars:
            family, config = resolve(ENV, {**(settings or {}), "bars": given})
            game = game_of(family, config)
            parts.append(straddles(game, minute))
            fee = 2.0 * config.contract.fee / config.contract.multiplier * config.cost_scale
            name = given if isinstance(given, str) else given.source
            rows.append({"market": name, "minute": minute, **row(parts[-1], fee, draws)})
        if len(parts) > 1:
            rows.append({"market": "all", "minute": minute, **row(np.concatenate(parts), fee, draws)})
    pooled = [one for one in rows if one["market"] == "all"] or rows
    return {
        "bands": {"payoff": PAYOFF_BAND, "realised": REALISED_BAND},
        "rows": rows,
        "holds": all(map(_holds, pooled)),
        "fails": [one["minute"] for one in pooled if not _holds(one)],
    }


def row(sessions: Floats, fee: float, draws: int = 1000) -> dict[str, Any]:
    """Sum up ``(S, 5)`` straddles; each figure is value, low and high, losses in USD per share."""
    payoff, mid, bid, ask, realised = sessions.T
    expected = 0.5 * (ask - bid) + fee
    return {
        "sessions": len(sessions),
        "payoff / price": session_interval(payoff / mid, mean, draws),
        "realised / implied": session_interval(realised, deviation, draws),
        "buyer loses": session_interval(ask + fee - payoff, mean, draws),
        "seller loses": session_interval(payoff + fee - bid, mean, draws),
        "spread and fees": float(expected.mean()),
        "mid": float(mid.mean()),
    }


def _holds(one: dict[str, Any]) -> bool:
    bands = (("payoff / price", PAYOFF_BAND), ("realised / implied", REALISED_BAND))
    inside = all(low <= one[name][0] <= high for name, (low, high) in bands)
    return inside and all(
        one[side][1] <= one["spread and fees"] <= one[side][2] for side in ("buyer loses", "seller loses")
    )


def markets_of(sessions: int, seeds: Sequence[int]) -> list[str]:
    """Specifications of the generated markets of some seeds.

    Raises:
        UnknownNameError: from the source, for what it does not know.
    """
    names = [f"synthetic:spy?seed={seed}&sessions={sessions}" for seed in seeds]
    for name in names:
        sources.parse(name)
    return names
