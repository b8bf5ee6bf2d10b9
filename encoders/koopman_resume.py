"""What a training needs to go on after a kill: one file, ``training.safetensors``, replaced after each epoch.

Tensors of the model, of its best epoch and of the optimiser, the generator's state, and a JSON of plain numbers in the
file's own header; nothing is unpickled. A training that goes on ends with the same bits as one that was never stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from markets.errors import ArtefactError, ConfigError
from markets.storage import replace_file

FILE = "training.safetensors"
CUDA_STATE = "generator.cuda"


@dataclass
class Progressed:
    """How far a training has come.

    Attributes:
        start: the latents' untrained deviation. history: figures of each epoch so far.
        best: the best epoch, -1 before the first. kept: its tensors. cpu_seconds: spent so far.
    """

    start: float
    kept: dict[str, Tensor]
    history: list[dict[str, float]] = field(default_factory=list)
    best: int = -1
    cpu_seconds: float = 0.0


def save_progress(
    directory: str | Path, plan: dict[str, Any], done: Progressed, model: nn.Module, optimiser: Any, schedule: Any
) -> None:
    """Write the state after an epoch; ``plan`` is whatever must be the same when it goes on."""
    tensors = {"model." + name: value for name, value in model.state_dict().items()}
    tensors |= {"kept." + name: value for name, value in done.kept.items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in moments.items()}
    tensors["generator"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors[CUDA_STATE] = torch.cuda.get_rng_state(device)
    facts = {
        "plan": plan,
        "start": done.start,
        "history": done.history,
        "best": done.best,
        "cpu_seconds": done.cpu_seconds,
        "groups": optimiser.state_dict()["param_groups"],
        "schedule": {name: value for name, value in schedule.state_dict().items() if _is_plain(value)},
    }
    Path(directory).mkdir(parents=True, exist_ok=True)
    ready = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    replace_file(Path(directory) / FILE, save_tensors(ready, {"facts": json.dumps(facts)}))


def load_progress(
    directory: str | Path, plan: dict[str, Any], model: nn.Module, optimiser: Any, schedule: Any
) -> Progressed | None:
    """Put model, optimiser, schedule and generator where the training stopped; None where none began.

    Raises:
        ArtefactError: a damaged file. ConfigError: it belongs to a training with other settings; names the first.
    """
    path = Path(directory) / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        before = facts["plan"]
        for name, value in json.loads(json.dumps(plan)).items():
            if before.get(name) != value:
                raise ConfigError(f"{path}: began with {name}={before.get(name)!r}, now {value!r}: finish or delete it")
        model.load_state_dict(_part(tensors, "model."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimiser.").items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = value
        optimiser.load_state_dict({"state": moments, "param_groups": facts["groups"]})
        schedule.load_state_dict(facts["schedule"])
        torch.set_rng_state(tensors["generator"])
        if CUDA_STATE in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[CUDA_STATE], next(model.parameters()).device)
        kept = _part(tensors, "kept.")
        return Progressed(facts["start"], kept, facts["history"], facts["best"], facts["cpu_seconds"])
    except ConfigError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtefactError(f"{path}: {error}") from error


def finish_progress(directory: str | Path) -> None:
    """Remove the state of a training that is complete."""
    (Path(directory) / FILE).unlink(missing_ok=True)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | list | dict) or value is None
