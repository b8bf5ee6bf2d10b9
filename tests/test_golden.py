"""Golden numbers: a change that alters a trajectory must bump the version of the id.

Numbers instead of a hash: numpy's logarithm differs in its last bit between processors, and a version should not.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import envs

# Per id: equity after every 100th step, and the mean of all observations. If yours differ, either a bug crept in, or
# the game changed: then the id needs a new version. `python tests/test_golden.py` prints them.
GOLDEN: dict[str, tuple[list[float], float]] = {
    "PerpFutures-v0": (
        [
            9469.175524281682,
            8093.3074116950775,
            7180.08530831132,
            6450.175547845331,
            6064.935642278355,
            9167.78961495608,
            8154.474826998758,
            6858.1785739165925,
            7256.259009542887,
            6292.763771428516,
        ],
        0.018153022451560242,
    ),
    "PerpFutures-JEPA-v0": (
        [
            7969.046951052489,
            6959.713947968788,
            5352.109616432635,
            4382.349688883051,
            3975.458513784746,
            7989.043001003229,
            6685.251562726834,
            5490.3018078935365,
            4473.15912987846,
            4168.461276496252,
        ],
        -0.0013837972758704493,
    ),
    "PerpFutures-JEPA-RegimeLeverage-v0": (
        [
            8414.081129707334,
            8314.898393502812,
            7965.642280683056,
            7443.661357472006,
            7093.1243385395155,
            8684.642546983589,
            8038.72298274824,
            7490.541471009662,
            7050.952323704207,
            6378.907493067167,
        ],
        0.00960934716563953,
    ),
    "ZeroDTE-v0": (
        [
            98798.61282872688,
            94346.36288774386,
            92734.84,
            99745.77268221021,
            99250.55268463596,
            98073.97308364206,
            97707.88766253495,
            99342.28000000003,
            99377.95025067881,
            99553.54805125484,
        ],
        0.16485925758740197,
    ),
    "ZeroDTE-JEPA-v0": (
        [
            98798.61282872688,
            94346.36288774386,
            92734.84,
            100570.7390261484,
            97508.69986834611,
            94895.54099816049,
            91796.35899855073,
            100106.77652874817,
            100124.91999999998,
            101570.39620089273,
        ],
        0.08218740563384047,
    ),
    "SpotCrypto-v0": (
        [
            8559.801398972058,
            8372.649840695529,
            7516.4519334828,
            6514.008197280263,
            5560.208830775327,
            9854.359839206481,
            9104.115284104111,
            8148.815497006924,
            7036.858210294309,
            6727.323589209806,
        ],
        0.09915113078237009,
    ),
    "SpotCrypto-JEPA-v0": (
        [
            8812.930308397159,
            7743.595795855592,
            6883.347808644739,
            6098.873831991043,
            5415.2464100895995,
            8982.739694435277,
            7517.532669481874,
            6811.862801094327,
            6128.6432827240415,
            5622.705834941966,
        ],
        0.10110711271265099,
    ),
    "PerpFutures-Defrag-v0": (
        [
            9320.320351204846,
            8962.526878906352,
            7243.198258887026,
            6264.235052390825,
            5999.2517193430795,
            8532.446286212884,
            8123.855443629182,
            7293.903543080965,
            7006.013281250347,
            6166.971540195355,
        ],
        0.03860101477543028,
    ),
    "PerpFutures-Defrag-RegimeLeverage-v0": (
        [
            8236.933270841364,
            7433.6944602408785,
            6409.391800467298,
            5930.588299530133,
            5106.742538850957,
            9173.865736714895,
            8570.603878207261,
            7092.025641547536,
            7090.89151879571,
            6441.872847894922,
        ],
        0.04495090629805738,
    ),
    "ZeroDTE-Defrag-v0": (
        [
            98798.61282872688,
            94346.36288774386,
            92734.84,
            100570.7390261484,
            97508.69986834611,
            94895.54099816049,
            91796.35899855073,
            98856.48000000001,
            99250.60483348568,
            98505.518560444,
        ],
        0.12926032860451114,
    ),
    "SpotCrypto-Defrag-v0": (
        [
            8274.83186954348,
            7443.6408874406825,
            6394.346457513336,
            5736.08575460819,
            4902.592653797276,
            8692.856571323553,
            7766.974153748153,
            7048.23610345503,
            6441.497434234465,
            5854.708547741637,
        ],
        0.1119003094287051,
    ),
}
STEPS, EVERY = 1_000, 100


def trajectory(env_id: str, **arguments: Any) -> tuple[list[float], float]:
    """Seeded random play on the default market: equity at intervals, mean observation."""
    env = gym.make(env_id, **arguments)
    observation, _ = env.reset(seed=7)
    generator = np.random.default_rng(7)
    low, high = getattr(env.action_space, "low", None), getattr(env.action_space, "high", None)
    equities, total = [], 0.0
    for step in range(1, STEPS + 1):
        if low is not None:
            action = generator.uniform(low, high).astype(np.float32)
        else:  # one of the choices, mostly the one that does nothing
            action = generator.choice([0, 0, 0, 1, 2, 3])
        observation, _, terminated, truncated, info = env.step(action)
        total += float(observation.mean(dtype=np.float64))
        if step % EVERY == 0:
            equities.append(info["equity"])
        if terminated or truncated:
            observation, _ = env.reset()
    return equities, total / STEPS


def check(env_id: str, **arguments: Any) -> None:
    """Compare with the golden numbers of the id."""
    equities, mean = trajectory(env_id, **arguments)
    assert equities == pytest.approx(GOLDEN[env_id][0], rel=1e-9), "the game changed: bump the id's version"
    tolerance = {"rel": 1e-7} if "encoded" not in gym.spec(env_id).kwargs else {"abs": 1e-6}  # matmul by processor
    assert mean == pytest.approx(GOLDEN[env_id][1], **tolerance), "an observation changed: bump the id's version"


@pytest.mark.parametrize("env_id", envs.ids())
def test_the_trajectory_of_every_id_is_the_one_its_version_stands_for(env_id: str) -> None:
    check(env_id)


@pytest.mark.parametrize("env_id", envs.ids())
def test_mutant_a_fee_that_is_a_little_higher_is_another_trajectory(env_id: str) -> None:
    with pytest.raises(AssertionError, match="bump the id's version"):
        check(env_id, cost_scale=1.001 if env_id.startswith("ZeroDTE") else 1.000001)  # a fee of 6 cents


if __name__ == "__main__":
    for name in envs.ids():
        print(name, trajectory(name))
