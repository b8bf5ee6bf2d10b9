"""Figures of the defragmentation encoder over dwells and seeds, and what it costs; :mod:`encoders.defrag_figures` has
what is measured. Settings were chosen on seeds below 50 and on 100 to 239: the default seeds are others.

Times are CPU seconds of this process with one thread of torch, after a warm-up that compiles; wall milliseconds stand
beside where a document promises them.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from encoders.defrag import ChronosDefragEngine
from encoders.defrag_chain import pseudo_timeline
from encoders.defrag_config import DefragConfig
from encoders.defrag_figures import figures, flat
from encoders.defrag_router import VectorDefragRouter
from encoders.defrag_series import switching_series
from encoders.student import t_quantile
from markets.errors import ConfigError

Told = Callable[[str], None]

FIT_BLOCKS, EPOCHS, WARM, CALLS = 48, 30, 5, 1000
CHAIN_BLOCKS = 20_000
SMALL, LARGE = 2048, 65_536  # registry rows
MIB = float(2**20)
CLAIMS = {  # of the source document, on an Apple M2 Pro
    "fit_48_cpu_s": "about 4.2 s", "chain_48_ms": "about 0.3 ms", "predict_2k_mean_ms": "about 1.1 ms",
    "predict_2k_p99_ms": "about 2.8 ms", "predict_2k_qps": "about 850", "memory_2k_mib": "about 180 MB",
    "registry_65k_mib": "about 16 MB",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DefragBench:
    """What to measure.

    Attributes:
        dwells: mean stays in a regime, in blocks. seeds: of series and fits.
        train_blocks: fitted on. test_blocks: held out, after them.
        engine: settings of the encoder; its seed, width and block length come from the series.
    """

    dwells: tuple[float, ...] = (2.0, 8.0, 32.0)
    seeds: tuple[int, ...] = (50, 51, 52, 53, 54)
    train_blocks: int = 512
    test_blocks: int = 512
    engine: DefragConfig = field(default_factory=DefragConfig)

    def __post_init__(self) -> None:
        if not self.dwells or not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(
                f"dwells={self.dwells}, seeds={self.seeds}: one of each at least; seeds from 0, no two alike"
            )
        if self.train_blocks < 32 or self.test_blocks < 128:
            raise ConfigError(
                f"train_blocks={self.train_blocks} must be at least 32, test_blocks={self.test_blocks} at least 128"
            )


def quality(bench: DefragBench, told: Told) -> dict[str, Any]:
    """Return for each dwell ``{"seeds": {seed: figures}, "mean": {figure: [mean, low, high]}}``."""
    result: dict[str, Any] = {}
    for dwell in bench.dwells:
        runs = {}
        for seed in bench.seeds:
            began = time.process_time()
            series = switching_series(bench.train_blocks + bench.test_blocks, dwell, seed, bench.engine.block_len)
            runs[str(seed)] = figures(series, bench.train_blocks, replace(bench.engine, seed=seed))
            told(f"dwell {dwell:g}, seed {seed}: {time.process_time() - began:.0f} CPU s")
        rows = [flat(run) for run in runs.values()]
        mean = {name: interval([row[name] for row in rows]) for name in rows[0]}
        result[f"{dwell:g}"] = {"seeds": runs, "mean": mean}
    return result


def interval(values: Sequence[float], level: float = 0.95) -> list[float]:
    """Return mean and ends of Student's interval over seeds; the ends are nan of one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return [mean, float("nan"), float("nan")]
    reach = t_quantile(level, len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return [mean, mean - reach, mean + reach]


def cost(config: DefragConfig, told: Told) -> dict[str, float]:
    """Return CPU seconds and wall milliseconds of fit, chain and answers, and MiB of memory.

    The long chain is built twice: of embeddings of a series, and of rows whose noise fills all their dimensions
    evenly, which is the hardest there is for the chain's bound.
    """
    config = replace(config, input_dim=6, epochs=EPOCHS, predictor_epochs=EPOCHS, seed=0)
    series = switching_series(FIT_BLOCKS, 8.0, 0, config.block_len)
    engine = ChronosDefragEngine(config)
    engine.fit(series.features)  # compiles, and loads torch
    before = peak_mib()
    result = {"fit_48_cpu_s": _cpu(lambda: engine.fit(series.features))}
    told(f"fit of {FIT_BLOCKS} blocks: {result['fit_48_cpu_s']:.2f} CPU s")
    for name, rows in (("2k", SMALL), ("65k", LARGE)):
        engine.router = VectorDefragRouter(replace(config, registry_capacity=rows))
        engine.router.add(unit_cloud(rows, config.latent_dim), config.block_len * np.arange(rows), np.zeros(rows))
        result |= _latency(engine, series.features[: config.window_len], name)
        if name == "2k":
            result |= {"memory_2k_mib": peak_mib(), "memory_2k_growth_mib": peak_mib() - before}
        told(f"predict_live, registry {name}: {result[f'predict_{name}_cpu_ms']:.3f} CPU ms")
    result["registry_65k_mib"] = engine.router.nbytes / MIB
    long = switching_series(CHAIN_BLOCKS, 8.0, 0, config.block_len)
    z = engine.encoder.embed(engine.fitted.scaler.apply(long.windows))
    result["chain_48_ms"] = 1e3 * min(_cpu(lambda: pseudo_timeline(z[:FIT_BLOCKS], config.chain)) for _ in range(20))
    for name, rows_of in (("chain_20k", z), ("chain_20k_even", unit_cloud(CHAIN_BLOCKS, config.latent_dim))):
        before = peak_mib()
        result[f"{name}_cpu_s"] = _cpu(lambda rows_of=rows_of: pseudo_timeline(rows_of, config.chain))  # type: ignore[misc]
        result[f"{name}_growth_mib"] = peak_mib() - before
        told(f"{name}: {result[f'{name}_cpu_s']:.2f} CPU s")
    return result


def unit_cloud(count: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Draw unit rows ``(count, width)`` around four centres that a sticky chain visits: like embeddings of blocks."""
    rng = np.random.default_rng([seed, 4])
    labels = np.cumsum(rng.integers(1, 4, count) * (rng.random(count) < 1 / 8)) % 4
    rows = rng.standard_normal((4, width))[labels] + 0.6 * rng.standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    scale = 1.0 if sys.platform == "darwin" else 1024.0  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / MIB


def _latency(engine: ChronosDefragEngine, window: np.ndarray[Any, Any], name: str) -> dict[str, float]:
    for _ in range(WARM):
        engine.predict_live(window)
    began, wall = time.process_time(), []
    for _ in range(CALLS):
        wall.append(engine.predict_live(window).system_latency_ms)
    spent = time.process_time() - began
    return {
        f"predict_{name}_cpu_ms": 1e3 * spent / CALLS,
        f"predict_{name}_mean_ms": float(np.mean(wall)),
        f"predict_{name}_p99_ms": float(np.quantile(wall, 0.99)),
        f"predict_{name}_qps": 1e3 / float(np.mean(wall)),
    }


def _cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
