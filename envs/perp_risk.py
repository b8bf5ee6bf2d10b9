"""Risk limits of PerpFutures: what its accounts show, and how a target exposure is clipped."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs import perp_columns as c
from envs.simulation import EQUITY, LEVERAGE, Simulation
from markets.risk_limits import AccountState, Allowed, Codes

Floats = NDArray[np.float64]


class PerpRisk:
    """The action is a target exposure in units of the leverage; where a limit closes, it is 0."""

    options = False

    @staticmethod
    def account(simulation: Simulation) -> AccountState:
        """Return the state of every lane at the close of its bar."""
        live = simulation.accounts[0]
        return AccountState(
            time=simulation.game.bars.close_time[simulation.rows], equity=live[:, EQUITY].copy(),
            quantity=live[:, c.POSITION].copy(), price=live[:, c.MARK].copy(), entry_price=live[:, c.ENTRY].copy(),
        )  # fmt: skip

    @staticmethod
    def apply(simulation: Simulation, allowed: Allowed, actions: Floats) -> tuple[Floats, Codes]:
        """Return the actions ``(N, 1)`` that may be sent, and which limit changed each."""
        leverage = simulation.accounts[0, :, LEVERAGE]
        asked = np.where(np.isfinite(actions[:, 0]), np.clip(actions[:, 0], -1.0, 1.0), np.nan)
        exposure, codes = allowed.clip_exposure(asked * leverage)
        return np.where(codes == 0, actions[:, 0], exposure / leverage)[:, None], codes

    @staticmethod
    def masks(simulation: Simulation, allowed: Allowed) -> Any:
        """There are none: every number of a box is an action."""
        return None
