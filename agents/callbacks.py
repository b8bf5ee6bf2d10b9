"""TensorBoard tags of training, and the choice of a checkpoint on the validation split.

Tags, written once per rollout (averages over its bars and lanes unless said otherwise):

=========================  =======================================================================================
``account/equity``         equity of the lanes at the end of the rollout, in units of the start
``account/drawdown``       mean drawdown of the lanes at the end of the rollout, a fraction
``account/turnover``       traded notional per bar, in units of equity
``account/costs``          fee + spread + impact + clearance fee per bar, in units of equity
``account/funding``        funding paid per bar, in units of equity (negative: received), where a family has it
``account/leverage``       notional at mark, in units of equity
``account/liquidations``   liquidations in the rollout, where a family has them
``action/share_short``     share of actions below -1/3; ``share_flat``: within; ``share_long``: above 1/3
``action/share_NAME``      share of each choice as it was asked for, where actions choose from a list
``action/illegal``         share of actions that were not legal and so held, where a family has masks
``regime/share_NAME``      share of bars in each true regime, where the market is synthetic
``validation/*``           score and growth of the deterministic policy over the whole validation split
=========================  =======================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from tqdm.auto import tqdm

from agents.vec_env import NativeVecEnv
from envs.simulation import EQUITY, OUTCOME, ROW, RUNNING


class AccountTags(BaseCallback):
    """Write what the accounts did during each rollout to TensorBoard."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, float] = {}
        self._shares = np.zeros(0)
        self._choices = np.zeros(0)
        self._illegal = 0.0
        self._steps = 0

    def _on_rollout_start(self) -> None:
        game = _native(self.training_env).simulation.game
        names = ("turnover", "costs", "funding", "leverage", "liquidations", "short", "long")
        self._sums = dict.fromkeys(names, 0.0)
        self._shares = np.zeros(len(game.bars.label_names))
        self._choices = np.zeros(len(game.choice_names))
        self._illegal = 0.0
        self._steps = 0

    def _on_step(self) -> bool:
        simulation = _native(self.training_env).simulation
        # A lane that ended has been reset already: what it did in its last bar is in the row that was put aside.
        ended = simulation.accounts[0, :, OUTCOME] != RUNNING
        accounts = np.where(ended[:, None], simulation.accounts[1], simulation.accounts[0])
        equity = np.maximum(accounts[:, EQUITY], 1e-9)
        game = simulation.game
        ledger = game.ledger
        costs = accounts[:, list(ledger.costs)].sum(axis=1)
        numbers = accounts[:, game.action_columns]  # one, or one a coin: the shares are those of all of them
        funding = accounts[:, ledger.items["funding"]] if "funding" in ledger.items else 0.0 * equity
        for name, value in (
            ("turnover", ledger.traded(accounts) / equity),
            ("costs", costs / equity),
            ("funding", funding / equity),
            ("leverage", np.abs(ledger.held(accounts)) / equity),
            ("short", numbers < -1.0 / 3.0),
            ("long", numbers > 1.0 / 3.0),
        ):
            self._sums[name] += float(np.mean(value))
        if "liquidations" in ledger.items:
            self._sums["liquidations"] += float(accounts[:, ledger.items["liquidations"]].sum())
        if game.choices:
            asked = numbers[np.isfinite(numbers[:, 0]), 0].astype(np.int64)
            self._choices += np.bincount(asked, minlength=len(self._choices)) / len(numbers)
        if game.masks is not None:
            self._illegal += float(np.mean(accounts[:, game.columns.index("order_code")] != 0.0))
        labels = game.bars.labels
        if labels is not None:
            seen = labels[accounts[:, ROW].astype(np.int64)]
            self._shares += np.bincount(seen, minlength=len(self._shares)) / len(seen)
        self._steps += 1
        return True

    def _on_rollout_end(self) -> None:
        simulation = _native(self.training_env).simulation
        accounts, steps, sums = simulation.accounts[0], max(self._steps, 1), self._sums
        game = simulation.game
        ledger = game.ledger
        start = game.contract[ledger.start]
        self.logger.record("account/equity", float(np.mean(accounts[:, EQUITY])) / start)
        self.logger.record("account/drawdown", float(np.mean(1.0 - accounts[:, EQUITY] / accounts[:, ledger.peak])))
        for name in ("turnover", "costs", "funding", "leverage"):
            if name != "funding" or name in ledger.items:
                self.logger.record(f"account/{name}", sums[name] / steps)
        if "liquidations" in ledger.items:
            self.logger.record("account/liquidations", sums["liquidations"])
        short, long = sums["short"] / steps, sums["long"] / steps
        shares = {"short": short, "flat": 1.0 - short - long, "long": long}
        if game.choices:
            shares = dict(zip(game.choice_names, (self._choices / steps).tolist(), strict=True))
        for name, share in shares.items():
            self.logger.record(f"action/share_{name}", share)
        if game.masks is not None:
            self.logger.record("action/illegal", self._illegal / steps)
        for name, share in zip(game.bars.label_names, self._shares / steps, strict=True):
            self.logger.record(f"regime/share_{name}", float(share))


