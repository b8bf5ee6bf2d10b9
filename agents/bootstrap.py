"""How sure a score is: the stationary bootstrap of one walk, and what many runs and many cost scales say together.

Letters: T bars, ``returns (T,)`` simple returns per bar, N runs. Sources: Politis & Romano, JASA 89 (1994); Agarwal et
al., NeurIPS 34 (2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from agents.metrics import LARGEST_RETURN, RESOLUTION, RUIN, Array, positive, vector
from markets.errors import ConfigError, unknown

Integers = npt.NDArray[np.int64]
Evaluator = Callable[[Integers, Integers], Array]  # (starts, sizes) of blocks, both (draws, blocks) -> (draws,)

CHUNK = 2**20  # resampled bars in memory at once
WIDENED = ("mean", "sharpe", "log_growth")  # statistics whose percentiles are too close together where blocks are few


def stationary_bootstrap_indices(
    length: int, mean_block: float, draws: int, generator: np.random.Generator
) -> Integers:
    """Row numbers of resampled series, (draws, length) in 0..length-1 (Politis & Romano 1994, section 2).

    ``I_0`` is uniform; ``I_{t+1}`` is uniform with probability ``1 / mean_block``, else ``I_t + 1``, wrapping from the
    last bar to the first. ``mean_block`` in bars. This is the full matrix: ``bootstrap_statistic`` works in chunks.

    Raises:
        ConfigError: ``draws`` below 1, or ``mean_block`` outside 1 .. length / 2.
    """
    _check_bootstrap(length, mean_block, draws)
    return _indices(*_blocks(length, mean_block, draws, generator), length)


def bootstrap_statistic(
    returns: npt.ArrayLike,
    statistic: str | Callable[[Array], Array] = "sharpe",
    *,
    mean_block: float,
    draws: int = 2000,
    seed: int = 0,
    periods_per_year: float = 1.0,
) -> Array:
    """Values (draws,) of a statistic on returns (T,) resampled in blocks of ``mean_block`` bars on average.

    The stationary bootstrap of "mean" (of simple returns, per bar), "sharpe" (times ``sqrt(periods_per_year)``; the
    default 1 leaves it per bar), "log_growth" (``sum ln(1 + r)``, nats over all T bars), "max_drawdown" (fraction), or
    a function of resampled returns (n, T) -> (n,). The first three only add up blocks; memory stays near 2^20 bars.

    Raises:
        ConfigError: a bad number; ``mean_block`` above T / 2, where the spread would be false; an unknown statistic, or
            a function that does not return one value for each resampled series.
    """
    values: Array = _bootstrap([returns], statistic, mean_block, draws, seed, periods_per_year)[0]
    return values


def confidence_interval(
    returns: npt.ArrayLike,
    statistic: str | Callable[[Array], Array] = "sharpe",
    *,
    mean_block: float,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    periods_per_year: float = 1.0,
) -> tuple[float, float]:
    """Percentile interval ``(low, high)`` of a statistic of returns (T,); arguments of ``bootstrap_statistic``.

    That of "mean", "sharpe" and "log_growth" is widened about its median by :func:`widening`, without which a walk of
    13 blocks has 91 % intervals instead of 95 %. ``periods_per_year`` annualises "sharpe" only. Blocks must outlast the
    dependence (one week of bars). Raises ConfigError as there, and for a level outside (0, 1).
    """
    values: Array = _bootstrap([returns], statistic, mean_block, draws, seed, periods_per_year)[0]
    return _interval(values, statistic, len(np.atleast_1d(returns)), mean_block, level)


def paired_difference_interval(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    statistic: str | Callable[[Array], Array] = "sharpe",
    *,
    mean_block: float,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    periods_per_year: float = 1.0,
) -> tuple[float, float]:
    """Percentile interval of ``statistic(first) - statistic(second)``, two series (T,) over the same bars.

    Both are read at the same resampled bars, so that what the market did to both cancels. ``periods_per_year``
    annualises "sharpe" only. Widened and raising ConfigError as ``confidence_interval``, and for unequal lengths.
    """
    values = _bootstrap([first, second], statistic, mean_block, draws, seed, periods_per_year)
    return _interval(values[0] - values[1], statistic, len(np.atleast_1d(first)), mean_block, level)


def widening(length: int, mean_block: float, level: float = 0.95) -> float:
    """Factor by which an interval from few blocks must be wider than its percentiles, for a mean or a ratio of means.

    With ``A = mean_block / length``, independent returns have an expected bootstrap variance of
    ``1 - 2 A + 2 A^2 (1 - exp(-1 / A))`` times the true one (the covariances that it adds up are taken about the mean
    of the sample), and the variance it estimates is as unsure as one of 1 / A degrees of freedom, so that Student's t
    takes the normal quantile's place (expansion of Abramowitz & Stegun 26.7.5). 1.03 for 78 blocks, 1.19 for 13.
    """
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level={level!r} must lie between 0 and 1")
    share = mean_block / length
    variance = 1.0 - 2.0 * share + 2.0 * share**2 * (1.0 - math.exp(-1.0 / share))
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    terms = (
        (z**3 + z) / 4.0,
        (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0,
        (3.0 * z**7 + 19.0 * z**5 + 17.0 * z**3 - 15.0 * z) / 384.0,
    )
    student = z + sum(term * share**power for power, term in enumerate(terms, 1))
    return student / z / math.sqrt(variance)


def interquartile_mean(values: npt.ArrayLike) -> float:
    """Mean of the middle half of N runs: sorted, ``floor(N / 4)`` cut at each end.

    That is the convention of scipy's ``trim_mean(values, 0.25)``. Where N is no multiple of 4 a little more than half
    stays; below 4 runs it is the mean. In the unit of the values. Source: Agarwal et al. 2021, section 4.
    """
    return float(_trimmed(vector("values", values)[None])[0])


def run_interval(
    values: npt.ArrayLike, aggregate: str, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval over N runs (N,) of "interquartile_mean", "mean" or "median", in their unit.

    Runs are drawn with replacement (Agarwal et al. 2021, section 4, one task). Under about 10 runs it is too narrow.
    """
    if aggregate not in AGGREGATES:
        raise unknown("aggregate", aggregate, AGGREGATES)
    runs = vector("values", values)
    _whole("draws", draws)
    drawn = _generator(seed).integers(len(runs), size=(draws, len(runs)))
    return _percentiles(AGGREGATES[aggregate](runs[drawn]), level)


