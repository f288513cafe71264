"""Scores reported by trainers: many writers may report, twice and in any order, with one outcome.

Every sample keeps the value of the report with the greatest (step, producer, sequence). That maximum does not depend on
the order of arrival, so merging is commutative and idempotent. A sample costs 8 bytes: the value, and the number of the
report that holds it; (step, producer, sequence) is stored once for each report.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scoring.policies import SCORE_KINDS

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

REPORT_LIMIT = 1 << 24
"""Most scores of one report: 16 M."""
NUMBER_LIMIT = 1 << 63
"""Steps and sequences are below it: the range of the log's integers."""
PRODUCER_LIMIT = 200
"""Longest name of a producer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreReport:
    """Scores of one producer at one step, already checked."""

    ids: Int64
    """[n] sample ids; if one is named twice its last value counts."""
    values: Float32
    """[n], finite and not negative."""
    kind: str
    """One of SCORE_KINDS."""
    step: int
    """Optimizer step at which they were measured."""
    producer: str
    """Name of the rank that measured."""
    sequence: int
    """Number of the report among its producer's."""


class ScoreTable:
    """Scores of one kind for every row."""

    def __init__(self, num_rows: int) -> None:
        self.values = np.full(num_rows, np.nan, np.float32)
        """[num_rows] scores, NaN where none was reported."""
        self.holder = np.zeros(num_rows, np.uint32)
        """[num_rows] number of the report that each value is from."""
        self._order = np.full((1, 3), -1, np.int64)  # report 0 stands for "none" and precedes all
        self._num_reports = 1
        self._producers: list[str] = []

    def merge(self, report: ScoreReport) -> None:
        """Take the values that are newer than those that their samples hold."""
        number = self._number(report)
        order = self._comparable()
        new, ids = order[number], report.ids
        holder = self.holder[ids]
        held_step = order[holder, 0]
        newer = new[0] > held_step
        # Mostly a report is newer than all that its samples hold; ties of the step go to producer, then sequence.
        if not newer.all():
            held = order[holder]
            tie_won = (new[1] > held[:, 1]) | ((new[1] == held[:, 1]) & (new[2] > held[:, 2]))
            newer |= (new[0] == held_step) & tie_won
            ids = ids[newer]
        values = report.values if len(ids) == len(newer) else report.values[newer]
        self.values[ids] = values  # where an id comes twice numpy keeps the last
        self.holder[ids] = number

    def held(self, report: ScoreReport) -> ScoreReport:
        """Return the part of a merged report that no newer report has replaced.

        Of a sample that the report names twice both values stay: merged again, the last one counts as before.
        """
        order = report.step, self._producers.index(report.producer), report.sequence
        numbers = np.flatnonzero((self._order[: self._num_reports] == order).all(axis=1))
        rows = np.flatnonzero(np.isin(self.holder[report.ids], numbers))
        return replace(report, ids=report.ids[rows], values=report.values[rows])

    @property
    def scored(self) -> int:
        """Rows that have a score."""
        return int(np.count_nonzero(self.holder))

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return self.values.nbytes + self.holder.nbytes + self._order.nbytes

    def pack(self) -> tuple[Int64, list[str]]:
        """Return (step, producer, sequence) of every report, and the names of the producers."""
        return self._order[: self._num_reports].copy(), list(self._producers)

    def unpack(self, values: Float32, holder: NDArray[np.uint32], order: Int64, producers: list[str]) -> None:
        """Take over the two columns, which become this table's own, and the values of `pack`."""
        # Not copied: at 10^9 rows the copy would be 8 GB more than recovery needs.
        self.values, self.holder = values, holder
        self._order, self._num_reports, self._producers = order.copy(), len(order), list(producers)

    def _number(self, report: ScoreReport) -> int:
        """Enter a report into the list and return its number; the list doubles when it is full."""
        if report.producer not in self._producers:
            self._producers.append(report.producer)
        if self._num_reports == len(self._order):
            self._order = np.concatenate([self._order, np.empty_like(self._order)])
        self._order[self._num_reports] = report.step, self._producers.index(report.producer), report.sequence
        self._num_reports += 1
        return self._num_reports - 1

    def _comparable(self) -> Int64:
        """Return the orders with producers numbered by name, so that ties do not depend on which came first."""
        order = self._order[: self._num_reports]
        if self._producers == sorted(self._producers):
            return order
        rank = np.empty(len(self._producers) + 1, np.int64)
        rank[np.argsort(np.array(self._producers))] = np.arange(len(self._producers))
        rank[-1] = -1
        return np.stack([order[:, 0], rank[order[:, 1]], order[:, 2]], axis=1)


