"""The default encoder's trunk in numpy: two causal convolutions, means over several boxes of the past, a small MLP.

``x (T, C)`` channels; valid (unpadded) convolutions of width 5 and ReLU give ``y (T, H)``; their means over the last
8, 32, 96 and 256 bars are joined to ``(T, 4 H)``; two linear layers give the embedding ``(T, D)``::

    z_t = W_d relu(W_c [mean_8 y, mean_32 y, mean_96 y, mean_256 y] + b_c) + b_d

Every bar is embedded in one dense pass, whose blocks of 4,096 bars stand on a fixed grid: a longer history, a shorter
one and another future give the same bits for the bars before. Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from markets.compiled import compiled
from markets.errors import ArtefactError

Array = NDArray[np.float32]

BOXES = (8, 32, 96, 256)  # bars
WIDTH = 5  # of a convolution
LOOK_BACK = 2 * (WIDTH - 1) + BOXES[-1] - 1  # bars before the first that a full window allows
BLOCK = 4096  # bars a pass


@dataclass(frozen=True, eq=False)
class TrunkWeights:
    """Weights as torch names and shapes them.

    Attributes:
        a_weight: ``(H, C, 5)``; b_weight: ``(H, H, 5)``; c_weight: ``(M, 4 H)``; d_weight: ``(D, M)``; biases beside.
    """

    a_weight: Array
    a_bias: Array
    b_weight: Array
    b_bias: Array
    c_weight: Array
    c_bias: Array
    d_weight: Array
    d_bias: Array

    def __post_init__(self) -> None:
        hidden, channels = self.a_weight.shape[:2]
        inner, latent = self.c_weight.shape[0], self.d_weight.shape[0]
        expected = {
            "a_weight": (hidden, channels, WIDTH), "a_bias": (hidden,), "b_weight": (hidden, hidden, WIDTH),
            "b_bias": (hidden,), "c_weight": (inner, len(BOXES) * hidden), "c_bias": (inner,),
            "d_weight": (latent, inner), "d_bias": (latent,),
        }  # fmt: skip
        for name, shape in expected.items():
            found = getattr(self, name)
            if found.shape != shape or found.dtype != np.float32:
                raise ArtefactError(f"tensor {name!r} is {found.dtype} {found.shape}, expected float32 {shape}")
            if not np.isfinite(found).all():
                raise ArtefactError(f"tensor {name!r} holds a number that is not finite")

    @property
    def channels(self) -> int:
        """C."""
        return int(self.a_weight.shape[1])

    @property
    def latent(self) -> int:
        """D."""
        return int(self.d_weight.shape[0])

    def arrays(self) -> dict[str, Array]:
        """Return the weights by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


class BoxTrunk:
    """Embeds channels, all at once or bar by bar."""

    def __init__(self, weights: TrunkWeights) -> None:
        self.weights = weights
        # kernels as matrices: one product a convolution, over windows of five rows laid side by side
        self._a = np.ascontiguousarray(weights.a_weight.transpose(2, 1, 0).reshape(-1, weights.a_weight.shape[0]))
        self._b = np.ascontiguousarray(weights.b_weight.transpose(2, 1, 0).reshape(-1, weights.b_weight.shape[0]))
        self._c = np.ascontiguousarray(weights.c_weight.T)
        self._d = np.ascontiguousarray(weights.d_weight.T)
        self._boxes = np.array(BOXES)

    def embed(self, channels: Array) -> Array:
        """Return ``(T, D)`` embeddings of ``(T, C)`` channels; before ``LOOK_BACK`` what is missing counts as zero."""
        count = len(channels)
        out = np.empty((count, self.weights.latent), np.float32)
        padded = np.zeros((LOOK_BACK + BLOCK, channels.shape[1]), np.float32)
        for first in range(0, count, BLOCK):
            stop = min(first + BLOCK, count)
            before = max(first - LOOK_BACK, 0)
            padded[...] = 0.0
            place = LOOK_BACK - (first - before)
            padded[place : place + stop - before] = channels[before:stop]
            out[first:stop] = self._block(padded)[: stop - first]
        return out

    def _block(self, channels: Array) -> Array:
        hidden = _windows(channels) @ self._a
        hidden += self.weights.a_bias
        hidden = _windows(np.maximum(hidden, 0.0, out=hidden)) @ self._b
        hidden += self.weights.b_bias
        np.maximum(hidden, 0.0, out=hidden)
        means = np.empty((len(hidden) - BOXES[-1] + 1, len(BOXES) * hidden.shape[1]), np.float32)
        _box_means(hidden, self._boxes, np.zeros((len(BOXES), hidden.shape[1])), means)
        return self._head(means)

    def _head(self, means: Array) -> Array:
        inner = means @ self._c
        inner += self.weights.c_bias
        result: Array = np.maximum(inner, 0.0, out=inner) @ self._d
        result += self.weights.d_bias
        return result

    def stream(self) -> TrunkStream:
        """Return the live face, at the beginning of a history."""
        return TrunkStream(self)


