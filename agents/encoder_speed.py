"""Speed of encoders: environments that observe one beside those that do not, and what a bar costs it.

``ratio = time of the plain environment / time of the encoded one``, both driven by the same actions in turn. The market
does not depend on the account, so a step only looks up a row; an encoder runs when the environment is made, and live,
one closed bar at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym

from agents.scaling import default_bars, tiled
from agents.stopwatch import Fact, Loop, Row, Stopwatch
from encoders.encoder import resolve
from encoders.jepa import JEPAEncoder
from markets.bars import Bars

HALF = 0.5  # of the plain environment's speed
BARS = 100_000  # encoded in one pass
STREAMED = 2_000
EMBEDDING, BELIEF, STREAM, MAKE = 3.0, 1.0, 60.0, 5.0  # microseconds a bar (thrice), CPU seconds

# A process of its own: what importing, making and resetting costs, and whether torch came along.
FRESH = (
    "import sys, time\nimport gymnasium as gym\nimport envs\nenv = gym.make({name!r})\nenv.reset(seed=0)\n"
    "print(time.process_time(), int('torch' in sys.modules))"
)


def encoded_ids(env_id: str) -> list[str]:
    """Return the registered ids that play the game of ``env_id`` with an encoder."""
    given = gym.spec(env_id).kwargs
    if given.get("encoded"):
        return []
    return [
        name
        for name, spec in gym.registry.items()
        if spec.kwargs.get("family") == given["family"] and spec.kwargs.get("encoded")
    ]


def speed_rows(plain: str, encoded: str, stream: str, watch: Stopwatch, single: Any, lanes: Any) -> list[Row]:
    """Compare an encoded id with its plain twin: one env with full info, and 1,024 lanes with info arrays.

    Args:
        single: from an id to the loop of a single env; lanes: the same of native lanes, for the stream.

    What an encoder may cost is promised; an id that decides a leverage beside it is measured without a promise.
    """
    bound = HALF if stream == "constant" and not gym.spec(encoded).kwargs.get("leverage_control") else None
    rows = []
    for what, loop in (("single env, full info", single), ("1,024 lanes, info arrays", lanes)):
        theirs, ours = watch.medians([loop(plain), loop(encoded)])
        rows.append(Row(f"{encoded}, {what}, against {plain}", stream, ours, theirs, bound, None))
    return rows


def speed_facts(encoded: str, rounds: int) -> list[Fact]:
    """Time what a bar costs an encoder in a dense pass and live, and making its environment in a fresh process.

    Both in processes of their own: how many threads numpy multiplies with is decided when it is imported.
    """
    costs = json.loads(_fresh("-m", "agents.encoder_speed", encoded, str(rounds)))
    seconds, torch = _fresh("-c", FRESH.format(name=encoded)).split()
    bounds = {"embedding, dense": EMBEDDING, "belief, dense": BELIEF, "live update of both": STREAM}
    return [
        *(Fact(f"{encoded}: microseconds a bar, {what}", value, bounds.get(what)) for what, value in costs.items()),
        Fact(f"{encoded}: CPU seconds to import, make and reset in a fresh process", float(seconds), MAKE),
        Fact(f"{encoded}: imports torch (1) or not (0)", float(torch), 0.0),
    ]


def _fresh(*words: str) -> str:
    """Run Python on one thread and return what it printed."""
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=True, env={**os.environ, **alone},
        cwd=Path(__file__).resolve().parent.parent,
    )  # fmt: skip
    return done.stdout


def costs(encoded: str, rounds: int) -> dict[str, float]:
    """Microseconds a bar of the default market: a live update and the whole table; of Koopman-JEPA, whose costs are
    promised, embedding and belief apart."""
    bars = tiled(default_bars(encoded), BARS)
    encoder = resolve(gym.spec(encoded).kwargs["encoded"], bars)
    loops: dict[str, Loop]
    if isinstance(encoder, JEPAEncoder):
        loops = {
            "live update of both": _live(encoder, bars),
            "embedding, dense": partial(_dense, partial(encoder.embed, bars), len(bars)),
            "belief, dense": partial(_dense, partial(encoder.odds, bars, "belief"), len(bars)),
        }
    else:
        loops = {
            "live update": _live(encoder, bars),
            "whole table": partial(_dense, partial(encoder.encode, bars), len(bars)),
        }  # fmt: skip
    measured = Stopwatch(rounds).medians(list(loops.values()))
    return {name: nanoseconds / 1e3 for name, nanoseconds in zip(loops, measured, strict=True)}


def _dense(encode: Callable[[], object], bars: int) -> int:
    encode()
    return bars


def _live(encoder: Any, bars: Bars) -> Loop:
    stream = encoder.stream()
    closed = [bars.one(row) for row in range(STREAMED)]

    def go() -> int:
        for bar in closed:
            stream.update(bar)
        return STREAMED

    return go


if __name__ == "__main__":
    sys.stdout.write(json.dumps(costs(sys.argv[1], int(sys.argv[2]))))
