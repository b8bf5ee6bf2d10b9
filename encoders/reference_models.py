"""Two classical regime models, as references: a Gaussian hidden Markov model and a jump model, both served causally.

The usual libraries answer with the smoothed or the Viterbi path, which know the future; these serve the forward filter
and the online dynamic programme. Points are ``(T, D)`` features; S series are fitted together and not joined.

Sources: L. Baum et al. (1970); A. Bemporad et al. (2018), "Fitting Jump Models".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from encoders.belief_training import smooth
from encoders.clustering import KMeans, Standardiser, finite
from markets.compiled import compiled
from markets.errors import ConfigError

Floats = NDArray[np.float64]

ITERATIONS = 60
RISE = 1e-6  # of the log-likelihood per point below which expectation-maximisation has ended
SMALLEST_VARIANCE = 1e-4  # in squared deviations of the training points
STAY = 200.0  # counts added to every staying of a state: it lasts unless the points say otherwise
FIRST_STAY = 0.99
STARTS = 5  # of the jump model


class GaussianHMM:
    """K Gaussian states with full covariance, fitted by expectation-maximisation from k-means."""

    def __init__(self, series: Sequence[Floats], states: int, seed: int = 0, iterations: int = ITERATIONS) -> None:
        """Fit on S series of points ``(T_s, D)``.

        Raises:
            ConfigError: fewer than two states, or no iteration. DataError: a point is not finite.
        """
        if states < 2 or iterations < 1:
            raise ConfigError(f"states={states!r} must be at least 2 and iterations={iterations!r} at least 1")
        points = finite(np.concatenate([np.asarray(one, np.float64) for one in series]), "points")
        starts = np.cumsum([0, *(len(one) for one in series)])[:-1].astype(np.int64)
        self._scale = Standardiser(points)
        scaled = self._scale(points)
        shares = np.eye(states)[KMeans(points, states, seed)(points)]
        self._place(scaled, shares)
        self.transition = np.full((states, states), (1.0 - FIRST_STAY) / (states - 1))
        np.fill_diagonal(self.transition, FIRST_STAY)
        before = -np.inf
        for _ in range(iterations):
            found = smooth(self._log_density(scaled), self.transition, starts)
            counts = found.moves + 1.0 + STAY * np.eye(states)
            self.transition = counts / counts.sum(axis=1, keepdims=True)
            self._place(scaled, found.posterior)
            if found.log_likelihood - before < RISE:
                break
            before = found.log_likelihood
        self.log_likelihood = found.log_likelihood

    def filter(self, points: Floats) -> Floats:
        """Return the odds of the states after each point, which know no later one: ``(T, K)``."""
        log_density = self._log_density(self._scale(finite(points, "points")))
        density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
        odds, out = np.full(len(self.transition), 1.0 / len(self.transition)), np.empty_like(density)
        for t, row in enumerate(density):
            odds = (odds @ self.transition if t else odds) * row
            odds = odds / odds.sum()
            out[t] = odds
        return out

    def _place(self, points: Floats, shares: Floats) -> None:
        """Set means and covariances from the share of each point in each state, ``(T, K)``."""
        weight = shares.sum(axis=0) + 1e-9
        self.means = shares.T @ points / weight[:, None]
        apart = points[:, None, :] - self.means
        spread = np.einsum("tk,tki,tkj->kij", shares, apart, apart) / weight[:, None, None]
        self.covariances = spread + SMALLEST_VARIANCE * np.eye(points.shape[1])

    def _log_density(self, points: Floats) -> Floats:
        columns = []
        for mean, covariance in zip(self.means, self.covariances, strict=True):
            root = np.linalg.cholesky(covariance)
            scaled = np.linalg.solve(root, (points - mean).T)
            size = 2.0 * np.log(np.diag(root)).sum() + len(mean) * np.log(2.0 * np.pi)
            columns.append(-0.5 * ((scaled**2).sum(axis=0) + size))
        return np.stack(columns, axis=1)


class JumpModel:
    """K centres; a path pays half the squared distance to its centre a point and ``penalty`` a change of centre."""

    def __init__(self, series: Sequence[Floats], states: int, penalty: float, seed: int = 0) -> None:
        """Fit on S series of points ``(T_s, D)``: path and centres in turn, the cheapest of five starts.

        Raises:
            ConfigError: ``penalty`` is negative or not a number.
        """
        if not penalty >= 0.0:
            raise ConfigError(f"penalty={penalty!r} must be a number of at least 0")
        self.penalty = float(penalty)
        points = finite(np.concatenate([np.asarray(one, np.float64) for one in series]), "points")
        self._scale = Standardiser(points)
        scaled = [self._scale(np.asarray(one, np.float64)) for one in series]
        together = np.concatenate(scaled)
        rng = np.random.default_rng(seed)
        self.cost = np.inf
        for _ in range(STARTS):
            centres, cost = self._fit(scaled, together, _spread_out(together, states, rng))
            if cost < self.cost:
                self.centres, self.cost = centres, cost

    def states(self, points: Floats) -> Floats:
        """Return the state that ends the cheapest path so far, one-hot: ``(T, K)``, row t knows points 0..t."""
        value = self._values(self._scale(finite(points, "points")))
        return np.asarray(np.eye(len(self.centres))[value.argmin(axis=1)])

    def _fit(self, series: list[Floats], together: Floats, centres: Floats) -> tuple[Floats, float]:
        before = np.inf
        for _ in range(ITERATIONS):
            self.centres = centres
            paths, cost = [], 0.0
            for one in series:
                value = self._values(one)
                path = np.empty(len(one), np.int64)
                _trace_back(value, self.penalty, path)
                paths.append(path)
                cost += float(value[-1].min())
            path = np.concatenate(paths)
            centres = np.stack(
                [together[path == k].mean(axis=0) if (path == k).any() else centres[k] for k in range(len(centres))]
            )
            if not cost < before:
                break
            before = cost
        return centres, before

    def _values(self, points: Floats) -> Floats:
        """Return the cost of the cheapest path to each state after each point: ``(T, K)``."""
        apart = ((points[:, None, :] - self.centres) ** 2).sum(axis=2)
        value = np.empty_like(apart)
        _cheapest(0.5 * apart, self.penalty, value)
        return value


def _spread_out(points: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Draw centres far from each other (k-means++)."""
    chosen = [points[rng.integers(len(points))]]
    nearest = ((points - chosen[0]) ** 2).sum(axis=1)
    for _ in range(count - 1):
        total = nearest.sum()
        place = rng.choice(len(points), p=nearest / total if total > 0.0 else None)
        chosen.append(points[place])
        nearest = np.minimum(nearest, ((points - points[place]) ** 2).sum(axis=1))
    return np.stack(chosen)


@compiled
def _cheapest(loss: Floats, penalty: float, value: Floats) -> None:
    for k in range(loss.shape[1]):
        value[0, k] = loss[0, k]
    for t in range(1, loss.shape[0]):
        best = value[t - 1, 0]
        for k in range(1, loss.shape[1]):
            best = min(best, value[t - 1, k])
        for k in range(loss.shape[1]):
            value[t, k] = loss[t, k] + min(value[t - 1, k], best + penalty)


@compiled
def _trace_back(value: Floats, penalty: float, path: NDArray[np.int64]) -> None:
    """Fill in the cheapest path to the last point, from the end."""
    last = value.shape[0] - 1
    state = 0
    for t in range(last, -1, -1):
        best = 0
        for k in range(1, value.shape[1]):
            if value[t, k] < value[t, best]:
                best = k
        if t == last or value[t, best] + penalty < value[t, state]:
            state = best
        path[t] = state
