"""DrawCounts: how often each row was drawn, in two bytes a row.

A count is kept modulo 2^16; the rest is in a dictionary, which has at most one entry for every 65,536 draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

LOW_BITS = 16
LOW_MASK = (1 << LOW_BITS) - 1
PIECE = 1 << 24
HIGH_LIMIT = 1 << 8
"""A snapshot with a row of 2^24 draws is refused, for its histogram would take the memory; the log is read instead."""


class DrawCounts:
    """Draws of the rows [0, num_rows)."""

    def __init__(self, num_rows: int) -> None:
        self._low = np.zeros(num_rows, np.uint16)
        self._high: dict[int, int] = {}
        self.histogram: Int64 = np.array([num_rows])
        """[k] rows drawn k times."""

    def add(self, rows: Int64) -> None:
        """Count these draws; a row counts as often as it appears."""
        drawn, count = np.unique(rows, return_counts=True)
        before = self._of(drawn)
        after = before + count
        self._low[drawn] = (after & LOW_MASK).astype(np.uint16)
        for place in np.flatnonzero(after > LOW_MASK):
            self._high[int(drawn[place])] = int(after[place]) >> LOW_BITS
        # The histogram follows the drawn rows alone: counting all of them after each window would take seconds at 10^9.
        size = max(len(self.histogram), int(after.max(initial=0)) + 1)
        moved = np.bincount(after, minlength=size) - np.bincount(before, minlength=size)
        self.histogram = np.pad(self.histogram, (0, size - len(self.histogram))) + moved

    def part(self, first: int, last: int) -> NDArray[np.uint32]:
        """Return the draws of the rows [first, last), uint32 [last - first]; a copy."""
        # Rows with more than 65,535 draws are few, so a scan over all of them costs nothing beside the copy.
        counts = self._low[first:last].astype(np.uint32)
        for row, high in self._high.items():
            if first <= row < last:
                counts[row - first] += np.uint32(high << LOW_BITS)
        return counts

    @property
    def nbytes(self) -> int:
        """Bytes kept for the rows."""
        return self._low.nbytes

    def pack(self) -> dict[str, NDArray[Any]]:
        """Return arrays from which `unpack` restores the counts."""
        rows = np.array(sorted(self._high), np.int64)
        high = np.array([self._high[int(row)] for row in rows], np.int64)
        return {"times": self._low, "times_above": np.stack([rows, high])}

    def accepts(self, above: Int64) -> bool:
        """Return whether `unpack` can take these rows with more than 65,535 draws."""
        rows, high = above
        known = bool(((rows >= 0) & (rows < len(self._low))).all())
        return known and bool(((high >= 0) & (high < HIGH_LIMIT)).all())

    def unpack(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over the arrays of `pack`, which become this object's own."""
        self._low = arrays["times"]
        self._high = {int(row): int(high) for row, high in arrays["times_above"].T}
        # In pieces: bincount makes int64 of its input, 8 bytes a row.
        pieces = range(0, len(self._low), PIECE)
        size = int(self._low.max()) + 1
        self.histogram = sum(
            (np.bincount(self._low[first : first + PIECE], minlength=size) for first in pieces),
            np.zeros(size, np.int64),
        )
        if self._high:
            rows = np.array(list(self._high))
            exact = self._of(rows)
            size = max(len(self.histogram), int(exact.max()) + 1)
            moved = np.bincount(exact, minlength=size) - np.bincount(self._low[rows], minlength=size)
            self.histogram = np.pad(self.histogram, (0, size - len(self.histogram))) + moved

    def _of(self, rows: Int64) -> Int64:
        counts = self._low[rows].astype(np.int64)
        if self._high:
            counts += np.array([self._high.get(int(row), 0) for row in rows], np.int64) << LOW_BITS
        return counts


def draw_summary(histogram: NDArray[np.int64]) -> dict[str, Any]:
    """Return quantiles (least, quarters, most), mean and zeros of a histogram, [k] samples drawn k times."""
    cumulative, draws = np.cumsum(histogram), np.arange(len(histogram))
    total = int(cumulative[-1])
    return {
        "quantiles": [float(np.searchsorted(cumulative, max(1.0, share * total))) for share in (0, 0.25, 0.5, 0.75, 1)],
        "mean": float((histogram * draws).sum() / total),
        "never": int(histogram[0]),
    }
