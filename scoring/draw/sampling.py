"""Drawing: exact draws with replacement from any weights, in float64, without keeping a cumulative sum of N values.

Rows are grouped in blocks of 64, blocks in segments of half a million rows. A segment keeps the cumulative sums of its
blocks, a table the cumulative sums of its segments. A draw is a point in [0, total): binary searches find its segment
and its block; then the weights of the blocks that were hit, and only those, are computed again and searched.

Segments do not depend on each other, so they may be weighed in parallel, and may lie in different processes: whoever
adds up the same masses in the same order draws the same samples, bit for bit.

Uniforms come from Philox keyed by (seed, window), as raw 64-bit words, whose stream numpy guarantees. They are searched
in sorted order, for the sake of the cache, and put back in the order drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Blocks = slice | Int64
Weigh = Callable[[Blocks], Float64]
"""Weights of some blocks of one table, [blocks * BLOCK], zero past the last sample; the same however asked for."""

BLOCK = 64
SEGMENT_BLOCKS = 1 << 13
"""Blocks of a segment: 2^19 rows."""
BLOCKS_AT_ONCE = 1 << 10
"""Blocks weighed at once: 2^16 rows keep every temporary array within a core's cache."""


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


class Segment:
    """Cumulative block sums of some consecutive blocks, and draws from them."""

    def __init__(self, weigh: Weigh, first_block: int, num_blocks: int) -> None:
        """Weigh the blocks once.

        Raises:
            ValueError: if a weight is negative or not finite.
        """
        self._weigh, self._first, self._num_blocks = weigh, first_block, num_blocks
        sums, done = np.empty(num_blocks), 0
        for weights in self.weights():
            _check_weights(weights, (first_block + done) * BLOCK)
            blocks = len(weights) // BLOCK
            np.sum(weights.reshape(blocks, BLOCK), axis=1, out=sums[done : done + blocks])
            done += blocks
        self._cumulative = np.cumsum(sums)
        self.mass = float(self._cumulative[-1])

    def weights(self) -> Iterator[Float64]:
        """The weights of all rows, some blocks at a time."""
        end = self._first + self._num_blocks
        for start in range(self._first, end, BLOCKS_AT_ONCE):
            yield self._weigh(slice(start, min(start + BLOCKS_AT_ONCE, end)))

    def draw(self, points: Float64) -> tuple[Int64, Float64]:
        """Sample ids and weights at ascending points of [0, mass)."""
        cumulative = self._cumulative
        last = int(np.searchsorted(cumulative, self.mass, side="left"))  # blocks after it weigh nothing
        block = np.minimum(np.searchsorted(cumulative, points, side="right"), last)
        rest = points - np.where(block > 0, cumulative[block - 1], 0.0)
        hit = np.flatnonzero(np.diff(block, prepend=-1))
        bounds = [*hit[::BLOCKS_AT_ONCE], len(block)]
        parts = [self._draw_within(block[a:b], rest[a:b]) for a, b in pairwise(bounds)]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([weights for _, weights in parts])

    def _draw_within(self, block: Int64, rest: Float64) -> tuple[Int64, Float64]:
        """Sample ids and weights at points of some blocks, given by what is left of them inside their block."""
        hit = np.flatnonzero(np.diff(block, prepend=-1))
        weights = self._weigh(block[hit] + self._first)
        within = np.cumsum(weights.reshape(-1, BLOCK), axis=1)
        slot = np.repeat(np.arange(len(hit)), np.diff(hit, append=len(block)))
        # Rounding may put a point at the very end of its block: the largest point below keeps it off zero weights.
        point = np.clip(rest, 0.0, np.nextafter(within[:, -1], 0.0)[slot])
        column = _first_above(within, slot, point)
        return (block + self._first) * BLOCK + column, weights[slot * BLOCK + column]

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return self._cumulative.nbytes


def cumulative_masses(masses: list[float]) -> Float64:
    """Cumulative sum of segment masses; ValueError if all are zero."""
    cumulative = np.cumsum(np.array(masses, np.float64))
    if not cumulative[-1] > 0.0:
        raise ValueError("at least one weight must be above zero; got zeros only. Choose another policy.")
    return cumulative


def split_points(cumulative: Float64, uniforms: Float64) -> Iterator[tuple[int, Float64]]:
    """Ascending uniforms in [0, 1), cut by segment: (segment, points within its mass), in order, none empty."""
    points = uniforms * cumulative[-1]
    last = int(np.searchsorted(cumulative, cumulative[-1], side="left"))  # segments after it weigh nothing
    segment = np.minimum(np.searchsorted(cumulative, points, side="right"), last)
    bounds = np.searchsorted(segment, np.arange(last + 2))
    for number in range(last + 1):
        start, stop = int(bounds[number]), int(bounds[number + 1])
        if start < stop:
            yield number, points[start:stop] - (cumulative[number - 1] if number else 0.0)


def _first_above(within: Float64, slot: Int64, point: Float64) -> Int64:
    """For each point, the first column of its row of ascending sums that exceeds it: binary search, all at once."""
    flat, start = within.ravel(), slot * BLOCK
    place, stride = start.copy(), BLOCK // 2
    while stride:
        place += stride * (flat[place + (stride - 1)] <= point)
        stride //= 2
    return place - start


def _check_weights(weights: Float64, first_id: int) -> None:
    if not (weights.min() >= 0.0 and weights.max() < np.inf):
        row = int(np.flatnonzero(~((weights >= 0.0) & (weights < np.inf)))[0])
        raise ValueError(
            f"weights must be finite and not negative; the policy gave {weights[row]} for sample {first_id + row}."
        )
