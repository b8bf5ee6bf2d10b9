"""Checkpoints of the defragmentation engine: one zip of JSON and safetensors; nothing is unpickled.

The manifest has the configuration, the feature names, the training range's last tick and the fit's log; the tensors are
scaler, encoder, predictor, novelty reference and registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from encoders.defrag_blocks import BlockScaler
from encoders.defrag_config import DefragConfig
from encoders.defrag_encoder import EncoderWeights, MomentScale, RegimeEncoder
from encoders.defrag_hierarchy import BlockHierarchy
from encoders.defrag_novelty import Novelty
from encoders.defrag_predictor import PredictorWeights, TemporalPredictor
from encoders.defrag_router import VectorDefragRouter
from markets import storage
from markets.errors import ArtefactError

if TYPE_CHECKING:
    from encoders.defrag import Fitted

Arrays = dict[str, NDArray[Any]]

KIND, FORMAT = "defrag-engine", 1
TENSORS = "weights.safetensors"
STRUCTURE = (
    "input_dim",
    "block_len",
    "latent_dim",
    "hidden",
    "moments_weight",
    "scaler",
    "hierarchy",
)  # what the numbers depend on


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds; ``registry`` is what :meth:`VectorDefragRouter.restore` takes."""

    config: DefragConfig
    fitted: Fitted
    registry: Arrays

    def check_structure(self, config: DefragConfig) -> None:
        """Refuse a configuration that these numbers do not fit.

        Raises:
            ArtefactError: names the setting and both values.
        """
        for name in STRUCTURE:
            mine, theirs = getattr(self.config, name), getattr(config, name)
            if mine != theirs:
                raise ArtefactError(
                    f"the checkpoint has {name}={mine!r}, this engine {theirs!r}: take from_checkpoint(path), or an "
                    f"engine with {name}={mine!r}"
                )


def write_checkpoint(path: Path, config: DefragConfig, fitted: Fitted, router: VectorDefragRouter) -> Path:
    """Write ``path``, atomically."""
    arrays: Arrays = {
        **fitted.scaler.arrays(),
        **{f"encoder.{name}": value for name, value in fitted.encoder.weights.arrays().items()},
        **_scales(fitted.hierarchy),
        **{f"predictor.{name}": value for name, value in fitted.predictor.weights.arrays().items()},
        **fitted.novelty.arrays(), **router.arrays(),
    }  # fmt: skip
    manifest = {
        "kind": KIND, "format": FORMAT, "config": config.to_json(), "feature_names": list(fitted.feature_names),
        "train_end": fitted.train_end, "log": asdict(fitted.log),
    }  # fmt: skip
    data = save_tensors({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    return storage.write(path, manifest, {TENSORS: data})


def read_checkpoint(path: Path) -> Checkpoint:
    """Read ``path``.

    Raises:
        ArtefactError: missing, incomplete, altered, of another kind, or with numbers that do not fit; says what.
    """
    from encoders.defrag import FitLog, Fitted

    manifest, members = storage.read(path, (TENSORS,))
    with storage.naming(path, storage.MANIFEST):
        if (manifest["kind"], manifest["format"]) != (KIND, FORMAT):
            raise ArtefactError(
                f"kind and format are {(manifest['kind'], manifest['format'])}, this version reads {(KIND, FORMAT)}"
            )
        config = DefragConfig.from_json(manifest["config"])
        log = manifest["log"]
        lists: dict[str, Any] = {name: tuple(value) for name, value in log.items() if isinstance(value, list)}
        fit_log = FitLog(**{**log, **lists})
        names, train_end = tuple(manifest["feature_names"]), int(manifest["train_end"])
    with storage.naming(path, TENSORS, SafetensorError):
        arrays = load_tensors(members[TENSORS])
        for name, value in arrays.items():
            if name != "registry.outcomes" and not np.isfinite(value).all():
                raise ArtefactError(f"tensor {name!r} holds a number that is not finite")
        weights = EncoderWeights(**_part(arrays, "encoder."))
        scales = [MomentScale(**_part(arrays, _prefix(level))) for level in config.hierarchy]
        encoders = tuple(RegimeEncoder(weights, scale, config.moments_weight) for scale in scales)
        encoder, scale = encoders[0], scales[0]
        found = (encoder.weights.a_weight.shape, encoder.weights.head_weight.shape[0])
        expected = ((config.hidden, config.input_dim, encoder.weights.a_weight.shape[2]), config.learned_dim)
        if found != expected:
            raise ArtefactError(f"encoder of {found}, its configuration says {expected}")
        predictor = TemporalPredictor(PredictorWeights(**_part(arrays, "predictor.")))
        if predictor.weights.value.shape[1] != config.latent_dim:
            raise ArtefactError(f"predictor reads {predictor.weights.value.shape[1]} columns of {config.latent_dim}")
        novelty = Novelty(**_part(arrays, "novelty."))
        scaler = BlockScaler(**_part(arrays, "scaler."))
        if len(scaler.center) != config.input_dim or len(names) != config.input_dim:
            raise ArtefactError(
                f"scaler of {len(scaler.center)} and names of {len(names)} for {config.input_dim} features"
            )
        if novelty.points.shape[1] != scale.mean.shape[0]:
            raise ArtefactError(f"novelty reads {novelty.points.shape[1]} moments of {scale.mean.shape[0]}")
        hierarchy = BlockHierarchy(config.hierarchy, encoders)
        registry = {f"registry.{name}": value for name, value in _part(arrays, "registry.").items()}
    return Checkpoint(config, Fitted(scaler, hierarchy, predictor, novelty, train_end, names, fit_log), registry)


def _prefix(level: int) -> str:
    return "moments." if level == 1 else f"moments_{level}."


def _scales(hierarchy: BlockHierarchy) -> Arrays:
    """Return each level's numbers by name."""
    return {
        f"{_prefix(level)}{name}": getattr(encoder.scale, name)
        for level, encoder in zip(hierarchy.levels, hierarchy.encoders, strict=True)
        for name in ("mean", "deviation", "persistence")
    }


def _part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
