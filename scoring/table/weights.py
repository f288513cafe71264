"""WeightTable: exact draws with replacement from any weights, in float64, without keeping a cumulative sum of N values.

Rows are grouped in blocks of 64, blocks in segments of half a million rows. A segment keeps the cumulative sums of its
blocks, a table the cumulative sums of its segments. A draw is a point in [0, total): binary searches find its segment
and its block; then the weights of the blocks that were hit, and only those, are computed again and searched.

Segments do not depend on each other, so several threads weigh them. Their size decides how sums are rounded, and so
which samples are drawn: it must not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from scoring.policies import PolicyPlan
from scoring.records import WindowFacts
from scoring.temperature import expected_distinct

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Blocks = slice | Int64
Weigh = Callable[[Blocks], Float64]
"""Weights of some blocks of one table, [blocks * BLOCK], zero past the last sample; equal however blocks are chosen."""

Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCK = 64
SEGMENT_BLOCKS = 1 << 13
"""Blocks of a segment: 2^19 rows."""
BLOCKS_AT_ONCE = 1 << 10
"""Blocks weighed at once: 2^16 rows keep every temporary array within a core's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightKey:
    """What decides a weight table, besides the data: equal keys have equal tables."""

    policy: str
    """Policy name."""
    temperature: float
    """Softmax temperature, positive; infinity for a policy without one."""
    scores_through: int = 0
    """Log sequence of the last score report that the weights read; 0 where they read none."""
    rounds_through: int = 0
    """Log sequence of the last change of the table that the weights read; 0 where they read none."""
    effective_size: float | None = field(default=None, compare=False)
    """Expected share of distinct samples in N draws; None where only the weights give it."""

    @staticmethod
    def of_window(facts: WindowFacts) -> WeightKey:
        """Return the key of the table that a window was drawn from."""
        return WeightKey(
            policy=facts.policy,
            temperature=facts.temperature,
            scores_through=facts.scores_through,
            rounds_through=facts.rounds_through,
            effective_size=facts.effective_size,
        )


