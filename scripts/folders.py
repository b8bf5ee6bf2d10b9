"""Folders that a verb writes to: made before the work begins, and left alone where somebody's run is in them."""

from __future__ import annotations

import difflib
from pathlib import Path

from markets.errors import ConfigError

AGENT, BEGUN, LOG = "agent.zip", "checkpoints/checkpoint-*.zip", "training.log"
SIGNAL, ENSEMBLE = "signal.zip", "ensemble.zip"


def make(folder: Path) -> None:
    """Make the folder that ``--out`` names.

    Raises:
        ConfigError: it is a file, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"--out {folder} is a file: name a folder") from error
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be made: {error.strerror or error}") from error


def occupied(folder: Path) -> str:
    """Say what a folder holds of a training: ``an agent``, ``an unfinished run``, or nothing, which is empty."""
    if (folder / AGENT).exists():
        return "an agent"
    return "an unfinished run" if any(folder.glob(BEGUN)) else ""


def check_holds_no_other(folder: Path, own: str) -> None:
    """Refuse a folder with an agent of another kind than the file ``own``: one folder is one agent.

    Raises:
        ConfigError: names the file that stands there.
    """
    for name in (AGENT, SIGNAL, ENSEMBLE):
        if name != own and (folder / name).exists():
            raise ConfigError(f"--out {folder} holds {name} already, and a folder is one agent: choose another folder")


def free(folder: Path) -> Path:
    """Return the folder, or the first of ``FOLDER-2``, ``FOLDER-3``, ... that does not exist, where it is occupied."""
    number, place = 1, folder
    while occupied(place) if number == 1 else place.exists():
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    return place


def check_resume(folder: Path) -> None:
    """Refuse to resume what is not there; a run that was killed before its first checkpoint left its log at least.

    Raises:
        ConfigError: nothing to go on from; names the run beside it whose name is nearest.
    """
    if (folder / AGENT).exists() and not any(folder.glob(BEGUN)):
        raise ConfigError(f"--resume: {folder} holds an agent, but no checkpoint of its training to go on from")
    if occupied(folder) or (folder / LOG).is_file():
        return
    beside = sorted(place.name for place in folder.parent.glob("*") if any(place.glob(BEGUN)))
    close = difflib.get_close_matches(folder.name, beside, n=1, cutoff=0.0)
    hint = f" Did you mean {folder.parent / close[0]}?" if close else ""
    raise ConfigError(f"--resume: there is no run in {folder}.{hint} To start anew, leave --resume out")