class TrunkStream:
    """One row of channels in, one embedding out; keeps 8 rows, a ring of 256 and four running sums: O(1) a bar."""

    def __init__(self, trunk: BoxTrunk) -> None:
        self._trunk = trunk
        hidden = trunk.weights.a_weight.shape[0]
        self._input = np.zeros((WIDTH, trunk.weights.channels), np.float32)
        self._first = np.zeros((WIDTH, hidden), np.float32)
        self._ring = np.zeros((BOXES[-1], hidden), np.float32)
        self._sums = np.zeros((len(BOXES), hidden))
        self._means = np.zeros((1, len(BOXES) * hidden), np.float32)
        self._seen = 0

    def update(self, channels: Array) -> Array:
        """Take ``(C,)`` channels and return the ``(D,)`` embedding."""
        trunk = self._trunk
        self._input[:-1] = self._input[1:]
        self._input[-1] = channels
        self._first[:-1] = self._first[1:]
        self._first[-1] = np.maximum(self._input.ravel() @ trunk._a + trunk.weights.a_bias, 0.0)
        hidden = np.maximum(self._first.ravel() @ trunk._b + trunk.weights.b_bias, 0.0)
        _slide(self._seen, hidden, self._ring, self._sums, trunk._boxes, self._means)
        self._seen += 1
        result: Array = trunk._head(self._means)[0]
        return result

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return what has to be kept to go on."""
        return {
            "input": self._input.copy(), "first": self._first.copy(), "ring": self._ring.copy(),
            "sums": self._sums.copy(), "seen": np.array([self._seen]),
        }  # fmt: skip

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Go on from what :meth:`state` gave."""
        for name in ("input", "first", "ring", "sums"):
            getattr(self, "_" + name)[...] = state[name]
        self._seen = int(state["seen"][0])


def _windows(rows: Array) -> Array:
    """Lay ``WIDTH`` successive rows side by side: ``(n, k)`` to ``(n - WIDTH + 1, WIDTH k)``, a copy."""
    view = np.lib.stride_tricks.sliding_window_view(rows, WIDTH, axis=0)  # (n - 4, k, 5)
    return np.ascontiguousarray(view.transpose(0, 2, 1)).reshape(len(view), -1)


@compiled
def _box_means(hidden: Array, boxes: NDArray[np.int64], sums: NDArray[np.float64], means: Array) -> None:
    """Means over each box ending at every row from the longest box on; ``sums (4, H)`` starts at zero."""
    width, longest = hidden.shape[1], boxes[-1]
    for t in range(hidden.shape[0]):
        for b in range(boxes.shape[0]):
            box = boxes[b]
            if t >= longest - box:
                if t >= longest:
                    for h in range(width):
                        sums[b, h] += np.float64(hidden[t, h]) - np.float64(hidden[t - box, h])
                else:
                    for h in range(width):
                        sums[b, h] += hidden[t, h]
            if t >= longest - 1:
                scale = 1.0 / box
                for h in range(width):
                    means[t - longest + 1, b * width + h] = np.float32(sums[b, h] * scale)


@compiled
def _slide(
    seen: int, hidden: Array, ring: Array, sums: NDArray[np.float64], boxes: NDArray[np.int64], means: Array
) -> None:
    """Add a row to the ring and take the oldest of each box out of its sum."""
    size, width = ring.shape
    place = seen % size
    for b in range(boxes.shape[0]):
        box = boxes[b]
        scale = 1.0 / box
        leaving = (seen - box) % size
        for h in range(width):
            gone = np.float64(ring[leaving, h]) if seen >= box else 0.0
            sums[b, h] += np.float64(hidden[h]) - gone
            means[0, b * width + h] = np.float32(sums[b, h] * scale)
    for h in range(width):
        ring[place, h] = hidden[h]
