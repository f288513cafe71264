"""Drawing: exact draws with replacement from any weights, in float64, without keeping a cumulative sum of N values.

The table keeps one float64 sum for each block of 64 rows. A draw is a uniform number in [0, total): a binary search in
the cumulative block sums finds its block, then the weights of the blocks that were hit, and only those, are computed
again and searched. Uniforms come from Philox keyed by (seed, window), as raw 64-bit words, whose stream numpy
guarantees. They are searched in sorted order, for the sake of the cache, and put back in the order drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Rows = slice | Int64
Weigh = Callable[[Rows], Float64]
"""Weights of some rows; the same for a row however it is asked for."""

BLOCK = 64
CHUNK = BLOCK * (1 << 14)
"""Rows weighed at once: 1 M rows keep the working set in a few cache-friendly megabytes."""


class Stream(IntEnum):
    """Purposes of random words; each has its own counter range under one key."""

    DRAWS = 0
    SHUFFLE = 1


def random_words(seed: int, key: int, count: int, stream: Stream) -> NDArray[np.uint64]:
    """Raw Philox4x64 words of (seed, key) for one purpose."""
    words = np.random.Philox(key=np.array([seed, key], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64))
    return words.random_raw(count)


def random_uniforms(seed: int, window: int, count: int) -> Float64:
    """`count` uniforms in [0, 1), multiples of 2^-53."""
    words = random_words(seed, window, count, Stream.DRAWS)
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


class WeightTable:
    """Block sums over a weight function: what is needed to draw, at an eighth of a byte a sample."""

    def __init__(self, weigh: Weigh, num_samples: int) -> None:
        """Weigh every row once.

        Raises:
            ValueError: if a weight is negative or not finite, or all are zero.
        """
        self._weigh, self.num_samples = weigh, num_samples
        sums = np.empty(-(-num_samples // BLOCK))
        for start in range(0, num_samples, CHUNK):
            weights = weigh(slice(start, min(start + CHUNK, num_samples)))
            _check_weights(weights, start)
            first, whole = start // BLOCK, len(weights) // BLOCK
            sums[first : first + whole] = weights[: whole * BLOCK].reshape(whole, BLOCK).sum(axis=1)
            if whole * BLOCK < len(weights):
                sums[first + whole] = weights[whole * BLOCK :].sum()
        self._cumulative = np.cumsum(sums)
        self.total = float(self._cumulative[-1])
        if not self.total > 0.0:
            raise ValueError(f"at least one weight must be above zero; got {num_samples} zeros. Choose another policy.")

    def probabilities(self, rows: Rows) -> Float64:
        """Probability of some rows in one draw."""
        return self._weigh(rows) / self.total

    def draw(self, uniforms: Float64) -> tuple[Int64, Float64]:
        """One draw for each uniform in [0, 1): sample ids and their probabilities, in the order of the uniforms."""
        order = np.argsort(uniforms)
        ids, probability = self._draw_sorted(uniforms[order] * self.total)
        drawn, drawn_probability = np.empty_like(ids), np.empty_like(probability)
        drawn[order], drawn_probability[order] = ids, probability
        return drawn, drawn_probability

    def _draw_sorted(self, targets: Float64) -> tuple[Int64, Float64]:
        """Draws for ascending points of [0, total)."""
        cumulative = self._cumulative
        last = np.searchsorted(cumulative, self.total, side="left")  # trailing blocks without weight are out of reach
        block = np.minimum(np.searchsorted(cumulative, targets, side="right"), last)
        first_of_block = np.flatnonzero(np.diff(block, prepend=-1))
        hit = block[first_of_block]
        rows = (hit[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        inside = rows < self.num_samples
        weights = self._weigh(np.minimum(rows, self.num_samples - 1)) * inside
        within = np.cumsum(weights.reshape(-1, BLOCK), axis=1)
        slot = np.repeat(np.arange(len(hit)), np.diff(first_of_block, append=len(block)))
        before = np.where(block > 0, cumulative[block - 1], 0.0)
        # Rounding may put a point at the very end of its block: the largest point below keeps it off zero weights.
        point = np.clip(targets - before, 0.0, np.nextafter(within[slot, -1], 0.0))
        column = _first_above(within, slot, point)
        picked = slot * BLOCK + column
        return rows[picked], weights[picked] / self.total


def _first_above(within: Float64, slot: Int64, point: Float64) -> Int64:
    """For each point, the first column of its row of ascending sums that exceeds it: binary search, all at once."""
    flat, column = within.ravel(), slot * BLOCK
    stride = BLOCK // 2
    while stride:
        column = column + stride * (flat[column + stride - 1] <= point)
        stride //= 2
    return column - slot * BLOCK


def _check_weights(weights: Float64, start: int) -> None:
    bad = ~(np.isfinite(weights) & (weights >= 0.0))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"weights must be finite and not negative; the policy gave {weights[row]} for sample {start + row}."
        )
