"""The regime gap: how much of what knowing the regime is worth does an encoder give to an agent?

On ``synthetic:regimes``, where the exact filter is known, with log utility, episodes of 512 bars, a taker fee of 1 bp,
no spread or impact, and exposures up to 5. One environment for all arms, which differ in the columns that they see::

    A   account and last return                     C1  A and the embedding        C2  C1 and the belief's odds
    B   account and the default features            D   A and the exact filter's odds
    F   the closed form on the exact filter         E   A and the true regime
    G1  A and what the defragmentation encoder      G2  G1 and its odds
        says, of an environment with that encoder

A to E and G are trained alike; F is not trained (:mod:`agents.regime_truth`) and is what regret is measured from. Each
seed is a market of its own. Encoders are pretrained without labels on other seeds of the generator. Reported is::

    gap closed by X = (X - A) / (D - A),     X = B, C1, C2, E, G1, G2

only where the interval of D - A lies above 0. The odds of the filter do not say all that the past says: D does not see
the conditional variance of each regime, embedding and features do. A share above 1 is possible, and no error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents import paired_seeds
from agents.arm_comparison import Comparison, between, scores_of
from agents.arms import Arm, Recipe
from agents.regime_truth import FILTER, HIGH, LOW, TRUTH, BestExposure, truth
from encoders.encoder import load
from envs.perp_columns import ACCOUNT_NAMES
from markets import features
from markets.errors import ConfigError

ENV, DEFRAG_ENV = "PerpFutures-JEPA-v0", "PerpFutures-Defrag-v0"
ARGUMENTS: dict[str, Any] = {
    "leverage": 5.0, "episode_bars": 512, "taker_fee": 0.0001, "half_spread": 0.0, "tick_size": 0.0,
    "impact_coefficient": 0.0, "lot_step": 0.0, "minimum_notional": 0.0, "margin_mode": "cross",
}  # fmt: skip
# Of seed 100, no seed of the experiment. A position pays within a few bars or not at all, so that little is
# discounted in.
SETTINGS: dict[str, Any] = {
    "gamma": 0.5, "gae_lambda": 0.9, "learning_rate": 1e-3, "n_steps": 32, "batch_size": 2048, "n_epochs": 4,
    "net_arch": [32, 32], "log_std_init": -0.5,
}  # fmt: skip
SEEDS, STEPS, BARS = 10, 600_000, 60_000
QUICK: dict[str, int] = {"seeds": 2, "steps": 16_384, "bars": 6_000}
PRETRAINING_SEEDS = (9001, 9002, 9003, 9004)
PRETRAINING_BARS, QUICK_PRETRAINING_BARS = 30_000, 16_000
GOAL = 0.9  # of the gap, by C2
_BASE = (*ACCOUNT_NAMES, "return_1")
SEES: dict[str, tuple[str, ...]] = {
    "A": _BASE,
    "B": (*ACCOUNT_NAMES, *(feature.name for feature in features.FEATURES)),
    "C1": (*_BASE, "jepa_*"),
    "C2": (*_BASE, "jepa_*", "regime_*"),
    "D": (*_BASE, f"{FILTER}*"),
    "E": (*_BASE, f"{TRUTH}*"),
    "F": ("exposure", LOW, HIGH),
}
_DEFRAG = (*_BASE, "block_*", "long_*", "defrag_*", "recall_*", "familiarity")
SEES_DEFRAG: dict[str, tuple[str, ...]] = {"G1": _DEFRAG, "G2": (*_DEFRAG, "regime_*")}
DEFRAG_PAIRS = (("G2", "B"), ("G1", "C1"), ("G2", "C2"))
SHARES = ("B", "C1", "C2", "E", "G1", "G2")


def plan(
    out: Path, encoder: str, defrag: str | None = None, *, seeds: int = SEEDS, first_seed: int = 0,
    steps: int = STEPS, bars: int = BARS, settings: dict[str, Any] | None = None, split: str = "validation",
    device: str = "cpu", threads: int = 1,
) -> Comparison:  # fmt: skip
    """Return the comparison: arms A to F on one environment, and G on another where there are weights for it.

    Args:
        encoder: folder of the weights of Koopman-JEPA. defrag: of the defragmentation encoder; None leaves G out.
        bars: length of each market. settings: replace those of ``SETTINGS``.

    Raises:
        ConfigError: weights of another generator, or that were pretrained on a seed of the comparison.
    """
    arms = [
        Arm(name=name, env=env, arguments=arguments, sees=sees, plays=BestExposure.of if name == "F" else None)
        for env, weights, views in ((ENV, encoder, SEES), (DEFRAG_ENV, defrag, SEES_DEFRAG))
        if weights is not None
        for arguments in (_with_encoder(weights, range(first_seed, first_seed + seeds)),)
        for name, sees in views.items()
    ]
    recipe = Recipe(settings={**SETTINGS, **(settings or {})}, steps=steps, device=device, split=split)
    return Comparison(
        arms=tuple(arms), recipe=recipe, bars=f"synthetic:regimes?seed={{seed}}&bars={bars}", seeds=seeds,
        first_seed=first_seed, out=out, threads=threads, revealed=truth,
    )  # fmt: skip


def _with_encoder(weights: str, seeds: range) -> dict[str, Any]:
    check_encoder(weights, seeds)
    return {**ARGUMENTS, "encoder": str(Path(weights).resolve()) if Path(weights).exists() else weights}


def check_encoder(encoder: str, seeds: range) -> None:
    """Refuse weights that are not of other seeds of this generator.

    Raises:
        ConfigError: names what they were pretrained on.
    """
    known = load(encoder).provenance
    foreign = [source for source in known.sources if not source.startswith("synthetic:regimes?")]
    if known.market != "regimes" or foreign or any("stress=" in source for source in known.sources):
        raise ConfigError(
            f"encoder={encoder!r} was pretrained on {', '.join(known.sources)}: the regime gap needs weights of "
            "synthetic:regimes; leave the flag out to pretrain them"
        )
    shared = sorted(set(known.seeds) & set(seeds))
    if shared:
        raise ConfigError(f"encoder={encoder!r} was pretrained on seed {shared[0]}, which is a seed of the comparison")


def pretrained(
    folder: Path, seed: int = 0, quick: bool = False, told: Callable[[int, int, dict[str, float]], None] | None = None
) -> str:
    """Return the folder of an encoder without labels of other seeds, which is pretrained where it holds none yet."""
    from encoders.belief import BeliefConfig
    from encoders.encoder import FILE
    from encoders.jepa_training import JEPAConfig
    from encoders.pretrain import PretrainConfig, pretrain
    from markets.sources import load as load_bars

    if not (folder / FILE).is_file():
        specs = _specifications(quick)
        jepa = JEPAConfig(
            channels=("return", "volatility"), steps=100 if quick else 800, seed=seed,
            belief=BeliefConfig(regimes=6, dwell_floor=64.0),
        )  # fmt: skip
        about = "Pretrained by regimegym compare --plan regime-gap; the number of regimes " + (
            "is set." if quick else "is that of the highest validation likelihood."
        )
        config = PretrainConfig(
            jepa=jepa, choose=not quick, about=about,
            command="regimegym pretrain " + " ".join(f"--bars '{spec}'" for spec in specs) + " --out DIR",
        )  # fmt: skip
        pretrain([load_bars(spec) for spec in specs], config, folder, resume=True, told=told)
    return str(folder)


def pretrained_defrag(
    folder: Path, seed: int = 0, quick: bool = False, told: Callable[[int, int, dict[str, float]], None] | None = None
) -> str:
    """Return the folder of a defragmentation encoder of the same series, pretrained where it holds none yet."""
    from encoders.defrag_pretrain import DefragPretrain, pretrain
    from encoders.encoder import FILE
    from markets.sources import load as load_bars

    if not (folder / FILE).is_file():
        specs = _specifications(quick)
        plan = DefragPretrain(
            regimes=6, seed=seed, about="Pretrained by regimegym compare --plan regime-gap",
            command="regimegym pretrain --encoder defrag " + " ".join(f"--bars '{spec}'" for spec in specs)
            + " --out DIR",
        )  # fmt: skip
        pretrain([load_bars(spec) for spec in specs], plan, folder, told)
    return str(folder)


def _specifications(quick: bool) -> list[str]:
    length = QUICK_PRETRAINING_BARS if quick else PRETRAINING_BARS
    return [f"synthetic:regimes?seed={market}&bars={length}" for market in PRETRAINING_SEEDS[: 2 if quick else 4]]


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a result says of the gap: ``gap`` (D - A), ``closed`` by arm, ``regret`` from F, ``goal``."""
    score = {name: scores_of(result, name) for name in result["runs"]}
    closed = {
        name: paired_seeds.ratio(score[name], score["A"], score["D"], score["A"]) for name in SHARES if name in score
    }
    better = between(result, "C2", "B")
    share = closed["C2"]
    return {
        "gap": between(result, "D", "A"),
        "closed": closed,
        "regret": {name: between(result, "F", name) for name in score if name != "F"},
        "C2 - B": better,
        "C2 - D": between(result, "C2", "D"),
        **{f"{name} - {other}": between(result, name, other) for name, other in DEFRAG_PAIRS if name in score},
        "goal": {
            "share": GOAL,
            "closes": None if share["value"] is None else bool(share["value"] >= GOAL),
            "closes_surely": None
            if share["value"] is None
            else bool(share["interval"][0] is not None and share["interval"][0] >= GOAL),
            "beats_B": bool(better["interval"][0] > 0.0),
        },
    }