def interquartile_mean_interval(
    values: npt.ArrayLike, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the interquartile mean over N runs; see ``run_interval``."""
    return run_interval(values, "interquartile_mean", draws, level, seed)


def break_even_cost_scale(scales: npt.ArrayLike, growths: npt.ArrayLike) -> float:
    """Multiple of the costs that uses up all growth: the first zero of the polygon through the points.

    ``scales`` (S,) rise from 0, ``growths`` (S,) are the total log growths measured there (nats), S >= 2. It is ``inf``
    where growth is positive at every scale measured and 0.0 where it is not positive without any costs.

    Raises:
        ConfigError: unequal lengths, scales that do not rise or do not begin at 0, a value that is not finite.
    """
    points, growth = vector("scales", scales, least=2), vector("growths", growths, least=2)
    if len(points) != len(growth):
        raise ConfigError(f"growths has {len(growth)} values for {len(points)} scales")
    if points[0] != 0.0 or np.any(np.diff(points) <= 0.0):
        raise ConfigError(f"scales={points.tolist()} must begin at 0 and rise")
    spent = np.flatnonzero(growth <= 0.0)
    if not len(spent):
        return math.inf
    at = int(spent[0])
    return float(np.interp(0.0, growth[[at, at - 1]], points[[at, at - 1]])) if at else 0.0


def _bootstrap(
    series: list[npt.ArrayLike],
    statistic: str | Callable[[Array], Array],
    mean_block: float,
    draws: int,
    seed: int,
    periods_per_year: float,
) -> Array:
    """One statistic on several series at the same resampled bars; (series, draws)."""
    checked = [_return_series(returns) for returns in series]
    length = len(checked[0])
    if any(len(returns) != length for returns in checked):
        raise ConfigError(f"paired series have {[len(returns) for returns in checked]} bars; the bars must be the same")
    _check_bootstrap(length, mean_block, draws)
    scale = math.sqrt(positive("periods_per_year", periods_per_year)) if statistic == "sharpe" else 1.0
    if isinstance(statistic, str) and statistic not in STATISTICS:
        raise unknown("statistic", statistic, STATISTICS)
    prepare = STATISTICS[statistic] if isinstance(statistic, str) else _of_paths(statistic)
    evaluators, generator, rows = [prepare(returns) for returns in checked], _generator(seed), max(1, CHUNK // length)
    values = np.empty((len(series), draws))
    for done in range(0, draws, rows):
        blocks = _blocks(length, mean_block, min(rows, draws - done), generator)
        for row, evaluate in zip(values, evaluators, strict=True):
            row[done : done + rows] = scale * evaluate(*blocks)
    return values


def _blocks(length: int, mean_block: float, draws: int, generator: np.random.Generator) -> tuple[Integers, Integers]:
    """Starts and sizes (draws, blocks): sizes geometric, cut so that each row adds up to ``length``."""
    expected = length / mean_block
    shape = (draws, math.ceil(expected + 3.0 * math.sqrt(expected)) + 2)
    ends = np.cumsum(generator.geometric(1.0 / mean_block, shape), axis=1)
    while ends[:, -1].min() < length:
        further = np.cumsum(generator.geometric(1.0 / mean_block, shape), axis=1)
        ends = np.concatenate([ends, ends[:, -1:] + further], axis=1)
    ends = ends[:, : int((ends < length).sum(axis=1).max()) + 1]
    sizes = np.diff(np.minimum(ends, length), axis=1, prepend=0)
    return generator.integers(length, size=sizes.shape), sizes


def _indices(starts: Integers, sizes: Integers, length: int) -> Integers:
    begins = np.cumsum(sizes, axis=1) - sizes
    offsets = np.repeat((starts - begins).ravel(), sizes.ravel()).reshape(-1, length)
    return (offsets + np.arange(length)) % length


def _block_sums(column: Array) -> Evaluator:
    """Sums over resampled bars from one circular prefix sum: the cost is of blocks, not of bars."""
    prefix = np.concatenate([[0.0], np.cumsum(np.tile(column, 2))])
    return lambda starts, sizes: (prefix[starts + sizes] - prefix[starts]).sum(axis=1)


def _of_mean(returns: Array) -> Evaluator:
    sums = _block_sums(returns - returns.mean())
    return lambda starts, sizes: returns.mean() + sums(starts, sizes) / len(returns)


def _of_log_growth(returns: Array) -> Evaluator:
    return _block_sums(_log_returns(returns))


def _of_sharpe(returns: Array) -> Evaluator:
    """Per bar, from sums of centred returns and of their squares; 0.0 where a resample has no spread."""
    length, mean = len(returns), returns.mean()
    sums, squares = _block_sums(returns - mean), _block_sums((returns - mean) ** 2)
    least = 1e-12 * returns.var() + (RESOLUTION * (1.0 + np.abs(returns).max())) ** 2

    def evaluate(starts: Integers, sizes: Integers) -> Array:
        shift = sums(starts, sizes) / length
        variance = squares(starts, sizes) / length - shift**2
        spread = np.sqrt(np.maximum(variance, least) * length / (length - 1))
        return np.where(variance > least, (mean + shift) / spread, 0.0)

    return evaluate


def _of_paths(function: Callable[[Array], Array]) -> Callable[[Array], Evaluator]:
    """Any statistic of resampled returns (n, T) -> (n,), bar by bar."""

    def evaluate(returns: Array, starts: Integers, sizes: Integers) -> Array:
        values = np.asarray(function(returns[_indices(starts, sizes, len(returns))]), dtype=np.float64)
        if values.shape != starts.shape[:1]:
            raise ConfigError(f"statistic returned shape {values.shape} for {len(starts)} resampled series")
        return values

    return lambda returns: partial(evaluate, returns)


def _path_drawdown(returns: Array) -> Array:
    growth = np.cumsum(_log_returns(returns), axis=1)
    peaks = np.maximum(np.maximum.accumulate(growth, axis=1), 0.0)
    deepest: Array = (growth - peaks).min(axis=1)
    return -np.expm1(deepest)


def _log_returns(returns: Array) -> Array:
    return np.log1p(np.maximum(returns, RUIN - 1.0))


def _trimmed(values: Array) -> Array:
    cut = values.shape[1] // 4
    middle: Array = np.sort(values, axis=1)[:, cut : values.shape[1] - cut].mean(axis=1)
    return middle


def _interval(
    values: Array, statistic: str | Callable[[Array], Array], length: int, mean_block: float, level: float
) -> tuple[float, float]:
    low, high = _percentiles(values, level)
    if statistic not in WIDENED:
        return low, high
    middle, factor = float(np.median(values)), widening(length, mean_block, level)
    return middle + factor * (low - middle), middle + factor * (high - middle)


def _percentiles(values: Array, level: float) -> tuple[float, float]:
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level={level!r} must lie between 0 and 1")
    low, high = np.quantile(values, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def _return_series(returns: npt.ArrayLike) -> Array:
    array = vector("returns", returns, least=2)
    wrong = np.flatnonzero((array < -1.0) | (array > LARGEST_RETURN))
    if len(wrong):
        raise ConfigError(f"returns[{wrong[0]}]={array[wrong[0]]} is not a simple return from -1 to 1e50")
    return array


def _check_bootstrap(length: int, mean_block: float, draws: int) -> None:
    _whole("length", length)
    _whole("draws", draws)
    if not 1.0 <= mean_block <= length / 2:
        raise ConfigError(f"mean_block={mean_block!r} must lie between 1 and half of the {length} bars")


def _whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ConfigError(f"{name}={value!r} must be a whole number from 1")


def _generator(seed: int) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed={seed!r} must be a whole number from 0")
    return np.random.default_rng(seed)


STATISTICS: dict[str, Callable[[Array], Evaluator]] = {
    "mean": _of_mean,
    "sharpe": _of_sharpe,
    "log_growth": _of_log_growth,
    "max_drawdown": _of_paths(_path_drawdown),
}
AGGREGATES: dict[str, Callable[[Array], Array]] = {
    "interquartile_mean": _trimmed,
    "mean": lambda runs: runs.mean(axis=1),
    "median": lambda runs: np.median(runs, axis=1),
}
