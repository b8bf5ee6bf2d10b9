"""Walk-forward: train on the past, choose on a slice of it, test on what follows, fold by fold; one record at the end.

A fold of the T bars (:func:`agents.splitters.walk_forward`, label horizon 1: an action at the close of bar t is
rewarded at the close of t + 1)::

    | fit: training | fit: validation | embargo | test |
      anchored: from the first bar on; rolling: from as many bars before the test as the first fold has

Scaler and policy see the training part, the checkpoint is chosen on the validation part, and neither the test nor the
embargo before it is looked at until then. Every fold's agent starts flat at the close of the first test bar, with fresh
equity; the returns of the folds, put one after the other, are the out-of-sample record. What is retrained is one
configuration: its record is one trial, and the trials that deflate it are the walk-forward runs known on these bars.

A fold's agent names its bars ``memory:..``, the cut that only this process knows; elsewhere it is evaluated on other
bars (``regimegym evaluate DIR/fold-01 --bars ..``), with split dates of their own. Families whose episodes are sessions
are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import artefact, bootstrap, checkpoint, fit, metrics
from agents.baselines import baselines_of, unlevered_of
from agents.deflated_sharpe import deflated_sharpe
from agents.evaluation import DRAWS, WEEK, walk
from agents.recipe import TrainingConfig, identity, resolve, whole_split
from agents.splitters import Fold, walk_forward, windows
from agents.training import train
from agents.trial_registry import record_touch, record_trial, trials_on
from envs.make import game_of
from markets.bars import Bars
from markets.errors import ConfigError
from markets.sources.memory import register_bars
from markets.storage import replace_file

HORIZON = 1  # bars that the reward of an action looks ahead
GIVEN_BY_FOLDS = ("split", "train_end", "validation_end", "scaler")
AGENT = "agent"  # the trained one's row, beside the baselines'


@dataclass(frozen=True, kw_only=True)
class WalkForwardConfig:
    """What ``regimegym walk-forward`` is told.

    Attributes:
        env, algo, steps, seed, arguments, settings, lanes, evaluations, device: of each training, as
            :class:`agents.recipe.TrainingConfig`; the split dates are the folds'.
        folds: tests. first: share of the bars before the first test. validation: share of a fit that chooses.
        embargo_bars: left out before each test. anchored: fits begin at the first bar, else they keep their length.
        out: folder of the folds; finished ones in it are not trained again.
    """

    env: str
    algo: str
    steps: int
    out: Path
    seed: int = 0
    folds: int = 5
    first: float = 0.5
    validation: float = 0.25
    embargo_bars: int = 0
    anchored: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    lanes: int = 0
    evaluations: int = 10
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("first", "validation"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"{name}={getattr(self, name)!r} must lie between 0 and 1")
        if not isinstance(self.evaluations, int) or self.evaluations < 1:
            raise ConfigError(
                f"evaluations={self.evaluations!r}: the checkpoint is chosen on validation, at least once"
            )
        for name in GIVEN_BY_FOLDS:
            if name in self.arguments:
                raise ConfigError(f"{name}={self.arguments[name]!r}: the folds set {name}, leave it out")


@dataclass(frozen=True)
class Part:
    """A fold on its own bars: those from the beginning of its fit to the end of its test.

    Attributes:
        place: of the fold. bars: its own. train_end, fit_end, test_begin: closes of the last training bar, of the last
            bar of the fit and of the last bar before the test.
    """

    place: int
    bars: Bars
    train_end: str
    fit_end: str
    test_begin: str


def run(config: WalkForwardConfig, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Train and test what is missing; return ``folds``, ``table`` and facts. ``progress`` is told each fold.

    Raises:
        ConfigError: folds that cannot be, a family whose episodes are sessions, a folder of another walk-forward.
    """
    family, bars, parts = prepare(config)
    rows = []
    for part in parts:
        row = _kept(config, part)
        if row is None:
            row = _fold(config, family, part)
            replace_file(_file(config, part), (json.dumps(row) + "\n").encode())
        rows.append(row)
        scores = row["scores"][AGENT]
        progress(
            f"fold {part.place + 1} of {config.folds}, {row['test'][0][:10]} to {row['test'][1][:10]}: "
            f"return {100 * scores['total_return']:+.1f} %, Sharpe {scores['sharpe']:.2f}"
        )
    result = {
        "env": config.env, "source": bars.source, "scheme": "anchored" if config.anchored else "rolling",
        "embargo_bars": config.embargo_bars, "periods_per_year": bars.periods_per_year,
        "folds": [{key: value for key, value in row.items() if key != "returns"} for row in rows],
        **_stitched(config, bars, rows),
    }  # fmt: skip
    replace_file(config.out / "walk-forward.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return result


def prepare(config: WalkForwardConfig) -> tuple[str, Bars, list[Part]]:
    """Return family, bars and folds: what is wrong with names, bars and folds is raised here, before any training."""
    family, probe = resolve(config.env, config.arguments)
    game = game_of(family, probe)
    if game.starts is not None:
        raise ConfigError(
            f"env={config.env!r}: its episodes are sessions, and walk-forward cuts between bars only; "
            "train each fold by itself, with --bars '..&end=DATE' and --env-arg train_end=.. validation_end=.."
        )
    bars = game.bars
    ends = windows(len(bars), HORIZON)
    found = walk_forward(ends, config.folds, round(config.first * len(bars)), config.embargo_bars, config.anchored)
    parts = [_part(config, bars, fold) for fold in found]
    for part in parts:
        for split, end in (("train", part.fit_end), ("validation", part.fit_end), ("test", part.test_begin)):
            _game(config, family, part, split, end)  # too few bars for warm-up or an episode
    return family, bars, parts


def _part(config: WalkForwardConfig, bars: Bars, fold: Fold) -> Part:
    begin, fitted, test = int(fold.train[0]), len(fold.train), int(fold.test[0])
    training = fitted - max(round(config.validation * fitted), 1)
    if training < 1:
        raise ConfigError(f"validation={config.validation!r} leaves nothing of {fitted} bars to train on")
    closes = (str(bars.close_time[row]) for row in (begin + training - 1, begin + fitted - 1, test - 1))
    return Part(fold.groups[0], bars.between(begin, int(fold.test[-1]) + 1), *closes)


def _game(config: WalkForwardConfig, family: str, part: Part, split: str, end: str, **kept: Any) -> Any:
    _, training = resolve(config.env, {**_arguments(config, part), "validation_end": end})
    return game_of(family, replace(whole_split(training, split), **kept))


def _arguments(config: WalkForwardConfig, part: Part) -> dict[str, Any]:
    name = register_bars(f"walk-forward-{part.bars.hash[:16]}", part.bars)
    return {**config.arguments, "bars": name, "train_end": part.train_end, "validation_end": part.fit_end}


def _training(config: WalkForwardConfig, part: Part) -> TrainingConfig:
    out = config.out / f"fold-{part.place + 1:02d}"
    return TrainingConfig(
        env=config.env, algo=config.algo, steps=config.steps, seed=config.seed, out=out,
        arguments=_arguments(config, part), settings=config.settings, lanes=config.lanes,
        evaluations=config.evaluations, resume=checkpoint.newest(out / checkpoint.FOLDER) is not None,
        device=config.device, quiet=True,
    )  # fmt: skip


def _fold(config: WalkForwardConfig, family: str, part: Part) -> dict[str, Any]:
    """Train one fold, and walk its agent and the baselines through its test."""
    agent = artefact.load(train(_training(config, part)))
    game = _game(config, family, part, "test", part.test_begin, **fit.carried(agent))
    agent.check(game)
    games = {
        name: game_of(family, replace(game.recipe[1], **changes)) for name, changes in unlevered_of(family).items()
    }
    players = {AGENT: agent, **{name: make() for name, make in baselines_of(family).items()}}
    curves = {name: walk(player, games.get(name, game)).equity[:, 0] for name, player in players.items()}
    periods = game.bars.periods_per_year
    touches = record_touch(game, [f"walk-forward {config.algo}"])
    return {
        "identity": _identity(config, part),
        "train": [str(game.bars.close_time[0]), part.train_end],
        "validation": [part.train_end, part.fit_end],
        "test": [str(game.bars.close_time[game.first]), str(game.bars.close_time[game.last])],
        "chosen_on_validation": agent.manifest["chosen_on_validation"],
        "touches": touches,
        "scores": {name: score(metrics.simple_returns(curve), periods) for name, curve in curves.items()},
        "returns": {name: metrics.simple_returns(curve).tolist() for name, curve in curves.items()},
    }


def score(returns: NDArray[np.float64], periods_per_year: float) -> dict[str, Any]:
    """Return the summary of returns ``(T,)`` with intervals, blocks of one week: what each fold and the record show."""
    curve = np.concatenate([[1.0], np.cumprod(1.0 + returns)])
    block = min(max(periods_per_year * WEEK, 1.0), max(len(returns) / 2.0, 1.0))
    found: dict[str, Any] = {**metrics.summary(curve, periods_per_year), "bars": len(returns)}
    for name, key, change in (
        ("log_growth", "total_return_interval", math.expm1),
        ("sharpe", "sharpe_interval", lambda bound: bound * math.sqrt(periods_per_year)),
    ):
        bounds = bootstrap.confidence_interval(returns, name, mean_block=block, draws=DRAWS)
        found[key] = [float(change(min(bound, metrics.LARGEST_LOG_GROWTH))) for bound in bounds]
    return found


def _stitched(config: WalkForwardConfig, bars: Bars, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the ``table`` of the whole record with its deflated Sharpe ratio, and what was tried."""
    periods = bars.periods_per_year
    table = {}
    for name in rows[0]["returns"]:
        table[name] = score(np.concatenate([row["returns"][name] for row in rows]), periods)
    own = table[AGENT]
    trial = _trial(config, bars)
    record_trial(trial, own["sharpe"], periods)
    trials = trials_on({trial["bars"]}, [{**trial, "bars": {"hash": trial["bars"]}}])
    deviation = 1.0 / math.sqrt(own["bars"]) if trials.deviation is None else trials.deviation
    own["deflated_sharpe"] = None
    if own["annual_volatility"] > 0.0:
        moments = own["skewness"], own["excess_kurtosis"] + 3.0
        own["deflated_sharpe"] = deflated_sharpe(
            own["sharpe"] / math.sqrt(periods), own["bars"], *moments, trials.runs, deviation
        )
    return {"table": table, "configurations": trials.configurations, "runs": trials.runs}


def _trial(config: WalkForwardConfig, bars: Bars) -> dict[str, Any]:
    """Return the whole walk-forward in the form of a training run, on bars of its own kind."""
    scheme = [config.folds, config.first, config.validation, config.embargo_bars, config.anchored, config.steps]
    return {
        "env": config.env, "algo": config.algo, "seed": config.seed, "lanes": config.lanes, "policy": scheme,
        "arguments": config.arguments, "settings": config.settings, "bars": f"walk-forward:{bars.hash}",
    }  # fmt: skip


def _identity(config: WalkForwardConfig, part: Part) -> dict[str, Any]:
    """Return what makes a fold this fold, as JSON will read it back."""
    training = replace(_training(config, part), resume=False)
    family, arguments = resolve(config.env, training.arguments)
    content = {**identity(training, game_of(family, arguments)), "steps": config.steps, "test": part.test_begin}
    return dict(json.loads(json.dumps(content)))


def _file(config: WalkForwardConfig, part: Part) -> Path:
    return config.out / f"fold-{part.place + 1:02d}" / "fold.json"


def _kept(config: WalkForwardConfig, part: Part) -> dict[str, Any] | None:
    """Return a finished fold of the folder, None where there is none."""
    path = _file(config, part)
    try:
        row: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = row["identity"]
        if (
            not isinstance(found, dict)
            or not row["scores"][AGENT]
            or not all(row["returns"][name] for name in row["scores"])
        ):
            raise ValueError("identity, scores or returns are of another kind")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no fold of a walk-forward: {error!r}; remove it or choose another folder"
        ) from error
    wanted = _identity(config, part)
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise ConfigError(f"{path} has {name}={found.get(name)!r}, not {wanted[name]!r}: choose another folder")
    return dict(row)
