"""What a family is told for the learnability check: the answer that is revealed, the oracle, markets and settings.

*PerpFutures*: the return of the next bar is revealed; the oracle chooses among three exposures.

*ZeroDTE*: the underlying's return from the opening of bar t+1, where an order that is sent at the close of t fills, to
that bar's close is revealed. One contract a purchase, orders at the opposite quote at full costs; the implied
volatility of a session is known at its opening, to the agent as to the oracle. One minute is little to know: a call can
become a put only by way of flat, which takes two orders, and the oracle knows a minute ahead which one will be wanted.
At the default market PPO ends at 80 to 82 % of the oracle (2 million steps), too near the mark to tell a fault from
luck; the check plays minutes of three times the volatility, where costs are a smaller part of a move: 84 %.

*SpotCrypto*: the return of the next bar of one coin is revealed, from the opening at which an order fills; the oracle
chooses between the coin and cash (:mod:`agents.spot_oracle`).

A market with nothing to learn has no drift and no volatility that moves or jumps: who sees that volatility is high and
options are cheap buys them with reason, and that is no leak. Its options cost a little more than they pay on average
(``variance_premium=0.1``; at 0 a straddle that is held to the close gains some 2 % of its price: 21 USD, standard
error 13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import option_oracle, oracle, spot_oracle
from envs import perp_columns, spot_columns, zero_dte_columns
from envs.simulation import Game
from markets.errors import ConfigError

Floats = NDArray[np.float64]

BOUND = 5.0  # of the revealed column
EPISODE = 256  # bars of PerpFutures and SpotCrypto
Market = Callable[[int, int, bool], str]


@dataclass(frozen=True)
class Answer:
    """One row of ``ANSWERS``.

    Attributes:
        arguments: of the environment. hidden: what changes in them where nothing is to be learned.
        settings: of PPO, of this instrument and no recommendation.
        size: which field of the check's configuration sizes a market: ``bars`` or ``sessions``.
        market: (seed, size, something to learn) -> specification of the bars.
        opened, closed: columns of the market matrix between which the revealed return lies.
        scale: a return of this size, about one standard deviation, is shown as 1.
        oracle: (game, first row of an episode) -> its best log growth.
    """

    arguments: dict[str, Any]
    hidden: dict[str, Any]
    settings: dict[str, Any]
    size: str
    market: Market
    opened: int
    closed: int
    scale: float
    oracle: Callable[[Game, int], float]

    def returns(self, game: Game) -> NDArray[np.float32]:
        """Return what the unsafe column shows at each row, ``clip((C' / O' - 1) / scale, -5, 5)``: ``(T,)``.

        From the opening at which an order fills to the close at which it is marked; 0 at the last row, and where the
        next one is of no session.
        """
        opened = game.market[1:, self.opened]
        shown = np.zeros(len(game.market))
        there = opened > 0.0
        shown[:-1][there] = (game.market[1:, self.closed][there] / opened[there] - 1.0) / self.scale
        return np.clip(shown, -BOUND, BOUND).astype(np.float32)


def answer(family: str) -> Answer:
    """Return the row of a family.

    Raises:
        ConfigError: there is no oracle for it.
    """
    if family not in ANSWERS:
        raise ConfigError(f"there is no oracle for {family}, only for {' and '.join(ANSWERS)}")
    return ANSWERS[family]


def _crypto(seed: int, bars: int, drifting: bool) -> str:
    """Name hourly bars; without drift and funding nobody can expect to gain in them."""
    return f"synthetic:crypto?seed={seed}&interval=1h&bars={bars}" + (
        "" if drifting else "&drift_scale=0&funding_scale=0"
    )


def _spy(seed: int, sessions: int, drifting: bool) -> str:
    """Name minute bars of sessions; without regimes and moving volatility there is nothing to know about them."""
    return f"synthetic:spy?seed={seed}&sessions={sessions}&annual_volatility=0.3" + (
        "" if drifting else "&separation=0&fast_sd=0&slow_sd=0&vix_noise=0&jumps_per_session=0"
    )


def _coin(seed: int, bars: int, drifting: bool) -> str:
    """Name hourly bars of one coin, the market of :func:`_crypto` without funding."""
    return f"synthetic:basket?seed={seed}&interval=1h&bars={bars}&assets=1" + ("" if drifting else "&drift_scale=0")


def _perpetual_growth(game: Game, first: int) -> float:
    return oracle.plan(game, first, first + game.episode).log_growth


def _portfolio_growth(game: Game, first: int) -> float:
    return spot_oracle.plan(game, first, first + game.episode).log_growth


def _option_growth(game: Game, first: int) -> float:
    return option_oracle.plan(game, first).log_growth


ANSWERS = {
    "PerpFutures": Answer(
        arguments={"leverage": 1.0, "impact_coefficient": 0.0, "episode_bars": EPISODE},
        hidden={},
        # The answer lies one bar ahead, so almost nothing is discounted in.
        settings={
            "gamma": 0.5, "gae_lambda": 0.9, "learning_rate": 1e-3, "n_steps": 32, "batch_size": 2048, "n_epochs": 4,
            "net_arch": [32, 32], "log_std_init": -0.5,
        },
        size="bars", market=_crypto, opened=perp_columns.OPEN, closed=perp_columns.MARK_CLOSE, scale=0.005,
        oracle=_perpetual_growth,
    ),
    "ZeroDTE": Answer(
        arguments={"contracts": 1, "fill": "market", "initial_equity": 10_000.0},
        hidden={"variance_premium": 0.1},
        # A position is worth the moves that it will meet until it is sold: a few minutes count.
        settings={
            "gamma": 0.9, "gae_lambda": 0.9, "learning_rate": 3e-3, "n_steps": 32, "batch_size": 1024, "n_epochs": 4,
            "net_arch": [32, 32],
        },
        size="sessions", market=_spy, opened=zero_dte_columns.OPEN, closed=zero_dte_columns.CLOSE, scale=0.001,
        oracle=_option_growth,
    ),
    "SpotCrypto": Answer(
        arguments={"impact_coefficient": 0.0, "episode_bars": EPISODE},
        hidden={},
        settings={
            "gamma": 0.5, "gae_lambda": 0.9, "learning_rate": 1e-3, "n_steps": 32, "batch_size": 2048, "n_epochs": 4,
            "net_arch": [32, 32], "log_std_init": -0.5,
        },
        # With one coin the blocks of the market matrix are columns.
        size="bars", market=_coin, opened=spot_columns.OPEN, closed=spot_columns.CLOSE, scale=0.005,
        oracle=_portfolio_growth,
    ),
}  # fmt: skip
