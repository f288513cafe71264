"""SampleTable: all that is known about the samples of a run, and the weights made from it.

Columns are padded to whole blocks, so that a block is one contiguous row. A sample costs 14 bytes: distance (4), score
and the report that holds it (8), draws (2); besides, a bit for each subset. One process holds 10^9 samples. It takes
no lock: the selection holds its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.policies import SCORE_KINDS, PolicyOptions, PolicyPlan
from scoring.table.draw_counts import DrawCounts
from scoring.table.scores import ScoreTable, is_order
from scoring.table.weights import BLOCK, SEGMENT_BLOCKS, Blocks, Float64, Int64, WeightKey, WeightTable
from scoring.temperature import EXACT_LIMIT, DistanceProfile, checked_distance, distance_bins

Float32 = NDArray[np.float32]

THREADS = 2
SELF_CHECK_BLOCKS = 8
HIGHEST_SCORE_BITS = int(np.array(np.finfo(np.float32).max).view(np.uint32))


class SampleTable:
    """The samples [0, num_samples)."""

    def __init__(
        self,
        distance: Float32 | None,
        *,
        num_samples: int,
        options: PolicyOptions | None = None,
        segment_blocks: int = SEGMENT_BLOCKS,
    ) -> None:
        """Begin without draws, scores and subsets.

        Args:
            distance: [num_samples] prototype distances, finite; None for a run without.
            num_samples: samples, 1 or more.
            options: constants of the policies.
            segment_blocks: blocks whose weights are summed together; part of what decides the draws.
        """
        self.num_samples, self.options, self._segment_blocks = num_samples, options or PolicyOptions(), segment_blocks
        self.num_blocks = -(-num_samples // BLOCK)
        self.padded = self.num_blocks * BLOCK
        self.counts = DrawCounts(num_samples)
        self.score_tables: dict[str, ScoreTable] = {}
        self.subsets: dict[str, NDArray[np.uint8]] = {}
        """Kind of score -> a bit for each row that the last round kept."""
        self.distance: Float32 | None = None
        """[padded] distances; the last one is repeated past the end."""
        self.distance_range = (0.0, 1.0)
        self._profiles: dict[tuple[str, ...], DistanceProfile] = {}
        self._pool = ThreadPoolExecutor(THREADS)
        self.swap_distances(distance)

    # -- distances ----------------------------------------------------------------------------------------------------

    def swap_distances(self, distance: Float32 | None) -> Float32 | None:
        """Use other distances, [num_samples] or [padded], and return those from before.

        Raises:
            ValueError: if one is not finite; the table is as it was.
        """
        before = self.distance
        if distance is None:
            self.distance = None
        else:
            values = checked_distance(distance).astype(np.float32, copy=False)
            padding = self.padded - len(values)
            self.distance = np.pad(values, (0, padding), mode="edge") if padding else values
            self.distance_range = float(self.distance.min()), float(self.distance.max())
        self._profiles.clear()
        return before

    def profile(self, subsets: Sequence[str] = ()) -> DistanceProfile | None:
        """Return the distances of the samples in all these subsets, ready for solving; None for a run without.

        Grouping them takes a second at 10^8 samples, so it is done once for each choice of subsets.
        """
        if self.distance is None:
            return None
        if tuple(subsets) in self._profiles:
            return self._profiles[tuple(subsets)]
        values = self.distance[: self.num_samples]
        # Shares stay shares of the whole data set (num_draws), also where only a subset can be drawn.
        if subsets:
            values = values[np.logical_and.reduce([self.selected(kind) for kind in subsets])]
        low, high = self.distance_range
        if self.num_samples <= EXACT_LIMIT or low == high:
            profile = DistanceProfile(values.astype(np.float64), num_draws=self.num_samples)
        else:
            sums, counts = distance_bins(values, low, high)
            used = counts > 0
            profile = DistanceProfile(sums[used] / counts[used], counts=counts[used], num_draws=self.num_samples)
        self._profiles[tuple(subsets)] = profile
        return profile

    # -- weights ------------------------------------------------------------------------------------------------------

    def weigh(self, key: WeightKey, plan: PolicyPlan) -> WeightTable:
        """Weigh every sample under a key.

        Raises:
            ValueError: if the policy's weights are negative, not finite or all zero, or depend on other rows.
        """
        # Means by kind over the samples that have a score, in float64 by segments, added exactly: they do not depend on
        # the number of threads. A kind with only zeros has no mean to divide by.
        mean_scores, step = {}, self._segment_blocks * BLOCK
        for kind, table in self.score_tables.items() if plan.reads_scores else ():
            sums = [float(np.nansum(table.values[r : r + step], dtype=np.float64)) for r in range(0, self.padded, step)]
            total = math.fsum(sums)
            if total > 0.0:
                mean_scores[kind] = total / table.scored

        def weigh(blocks: Blocks) -> Float64:
            rows = _Rows(self, blocks, key.temperature, mean_scores)
            weights = plan.weigh(rows)
            if weights.shape != (rows.num_rows,):
                raise ValueError(f"a policy must return one weight a row ({rows.num_rows}); got shape {weights.shape}.")
            # Rows past the last sample are padding: they must never be drawn.
            if rows.touches_end and self.padded > self.num_samples:
                weights = np.where(rows.row_numbers() < self.num_samples, weights, 0.0)
            return weights

        if plan.has_user_code:
            # Draws weigh single blocks again, so a policy that reads other rows of its call would draw wrongly without
            # an error. Some blocks weighed together and alone show it.
            some = np.unique(np.linspace(0, self.num_blocks - 1, SELF_CHECK_BLOCKS).astype(np.int64))
            alone = np.concatenate([weigh(some[i : i + 1]) for i in range(len(some))])
            if not np.array_equal(weigh(some), alone, equal_nan=True):
                raise ValueError(
                    f"policy {plan.name!r} must weigh each row by itself; its weights change with the rows beside it. "
                    "Use table-wide facts (num_samples, mean_score, distance_range) instead of sums over the call."
                )
        return WeightTable(
            key, plan, weigh, num_samples=self.num_samples, pool=self._pool, segment_blocks=self._segment_blocks
        )

    # -- scores and rounds --------------------------------------------------------------------------------------------

    def score_table(self, kind: str) -> ScoreTable:
        """Return the scores of one kind, one row a sample and padding; made when the kind is first used."""
        if kind not in self.score_tables:
            self.score_tables[kind] = ScoreTable(self.padded)
        return self.score_tables[kind]

    def scores(self, kind: str) -> Float32:
        """Return the scores [num_samples], NaN where there is none; a copy."""
        table = self.score_tables.get(kind)
        if table is None:
            return np.full(self.num_samples, np.nan, np.float32)
        return table.values[: self.num_samples].copy()

    def scored(self) -> dict[str, int]:
        """Return how many samples have a score, by kind."""
        return {kind: table.scored for kind, table in self.score_tables.items()}

    def find_cutoff(self, kind: str, rho: float) -> dict[str, Any]:
        """Find where the floor(rho * N) samples with the highest score end; ties go to the lower id (PASS, section 4).

        Returns:
            "threshold", the score at the cutoff; "last_id", the last one kept at that score; "kept", how many are kept.

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
        values = self.score_tables[kind].values

        # Scores are not negative, so their bit patterns are in the order of their values: bisecting 31 bits finds the
        # largest score that at least `kept` samples reach, without the memory of sorting N values.
        bits, beyond = 0, HIGHEST_SCORE_BITS + 1
        while beyond - bits > 1:
            middle = (bits + beyond) // 2
            reached = np.count_nonzero(values >= np.uint32(middle).view(np.float32)) >= kept
            bits, beyond = (middle, beyond) if reached else (bits, middle)
        threshold, above = np.uint32(bits).view(np.float32), np.uint32(bits + 1).view(np.float32)
        left = kept - int(np.count_nonzero(values >= above))
        last_id = int(np.flatnonzero(values == threshold)[left - 1])
        return {"threshold": float(threshold), "last_id": last_id, "kept": kept}

    def close_round(self, kind: str, threshold: float, last_id: int) -> None:
        """Keep, in the subset of this kind, the samples above the threshold, and those at it up to `last_id`."""
        values = self.score_tables[kind].values
        at = (values == np.float32(threshold)) & (np.arange(self.padded) <= last_id)
        self.subsets[kind] = np.packbits((values > np.float32(threshold)) | at)
        self._profiles.clear()

    def selected(self, kind: str) -> NDArray[np.bool_]:
        """Return whether each sample is in the last round's subset, [num_samples]; all are before the first round."""
        bits = self.subsets.get(kind)
        if bits is None:
            return np.ones(self.num_samples, np.bool_)
        return np.unpackbits(bits, count=self.num_samples).view(np.bool_)

    # -- reading and keeping ------------------------------------------------------------------------------------------

    def rows(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        """Return the columns of samples [first, last): times_drawn, and where there are any distance, score_<kind>."""
        columns: dict[str, NDArray[Any]] = {"times_drawn": self.counts.part(first, last)}
        if self.distance is not None:
            columns["distance"] = self.distance[first:last]
        return columns | {f"score_{kind}": table.values[first:last] for kind, table in self.score_tables.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        columns = (self.distance, self.counts, *self.subsets.values(), *self.score_tables.values())
        return sum(column.nbytes for column in columns if column is not None)

    def pack(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays and facts from which `unpack` restores everything but the distances."""
        arrays = self.counts.pack() | {f"subset.{kind}": bits for kind, bits in self.subsets.items()}
        producers = {}
        for kind, table in self.score_tables.items():
            order, producers[kind] = table.pack()
            arrays |= {f"score.{kind}": table.values, f"holder.{kind}": table.holder, f"order.{kind}": order}
        return arrays, {"num_samples": self.num_samples, "producers": producers}

    def accepts(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> bool:
        """Return whether these can be what `pack` gave of a table of this size; they come from a file."""
        # Every name, type and shape must be expected: an array of another size would be read out of bounds later.
        above = arrays.get("times_above", np.empty(0))
        shapes = {"times": ("<u2", (self.num_samples,)), "times_above": ("<i8", (2, above.shape[-1]))}
        for kind, producers in facts["producers"].items():
            order, holder = arrays.get(f"order.{kind}", np.empty((0, 0))), arrays.get(f"holder.{kind}", np.empty(0))
            shapes |= {f"score.{kind}": ("<f4", (self.padded,)), f"holder.{kind}": ("<u4", (self.padded,))}
            shapes[f"order.{kind}"] = ("<i8", (max(1, len(order)), 3))
            if not is_order(order, producers) or int(holder.max(initial=0)) >= len(order):
                return False
        shapes |= {name: ("|u1", (self.padded // 8,)) for name in arrays if name.startswith("subset.")}
        kinds = {name.partition(".")[2] for name in shapes if "." in name}
        found = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
        known = facts["num_samples"] == self.num_samples and kinds <= set(SCORE_KINDS)
        return known and found == shapes and self.counts.accepts(above)

    def unpack(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        """Take over accepted arrays and facts."""
        self.counts.unpack(arrays)
        self.subsets = {n.removeprefix("subset."): a.copy() for n, a in arrays.items() if n.startswith("subset.")}
        for kind, producers in facts["producers"].items():
            table = self.score_tables[kind] = ScoreTable(self.padded)
            table.unpack(arrays[f"score.{kind}"], arrays[f"holder.{kind}"], arrays[f"order.{kind}"], producers)
        self._profiles.clear()


class _Rows:
    """Some blocks of a table as `TableInputs`; a column is gathered when a policy asks for it."""

    def __init__(
        self, table: SampleTable, blocks: Blocks, temperature: float, mean_scores: Mapping[str, float]
    ) -> None:
        self._table, self._blocks, self._mean_scores, self.temperature = table, blocks, mean_scores, temperature
        self._numbers = np.arange(blocks.start, blocks.stop) if isinstance(blocks, slice) else blocks
        self.touches_end = bool(self._numbers[-1] == table.num_blocks - 1)
        self.num_rows, self.num_samples = len(self._numbers) * BLOCK, table.num_samples
        self.options, self.distance_range = table.options, table.distance_range

    def row_numbers(self) -> Int64:
        return np.asarray((self._numbers[:, None] * BLOCK + np.arange(BLOCK)).ravel(), dtype=np.int64)

    def sample_ids(self) -> Int64:
        return np.minimum(self.row_numbers(), self.num_samples - 1)

    def distances(self) -> Float64:
        if self._table.distance is None:
            raise ValueError("this policy needs prototype distances; this run has none. Run `tempera score` first.")
        return self._gather(self._table.distance)

    def scores(self, kind: str) -> Float64:
        if kind not in SCORE_KINDS:
            raise ValueError(f"a score must be one of {', '.join(SCORE_KINDS)}; got {kind!r}.")
        table = self._table.score_tables.get(kind)
        return np.full(self.num_rows, np.nan) if table is None else self._gather(table.values)

    def mean_score(self, kind: str) -> float:
        return self._mean_scores.get(kind, 1.0)

    def selected(self, kind: str) -> NDArray[np.bool_]:
        bits = self._table.subsets.get(kind)
        if bits is None:
            return np.ones(self.num_rows, np.bool_)
        return np.unpackbits(bits.reshape(-1, BLOCK // 8)[self._blocks].ravel()).view(np.bool_)

    def _gather(self, column: Float32) -> Float64:
        return np.asarray(column.reshape(-1, BLOCK)[self._blocks].astype(np.float64).ravel())
