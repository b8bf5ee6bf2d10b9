"""Risk limits of ZeroDTE: what its accounts show, which purchases the limits leave, and what is sent instead."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs import zero_dte_columns as c
from envs.simulation import EQUITY, ROW, Simulation
from envs.zero_dte_kernel import BUY_CALL, BUY_PUT, CLOSE_POSITION, HOLD, SIZES, purchase
from markets.compiled import compiled
from markets.option_prices import CALL, PUT, observed_greeks_by_deviation
from markets.option_quotes import smile_deviation
from markets.risk_limits import NO_LIMIT, THETA_CUT_OFF, AccountState, Allowed, Codes, Flags

Floats = NDArray[np.float64]
QUANTITY, VALUE, DECAY = range(3)


class ZeroDTERisk:
    """A purchase beyond a limit becomes the largest size within it, or HOLD; where a limit closes, CLOSE_POSITION.

    A closing that is not legal now (one is working already, or the broker sells) is HOLD. CLOSE_POSITION also withdraws
    a purchase that works, and sells what of it has been filled.
    """

    options = True

    @staticmethod
    def account(simulation: Simulation) -> AccountState:
        """Return the state of every lane at the close of its bar; an option's price is the model's mid."""
        live = simulation.accounts[0]
        return AccountState(
            time=simulation.game.bars.close_time[simulation.rows], equity=live[:, EQUITY].copy(),
            quantity=live[:, c.POSITION].copy(), price=live[:, c.PREMIUM].copy(), entry_price=live[:, c.ENTRY].copy(),
            unit=float(simulation.game.contract[c.MULTIPLIER]), minutes_left=live[:, c.MINUTES_LEFT].copy(),
        )  # fmt: skip

    @staticmethod
    def apply(simulation: Simulation, allowed: Allowed, actions: Floats) -> tuple[Floats, Codes]:
        """Return the actions ``(N, 1)`` or ``(N, 2)`` that may be sent, and which limit changed each."""
        live = simulation.accounts[0]
        codes, leave, why = _purchases(simulation, allowed)
        out, changed_by = actions.copy(), np.zeros(len(actions), np.int64)
        size = actions[:, 1] if actions.shape[1] == 2 else np.full(len(actions), SIZES - 1.0)
        lanes = np.arange(len(actions))
        for action, side in ((BUY_CALL, 0), (BUY_PUT, 1)):
            legal = live[:, c.MAY_BUY_CALL + side] != 0.0  # what is not, the environment refuses and counts
            asked = (actions[:, 0] == action) & np.isfinite(size) & legal
            place = np.where(asked, size, 0.0).astype(np.int64)
            forbidden = asked & (codes[lanes, side, place] != NO_LIMIT)
            fits = (codes[:, side] == NO_LIMIT) & (np.arange(SIZES) <= place[:, None])
            fits &= _legal_sizes(live, actions.shape[1] == 2)
            best = np.where(fits.any(axis=1), SIZES - 1 - fits[:, ::-1].argmax(axis=1), -1)
            out[forbidden & (best < 0), 0] = HOLD
            if actions.shape[1] == 2:
                out[forbidden & (best >= 0), 1] = best[forbidden & (best >= 0)]
            changed_by[forbidden] = codes[lanes, side, place][forbidden]
        wanted = np.where(live[:, c.MAY_CLOSE] != 0.0, CLOSE_POSITION, HOLD)
        forced = leave & (out[:, 0] != wanted) & ((wanted == CLOSE_POSITION) | np.isfinite(out[:, 0]))
        out[forced, 0] = wanted[forced]
        if actions.shape[1] == 2:
            out[forced & ~np.isfinite(out[:, 1]), 1] = 0.0
        changed_by[forced] = why[forced]
        changed_by[leave & (actions[:, 0] == wanted)] = NO_LIMIT
        return out, changed_by

    @staticmethod
    def masks(simulation: Simulation, allowed: Allowed) -> Flags:
        """Return which actions are legal and within the limits: ``(N, 4)``, ``(N, 8)`` with sizes, any of them a pair.

        Where a size fits one purchase and not the other, both masks keep to what fits the call, and the put is left out
        where no size is left for it.
        """
        live = simulation.accounts[0]
        sized = len(simulation.game.choices) == 2
        codes, leave, _ = _purchases(simulation, allowed)
        masks = live[:, c.SIZED_MASKS if sized else c.MASKS] != 0.0
        sizes = _legal_sizes(live, sized)
        for action, side in ((BUY_CALL, 0), (BUY_PUT, 1)):
            fits = sizes & (codes[:, side] == NO_LIMIT)
            masks[:, action] &= fits.any(axis=1)
            sizes = np.where(masks[:, action, None], fits, sizes)
        closing = leave & masks[:, CLOSE_POSITION]
        masks[leave, BUY_CALL] = masks[leave, BUY_PUT] = False
        masks[:, HOLD] = ~closing
        masks[leave & ~closing, CLOSE_POSITION] = False
        if sized:
            masks[:, 4:] = sizes
        return masks


def _legal_sizes(live: Floats, sized: bool) -> Flags:
    """Sizes that the env's own mask leaves: ``(N, 4)``; the whole budget alone without sizes."""
    if sized:
        return np.asarray(live[:, c.MAY_QUARTER : c.MAY_WHOLE + 1] != 0.0)
    out = np.zeros((len(live), SIZES), bool)
    out[:, -1] = True
    return out


def _purchases(simulation: Simulation, allowed: Allowed) -> tuple[Codes, Flags, Codes]:
    """Code of each purchase ``(N, 2, 4)``, who has to close or withdraw ``(N,)``, and the limit that says so."""
    game, live = simulation.game, simulation.accounts[0]
    terms = np.empty((len(live), 2, SIZES, 3))
    _terms(live, game.market, game.contract, terms)
    codes = allowed.purchase(terms[..., QUANTITY], terms[..., VALUE], terms[..., DECAY])
    working = live[:, c.SIDE] > 0.0
    busy = working | (live[:, c.POSITION] > 0.0)
    decay = -live[:, c.THETA] / np.maximum(live[:, c.MINUTES_LEFT], 1e-9)
    late = working & allowed.too_late(decay)
    why = np.where(allowed.close, allowed.limit, np.where(late, THETA_CUT_OFF, NO_LIMIT))
    return codes, (allowed.close & busy) | late, why


@compiled
def _terms(live: Floats, market: Floats, contract: Floats, out: Floats) -> None:
    """Write contracts, cost at the ask, and decay per minute and premium of every purchase of every lane."""
    for lane in range(live.shape[0]):
        a = live[lane]
        m = market[int(a[ROW])]
        for side in range(2):
            right = CALL if side == 0 else PUT
            place = c.CALL_STRIKE if side == 0 else c.PUT_STRIKE
            strike, ask = m[place], m[place + 2]
            sd = smile_deviation(m[c.CLOSE], strike, m[c.DEVIATION], m[c.SLOPE], m[c.CURVATURE])
            _, _, _, theta = observed_greeks_by_deviation(right, m[c.CLOSE], strike, sd)
            for size in range(out.shape[2]):
                quantity, _, _ = purchase(a, market, contract, right, (size + 1.0) / out.shape[2])
                out[lane, side, size, 0] = quantity
                out[lane, side, size, 1] = quantity * contract[c.MULTIPLIER] * ask
                out[lane, side, size, 2] = -theta / max(m[c.LEFT], 1e-9)