class ValidationChoice(BaseCallback):
    """Score the deterministic policy on the validation split at even intervals and keep the best weights.

    Args:
        evaluate: policy -> scores; must hold ``score``. A score that is not a number is never best; of equal ones the
            first is kept.
        every: steps between evaluations. ``keep`` is called after each new best.
    """

    def __init__(
        self, evaluate: Callable[[Any], dict[str, float]], every: int, keep: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self._keep = keep
        self._evaluate = evaluate
        self._every = every
        self._next = every
        self.best_score = -np.inf
        self.best_steps = 0
        self.best_state: dict[str, torch.Tensor] | None = None
        self.history: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:  # the weights of the last update are in place here
        if self.num_timesteps >= self._next:
            self.check()

    def check(self) -> None:
        """Score the present weights."""
        self._next = self.num_timesteps + self._every
        scores = self._evaluate(self.model.policy)
        for name, value in scores.items():
            self.logger.record(f"validation/{name}", value)
        self.history.append({"steps": float(self.num_timesteps), **scores})
        if np.isfinite(scores["score"]) and scores["score"] > self.best_score:
            self.best_score, self.best_steps = scores["score"], self.num_timesteps
            self.best_state = {k: v.detach().clone() for k, v in self.model.policy.state_dict().items()}
            self._keep()

    def state(self) -> dict[str, Any]:
        """Return what the choice stands at as plain values; the weights are in ``best_state``."""
        rows = [{name: value if np.isfinite(value) else None for name, value in row.items()} for row in self.history]
        best = self.best_score if np.isfinite(self.best_score) else None
        return {"next": self._next, "score": best, "steps": self.best_steps, "history": rows}

    def restore(self, state: dict[str, Any], best_state: dict[str, torch.Tensor] | None) -> None:
        """Go on from what :meth:`state` returned.

        Raises:
            KeyError, TypeError, ValueError: not such a state.
        """
        self._next, self.best_steps, self.best_state = int(state["next"]), int(state["steps"]), best_state
        self.best_score = -np.inf if state["score"] is None else float(state["score"])
        self.history = [
            {name: np.nan if value is None else float(value) for name, value in row.items()}
            for row in state["history"]
        ]  # fmt: skip


class RolloutLines(BaseCallback):
    """Write a line of the log after every rollout, where the algorithm itself writes one after episodes only."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.model.dump_logs()


class Progress(BaseCallback):
    """Show a progress bar over the steps."""

    def __init__(self, total: int, enabled: bool = True) -> None:
        super().__init__()
        self._bar: Any = None
        self._total = total
        self._enabled = enabled

    def _on_training_start(self) -> None:
        self._bar = tqdm(
            total=self._total, initial=self.num_timesteps, unit="step", unit_scale=True,
            disable=None if self._enabled else True,
        )  # fmt: skip

    def _on_step(self) -> bool:
        self._bar.update(self.num_timesteps - self._bar.n if self._enabled else 0)
        return True

    def _on_training_end(self) -> None:
        self._bar.close()


def _native(env: Any) -> NativeVecEnv:
    while not isinstance(env, NativeVecEnv):
        env = env.venv
    return env
