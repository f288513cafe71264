"""SampleTable: all samples of a run, in one id range or in several, here or in other processes.

Ranges are asked in parallel. A weight table is the cumulative sum of the segments' masses over all ranges, in id order;
drawing from it gives the same samples, bit for bit, however the segments are spread, because ranges end where segments
end. So how many ranges there are is a matter of memory, not of what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scoring.draw.sampling import BLOCK, SEGMENT_BLOCKS, Float64, Int64, cumulative_masses, split_points
from scoring.policies import PolicyOptions, PolicyPlan
from scoring.prototypes import num_distances
from scoring.table.columns import Columns, TableFacts
from scoring.table.scores import ScoreReport, rows_of
from scoring.temperature import EXACT_LIMIT, DistanceProfile, checked_distance

Result = TypeVar("Result")

HIGHEST_SCORE_BITS = int(np.array(np.finfo(np.float32).max).view(np.uint32))


class SampleTable:
    """The columns of a run, whole."""

    def __init__(self, ranges: Sequence[Columns], *, options: PolicyOptions) -> None:
        """Join ranges that follow each other without gaps and end at segment borders.

        A range is `Columns`, or something with its methods where it lives in another process.
        """
        self.ranges = list(ranges)
        self._starts = np.array([part.first_id for part in self.ranges])
        self.num_samples = sum(part.num_samples for part in self.ranges)
        self._pool = ThreadPoolExecutor(len(self.ranges)) if len(self.ranges) > 1 else None
        self._numbers = count(1)
        self._facts = TableFacts(num_samples=self.num_samples, options=options)
        self.has_distances = False
        self._see_distances()

    def _see_distances(self) -> None:
        spans = [span for span in self.each(lambda part: part.distance_range()) if span is not None]
        self.has_distances = bool(spans)
        if spans:
            span = min(low for low, _ in spans), max(high for _, high in spans)
            self._facts = replace(self._facts, distance_range=span)

    def take_distances(self, path: Path) -> None:
        """Use the distances of a file of `Prototypes.save` instead; each range reads its own.

        Raises:
            ValueError: if it does not hold a finite one for each sample; the table is as it was.
        """
        size = num_distances(path)
        if size != self.num_samples:
            raise ValueError(
                f"{path} must hold a distance for each of the {self.num_samples} samples; it holds {size}."
            )
        try:
            self.each(lambda part: part.take_distances(str(path)))
        except BaseException:
            self.each(lambda part: part.undo_distances())
            raise
        self._see_distances()

    def undo_distances(self) -> None:
        """Use the distances from before the last `take_distances` again."""
        self.each(lambda part: part.undo_distances())
        self._see_distances()

    def settle_distances(self) -> None:
        """Let go of the distances from before."""
        self.each(lambda part: part.settle_distances())

    def each(self, ask: Callable[[Columns], Result]) -> list[Result]:
        """The answers of all ranges in id order."""
        return [ask(part) for part in self.ranges] if self._pool is None else list(self._pool.map(ask, self.ranges))

    def profile(self, subsets: Sequence[str] = ()) -> DistanceProfile | None:
        """The distances of all ranges (of the samples in all these subsets), ready for solving; None without."""
        if not self.has_distances:
            return None
        exact, (low, high) = self.num_samples <= EXACT_LIMIT, self._facts.distance_range
        exact = exact or low == high
        parts = self.each(lambda part: part.distance_bins(low, high, exact=exact, subsets=subsets))
        if exact:
            return DistanceProfile(np.concatenate([values for values, _ in parts]), num_draws=self.num_samples)
        sums, counts = np.sum([part[0] for part in parts], axis=0), np.sum([part[1] for part in parts], axis=0)
        used = counts > 0
        return DistanceProfile(sums[used] / counts[used], counts=counts[used], num_draws=self.num_samples)

    def weights(self, plan: PolicyPlan, temperature: float) -> WeightTable:
        """Weigh every sample under a law.

        Raises:
            ValueError: if the policy's weights are not finite and not negative, all zero, or look across rows.
        """
        facts = replace(self._facts, mean_score=self._mean_scores()) if plan.reads_scores else self._facts
        number = next(self._numbers)
        return WeightTable(self, number, self.each(lambda part: part.build(number, plan, temperature, facts)))

    def by_range(self, ids: Int64) -> list[tuple[Columns, slice | Int64]]:
        """Where these ids live: (range, positions among the ids), ranges without any left out."""
        if len(self.ranges) == 1:
            return [(self.ranges[0], slice(None))]
        home = np.searchsorted(self._starts, ids, side="right") - 1
        return [(self.ranges[part], np.flatnonzero(home == part)) for part in np.unique(home)]

    def count(self, ids: Int64) -> None:
        """Count these draws."""
        for part, rows in self.by_range(ids):
            part.count(ids[rows])

    def times_drawn(self) -> NDArray[np.uint32]:
        """[N] draws of each sample; a copy."""
        return np.concatenate(self.each(lambda part: part.times_drawn()))

    def draw_histogram(self) -> Int64:
        """[k] samples drawn k times."""
        parts = self.each(lambda part: part.draw_histogram())
        total = np.zeros(max(len(part) for part in parts), np.int64)
        for part in parts:
            total[: len(part)] += part
        return total

    def merge(self, reports: Iterable[ScoreReport]) -> None:
        """Take the newer of these scores."""
        for report in reports:
            for part, rows in self.by_range(report.ids):
                part.merge([report if len(self.ranges) == 1 else rows_of(report, rows)])

    def held(self, report: ScoreReport) -> ScoreReport:
        """The part of a merged report that no newer one has taken the place of."""
        holds = np.zeros(len(report.ids), np.bool_)
        for part, rows in self.by_range(report.ids):
            holds[rows] = part.holds(rows_of(report, rows))
        return rows_of(report, np.flatnonzero(holds))

    def scores(self, kind: str) -> NDArray[np.float32]:
        """[N] scores, NaN where there is none; a copy."""
        return np.concatenate(self.each(lambda part: part.scores(kind)))

    def scored(self) -> dict[str, int]:
        """By kind, how many samples have a score."""
        totals: dict[str, int] = {}
        for part in self.each(lambda part: part.scored()):
            totals |= {kind: totals.get(kind, 0) + number for kind, number in part.items()}
        return totals

    def find_round(self, kind: str, rho: float) -> tuple[int, float, int]:
        """The border of the floor(rho * N) samples with the highest score, at ties the lower id (PASS, section 4).

        Returns:
            How many are kept, the score at the border, and the last id that is kept at that score.

        Raises:
            ValueError: if a sample has no score, or none would be kept.
        """
        kept = int(rho * self.num_samples)
        missing = self.num_samples - self.scored().get(kind, 0)
        if missing or not kept:
            raise ValueError(
                f"a round needs a {kind} score for every sample, and keeps at least one; got {missing} without a score "
                f"and floor(rho * N) = {kept}. Score the whole data first."
            )
        bits = _last_true(lambda b: sum(self.each(lambda part: part.count_at_least(kind, _score(b)))) >= kept)
        threshold, above = _score(bits), _score(bits + 1)
        left = kept - sum(self.each(lambda part: part.count_at_least(kind, above)))
        for part in self.ranges:
            at = part.count_at_least(kind, threshold) - part.count_at_least(kind, above)
            if left <= at:
                return kept, threshold, part.nth_at(kind, threshold, left)
            left -= at
        raise AssertionError("the samples at the border lie in some range")

    def close_round(self, kind: str, threshold: float, last_id: int) -> None:
        """Restrict the subset of this kind to what `find_round` found."""
        self.each(lambda part: part.close_round(kind, threshold, last_id))

    def selected(self, kind: str) -> NDArray[np.bool_]:
        """[N] whether a sample is in the last round's subset; all are before the first."""
        return np.concatenate(self.each(lambda part: part.selected(kind)))

    def distances(self) -> NDArray[np.float32] | None:
        """[N] prototype distances; None when the run has none."""
        parts = [part for part in self.each(lambda part: part.distances()) if part is not None]
        return np.concatenate(parts) if parts else None

    def rows(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        """Columns of the samples [first, last), all of one range: times_drawn, distance, score_<kind>."""
        ((part, _),) = self.by_range(np.array([first]))
        return part.rows(first, last)

    def bytes_kept(self) -> int:
        """Bytes of all columns and weight tables."""
        return sum(self.each(lambda part: part.bytes_kept()))

    def _mean_scores(self) -> dict[str, float]:
        """Mean score by kind, over the samples that have one; kinds whose scores are all zero are left out."""
        parts, means = self.each(lambda part: part.score_sums()), {}
        for kind, number in self.scored().items():
            # The exact sum, so that the mean does not depend on how segments are spread over ranges.
            total = math.fsum(segment for part in parts for segment in part.get(kind, ()))
            if total > 0.0:
                means[kind] = total / number
        return means


class WeightTable:
    """A sample table weighed under one law: what is needed to draw from it."""

    def __init__(self, table: SampleTable, number: int, masses: Sequence[Sequence[float]]) -> None:
        """Add up the segments' masses, [ranges][segments]; ValueError if all are zero."""
        self._table, self._number = table, number
        self._cumulative = cumulative_masses([mass for part in masses for mass in part])
        self._home = np.repeat(np.arange(len(masses)), [len(part) for part in masses])
        self._first = np.cumsum([0, *(len(part) for part in masses)])

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return float(self._cumulative[-1])

    def effective_size(self) -> float:
        """Expected share of distinct samples in N draws from this table, summed over every sample."""
        size, number, total = self._table.num_samples, self._number, self.total
        parts = self._table.each(lambda part: part.expected_distinct(number, total, size))
        return math.fsum(segment for part in parts for segment in part) / size

    def probabilities(self) -> Iterator[tuple[int, Float64]]:
        """Probability of every sample in one draw, a segment at a time: (id of the first, their probabilities)."""
        first = 0
        for home, segment in zip(self._home, np.arange(len(self._home)) - self._first[self._home], strict=True):
            weights = self._table.ranges[home].segment_weights(self._number, int(segment))
            yield first, weights / self.total
            first += len(weights)

    def draw(self, uniforms: Float64) -> tuple[Int64, Float64]:
        """One draw for each uniform in [0, 1): sample ids and their probabilities, in the order of the uniforms."""
        order = np.argsort(uniforms)
        requests: dict[int, list[tuple[int, Float64]]] = {}
        for segment, points in split_points(self._cumulative, uniforms[order]):
            home = int(self._home[segment])
            requests.setdefault(home, []).append((segment - int(self._first[home]), points))

        def ask(part: Columns) -> tuple[Int64, Float64]:
            asked = requests.get(self._table.ranges.index(part), [])
            return part.draw(self._number, asked) if asked else (np.empty(0, np.int64), np.empty(0))

        drawn = self._table.each(ask)
        ids, weights = np.empty(len(uniforms), np.int64), np.empty(len(uniforms))
        ids[order] = np.concatenate([part for part, _ in drawn])
        weights[order] = np.concatenate([part for _, part in drawn])
        return ids, weights / self.total


def local_ranges(
    distance: NDArray[np.float32] | None, num_samples: int, *, ranges: int = 1, segment_blocks: int = SEGMENT_BLOCKS
) -> list[Columns]:
    """The samples cut into ranges of whole segments, as even as that allows; fewer where there are fewer segments."""
    checked = None if distance is None else checked_distance(distance).astype(np.float32, copy=False)
    return [
        Columns(
            None if checked is None else checked[first:last],
            num_samples=last - first,
            first_id=first,
            segment_blocks=segment_blocks,
        )
        for first, last in range_borders(num_samples, ranges=ranges, segment_blocks=segment_blocks)
    ]


def range_borders(num_samples: int, *, ranges: int, segment_blocks: int = SEGMENT_BLOCKS) -> list[tuple[int, int]]:
    """First id and end of each range."""
    segment_rows = segment_blocks * BLOCK
    segments = -(-num_samples // segment_rows)
    ends = [min(num_samples, (segments * part // ranges) * segment_rows) for part in range(1, ranges + 1)]
    return [(first, last) for first, last in zip([0, *ends], ends, strict=False) if first < last]


def _last_true(holds: Callable[[int], bool]) -> int:
    """Largest bit pattern of a finite score for which a condition that starts true and turns false once holds."""
    low, high = 0, HIGHEST_SCORE_BITS + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _score(bits: int) -> float:
    """The float32 of a bit pattern; scores are not negative, so patterns are in the order of values."""
    return float(np.array(bits, np.uint32).view(np.float32))
