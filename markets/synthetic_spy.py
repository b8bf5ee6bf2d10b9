"""Seeded SPY sessions that show the measured facts of minute bars, with true labels, quotes and a VIX-like prior.

Minute m of session d, of M minutes, in regime k, with dt = 1 / 98,280 of a year of trading minutes::

    s       = annual_volatility * m_k * shape(m) * exp(f_m + g_d + n_d - var_f - var_g - var_n)
    f_m     within a session, drawn anew each morning: AR(1) of ``fast_minutes``
    g_d     from session to session: AR(1) of ``slow_sessions``
    n_d     what the night brings, independent: N(0, ``vix_noise``^2)
    corr(shock of f or g, return shock before it) = leverage
    return  = (mu_k - s^2 / 2) dt + s sqrt(dt) z + jump,         z ~ Student t of unit variance
    jump    ~ N(0, (jump_size s sqrt(dt))^2) with probability jumps_per_session / 390 in a minute
    gap     = overnight * (annual_volatility m_k exp(g_d + n_d - var_g - var_n) / sqrt(252)) * Student t, before it
    volume  ~ volume shape * (s / (annual_volatility shape))^1.0 (1 + |return| / (s sqrt(dt)))^0.35 exp(0.35 noise)
    vix_d   = 100 sqrt(525,600 / 390) E[session's sd | state at the close before] / implied_ratio

The index lies beside a session's volatility because the night brings news that it cannot know (n_d), not because it is
read with an error: an error in the price, independent of what follows, would make dear options too dear on average, and
who sold them would be paid for nothing. The expectation is of the deviation, to which an at-the-money price is
proportional, and not of the variance.

``shape`` is the variance clock of :mod:`markets.session_calendar`, compressed on early-close days. Regimes are a
semi-Markov chain on trading minutes with gamma durations, so that a session can see one end. High and low come from a
Brownian bridge; prices are on the cent; the quote is one cent wide with the last trade on one of its sides, its sizes
carry an imbalance that tells nothing about any return (measured: none, at one minute).

A session always draws its 390 minutes and every random stream has its own child of the seed: N sessions are a prefix of
M > N sessions, bit for bit. Regimes this clean are a test fixture: results on them say nothing about real markets.

Source of the facts: R. Cont (2001), "Empirical properties of asset returns: stylized facts and statistical issues", and
the measurements named in :mod:`markets.synthetic_spy_parameters`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from markets.bars import Bars, as_time
from markets.errors import ConfigError
from markets.session_calendar import MINUTE, MINUTES, SESSIONS_PER_YEAR, YEAR_MINUTES, minute_shape, sessions_from
from markets.synthetic_spy_parameters import SPYParameters, check_early

Floats = NDArray[np.float64]
Labels = NDArray[np.int8]
Streams = dict[str, np.random.Generator]

START = "2020-01-02"
SESSIONS = 500
SEED_PREFIX = 390  # of the generator's seed sequence, so that seeds here are no other market's
CALENDAR_MINUTES = 365 * 24 * 60
BRIDGE_STEPS = 20  # mean range / mean |return| of a minute (measured 1.92)
BRIDGE_BLOCK = 64  # sessions whose bridges are in memory at once
CENT = 0.01
QUOTED_SIZE = 5_000.0  # median shares on both sides of the quote together
QUOTED_SPREAD = 1.0  # standard deviation of its log

# One child of the seed each, in this order; a new stream goes to the end, so that old markets stay what they were.
STREAMS = (
    "regime",
    "fast",
    "slow",
    "returns",
    "night",
    "jump_time",
    "jump_size",
    "bridge",
    "volume",
    "quote",
    "unused",  # of an earlier version; the places of the others stay
    "size",
    "news",
)


def spy(
    seed: int = 0,
    sessions: int = SESSIONS,
    start: str = START,
    early_close: str = "keep",
    parameters: SPYParameters | None = None,
) -> Bars:
    """Return minute bars of ``sessions`` regular sessions, with quotes, ``previous_vix`` and true regime labels.

    Args:
        seed: any whole number from 0.
        sessions: S, at least 1. Memory is about 1 MB for 10 of them.
        start: date in New York; the first session is on it or the next one after it.
        early_close: ``keep`` early-close days in their place, ``skip`` them, or make ``only`` such sessions.
        parameters: defaults where absent; what differs from them is recorded in ``Bars.source``.

    Raises:
        ConfigError: naming the argument and its value.
    """
    p = SPYParameters() if parameters is None else parameters
    for name, value, least in (("seed", seed, 0), ("sessions", sessions, 1)):
        if not isinstance(value, int | np.integer) or value < least:
            raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
    calendar = sessions_from(as_time(start, "start"), int(sessions), check_early(early_close))
    children = np.random.SeedSequence([SEED_PREFIX, int(seed)]).spawn(len(STREAMS))
    rng = {name: np.random.default_rng(child) for name, child in zip(STREAMS, children, strict=True)}

    count = len(calendar)
    shape, volume_shape = _shapes(calendar.minutes, p)
    regime = _regimes(rng["regime"], count, p)
    shocks = _unit_student_t(rng["returns"], (count, MINUTES), p.student_t_dof)
    night = _unit_student_t(rng["night"], (count,), p.overnight_dof)
    slow, forecast = _slow(rng["slow"], shocks, night, calendar.minutes, shape, p)
    news = p.vix_noise * rng["news"].standard_normal(count)
    day = np.exp(slow + news - p.slow_sd**2 - p.vix_noise**2)
    level = p.annual_volatility * p.separated_multipliers[regime] * day[:, None]
    sigma = level * shape * np.exp(_fast(rng["fast"], shocks, night, p) - p.fast_sd**2)
    returns = _returns(rng, shocks, sigma, regime, p)
    gaps = p.overnight * level[:, 0] / np.sqrt(SESSIONS_PER_YEAR) * night
    gaps -= (p.overnight * level[:, 0]) ** 2 / SESSIONS_PER_YEAR / 2

    used = np.arange(MINUTES) < calendar.minutes[:, None]  # (S, 390)
    columns = _prices(rng["bridge"], returns, gaps, sigma * np.sqrt(1 / YEAR_MINUTES), used, p)
    columns["volume"] = _volume(rng["volume"], returns, sigma, shape, volume_shape, p)
    columns |= _quotes(rng, columns["close"])
    columns["previous_vix"] = np.broadcast_to(_vix(forecast, regime, p)[:, None], used.shape)
    minutes = np.arange(MINUTES) * MINUTE
    given: dict[str, Any] = {name: column[used].reshape(-1, 1) for name, column in columns.items()}
    return Bars(
        time=(calendar.open[:, None] + minutes)[used],
        interval=MINUTE.astype("timedelta64[ns]"),
        symbols=("SPY",),
        **given,
        labels=regime[used],
        label_names=p.regimes,
        market="spy",
        source=_source(seed, sessions, start, early_close, p),
    )


def _shapes(minutes: NDArray[np.int64], p: SPYParameters) -> tuple[Floats, Floats]:
    """Return the relative volatility and volume of every minute: ``(S, 390)`` each; 1 behind an early close."""
    volatility, volume = np.ones((len(minutes), MINUTES)), np.ones((len(minutes), MINUTES))
    middles = (np.arange(len(p.volume_shape)) + 0.5) / len(p.volume_shape)
    for length in np.unique(minutes):
        rows = minutes == length
        day = np.interp((np.arange(length) + 0.5) / length, middles, p.volume_shape)
        day[0] *= p.volume_open
        day[-1] *= p.volume_close
        shape = minute_shape(int(length)) ** p.seasonality
        volatility[rows, :length] = shape / np.sqrt(np.mean(shape**2))
        volume[rows, :length] = (day / np.median(day)) ** p.seasonality
    return volatility, volume


def _regimes(rng: np.random.Generator, sessions: int, p: SPYParameters) -> Labels:
    """Draw the regime of every minute: ``(S, 390)``; spell by spell, so that a longer run is a continuation."""
    cumulative = np.cumsum(p.transitions, axis=1)
    scale = np.array(p.duration_sessions) / p.duration_shape * MINUTES
    states: list[int] = []
    lengths: list[int] = []
    state, total = _choice(rng, np.cumsum(p.shares)), 0
    while total < sessions * MINUTES:
        states.append(state)
        lengths.append(max(1, round(rng.gamma(p.duration_shape) * scale[state])))
        total += lengths[-1]
        state = _choice(rng, cumulative[state])
    return np.repeat(np.array(states, np.int8), lengths)[: sessions * MINUTES].reshape(sessions, MINUTES)


def _choice(rng: np.random.Generator, cumulative: Floats) -> int:
    """Draw an index; the total is the last sum, which rounding may leave beside 1."""
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def _unit_student_t(rng: np.random.Generator, shape: tuple[int, ...], dof: float) -> Floats:
    return rng.standard_t(dof, shape) * np.sqrt((dof - 2) / dof)


def _fast(rng: np.random.Generator, shocks: Floats, night: Floats, p: SPYParameters) -> Floats:
    """Return the log volatility within each session: ``(S, 390)``; the night's shock comes before the first minute."""
    before = np.concatenate([night[:, None], shocks[:, :-1]], axis=1)
    new = p.leverage * before + np.sqrt(1 - p.leverage**2) * rng.standard_normal(shocks.shape)
    keep = np.exp(-1 / p.fast_minutes)
    out = np.empty_like(new)
    out[:, 0] = new[:, 0]
    for m in range(1, MINUTES):
        out[:, m] = keep * out[:, m - 1] + np.sqrt(1 - keep**2) * new[:, m]
    return p.fast_sd * out


