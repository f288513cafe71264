"""Control latency: from the arrival of a request to the moment the trainer takes the first batch drawn under it.

A change waits for the first window that is not drawn yet; how long that may take is known beforehand (`bound_steps`),
and how long it took is measured, kept for the quantiles and written into the run's log.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.api.consumed import quantile

KEPT = 4096
"""Measurements that the quantiles are of."""
PREFETCHED_WINDOWS = 1
"""Windows that the stream draws ahead of the one in use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """A change that has not reached the trainer yet."""

    arrived_s: float
    """When its request came, in seconds since the epoch."""
    step: int
    """First step under it."""
    taken_s: float
    """When it was acknowledged."""
    what: str
    """Kind and author, for the log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Landed:
    """A change that has."""

    pending: Pending
    """The change."""
    latency_s: float
    """Seconds from its request to its first batch."""


class LatencyMeter:
    """Measures every change. Safe to use from several threads."""

    def __init__(self) -> None:
        self._pending: list[Pending] = []
        self._seconds: deque[float] = deque(maxlen=KEPT)
        self._count = 0
        self._lock = threading.Lock()

    def expect(self, pending: Pending) -> None:
        """A change was acknowledged."""
        with self._lock:
            self._pending.append(pending)

    def forget(self) -> None:
        """The run rests: what is pending would measure how long a person lets it rest."""
        with self._lock:
            self._pending.clear()

    def took(self, consumed: Sequence[tuple[int, float]]) -> list[Landed]:
        """The trainer took these (step, time); returns the changes that have landed by that."""
        landed: list[Landed] = []
        with self._lock:
            for step, taken_s in consumed:
                due = [pending for pending in self._pending if pending.step <= step]
                self._pending = [pending for pending in self._pending if pending.step > step]
                landed += [Landed(pending=one, latency_s=max(0.0, taken_s - one.arrived_s)) for one in due]
            self._seconds.extend(one.latency_s for one in landed)
            self._count += len(landed)
        return landed

    def summary(self) -> dict[str, Any]:
        """Under "count", "p50_s", "p99_s" and "last_s"; None before the first."""
        with self._lock:
            seconds, count = list(self._seconds), self._count
        return {"count": count, **quantiles(seconds), "last_s": seconds[-1] if seconds else None}


def quantiles(seconds: list[float]) -> dict[str, float | None]:
    """Median and 99th percentile."""
    return {"p50_s": quantile(seconds, 0.5), "p99_s": quantile(seconds, 0.99)}


def bound_steps(window_steps: int, *, ranks: int = 1) -> int:
    """Most steps that the trainer takes from a request to the first batch drawn under it.

    It ends the step that it is at, and one of several ranks may be at the next one already; the window that follows may
    have been drawn, and the one after that as well.
    """
    return min(ranks, 2) + window_steps * (1 + PREFETCHED_WINDOWS)
