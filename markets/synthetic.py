"""Seeded regime-switching markets that show the statistical facts of BTC perpetual bars, with true labels.

One base step of length dt in regime k, with local volatility s (per square root of a year)::

    s       = annual_volatility * m_k * clock(hour, weekday) * exp(x_fast + x_slow - var_fast - var_slow)
    dx_i    = -x_i dt / tau_i + sd_i sqrt(2 dt / tau_i) e_i,    corr(e_i, previous return shock) = leverage
    return  = (mu_k - s^2/2) dt + s sqrt(dt) z + jump,          z ~ Student t of unit variance
    jump    ~ N(0, (jump_size s sqrt(5 min))^2) with probability 1 - exp(-jumps_per_day dt)
    volume  ~ (s / annual_volatility)^1.1 * (1 + |return| / (s sqrt(dt)))^0.35 * exp(0.45 noise)

With ``randomise`` r > 0 volatility, drift, jump rate, spell length, volume and premium are multiplied by factors that
the seed draws anew for every ``randomise_days``: one series then holds many markets.

The regimes are a semi-Markov chain with gamma durations. High and low come from a Brownian bridge inside each base
step; mark follows last without the bridge, so a wick in last is not in mark. Funding is the venues' formula on a
simulated premium, which gives the atom at exactly 1 bp.

The base step is 5 minutes (the interval itself below 5 minutes) and every random stream has its own child of the
seed: 5m and 1h of one seed are the same market, and N bars are a prefix of M > N bars, bit for bit.

Regimes this long and clean are a test fixture: results on them say nothing about real markets (``separation``).

Sources: R. Cont (2001), "Empirical properties of asset returns: stylized facts and statistical issues"; defaults
measured on BTCUSDT perpetual bars, marks and funding, 2019-2025; funding formula from "Introduction to Binance
Futures Funding Rates".
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from markets.bars import Bars, as_interval, as_time
from markets.errors import ConfigError
from markets.synthetic_parameters import CryptoParameters

Floats = NDArray[np.float64]
Streams = dict[str, np.random.Generator]

BASE_MINUTES = 5
DAY_MINUTES = 24 * 60
YEAR_MINUTES = 365 * DAY_MINUTES
BRIDGE_STEPS = 20  # of 15 seconds in a 5-minute step: mean range / mean |return| 1.73 (measured 1.86)
BRIDGE_BLOCK = 1 << 16  # base steps whose bridges are in memory at once
PREMIUM_HISTORY_MINUTES = 7 * DAY_MINUTES
FUNDING_MINUTES = 8 * 60
FUNDING_INTEREST = 0.0001  # fraction per 8 hours
FUNDING_CLAMP = 0.0005
FUNDING_CAP = 0.003

WORLD = ("volatility", "drift", "jumps", "spells", "volume", "premium")  # what ``randomise`` gives a factor

# One child of the seed each, in this order; a new stream goes to the end, so that old markets stay what they were.
STREAMS = (
    "regime", "fast", "slow", "returns", "jump_time", "jump_size", "bridge", "volume",
    "premium_fast", "premium_slow", "basis", "world",
)  # fmt: skip


def crypto(seed: int = 0, interval: str = "1h", bars: int = 40_000, parameters: CryptoParameters | None = None) -> Bars:
    """Return a synthetic BTCUSDT perpetual market with mark prices, funding and true regime labels.

    Args:
        seed: any whole number from 0; the same seed is the same market at every interval from 5m.
        interval: ``1m`` to ``4m``, or a multiple of 5 minutes such as ``15m``, ``1h``, ``1d``.
        bars: number of bars T, at least 2. Memory is about 100 bytes per base step.
        parameters: defaults where absent; what differs from them is recorded in ``Bars.source``.

    Raises:
        ConfigError: naming the argument and the nearest valid value.
    """
    parameters = CryptoParameters() if parameters is None else parameters
    return Bars(
        **crypto_arrays(seed, interval, bars, parameters),
        symbols=("BTCUSDT",),
        label_names=parameters.regimes,
        market="synthetic",
        source=_source(seed, interval, bars, parameters),
    )


def crypto_arrays(seed: int, interval: str, bars: int, parameters: CryptoParameters) -> dict[str, Any]:
    """Return the arrays of :func:`crypto` by their name in ``Bars``: prices ``(T, 1)``, labels ``(T,)``, E events."""
    minutes, base, steps, start = frame_of(seed, interval, bars, parameters)
    rng, world, regime, sigma, returns = base_steps(np.random.SeedSequence(int(seed)), steps, base, start, parameters)
    path = np.log(parameters.start_price) + np.concatenate([[0.0], np.cumsum(returns)])  # (steps + 1,) log last

    shape = (int(bars), minutes // base)
    columns = last_prices(rng["bridge"], path, returns, sigma * np.sqrt(base / YEAR_MINUTES), shape, parameters)
    columns |= _mark_prices(rng["basis"], path, base, shape, parameters)
    columns["volume"] = volumes(rng["volume"], returns, sigma, base, shape, parameters, world)
    length = np.timedelta64(minutes * 60 * 10**9, "ns")
    stamps, rates = _funding(rng, path, start, base, parameters, world)
    return {
        "time": start + np.arange(int(bars)) * length,
        "interval": length,
        **{name: column.reshape(-1, 1) for name, column in columns.items()},
        "funding_time": stamps,
        "funding_rate": rates.reshape(-1, 1),
        "labels": regime[shape[1] - 1 :: shape[1]].copy(),
    }


def frame_of(seed: int, interval: str, bars: int, parameters: CryptoParameters) -> tuple[int, int, int, np.datetime64]:
    """Return minutes of a bar and of a base step, how many base steps there are, and when the first begins.

    Raises:
        ConfigError: naming the argument and the nearest valid value.
    """
    minutes = _whole_minutes(interval)
    for name, value, least in (("seed", seed, 0), ("bars", bars, 2)):
        if not isinstance(value, int | np.integer) or value < least:
            raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
    base = min(minutes, BASE_MINUTES)
    return minutes, base, int(bars) * (minutes // base), as_time(parameters.start, "start")


def base_steps(
    seed: np.random.SeedSequence, steps: int, base: int, start: np.datetime64, p: CryptoParameters
) -> tuple[Streams, dict[str, Floats], NDArray[np.int8], Floats, Floats]:
    """Return generators, factors of the world, regimes, local volatilities per sqrt(year) and log returns of the steps.

    Each ``(steps,)``; the generators have been used as far as that takes.
    """
    children = seed.spawn(len(STREAMS))
    rng = {name: np.random.default_rng(child) for name, child in zip(STREAMS, children, strict=True)}
    world = _world(rng["world"], steps, base, p)
    regime = _regimes(rng["regime"], steps, base, p, world["spells"])
    shocks = _unit_student_t(rng["returns"], steps + 1, p.student_t_dof)
    clock = _clock(start, steps, base, p) * world["volatility"]
    sigma = _volatility(rng, shocks[:-1], regime, clock, base, p)
    return rng, world, regime, sigma, _returns(rng, shocks[1:], sigma, regime, base, p, world)


def funding_rate(premium: Floats) -> Floats:
    """Return the 8-hour rate ``P + clamp(I - P, -0.0005, 0.0005)``, capped at 0.003, for average premiums P (fraction).

    Inside the clamp the result is I itself, not P + (I - P): the atom is exact.
    """
    outside = premium + np.where(premium < FUNDING_INTEREST, FUNDING_CLAMP, -FUNDING_CLAMP)
    inside = np.abs(FUNDING_INTEREST - premium) <= FUNDING_CLAMP
    return np.clip(np.where(inside, FUNDING_INTEREST, outside), -FUNDING_CAP, FUNDING_CAP)


def _world(rng: np.random.Generator, steps: int, base: int, p: CryptoParameters) -> dict[str, Floats]:
    """Draw the factors of each randomised parameter: ``(steps,)`` each, constant for ``randomise_days``."""
    if p.randomise == 0.0:
        return dict.fromkeys(WORLD, np.ones(steps))
    length = max(1, round(p.randomise_days * DAY_MINUTES / base))
    width = np.log1p(p.randomise)
    factors = np.exp(rng.uniform(-width, width, (-(-steps // length), len(WORLD))))
    return {name: np.repeat(column, length)[:steps] for name, column in zip(WORLD, factors.T, strict=True)}


def _regimes(rng: np.random.Generator, steps: int, base: int, p: CryptoParameters, spells: Floats) -> NDArray[np.int8]:
    """Draw the regime of every base step: ``(steps,)``; spell by spell, so that a longer run is a continuation."""
    cumulative = np.cumsum(p.transitions, axis=1)
    scale = np.array(p.duration_hours) / p.duration_shape * 60 / base
    states: list[int] = []
    lengths: list[int] = []
    state, total = _choice(rng, np.cumsum(p.shares)), 0
    while total < steps:
        states.append(state)
        lengths.append(max(1, round(rng.gamma(p.duration_shape) * scale[state] * spells[total])))
        total += lengths[-1]
        state = _choice(rng, cumulative[state])
    return np.repeat(np.array(states, dtype=np.int8), lengths)[:steps]


def _choice(rng: np.random.Generator, cumulative: Floats) -> int:
    """Draw an index; the total is the last sum, which rounding may leave beside 1."""
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def _clock(start: np.datetime64, steps: int, base: int, p: CryptoParameters) -> Floats:
    """Return the factor of the hour and the weekday at each step's opening: ``(steps,)``, mean square 1 over a week."""
    week = np.outer(p.weekday_factors, p.hour_factors).ravel()
    week /= np.sqrt(np.mean(week**2))
    epoch_minutes = int(start.astype("datetime64[m]").astype(np.int64))
    since_monday = epoch_minutes + 3 * DAY_MINUTES  # 1970-01-01 was a Thursday
    return week[(since_monday + np.arange(steps) * base) // 60 % len(week)]


def _volatility(
    rng: Streams, before: Floats, regime: NDArray[np.int8], clock: Floats, base: int, p: CryptoParameters
) -> Floats:
    """Return the local volatility per square root of a year: ``(steps,)``; ``before`` are the preceding shocks."""
    log_volatility = np.zeros(len(before))
    for name, minutes, sd in (("fast", p.fast_minutes, p.fast_sd), ("slow", p.slow_minutes, p.slow_sd)):
        own = rng[name].standard_normal(len(before))
        shocks = p.leverage * before + np.sqrt(1 - p.leverage**2) * own
        log_volatility += sd * _autoregression(shocks, base / minutes) - sd**2  # mean square of exp(x - sd^2) is 1
    return p.annual_volatility * p.separated_multipliers[regime] * clock * np.exp(log_volatility)


def _autoregression(shocks: Floats, steps_per_constant: float) -> Floats:
    """Return the unit-variance AR(1) with coefficient ``exp(-steps_per_constant)``, started in its stationary law."""
    keep = np.exp(-steps_per_constant)
    scaled = shocks * np.sqrt((1 + keep) / (1 - keep))
    scaled[0] = shocks[0]
    return pd.Series(scaled).ewm(alpha=1 - keep, adjust=False).mean().to_numpy()


def _unit_student_t(rng: np.random.Generator, count: int, dof: float) -> Floats:
    return rng.standard_t(dof, count) * np.sqrt((dof - 2) / dof)


def _returns(
    rng: Streams,
    shocks: Floats,
    sigma: Floats,
    regime: NDArray[np.int8],
    base: int,
    p: CryptoParameters,
    world: dict[str, Floats],
) -> Floats:
    """Return the log returns of the base steps: ``(steps,)``."""
    years = base / YEAR_MINUTES
    jump_sd = p.jump_size * np.sqrt(BASE_MINUTES / YEAR_MINUTES)  # of a unit volatility
    probability = -np.expm1(-p.jumps_per_day * base / DAY_MINUTES * world["jumps"])
    at = np.flatnonzero(rng["jump_time"].random(len(sigma)) < probability)
    convexity = sigma**2 * (years + probability * jump_sd**2) / 2  # makes the drift one of the price
    returns = p.separated_drifts[regime] * world["drift"] * years - convexity + sigma * np.sqrt(years) * shocks
    returns[at] += sigma[at] * jump_sd * rng["jump_size"].standard_normal(len(at))
    return returns


def last_prices(
    rng: np.random.Generator,
    path: Floats,
    returns: Floats,
    local_sd: Floats,
    shape: tuple[int, int],
    p: CryptoParameters,
) -> dict[str, Floats]:
    """Return open, high, low and close, ``(T,)`` each; the bridges supply the extremes between base closes."""
    top, bottom = np.empty(len(returns)), np.empty(len(returns))
    for first in range(0, len(returns), BRIDGE_BLOCK):
        block = slice(first, first + BRIDGE_BLOCK)
        bridge = _bridge(rng, returns[block], local_sd[block])
        top[block] = path[:-1][block] + bridge.max(axis=1)
        bottom[block] = path[:-1][block] + bridge.min(axis=1)
    close = np.exp(path[shape[1] :: shape[1]])
    opened = np.concatenate([[p.start_price], close[:-1]])
    high = np.maximum(np.exp(top.reshape(shape).max(axis=1)), np.maximum(opened, close))
    low = np.minimum(np.exp(bottom.reshape(shape).min(axis=1)), np.minimum(opened, close))
    return {"open": opened, "high": high, "low": low, "close": close}


def _bridge(rng: np.random.Generator, returns: Floats, local_sd: Floats) -> Floats:
    """Return log-price paths from 0 to ``returns``, both ends included: ``(n, BRIDGE_STEPS)`` without the start."""
    fraction = np.arange(1, BRIDGE_STEPS + 1) / BRIDGE_STEPS
    walk = np.cumsum(rng.standard_normal((len(returns), BRIDGE_STEPS)), axis=1) / np.sqrt(BRIDGE_STEPS)
    pinned = local_sd[:, None] * (walk - walk[:, -1:] * fraction)
    return returns[:, None] * fraction + pinned


def _mark_prices(
    rng: np.random.Generator, path: Floats, base: int, shape: tuple[int, int], p: CryptoParameters
) -> dict[str, Floats]:
    """Return mark open, high, low and close, ``(T,)`` each: last at base closes times a small mean-reverting basis."""
    basis = p.basis_bps * 1e-4 * _autoregression(rng.standard_normal(len(path)), base / p.basis_minutes)
    mark = np.exp(path + basis)
    closes = mark[1:].reshape(shape)
    opened, close = mark[: -shape[1] : shape[1]].copy(), closes[:, -1].copy()
    high = np.maximum(closes.max(axis=1), opened)
    low = np.minimum(closes.min(axis=1), opened)
    return {"mark_open": opened, "mark_high": high, "mark_low": low, "mark_close": close}


def volumes(
    rng: np.random.Generator,
    returns: Floats,
    sigma: Floats,
    base: int,
    shape: tuple[int, int],
    p: CryptoParameters,
    world: dict[str, Floats],
) -> Floats:
    """Return the volume of each bar in base units: ``(T,)``, summed over its base steps."""
    surprise = np.log1p(np.abs(returns) / (sigma * np.sqrt(base / YEAR_MINUTES)))
    noise = p.volume_noise * rng.standard_normal(len(returns))
    relative = p.volume_sigma * np.log(sigma / p.annual_volatility) + p.volume_return * surprise + noise
    volume = p.volume_per_hour * base / 60 * np.exp(relative) * world["volume"]
    return np.asarray(volume.reshape(shape).sum(axis=1))


def _funding(
    rng: Streams, path: Floats, start: np.datetime64, base: int, p: CryptoParameters, world: dict[str, Floats]
) -> tuple[NDArray[np.datetime64], Floats]:
    """Return stamps and rates of the funding events from the first open to before the last close: ``(E,)`` each.

    The event at s uses the price path of the steps that have ended by s, and its own premium shocks.
    """
    first = int(start.astype("datetime64[m]").astype(np.int64))
    end = first + (len(path) - 1) * base
    stamps = np.arange(-(-first // FUNDING_MINUTES) * FUNDING_MINUTES, end, FUNDING_MINUTES)
    done = (stamps - first) // base  # base steps complete at each stamp
    week = path[done] - path[np.maximum(done - PREMIUM_HISTORY_MINUTES // base, 0)]
    mean_square = p.shares @ p.separated_multipliers**2
    week_sd = p.annual_volatility * np.sqrt(mean_square * PREMIUM_HISTORY_MINUTES / YEAR_MINUTES)
    score = np.zeros(len(stamps))
    for name, days, share in (
        ("premium_fast", p.premium_fast_days, p.premium_fast_share),
        ("premium_slow", p.premium_slow_days, 1 - p.premium_fast_share),
    ):
        normal = rng[name].standard_normal(len(stamps))
        score += np.sqrt(share) * _autoregression(normal, FUNDING_MINUTES / (days * DAY_MINUTES))
    score = np.sqrt(1 - p.premium_momentum**2) * score + p.premium_momentum * week / (
        week_sd * world["volatility"][done]
    )
    premium = np.interp(score, p.premium_z, p.premium_bps) * 1e-4 * world["premium"][done]
    return stamps.astype("datetime64[m]").astype("datetime64[ns]"), p.funding_scale * funding_rate(premium)


def _whole_minutes(interval: str) -> int:
    """Read an interval as whole minutes: 1 to 4, or a multiple of 5."""
    days = interval.strip().lower().removesuffix("d") if isinstance(interval, str) else ""
    whole_days = days.isdecimal() and not interval.strip().isdecimal()  # pandas 3 warns where "d" is not "D"
    length = as_interval(pd.Timedelta(days=int(days)) if whole_days else interval)
    minutes = float(length / np.timedelta64(1, "m"))
    nearest = max(1, round(minutes)) if minutes < BASE_MINUTES else BASE_MINUTES * round(minutes / BASE_MINUTES)
    if minutes != nearest:
        raise ConfigError(
            f"interval={interval!r} must be 1m to 4m or a multiple of {BASE_MINUTES}m; nearest is {_name(nearest)!r}"
        )
    return int(minutes)


def _name(minutes: int) -> str:
    for unit, length in (("d", DAY_MINUTES), ("h", 60)):
        if minutes % length == 0:
            return f"{minutes // length}{unit}"
    return f"{minutes}m"


def _source(seed: int, interval: str, bars: int, p: CryptoParameters) -> str:
    """Write the specification, with every parameter that is not the default."""
    default = CryptoParameters()
    values: dict[str, Any] = {"seed": seed, "interval": interval, "bars": bars}
    names = (item.name for item in fields(p))
    values |= {name: getattr(p, name) for name in names if getattr(p, name) != getattr(default, name)}
    return "synthetic:crypto?" + "&".join(f"{name}={value}".replace(" ", "") for name, value in values.items())