def _slow(
    rng: np.random.Generator,
    shocks: Floats,
    night: Floats,
    minutes: NDArray[np.int64],
    shape: Floats,
    p: SPYParameters,
) -> tuple[Floats, Floats]:
    """Return the log volatility of each session, and what the evening before expects of it: ``(S,)`` each.

    The second is the logarithm of the expected factor of its volatility.
    """
    used = np.arange(MINUTES) < minutes[:, None]
    day = np.where(used, shape * shocks, 0.0).sum(axis=1) / np.sqrt(minutes)
    moved = (day + p.overnight * night) / np.sqrt(1 + p.overnight**2)
    keep = np.exp(-1 / p.slow_sessions)
    own = rng.standard_normal(len(night) + 1)
    slow, forecast = np.empty(len(night)), np.empty(len(night))
    state, new = own[0], np.sqrt(1 - keep**2)
    unknown = p.slow_sd * new * np.sqrt(1 - p.leverage**2)  # deviation of what the evening before cannot know
    for d in range(len(night)):
        known = keep * state + new * p.leverage * (moved[d - 1] if d else 0.0)
        forecast[d] = p.slow_sd * known + unknown**2 / 2 - p.slow_sd**2
        slow[d] = p.slow_sd * known + unknown * own[d + 1]
        state = slow[d] / p.slow_sd if p.slow_sd else 0.0
    return slow, forecast


