"""Scores pushed by trainers: a table that many writers may report to, twice and in any order, with one outcome.

Every sample keeps the value of the report with the greatest (step, producer, sequence). That maximum does not depend on
the order of arrival, so merging is commutative and idempotent. A sample costs 8 bytes: the value, and the number of the
report that holds it; what a report's order is stands once, in the list of reports.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int64 = NDArray[np.int64]

SCORE_KINDS = ("bss", "pass", "loss")
"""Scores that a run may hold: the two of PASS, and a plain training loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreReport:
    """Scores of one producer at one step, already checked."""

    ids: Int64
    """[n] sample ids; if one is named twice its last value counts."""
    values: NDArray[np.float32]
    """[n], finite and not negative."""
    kind: str
    """One of SCORE_KINDS."""
    step: int
    """Optimizer step at which they were measured."""
    producer: str
    """Who measured, one name a rank."""
    sequence: int
    """Number of the report among its producer's."""


class ScoreTable:
    """Scores of one kind for every sample."""

    def __init__(self, num_samples: int) -> None:
        self.values = np.full(num_samples, np.nan, np.float32)
        self._holder = np.zeros(num_samples, np.uint32)
        self._order = np.full((1, 3), -1, np.int64)
        self._num_reports = 1  # report 0 stands for "none" and precedes all
        self._producers: list[str] = []

    def merge(self, report: ScoreReport) -> None:
        """Take the values that are newer than what their samples hold."""
        number = self._enrol(report)
        order = self._order[: self._num_reports]
        rank = self._producer_rank()
        held = order[self._holder[report.ids]]
        new = order[number]
        newer = (new[0] > held[:, 0]) | (
            (new[0] == held[:, 0])
            & ((rank[new[1]] > rank[held[:, 1]]) | ((rank[new[1]] == rank[held[:, 1]]) & (new[2] > held[:, 2])))
        )
        ids, values = _keep_last(report.ids[newer], report.values[newer])
        self.values[ids], self._holder[ids] = values, number

    @property
    def scored(self) -> int:
        """Samples that have a score."""
        return int(np.count_nonzero(self._holder))

    def _enrol(self, report: ScoreReport) -> int:
        if report.producer not in self._producers:
            self._producers.append(report.producer)
        if self._num_reports == len(self._order):
            self._order = np.concatenate([self._order, np.empty_like(self._order)])
        self._order[self._num_reports] = report.step, self._producers.index(report.producer), report.sequence
        self._num_reports += 1
        return self._num_reports - 1

    def _producer_rank(self) -> Int64:
        """Place of each producer in the order of names, so that ties do not depend on who reported first."""
        rank = np.full(len(self._producers) + 1, -1, np.int64)
        rank[np.argsort(np.array(self._producers))] = np.arange(len(self._producers))
        return rank


def checked_scores(
    ids: ArrayLike, values: ArrayLike, num_samples: int
) -> tuple[Int64, NDArray[np.float32], dict[str, int]]:
    """The pairs that can be taken, and how many were refused for which reason.

    Raises:
        ValueError: if ids are not integers, or ids and values are not two equally long lists.
    """
    id_array, value_array = np.asarray(ids), np.asarray(values, dtype=np.float64)
    if id_array.ndim != 1 or id_array.shape != value_array.shape:
        raise ValueError(f"ids and values must be two lists of one length; got {id_array.shape}, {value_array.shape}.")
    if id_array.size and id_array.dtype.kind not in "iu":
        raise ValueError(f"ids must be integers; got {id_array.dtype}.")
    unknown = (id_array < 0) | (id_array >= num_samples)
    not_finite = ~unknown & ~(np.abs(value_array) <= np.finfo(np.float32).max)
    negative = ~unknown & ~not_finite & (value_array < 0)
    counts = {"unknown_id": unknown, "not_finite": not_finite, "negative": negative}
    good = ~(unknown | not_finite | negative)
    rejected = {reason: int(rows.sum()) for reason, rows in counts.items() if rows.any()}
    return id_array[good].astype(np.int64), value_array[good].astype(np.float32), rejected


def _keep_last(ids: Int64, values: NDArray[np.float32]) -> tuple[Int64, NDArray[np.float32]]:
    unique, position = np.unique(ids[::-1], return_index=True)
    return unique, values[::-1][position]