class WeightTable:
    """All samples weighed under one key."""

    def __init__(
        self,
        key: WeightKey,
        plan: PolicyPlan,
        weigh: Weigh,
        *,
        num_samples: int,
        pool: ThreadPoolExecutor,
        segment_blocks: int = SEGMENT_BLOCKS,
    ) -> None:
        """Weigh every sample once.

        Raises:
            ValueError: if a weight is negative or not finite, or all are zero.
        """
        self.key, self.plan, self.num_samples, self._pool = key, plan, num_samples, pool
        num_blocks = -(-num_samples // BLOCK)
        self._segments = self._in_threads(
            lambda first: Segment(weigh, first, min(segment_blocks, num_blocks - first)),
            range(0, num_blocks, segment_blocks),
        )
        self._cumulative = np.cumsum(np.array([segment.mass for segment in self._segments], np.float64))
        if not self._cumulative[-1] > 0.0:
            raise ValueError("at least one weight must be above zero; got zeros only. Choose another policy.")

    @cached_property
    def effective_size(self) -> float:
        """Expected share of distinct samples in N draws; summed over every sample where the key does not give it."""
        if self.key.effective_size is not None:
            return self.key.effective_size
        total, size = float(self._cumulative[-1]), self.num_samples

        def distinct(segment: Segment) -> float:
            return sum(expected_distinct(weights / total, np.ones(1), size) for weights in segment.weights())

        return math.fsum(self._in_threads(distinct, self._segments)) / size

    def probabilities(self) -> Iterator[tuple[int, Float64]]:
        """Yield (id of the first sample, probability of each sample in one draw), a segment at a time.

        The probabilities, float64 [n], sum to 1 over all segments. They are not kept: each call weighs all again.
        """
        first = 0
        for segment in self._segments:
            weights = np.concatenate(list(segment.weights()))[: self.num_samples - first]
            yield first, weights / float(self._cumulative[-1])
            first += len(weights)

    def draw(self, uniforms: Float64) -> tuple[Int64, Float64]:
        """Draw once for each uniform in [0, 1), at least one.

        Returns:
            Sample ids and their probabilities, in the order of the uniforms.
        """
        # Sorted points visit each segment once and in order, for the sake of the cache; `order` undoes the sorting.
        order, cumulative = np.argsort(uniforms), self._cumulative
        points = uniforms[order] * cumulative[-1]
        # A point is searched in its segment by its distance from the segment's start. Rounding may put one at the very
        # end of all: it belongs to the last segment that weighs something.
        last = int(np.searchsorted(cumulative, cumulative[-1], side="left"))
        segment = np.minimum(np.searchsorted(cumulative, points, side="right"), last)
        bounds = np.searchsorted(segment, np.arange(last + 2))
        requests = [
            (number, points[start:stop] - (cumulative[number - 1] if number else 0.0))
            for number, (start, stop) in enumerate(pairwise(bounds.tolist()))
            if start < stop
        ]
        drawn = self._in_threads(lambda request: self._segments[request[0]].draw(request[1]), requests)
        ids, weights = np.empty(len(uniforms), np.int64), np.empty(len(uniforms))
        ids[order] = np.concatenate([found for found, _ in drawn])
        weights[order] = np.concatenate([found for _, found in drawn])
        return ids, weights / float(cumulative[-1])

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(segment._cumulative.nbytes for segment in self._segments)

    def _in_threads(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Work on all items in several threads: numpy releases the interpreter's lock where the time is spent."""
        return [work(items[0])] if len(items) == 1 else list(self._pool.map(work, items))


class Segment:
    """Cumulative block sums of some consecutive blocks, and draws from them."""

    def __init__(self, weigh: Weigh, first_block: int, num_blocks: int) -> None:
        """Weigh the blocks once.

        Raises:
            ValueError: if a weight is negative or not finite.
        """
        # Whole rows of 64 are summed pairwise by numpy, then cumulatively: float32 sums would make 40 % of 14 M samples
        # unreachable, and other orders of summing would round to other draws.
        self._weigh, self._first, self._num_blocks = weigh, first_block, num_blocks
        sums, done = np.empty(num_blocks), 0
        for weights in self.weights():
            if not (weights.min() >= 0.0 and weights.max() < np.inf):
                row = int(np.flatnonzero(~((weights >= 0.0) & (weights < np.inf)))[0])
                raise ValueError(
                    f"weights must be finite and not negative; the policy gave {weights[row]} for sample "
                    f"{(first_block + done) * BLOCK + row}."
                )
            blocks = len(weights) // BLOCK
            np.sum(weights.reshape(blocks, BLOCK), axis=1, out=sums[done : done + blocks])
            done += blocks
        self._cumulative = np.cumsum(sums)
        self.mass = float(self._cumulative[-1])

    def weights(self) -> Iterator[Float64]:
        """Yield the weights of all rows, some blocks at a time."""
        end = self._first + self._num_blocks
        for start in range(self._first, end, BLOCKS_AT_ONCE):
            yield self._weigh(slice(start, min(start + BLOCKS_AT_ONCE, end)))

    def draw(self, points: Float64) -> tuple[Int64, Float64]:
        """Return sample ids and weights at ascending points of [0, mass)."""
        # First the block of each point, then the blocks that were hit are weighed again, some at a time: keeping all
        # weights would take 8 bytes a sample.
        cumulative = self._cumulative
        last = int(np.searchsorted(cumulative, self.mass, side="left"))  # blocks after it weigh nothing
        block = np.minimum(np.searchsorted(cumulative, points, side="right"), last)
        rest = points - np.where(block > 0, cumulative[block - 1], 0.0)
        hit = np.flatnonzero(np.diff(block, prepend=-1))
        bounds = [*hit[::BLOCKS_AT_ONCE], len(block)]
        parts = [self._draw_within(block[a:b], rest[a:b]) for a, b in pairwise(bounds)]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([weights for _, weights in parts])

    def _draw_within(self, block: Int64, rest: Float64) -> tuple[Int64, Float64]:
        """Return sample ids and weights at points given by their block and their rest inside it."""
        hit = np.flatnonzero(np.diff(block, prepend=-1))
        weights = self._weigh(block[hit] + self._first)
        within = np.cumsum(weights.reshape(-1, BLOCK), axis=1)
        slot = np.repeat(np.arange(len(hit)), np.diff(hit, append=len(block)))
        # Rounding may put a point at the very end of its block: the largest point below keeps it off zero weights.
        point = np.clip(rest, 0.0, np.nextafter(within[:, -1], 0.0)[slot])
        # The first column of each row whose sum exceeds the point: a binary search over all rows at once.
        flat, start = within.ravel(), slot * BLOCK
        place, stride = start.copy(), BLOCK // 2
        while stride:
            place += stride * (flat[place + (stride - 1)] <= point)
            stride //= 2
        column = place - start
        return (block + self._first) * BLOCK + column, weights[slot * BLOCK + column]
