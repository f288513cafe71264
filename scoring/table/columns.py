"""Columns: what is known about the samples of one id range, and the weights made from it.

Columns are padded to whole blocks, so that a block is one contiguous row. Kept for a sample: distance (4 bytes), a
score and the report that holds it (8), how often it was drawn (2); besides, a bit for each subset and an eighth of a
byte for the block sums. A range knows nothing of the others: what concerns the whole table comes as `TableFacts`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scoring.draw.sampling import BLOCK, SEGMENT_BLOCKS, Blocks, Float64, Int64, Segment
from scoring.policies import PolicyOptions, PolicyPlan
from scoring.prototypes import load_distances
from scoring.table.draw_counts import DrawCounts
from scoring.table.scores import SCORE_KINDS, ScoreReport, ScoreTable, is_order
from scoring.temperature import checked_distance, distance_bins, expected_distinct

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 2
SELF_CHECK_BLOCKS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFacts:
    """Facts about the whole table that a row's weight may depend on."""

    num_samples: int
    """Samples of all ranges."""
    distance_range: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest distance."""
    mean_score: Mapping[str, float] = field(default_factory=dict)
    """Mean score by kind; absent where nothing was scored."""
    options: PolicyOptions = field(default_factory=PolicyOptions)
    """Constants of the policies."""


class Columns:
    """The samples [first_id, first_id + num_samples). Ids in and out are global."""

    def __init__(
        self,
        distance: NDArray[np.float32] | None,
        *,
        num_samples: int,
        first_id: int = 0,
        segment_blocks: int = SEGMENT_BLOCKS,
    ) -> None:
        self.num_samples, self.first_id, self.segment_blocks = num_samples, first_id, segment_blocks
        self.num_blocks = -(-num_samples // BLOCK)
        self.padded = self.num_blocks * BLOCK
        self.distance = None if distance is None else _padded(distance, self.padded)
        self._before: tuple[()] | tuple[NDArray[np.float32] | None] = ()
        self.counts = DrawCounts(num_samples)
        self.score_tables: dict[str, ScoreTable] = {}
        self.subsets: dict[str, NDArray[np.uint8]] = {}
        self._tables: OrderedDict[int, list[Segment]] = OrderedDict()
        self._pool = ThreadPoolExecutor(THREADS)

    # -- distances ----------------------------------------------------------------------------------------------------

    def distance_range(self) -> tuple[float, float] | None:
        """Smallest and largest distance; None without distances."""
        return None if self.distance is None else (float(self.distance.min()), float(self.distance.max()))

    def distances(self) -> NDArray[np.float32] | None:
        """[num_samples] distances; None without."""
        return None if self.distance is None else self.distance[: self.num_samples]

    def take_distances(self, path: str) -> None:
        """Use the distances that a file has for these samples; those before are kept until they are settled."""
        values = checked_distance(load_distances(path, self.first_id, self.first_id + self.num_samples))
        self._before = (self.distance,)
        self.distance = _padded(values.astype(np.float32, copy=False), self.padded)

    def undo_distances(self) -> None:
        """Use those from before again, if others were taken."""
        if self._before:
            (self.distance,), self._before = self._before, ()

    def settle_distances(self) -> None:
        """Let go of those from before."""
        self._before = ()

    def distance_bins(
        self, low: float, high: float, *, exact: bool, subsets: Sequence[str] = ()
    ) -> tuple[Float64, Float64]:
        """Values and counts of the distances: one a sample, or the sums and counts of the bins of [low, high].

        With `subsets` only samples that are in all of them count.
        """
        assert self.distance is not None, "the table asks only where there are distances"
        values = self.distance[: self.num_samples]
        for kind in subsets:
            values = np.where(self.selected(kind), values, np.nan)
        values = values[~np.isnan(values)] if subsets else values
        return (values.astype(np.float64), np.ones(len(values))) if exact else distance_bins(values, low, high)

    # -- weights ------------------------------------------------------------------------------------------------------

    def weigh(self, blocks: Blocks, plan: PolicyPlan, temperature: float, facts: TableFacts) -> Float64:
        """Weights of some blocks under a law, zero past the last sample.

        Raises:
            ValueError: if the policy does not return one weight a row.
        """
        rows = _Rows(self, blocks, temperature, facts)
        weights = plan.weigh(rows)
        if weights.shape != (rows.num_rows,):
            raise ValueError(f"a policy must return one weight a row ({rows.num_rows}); got shape {weights.shape}.")
        if rows.touches_end and self.padded > self.num_samples:
            weights = np.where(rows.row_numbers() < self.num_samples, weights, 0.0)
        return weights

    def build(self, number: int, plan: PolicyPlan, temperature: float, facts: TableFacts) -> list[float]:
        """Weigh every row under a law and keep the block sums under this number; returns the segments' masses.

        Raises:
            ValueError: if the policy gives weights that are not finite and not negative, or looks across rows.
        """

        def weigh(blocks: Blocks) -> Float64:
            return self.weigh(blocks, plan, temperature, facts)

        def segment(first: int) -> Segment:
            return Segment(weigh, first, min(self.segment_blocks, self.num_blocks - first))

        if plan.has_user_code:
            self._check_rowwise(plan, temperature, facts)
        segments = self._side_by_side(segment, range(0, self.num_blocks, self.segment_blocks))
        self._tables[number] = segments
        while len(self._tables) > 1:  # the one before stays usable until here
            self._tables.popitem(last=False)
        return [part.mass for part in segments]

    def draw(self, number: int, requests: list[tuple[int, Float64]]) -> tuple[Int64, Float64]:
        """Sample ids and weights at ascending points of some segments, one request after the other."""
        segments = self._tables[number]
        drawn = self._side_by_side(lambda request: segments[request[0]].draw(request[1]), requests)
        return np.concatenate([ids for ids, _ in drawn]) + self.first_id, np.concatenate([part for _, part in drawn])

    def segment_weights(self, number: int, segment: int) -> Float64:
        """Weights of all samples of a segment."""
        weights = np.concatenate(list(self._tables[number][segment].weights()))
        return weights[: self.num_samples - segment * self.segment_blocks * BLOCK]

    def expected_distinct(self, number: int, total: float, num_draws: int) -> list[float]:
        """Expected distinct samples of each segment among draws from the whole table, whose weights sum to `total`."""

        def of_blocks(weights: Float64) -> float:
            return expected_distinct(weights / total, np.ones(1), num_draws)

        return self._side_by_side(lambda s: sum(map(of_blocks, s.weights())), self._tables[number])

    def _side_by_side(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """The work on all items, by several threads: numpy lets go of the interpreter where it counts."""
        return [work(items[0])] if len(items) == 1 else list(self._pool.map(work, items))

    def _check_rowwise(self, plan: PolicyPlan, temperature: float, facts: TableFacts) -> None:
        """Weigh some blocks together and alone: a row-wise policy gives the same."""
        some = np.unique(np.linspace(0, self.num_blocks - 1, SELF_CHECK_BLOCKS).astype(np.int64))
        together = self.weigh(some, plan, temperature, facts)
        alone = np.concatenate([self.weigh(some[i : i + 1], plan, temperature, facts) for i in range(len(some))])
        if not np.array_equal(together, alone, equal_nan=True):
            raise ValueError(
                f"policy {plan.name!r} must weigh each row by itself; its weights change with the rows beside it. "
                "Use table-wide facts (num_samples, mean_score, distance_range) instead of sums over the call."
            )

    # -- draws --------------------------------------------------------------------------------------------------------

    def count(self, ids: Int64) -> None:
        """Count these draws; only their rows are touched."""
        self.counts.add(ids - self.first_id)

    def times_drawn(self) -> NDArray[np.uint32]:
        """[num_samples] draws of each sample; a copy."""
        return self.counts.part(0, self.num_samples)

    def draw_histogram(self) -> Int64:
        """[k] samples drawn k times."""
        return self.counts.histogram

    # -- scores -------------------------------------------------------------------------------------------------------

    def merge(self, reports: Iterable[ScoreReport]) -> None:
        """Take the newer of these scores; the ids are all of this range."""
        for report in reports:
            if report.kind not in self.score_tables:
                self.score_tables[report.kind] = ScoreTable(self.padded)
            local = replace(report, ids=report.ids - self.first_id) if self.first_id else report
            self.score_tables[report.kind].merge(local)

    def holds(self, report: ScoreReport) -> NDArray[np.bool_]:
        """Which of a merged report's samples still have their value from it; the ids are all of this range."""
        return self.score_tables[report.kind].holds(replace(report, ids=report.ids - self.first_id))

    def scores(self, kind: str) -> NDArray[np.float32]:
        """[num_samples] scores, NaN where there is none; a copy."""
        table = self.score_tables.get(kind)
        return (
            np.full(self.num_samples, np.nan, np.float32) if table is None else table.values[: self.num_samples].copy()
        )

    def score_sums(self) -> dict[str, list[float]]:
        """By kind, the sum of the scores of each segment."""
        rows = range(0, self.padded, self.segment_blocks * BLOCK)
        return {
            kind: [float(np.nansum(table.values[r : r + rows.step], dtype=np.float64)) for r in rows]
            for kind, table in self.score_tables.items()
        }

    def scored(self) -> dict[str, int]:
        """By kind, how many samples have a score."""
        return {kind: table.scored for kind, table in self.score_tables.items()}

    # -- selection rounds ---------------------------------------------------------------------------------------------

    def count_at_least(self, kind: str, score: float) -> int:
        """Samples whose score is at least this."""
        return int(np.count_nonzero(self.score_tables[kind].values >= np.float32(score)))

    def nth_at(self, kind: str, score: float, number: int) -> int:
        """Id of the `number`-th sample (from 1) with exactly this score."""
        return int(np.flatnonzero(self.score_tables[kind].values == np.float32(score))[number - 1]) + self.first_id

    def close_round(self, kind: str, threshold: float, last_id: int) -> None:
        """Keep the samples above the threshold, and those at it up to `last_id`."""
        values = self.score_tables[kind].values
        at = (values == np.float32(threshold)) & (np.arange(self.padded) + self.first_id <= last_id)
        self.subsets[kind] = np.packbits((values > np.float32(threshold)) | at)

    def selected(self, kind: str) -> NDArray[np.bool_]:
        """[num_samples] whether a sample is in the last round's subset; all are before the first."""
        bits = self.subsets.get(kind)
        if bits is None:
            return np.ones(self.num_samples, np.bool_)
        return np.unpackbits(bits, count=self.num_samples).view(np.bool_)

    # -- reading ------------------------------------------------------------------------------------------------------

    def rows(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        """Columns of the samples [first, last): times_drawn, and where the run has them distance and score_<kind>."""
        part = slice(first - self.first_id, last - self.first_id)
        columns: dict[str, NDArray[Any]] = {"times_drawn": self.counts.part(part.start, part.stop)}
        if self.distance is not None:
            columns["distance"] = self.distance[part]
        return columns | {f"score_{kind}": table.values[part] for kind, table in self.score_tables.items()}

    # -- keeping ------------------------------------------------------------------------------------------------------

    def bytes_kept(self) -> int:
        """Bytes of all columns and tables."""
        columns = self.counts.nbytes + sum(bits.nbytes for bits in self.subsets.values())
        columns += 0 if self.distance is None else self.distance.nbytes
        scores = sum(table.nbytes for table in self.score_tables.values())
        return columns + scores + sum(segment.nbytes for part in self._tables.values() for segment in part)

    def pack(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and facts from which `unpack` restores everything but the distances."""
        arrays = self.counts.pack()
        arrays |= {f"subset.{kind}": bits for kind, bits in self.subsets.items()}
        producers = {}
        for kind, table in self.score_tables.items():
            order, producers[kind] = table.pack()
            arrays |= {f"score.{kind}": table.values, f"holder.{kind}": table.holder, f"order.{kind}": order}
        return arrays, {"first_id": self.first_id, "num_samples": self.num_samples, "producers": producers}

    def accepts(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> bool:
        """Whether these are what `pack` gives of a range like this one."""
        above = arrays.get("times_above", np.empty(0))
        shapes = {"times": ("<u2", (self.num_samples,)), "times_above": ("<i8", (2, above.shape[-1]))}
        for kind, producers in facts["producers"].items():
            order, holder = arrays.get(f"order.{kind}", np.empty((0, 0))), arrays.get(f"holder.{kind}", np.empty(0))
            shapes |= {f"score.{kind}": ("<f4", (self.padded,)), f"holder.{kind}": ("<u4", (self.padded,))}
            shapes[f"order.{kind}"] = ("<i8", (max(1, len(order)), 3))
            if not is_order(order, producers) or int(holder.max(initial=0)) >= len(order):
                return False
        for name in arrays:
            if name.startswith("subset."):
                shapes[name] = ("|u1", (self.padded // 8,))
        kinds = {name.partition(".")[2] for name in shapes if "." in name}
        found = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
        return kinds <= set(SCORE_KINDS) and found == shapes and self.counts.accepts(above)

    def unpack(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        """Take over what `pack` gave."""
        assert (facts["first_id"], facts["num_samples"]) == (self.first_id, self.num_samples), "same id range"
        self.counts.unpack(arrays)
        self.subsets = {n.removeprefix("subset."): a.copy() for n, a in arrays.items() if n.startswith("subset.")}
        for kind, producers in facts["producers"].items():
            table = self.score_tables[kind] = ScoreTable(self.padded)
            table.unpack(arrays[f"score.{kind}"], arrays[f"holder.{kind}"], arrays[f"order.{kind}"], producers)


class _Rows:
    """Some blocks of the columns as `TableInputs`; a column is gathered when a policy asks for it."""

    def __init__(self, columns: Columns, blocks: Blocks, temperature: float, facts: TableFacts) -> None:
        self._columns, self._blocks, self._facts, self.temperature = columns, blocks, facts, temperature
        count = blocks.stop - blocks.start if isinstance(blocks, slice) else len(blocks)
        last = blocks.stop - 1 if isinstance(blocks, slice) else blocks[-1]
        self.touches_end = bool(last == columns.num_blocks - 1)
        self.num_rows, self.num_samples = count * BLOCK, facts.num_samples
        self.options, self.distance_range = facts.options, facts.distance_range

    def row_numbers(self) -> Int64:
        blocks = self._blocks
        numbers = np.arange(blocks.start, blocks.stop) if isinstance(blocks, slice) else blocks
        return np.asarray((numbers[:, None] * BLOCK + np.arange(BLOCK)).ravel(), dtype=np.int64)

    def sample_ids(self) -> Int64:
        return self._columns.first_id + np.minimum(self.row_numbers(), self._columns.num_samples - 1)

    def distances(self) -> Float64:
        if self._columns.distance is None:
            raise ValueError("this policy needs prototype distances; this run has none. Run `tempera score` first.")
        return self._gather(self._columns.distance)

    def scores(self, kind: str) -> Float64:
        if kind not in SCORE_KINDS:
            raise ValueError(f"a score must be one of {', '.join(SCORE_KINDS)}; got {kind!r}.")
        table = self._columns.score_tables.get(kind)
        return np.full(self.num_rows, np.nan) if table is None else self._gather(table.values)

    def mean_score(self, kind: str) -> float:
        return self._facts.mean_score.get(kind, 1.0)

    def selected(self, kind: str) -> NDArray[np.bool_]:
        bits = self._columns.subsets.get(kind)
        if bits is None:
            return np.ones(self.num_rows, np.bool_)
        return np.unpackbits(bits.reshape(-1, BLOCK // 8)[self._blocks].ravel()).view(np.bool_)

    def _gather(self, column: NDArray[np.float32]) -> Float64:
        return np.asarray(column.reshape(-1, BLOCK)[self._blocks].astype(np.float64).ravel())


def _padded(values: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """At this length; not copied where it has it already."""
    return values if len(values) == length else np.pad(values, (0, length - len(values)), mode="edge")
