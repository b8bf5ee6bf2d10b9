"""What a drift monitor reads and keeps between calls: a table of ticks, its state and its readings in a folder."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoders.defrag import ChronosDefragEngine
from encoders.defrag_monitor import DriftMonitor, Reading
from markets.errors import ArtefactError, DataError, unknown
from markets.frames import numbers
from markets.sources.tables import read_table
from markets.storage import replace_file

_log = logging.getLogger(__name__)

STATE, READINGS = "monitor-state.json", "monitor-readings.jsonl"


def table(file: Path, names: tuple[str, ...]) -> NDArray[np.float32]:
    """Read the columns ``names`` of a table as ``(T, F)``; others are left out. An empty cell is nan, and told later.

    Raises:
        DataError: unreadable, a column that is missing, or a cell that is no number.
    """
    frame = read_table(file)
    for name in names:
        if name not in frame.columns:
            raise DataError(f"{file}: {unknown('column', name, tuple(map(str, frame.columns)))}")
    others = [str(column) for column in frame.columns if column not in names]
    if others:
        _log.info("%s: left out %s", file, ", ".join(others))
    return np.stack([numbers(frame[name], name) for name in names], axis=1).astype(np.float32)


def resumed(folder: Path, monitor: DriftMonitor, engine: ChronosDefragEngine, first: int) -> tuple[int, list[Reading]]:
    """Return the next tick and the readings so far, and give the monitor its state; ``first`` where there is none."""
    if not (folder / STATE).exists():
        return first, []
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
        upcoming, fit = content["next_tick"], content["fit"]
        lines = (folder / READINGS).read_text(encoding="utf-8").splitlines()
        before = [Reading(**json.loads(line)) for line in lines]
        if not isinstance(upcoming, int) or isinstance(upcoming, bool):
            raise ValueError(f"next_tick={upcoming!r} is no whole number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{folder} cannot be gone on from: {error}; take another --out") from error
    if fit != fit_of(engine):
        raise ArtefactError(
            f"{folder} is of another fit than --checkpoint: a refitted encoder has a monitor of its own"
        )
    monitor.load_state_dict(content["monitor"])
    _log.info("going on after block %d, at tick %d", monitor.blocks - 1, upcoming)
    return upcoming, before[: monitor.blocks]  # killed between the two files: those after the state are read again


def keep(
    folder: Path, monitor: DriftMonitor, engine: ChronosDefragEngine, upcoming: int, readings: list[Reading]
) -> None:
    """Write readings and state, each atomically; ``upcoming`` is the next tick."""
    lines = "".join(json.dumps(asdict(reading)) + "\n" for reading in readings)
    replace_file(folder / READINGS, lines.encode())
    state = {"fit": fit_of(engine), "next_tick": upcoming, "monitor": monitor.state_dict()}
    replace_file(folder / STATE, (json.dumps(state, indent=1, allow_nan=False) + "\n").encode())


def fit_of(engine: ChronosDefragEngine) -> str:
    """Return a digest of what decides confidences: scaler, moments and the novelty's points."""
    fitted = engine.fitted
    digest = hashlib.sha256(str(fitted.train_end).encode())
    for part in (fitted.scaler.arrays(), fitted.novelty.arrays(), vars(fitted.encoder.scale)):
        for name in sorted(part):
            digest.update(np.ascontiguousarray(part[name]).tobytes())
    return digest.hexdigest()
