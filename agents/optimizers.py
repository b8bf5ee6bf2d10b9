"""The state of torch's optimisers as named arrays and plain values: moments, step counts, learning rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from agents.generators import Arrays
from markets.errors import ArtefactError


def optimizer_state(part: torch.optim.Optimizer) -> tuple[Arrays, dict[str, Any]]:
    """Return the tensors of an optimiser's state, and its plain values: settings, and counts that are no tensors."""
    content, tensors, counts = part.state_dict(), {}, {}
    for index, state in content["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}/{key}"] = value.detach().cpu().numpy().copy()
            else:
                counts[f"{index}/{key}"] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in content["param_groups"]]
    return tensors, {"groups": groups, "counts": counts}


def restore_optimizer(part: torch.optim.Optimizer, name: str, tensors: Arrays, plain: dict[str, Any]) -> None:
    """Put an optimiser back where :func:`optimizer_state` found it; ``name`` is for errors.

    Raises:
        ArtefactError: a tensor that no parameter has, of another shape than its parameter, or not finite.
        KeyError, TypeError, ValueError: a plain value is missing or of another kind.
    """
    parameters = [parameter for group in part.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain["counts"]}.items():
        index, _, entry = key.partition("/")
        if not 0 <= int(index) < len(parameters):
            raise ArtefactError(f"optimizer {name} has no parameter {index}")
        if isinstance(value, np.ndarray):
            if value.shape not in ((), tuple(parameters[int(index)].shape)) or not np.isfinite(value).all():
                raise ArtefactError(f"array optimizer/{name}/{key} does not fit its parameter, or is not finite")
            value = torch.from_numpy(value.copy())
        state.setdefault(int(index), {})[entry] = value
    groups = []
    for present, given in zip(part.state_dict()["param_groups"], plain["groups"], strict=True):
        settings = {key: given[key] for key in present if key != "params"}  # JSON made lists of the pairs
        pairs = {key: tuple(settings[key]) for key, value in present.items() if isinstance(value, tuple)}
        groups.append({**settings, **pairs, "params": present["params"]})
    part.load_state_dict({"state": state, "param_groups": groups})