def _returns(rng: Streams, shocks: Floats, sigma: Floats, regime: Labels, p: SPYParameters) -> Floats:
    """Return the log returns of the minutes: ``(S, 390)``."""
    dt = 1 / YEAR_MINUTES
    probability = -np.expm1(-p.jumps_per_session / MINUTES)
    jumps = (rng["jump_time"].random(shocks.shape) < probability) * rng["jump_size"].standard_normal(shocks.shape)
    convexity = sigma**2 * dt * (1 + probability * p.jump_size**2) / 2  # makes the drift one of the price
    drift = p.separated_drifts[regime] * dt
    return np.asarray(drift - convexity + sigma * np.sqrt(dt) * (shocks + p.jump_size * jumps))


def _prices(
    rng: np.random.Generator, returns: Floats, gaps: Floats, local_sd: Floats, used: NDArray[np.bool_], p: SPYParameters
) -> dict[str, Floats]:
    """Return open, high, low and close on the cent: ``(S, 390)`` each; minutes that are not used do not move."""
    moves = np.where(used, returns, 0.0)
    steps = np.concatenate([gaps[:, None], moves], axis=1)
    path = np.log(p.start_price) + np.cumsum(steps).reshape(steps.shape)
    top, bottom = np.empty_like(returns), np.empty_like(returns)
    for first in range(0, len(returns), BRIDGE_BLOCK):
        rows = slice(first, first + BRIDGE_BLOCK)
        top[rows], bottom[rows] = _extremes(rng, moves[rows], local_sd[rows])
    opened, close = _on_the_cent(path[:, :-1]), _on_the_cent(path[:, 1:])
    high = np.maximum(_on_the_cent(path[:, :-1] + top), np.maximum(opened, close))
    low = np.minimum(_on_the_cent(path[:, :-1] + bottom), np.minimum(opened, close))
    return {"open": opened, "high": high, "low": low, "close": close}