def is_order(order: Int64, producers: list[str]) -> bool:
    """Return whether this can come from `ScoreTable.pack`: report 0 stands for none, every producer has a name."""
    if order.ndim != 2 or order.shape[1:] != (3,) or not len(order) or (order[0] != -1).any():
        return False
    return bool(((order[1:, 1] >= 0) & (order[1:, 1] < len(producers))).all()) and len(set(producers)) == len(producers)


def checked_report(report: ScoreReport, num_samples: int) -> tuple[ScoreReport, dict[str, int]]:
    """Return the part of a report that can be taken, in its final types, and the number of refused scores by reason.

    Raises:
        ValueError: naming the field that is wrong as a whole.
    """
    if report.kind not in SCORE_KINDS:
        raise ValueError(f"kind must be one of {', '.join(SCORE_KINDS)}; got {report.kind!r}.")
    for name, number in (("step", report.step), ("sequence", report.sequence)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number < NUMBER_LIMIT:
            raise ValueError(f"{name} must be an integer in 0..2^63 - 1; got {str(number)[:40]}.")
    named = isinstance(report.producer, str) and 0 < len(report.producer) <= PRODUCER_LIMIT
    if not named or not report.producer.isprintable():
        raise ValueError(
            f"producer must be a name of 1 to {PRODUCER_LIMIT} characters; got {str(report.producer)[:40]!r}."
        )
    ids, values, rejected = checked_scores(report.ids, report.values, num_samples)
    return replace(report, ids=ids, values=values, step=int(report.step), sequence=int(report.sequence)), rejected


def checked_scores(ids: ArrayLike, values: ArrayLike, num_samples: int) -> tuple[Int64, Float32, dict[str, int]]:
    """Return the pairs that can be taken, and the number of refused ones by reason.

    Raises:
        ValueError: if ids are not integers, or ids and values are not two lists of one length up to REPORT_LIMIT.
    """
    id_array, value_array = np.asarray(ids), np.asarray(values)
    if value_array.size and value_array.dtype.kind not in "fiu":
        raise ValueError(f"values must be real numbers; got {value_array.dtype}.")
    if value_array.dtype != np.float32:
        value_array = value_array.astype(np.float64)
    if id_array.ndim != 1 or id_array.shape != value_array.shape or len(id_array) > REPORT_LIMIT:
        raise ValueError(
            f"ids and values must be two lists of one length, at most {REPORT_LIMIT}; got {id_array.shape}, "
            f"{value_array.shape}."
        )
    if id_array.size and id_array.dtype.kind not in "iu":
        raise ValueError(f"ids must be integers; got {id_array.dtype}.")
    unknown = (id_array < 0) | (id_array >= num_samples)
    not_finite = ~unknown & ~(np.abs(value_array) <= np.finfo(np.float32).max)
    negative = ~unknown & ~not_finite & (value_array < 0)
    refused = unknown | not_finite | negative
    if not refused.any():
        return id_array.astype(np.int64), value_array.astype(np.float32), {}
    counts = {"unknown_id": unknown, "not_finite": not_finite, "negative": negative}
    rejected = {reason: int(rows.sum()) for reason, rows in counts.items() if rows.any()}
    return id_array[~refused].astype(np.int64), value_array[~refused].astype(np.float32), rejected
