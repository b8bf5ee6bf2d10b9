"""The pseudo-timeline: an order of N blocks in which each is near the one before, in O(N D) memory.

``greedy``: begin at block 0, go to the nearest block not yet visited (largest inner product, the lowest number among
equals). Exact: a bound from the 16 leading principal axes, ``z.w <= head(z).head(w) + |rest(z)| |rest(w)|``
(Cauchy-Schwarz), leaves few blocks for which the full product, in float64, is taken.

``edge``: greedy matching of edges (the multi-fragment heuristic, Bentley 1992, "Fast algorithms for geometric traveling
salesman problems") among each block's 12 nearest, and fragments joined end to nearest end, beginning at block 0. A
little shorter than ``greedy``.

A short path is not a pure path: in regimes that persist the order of time switches less often than either
(``timeline_entropy`` and the switches printed beside the path length say so).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encoders.defrag_config import CHAINS
from markets.compiled import compiled
from markets.errors import DataError, unknown

Array = NDArray[np.float32]
Order = NDArray[np.int64]

AXES = 16  # leading axes of the bound
SLACK = 1e-5  # more than float32 can be wrong by, for rows of unit length
NEAREST = 12  # candidates of an edge
ROWS = 256  # of similarities at a time


def pseudo_timeline(z: Array, method: str = "greedy") -> Order:
    """Return the permutation ``(N,)`` of unit rows ``(N, D)``; it begins at 0.

    Raises:
        UnknownNameError: no such method. DataError: rows that are not of unit length.
    """
    if method not in CHAINS:
        raise unknown("chain", method, CHAINS)
    rows = np.ascontiguousarray(z, np.float32)
    lengths = np.einsum("nd,nd->n", rows, rows) if rows.ndim == 2 else np.zeros(1)
    if rows.ndim != 2 or not (np.abs(lengths - 1.0) < 1e-3).all():
        raise DataError(f"the chain needs rows of unit length, (N, D); got shape {rows.shape}")
    if len(rows) < 3:
        return np.arange(len(rows))
    return _greedy(rows) if method == "greedy" else _edge(rows)


def timeline_entropy(order: Order) -> float:
    """Entropy of the chain's steps in time as a share of the largest: 0 for the order of time, near 1 for a shuffle.

    Steps ``|order[i+1] - order[i]|`` are counted by powers of two. It says how far the chain leaves the order of time,
    nothing of how alike its neighbours are.
    """
    steps = np.abs(np.diff(order))
    if len(steps) < 2:
        return 0.0
    bins = int(np.log2(len(order))) + 1
    share = np.bincount(np.log2(steps).astype(np.int64), minlength=bins) / len(steps)
    share = share[share > 0.0]
    return float(-(share * np.log(share)).sum() / np.log(bins))


def _greedy(z: Array) -> Order:
    count, width = z.shape
    axes = min(AXES, width)
    _, vectors = np.linalg.eigh(z.T.astype(np.float64) @ z)
    leading = z @ vectors[:, ::-1][:, :axes].astype(np.float32)
    rest = np.einsum("nd,nd->n", z, z) - np.einsum("nd,nd->n", leading, leading)
    order = np.zeros(count, np.int64)
    _walk(
        z, np.ascontiguousarray(leading.T), np.sqrt(np.maximum(rest, 0.0)), np.arange(count),
        np.empty(count, np.float32), np.float32(SLACK), order,
    )  # fmt: skip
    return order


@compiled
def _walk(z: Array, heads: Array, rests: Array, ids: Order, bounds: Array, slack: np.float32, order: Order) -> None:
    """Fill ``order``; ``heads (P, N)``, ``rests`` and ``ids`` shrink: the last column takes the place of a visited."""
    axes, free = heads.shape
    width = z.shape[1]
    place = 0  # column of the block to visit next, the first time block 0
    for position in range(order.shape[0]):
        here = ids[place]
        order[position] = here
        rest = rests[place]
        free -= 1
        # the visited column changes places with the last free one, so that its head stays readable there
        for axis in range(axes):
            kept = heads[axis, place]
            heads[axis, place] = heads[axis, free]
            heads[axis, free] = kept
        rests[place], ids[place] = rests[free], ids[free]
        rests[free], ids[free] = rest, here
        if free == 0:
            break
        for j in range(free):
            bounds[j] = rests[j] * rest + slack
        for axis in range(axes):
            weight = heads[axis, free]
            row = heads[axis]
            for j in range(free):
                bounds[j] += row[j] * weight
        top = 0
        for j in range(1, free):
            if bounds[j] > bounds[top]:
                top = j
        best, place = -2.0, top
        for turn in range(free + 1):
            j = top if turn == 0 else turn - 1
            if bounds[j] >= best:
                other = ids[j]
                product = 0.0
                for d in range(width):
                    product += np.float64(z[here, d]) * np.float64(z[other, d])
                if product > best or (product == best and other < ids[place]):
                    best, place = product, j


def _edge(z: Array) -> Order:
    count = len(z)
    nearest = min(NEAREST, count - 1)
    first, second, score = [], [], []
    for begin in range(0, count, ROWS):
        products = z[begin : begin + ROWS] @ z.T
        mine = np.arange(len(products))
        products[mine, begin + mine] = -np.inf
        found = np.argpartition(-products, nearest - 1, 1)[:, :nearest]
        first.append(np.repeat(begin + mine, nearest))
        second.append(found.ravel())
        score.append(products[mine[:, None], found].ravel())
    a, b, s = np.concatenate(first), np.concatenate(second), np.concatenate(score)
    ranked = np.lexsort((np.maximum(a, b), np.minimum(a, b), -s))
    links = np.full((count, 2), -1, np.int64)
    _match(a[ranked], b[ranked], np.arange(count), links)
    return _join(z, links)


@compiled
def _match(a: Order, b: Order, parent: Order, links: Order) -> None:
    """Take edges from the best on, unless a block would have a third, block 0 a second, or a ring would close."""
    for edge in range(a.shape[0]):
        i, j = a[edge], b[edge]
        if links[i, 1] >= 0 or links[j, 1] >= 0 or (i == 0 and links[i, 0] >= 0) or (j == 0 and links[j, 0] >= 0):
            continue
        root, other = i, j
        while parent[root] != root:
            parent[root] = parent[parent[root]]
            root = parent[root]
        while parent[other] != other:
            parent[other] = parent[parent[other]]
            other = parent[other]
        if root == other:
            continue
        parent[root] = other
        links[i, 0 if links[i, 0] < 0 else 1] = j
        links[j, 0 if links[j, 0] < 0 else 1] = i


def _join(z: Array, links: Order) -> Order:
    """Walk the fragments, from the end of each to the nearest end of another."""
    ends = np.flatnonzero(links[:, 1] < 0)
    rows, open_ = z[ends], np.ones(len(ends), bool)
    place = {int(end): i for i, end in enumerate(ends)}
    order = np.empty(len(z), np.int64)
    at, filled = 0, 0
    while True:
        before, here = -1, at
        open_[place[here]] = False
        while True:
            order[filled] = here
            filled += 1
            one, two = links[here]
            onward = one if one != before else two
            if onward < 0:
                break
            before, here = here, int(onward)
        open_[place[here]] = False
        if filled == len(z):
            return order
        at = int(ends[np.where(open_, rows @ z[here], -np.inf).argmax()])
