"""Risk limits of SpotCrypto: what its accounts show, and how target weights are scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs import spot_columns as c
from envs.simulation import EQUITY, Simulation
from markets.risk_limits import AccountState, Allowed, Codes

Floats = NDArray[np.float64]


class SpotRisk:
    """The limits are those of the whole portfolio: a target of too much gross exposure is scaled down, every coin by
    the same factor; where a limit closes, every target is 0.

    A stop and a largest quantity are of one position, which a portfolio is not: they are refused.
    """

    options = False
    unsupported = ("stop_loss", "maximum_quantity")

    @staticmethod
    def account(simulation: Simulation) -> AccountState:
        """Return the state of every lane at the close of its bar; the quantity is the gross value, at a price of 1."""
        live, ones = simulation.accounts[0], np.ones(simulation.lanes)
        return AccountState(
            time=simulation.game.bars.close_time[simulation.rows], equity=live[:, EQUITY].copy(),
            quantity=live[:, c.GROSS] * live[:, EQUITY], price=ones, entry_price=ones,
        )  # fmt: skip

    @staticmethod
    def apply(simulation: Simulation, allowed: Allowed, actions: Floats) -> tuple[Floats, Codes]:
        """Return the actions ``(N, A)`` that may be sent, and which limit changed each."""
        contract = simulation.game.contract
        lowest = -1.0 if contract[c.SHORT] != 0.0 else 0.0
        targets = np.clip(actions, lowest, 1.0)  # keeps a NaN, which makes the sum one: then the environment holds
        gross = np.where(np.isfinite(actions).all(axis=1), np.abs(targets).sum(axis=1), np.nan)
        wanted = np.minimum(gross, contract[c.GROSS_LIMIT])
        exposure, codes = allowed.clip_exposure(wanted)
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled = np.where(exposure[:, None] == 0.0, 0.0, targets * (exposure / gross)[:, None])
        return np.where((codes == 0)[:, None], actions, scaled), codes

    @staticmethod
    def masks(simulation: Simulation, allowed: Allowed) -> Any:
        """There are none: every number of a box is an action."""
        return None
