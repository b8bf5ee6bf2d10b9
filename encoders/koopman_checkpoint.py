"""Checkpoints of Koopman encoders: a directory with ``manifest.json`` and one file of tensors; nothing is unpickled.

The manifest names the tensors' file and its hash, and is moved into place last: a kill at any moment leaves the old
checkpoint or the new one whole. The source's two lines become::

    checkpoint = load_checkpoint("jepa_checkpoints/best")        # was torch.load: it would run a stranger's pickle
    model.load_state_dict(checkpoint["model_state_dict"])
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from encoders.koopman_config import KoopmanConfig
from encoders.koopman_data import WindowChannels
from encoders.koopman_jepa import CryptoKoopmanJEPA
from markets.errors import ArtefactError
from markets.storage import replace_file

MANIFEST = "manifest.json"
KIND, FORMAT = "koopman-jepa", 1


def save_checkpoint(directory: str | Path, model: CryptoKoopmanJEPA, facts: Mapping[str, Any] | None = None) -> Path:
    """Write the model's tensors, configuration and scales, with ``facts`` that JSON can hold; return the directory."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    data = save_tensors({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    digest = hashlib.sha256(data).hexdigest()
    name = f"weights-{digest[:16]}.safetensors"
    content = {
        "kind": KIND,
        "format": FORMAT,
        "config": model.config.to_json(),
        "channels": None if model.channels is None else model.channels.to_json(),
        "weights": name,
        "sha256": digest,
        "facts": dict(facts or {}),
    }
    replace_file(folder / name, data)
    replace_file(folder / MANIFEST, json.dumps(content, indent=1, allow_nan=False).encode())
    for old in folder.glob("weights-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)
    return folder


def load_checkpoint(directory: str | Path) -> dict[str, Any]:
    """Return ``model_state_dict``, ``config``, ``channels`` and ``facts`` of a checkpoint.

    Raises:
        ArtefactError: something is missing, altered, of another kind or not finite; says what was expected and found.
    """
    folder = Path(directory)
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        found = (content["kind"], content["format"])
        if found != (KIND, FORMAT):
            raise ArtefactError(f"{folder}: {MANIFEST}: kind and format are {found}, expected {(KIND, FORMAT)}")
        name, digest = str(content["weights"]), str(content["sha256"])
        if Path(name).name != name:
            raise ArtefactError(f"{folder}: {MANIFEST}: weights {name!r} is not a file beside it")
        data = (folder / name).read_bytes()
        now = hashlib.sha256(data).hexdigest()
        if now != digest:
            raise ArtefactError(f"{folder}: {name} was altered: sha256 {now[:16]}, expected {digest[:16]}")
        state = load_tensors(data)
        config = KoopmanConfig.from_json(content["config"])
        channels = None if content["channels"] is None else WindowChannels.from_json(content["channels"])
        facts = dict(content["facts"])
    except FileNotFoundError as error:
        raise ArtefactError(f"{folder}: {Path(error.filename).name} is missing") from error
    except KeyError as error:
        raise ArtefactError(f"{folder}: {MANIFEST} lacks {error}") from error
    except (TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{folder}: {MANIFEST}: {error}") from error
    except SafetensorError as error:
        raise ArtefactError(f"{folder}: {name}: {error}") from error
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ArtefactError(f"{folder}: tensor {key!r} holds a number that is not finite")
    return {"model_state_dict": state, "config": config, "channels": channels, "facts": facts}


def load_model(directory: str | Path, device: str = "cpu") -> CryptoKoopmanJEPA:
    """Return the model of a checkpoint in evaluation mode.

    Raises:
        ArtefactError: as :func:`load_checkpoint`, or tensors that do not fit the configuration.
    """
    checkpoint = load_checkpoint(directory)
    model = CryptoKoopmanJEPA.from_config(checkpoint["config"], seed=0)
    _check_shapes(Path(directory), model.state_dict(), checkpoint["model_state_dict"])
    model.load_state_dict(checkpoint["model_state_dict"])
    model.channels = checkpoint["channels"]
    model.eval()
    return model.to(device)


def _check_shapes(folder: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name in sorted(set(expected) ^ set(found)):
        raise ArtefactError(f"{folder}: tensor {name!r} is {'missing' if name in expected else 'not of this encoder'}")
    for name, value in expected.items():
        other = found[name]
        if (other.shape, other.dtype) != (value.shape, value.dtype):
            raise ArtefactError(
                f"{folder}: tensor {name!r} is {other.dtype} {tuple(other.shape)}, "
                f"expected {value.dtype} {tuple(value.shape)}"
            )