def _extremes(rng: np.random.Generator, moves: Floats, local_sd: Floats) -> tuple[Floats, Floats]:
    """Return the highest and lowest log price over the opening inside each minute, by a bridge to its close."""
    fraction = np.arange(1, BRIDGE_STEPS + 1) / BRIDGE_STEPS
    walk = np.cumsum(rng.standard_normal((*moves.shape, BRIDGE_STEPS)), axis=-1) / np.sqrt(BRIDGE_STEPS)
    inside = moves[..., None] * fraction + local_sd[..., None] * (walk - walk[..., -1:] * fraction)
    return inside.max(axis=-1), inside.min(axis=-1)


def _on_the_cent(path: Floats) -> Floats:
    return np.maximum(np.round(np.exp(path), 2), CENT)


def _volume(
    rng: np.random.Generator, returns: Floats, sigma: Floats, shape: Floats, volume_shape: Floats, p: SPYParameters
) -> Floats:
    """Return whole shares traded in each minute: ``(S, 390)``."""
    surprise = np.log1p(np.abs(returns) / (sigma * np.sqrt(1 / YEAR_MINUTES)))
    relative = p.volume_sigma * np.log(sigma / (p.annual_volatility * shape)) + p.volume_return * surprise
    noise = p.volume_noise * rng.standard_normal(returns.shape)
    return np.round(p.volume_per_minute * volume_shape * np.exp(relative + noise))


def _quotes(rng: Streams, close: Floats) -> dict[str, Floats]:
    """Return bid, ask and their sizes in shares at the close of each minute: ``(S, 390)`` each."""
    draws = rng["quote"].random((*close.shape, 2))
    both = QUOTED_SIZE * np.exp(QUOTED_SPREAD * rng["size"].standard_normal(close.shape))
    bid = np.maximum(np.round(close - CENT * (draws[..., 0] < 0.5), 2), CENT)
    bid_size = np.round(both * draws[..., 1] / 100) * 100  # round lots; the imbalance is uniform
    ask_size = np.round(both * (1 - draws[..., 1]) / 100) * 100
    return {"bid": bid, "ask": np.round(bid + CENT, 2), "bid_size": bid_size, "ask_size": ask_size}


def _vix(forecast: Floats, regime: Labels, p: SPYParameters) -> Floats:
    """Return the index's close of the evening before each session, annual percent on the calendar clock: ``(S,)``."""
    evening = np.concatenate([regime[:1, 0], regime[:-1, -1]])
    jumps = 1 + p.jumps_per_session / MINUTES * p.jump_size**2
    session_sd = p.annual_volatility * p.separated_multipliers[evening] * np.exp(forecast - p.vix_noise**2 / 2)
    session_sd *= np.sqrt(jumps / SESSIONS_PER_YEAR) * _expected_root(p)
    return np.asarray(100 * np.sqrt(CALENDAR_MINUTES / MINUTES) * session_sd / p.implied_ratio)


def _expected_root(p: SPYParameters) -> float:
    """Expected root of a session's variance as it varies within the session, over the root of its expectation.

    ``V = sum_m w_m exp(2 f_m - 2 var_f)`` with w the shape's share has mean 1 and ``Var V = sum w_m w_n (exp(4 var_f
    rho^|m - n|) - 1)``; for a log-normal V ``E[sqrt V] = (1 + Var V)^(-1/8)``.
    """
    weights = _shapes(np.array([MINUTES]), p)[0][0] ** 2 / MINUTES
    lag = np.abs(np.subtract.outer(np.arange(MINUTES), np.arange(MINUTES)))
    excess = np.expm1(4 * p.fast_sd**2 * np.exp(-lag / p.fast_minutes))
    return float((1 + weights @ excess @ weights) ** -0.125)


def _source(seed: int, sessions: int, start: str, early_close: str, p: SPYParameters) -> str:
    """Write the specification, with everything that is not the default."""
    default = SPYParameters()
    values: dict[str, Any] = {"seed": seed, "sessions": sessions, "start": start}
    values |= {} if early_close == "keep" else {"early_close": early_close}
    names = (item.name for item in fields(p))
    values |= {name: getattr(p, name) for name in names if getattr(p, name) != getattr(default, name)}
    return "synthetic:spy?" + "&".join(f"{name}={value}".replace(" ", "") for name, value in values.items())
