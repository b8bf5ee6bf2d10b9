"""Trial registry: every training run on a market and every reading of a test split, so that luck can be counted.

Two files of JSON lines under ``REGIMEGYM_CACHE`` (the user's cache folder without it): ``trials.jsonl``, a line when a
training begins and one when it ends, one for each signal, ensemble or agent from elsewhere when it is evaluated, and
``test-touches.jsonl``, a line for each evaluation on a test split. A line is appended in one write, so that processes
do not tear each other's; lines that cannot be read are passed over; a folder that cannot be written to is said and
tolerated, and the count is then of what is known.

A *configuration* is what somebody chose: id, its arguments, algorithm, settings, network, lanes. A *run* is a
configuration with a seed (of an ensemble, with its members); the same run trained anew, resumed or longer is one run.
Both belong to the content of the bars, whatever they are called; the same prices cut at other dates are other bars.
Trials on other machines or with another cache folder are not known, nor those from before this registry.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from markets.storage import cache_folder

if TYPE_CHECKING:
    from envs.simulation import Game

CHOSEN = ("env", "algo", "arguments", "settings", "policy", "lanes")  # what makes a configuration
IRRELEVANT = ("bars", "allow_in_sample", "info", "render_mode")  # arguments that choose nothing, or stand elsewhere
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trials:
    """What was tried on some bars.

    Attributes:
        configurations, runs: how many different ones, unfinished ones included.
        deviation: standard deviation of the runs' validation Sharpe ratios per period (ddof=1); None with fewer than
            two that have one. scored: how many have.
    """

    configurations: int
    runs: int
    deviation: float | None
    scored: int


def touch_log() -> Path:
    """Return the file in which readings of test splits are written down."""
    return cache_folder() / "test-touches.jsonl"


def trial_log() -> Path:
    """Return the file in which training runs are written down."""
    return cache_folder() / "trials.jsonl"


def record_trial(run: Mapping[str, Any], sharpe: float | None = None, periods_per_year: float | None = None) -> None:
    """Write down a training run: at its beginning, and with its validation Sharpe ratio (annual) at its end.

    Args:
        run: :func:`agents.recipe.identity`, or what has its keys.
    """
    configuration, name = _names(run)
    entry = {
        "bars": run["bars"], "configuration": configuration, "run": name,
        **{key: run[key] for key in ("env", "algo", "seed", "arguments", "settings")},
        "sharpe": sharpe if sharpe is not None and np.isfinite(sharpe) else None, "periods_per_year": periods_per_year,
        "time": _now(),
    }  # fmt: skip
    try:
        _append(trial_log(), entry)
    except OSError as error:
        _log.warning("the training run could not be written down in %s: %s", trial_log(), error)


def record_evaluated(manifests: Sequence[Mapping[str, Any]]) -> None:
    """Write down saved agents that no training here did: signals, ensembles, policies from elsewhere; once each."""
    known = {(entry.get("bars"), entry.get("run")) for entry in _entries(trial_log())}
    for manifest in manifests:
        run = {**manifest, "bars": manifest["bars"]["hash"]}
        if (run["bars"], _names(run)[1]) not in known:
            record_trial(run)


def trials_on(bars: Collection[str], agents: Sequence[Mapping[str, Any]] = (), periods_per_year: float = 1.0) -> Trials:
    """Count what was tried on bars with these hashes.

    Args:
        agents: manifests of agents at hand, which count even where their training was not written down here.
        periods_per_year: of the returns their ``chosen_on_validation`` Sharpe ratios were annualised with.
    """
    runs: dict[tuple[str, str], tuple[str, float | None]] = {}
    for manifest in agents:
        configuration, name = _names(manifest)
        chosen = manifest.get("chosen_on_validation") or {}
        runs[manifest.get("bars", {}).get("hash", ""), name] = (
            configuration,
            _per_period(chosen.get("sharpe"), periods_per_year),
        )
    for entry in _entries(trial_log()):
        try:
            key, configuration = (entry["bars"], entry["run"]), entry["configuration"]
            if not all(isinstance(part, str) for part in (*key, configuration)) or entry["bars"] not in bars:
                continue
            score = _per_period(entry["sharpe"], entry["periods_per_year"])
        except (KeyError, TypeError, ValueError, ArithmeticError):
            continue
        runs[key] = configuration, runs.get(key, ("", None))[1] if score is None else score
    scores = [score for _, score in runs.values() if score is not None]
    return Trials(
        configurations=len({(key[0], configuration) for key, (configuration, _) in runs.items()}),
        runs=len(runs),
        deviation=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        scored=len(scores),
    )


def record_touch(game: Game, names: Sequence[str]) -> int:
    """Write down that a test split was read and return how often it has been, this time included.

    The same bars and rows count as the same split, whatever they are called. An unwritable log is said and tolerated.
    """
    key = _split(game)
    entry = {"split": key, "time": _now(), "source": game.bars.source, "agents": list(names)}
    try:
        _append(touch_log(), entry)
    except OSError as error:
        _log.warning("the reading of the test split could not be written down in %s: %s", touch_log(), error)
        return 1 + sum(entry.get("split") == key for entry in _entries(touch_log()))
    return sum(entry.get("split") == key for entry in _entries(touch_log()))


def overlapping_touches(game: Game) -> int:
    """Return how often other test ranges of the same bars have been read that have a bar in common with this one."""
    count = 0
    for entry in _entries(touch_log()):
        split = entry.get("split")
        if not isinstance(split, str) or split == _split(game):
            continue
        bars, *rows = split.rsplit(":", 2)
        if bars == game.bars.hash and len(rows) == 2 and all(row.isdecimal() and len(row) < 20 for row in rows):
            count += int(rows[0]) <= game.last and int(rows[1]) >= game.first
    return count


def _split(game: Game) -> str:
    return f"{game.bars.hash}:{game.first}:{game.last}"


def _names(run: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a configuration and a run of it are known by."""
    chosen = {key: run[key] for key in CHOSEN}
    chosen["arguments"] = {key: value for key, value in run["arguments"].items() if key not in IRRELEVANT}
    text = json.dumps(chosen, sort_keys=True)
    inside = "".join(f" {member['sha256']}" for member in run.get("members", ()))  # of an ensemble
    return tuple(hashlib.sha256(part.encode()).hexdigest()[:16] for part in (text, f"{text} {run['seed']}{inside}"))  # type: ignore[return-value]


def _per_period(sharpe: Any, periods_per_year: Any) -> float | None:
    if sharpe is None:
        return None
    value = float(sharpe) / math.sqrt(float(periods_per_year))
    return value if math.isfinite(value) else None


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one line in one write; a line that a killed writer left unfinished is closed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        os.lseek(descriptor, max(size - 1, 0), os.SEEK_SET)
        torn = size > 0 and os.read(descriptor, 1) != b"\n"
        os.write(descriptor, ("\n" * torn + json.dumps(entry) + "\n").encode())
    finally:
        os.close(descriptor)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what can be read of a log."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
