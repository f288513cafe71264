"""Control latency: the time from a request to the moment when the trainer receives the first batch drawn under it.

1. A change is acknowledged: the service calls `LatencyMeter.expect` with the first step under it. How long it can take
   at most is known beforehand (`bound_steps`): the change waits for the first window that is not drawn yet.
2. `Consumption` follows consumed.jsonl, which the first rank writes (`deploy.launch.consumed`).
3. `LatencyMeter.record` compares both, keeps the latencies for the quantiles and writes them into the run log.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.api.line_index import LineIndex
from scoring import Event

KEPT_LATENCIES = 4096
"""The quantiles are over this many last changes."""
KEPT_STEPS = 8192
"""Consumed steps kept in memory."""
SPEED_S = 20.0
"""The speed is the mean over this many last seconds."""
PREFETCHED_WINDOWS = 1
"""Windows that the stream draws ahead of the one in use."""


class Consumption:
    """The trainer's position and speed, read from consumed.jsonl. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._lines = LineIndex(path)
        self._lock = threading.Lock()
        self._num_read = self._restarts = 0
        self._received: deque[tuple[int, float]] = deque(maxlen=KEPT_STEPS)
        self._requested_s: deque[float] = deque(maxlen=KEPT_STEPS)

    def follow(self) -> list[tuple[int, float]]:
        """Return (step, time received) of the batches consumed since the last call, in order."""
        with self._lock:
            self._lines.update()
            if self._lines.restarts != self._restarts:
                self._num_read, self._restarts = 0, self._lines.restarts
            rows = self._lines.rows_from(self._num_read)
            self._num_read += len(rows)
            # A file that grew large begins again with lines that were read before.
            newest_s = self._received[-1][1] if self._received else 0.0
            fresh = [row for row in rows if row["time"] > newest_s]
            received = [(int(row["step"]), float(row["time"])) for row in fresh]
            self._received.extend(received)
            self._requested_s.extend(float(row["asked"]) for row in fresh)
            return received

    def step_at(self, time_s: float) -> int | None:
        """Return the last step whose batch was requested by then, in seconds since the epoch; None if not known."""
        with self._lock:
            before = bisect_right(self._requested_s, time_s)
            return self._received[before - 1][0] if before else None

    def progress(self) -> tuple[int, float | None]:
        """Return the newest step whose batch was received, and the mean seconds of a step over the last SPEED_S.

        The step is 0 before the first batch; the seconds are None before two steps.
        """
        with self._lock:
            received = list(self._received)
        if not received:
            return 0, None
        # Two steps at least, however long they take.
        begin = bisect_left(received, received[-1][1] - SPEED_S, key=lambda one: one[1])
        (first, began_s), (last, ended_s) = received[max(0, min(begin, len(received) - 2))], received[-1]
        return last, (ended_s - began_s) / (last - first) if last > first and ended_s > began_s else None


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingChange:
    """An acknowledged change whose first batch the trainer has not received yet."""

    arrived_s: float
    """When its request arrived, in seconds since the epoch."""
    step: int
    """First step under it."""
    acknowledged_s: float
    """When it was acknowledged, in seconds since the epoch."""
    what: str
    """Kind and author, for the log."""


class LatencyMeter:
    """Measures the latency of every change. Safe to use from several threads."""

    def __init__(self) -> None:
        self._pending: list[PendingChange] = []
        self._seconds: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._count = 0
        self._lock = threading.Lock()

    def expect(self, change: PendingChange) -> None:
        with self._lock:
            self._pending.append(change)

    def forget(self) -> None:
        """Drop the pending changes: after a pause they would measure how long a person let the run rest."""
        with self._lock:
            self._pending.clear()

    def match(self, received: Sequence[tuple[int, float]]) -> list[tuple[PendingChange, float]]:
        """Return each change whose first batch is among the received (step, time), with its latency in seconds."""
        done: list[tuple[PendingChange, float]] = []
        with self._lock:
            for step, time_s in received:
                # A cut file or a resumed run may pass over a step, so later steps count as well.
                due = [change for change in self._pending if change.step <= step]
                self._pending = [change for change in self._pending if change.step > step]
                # The first rank may run on another node, whose clock is behind.
                done += [(change, max(0.0, time_s - change.arrived_s)) for change in due]
            self._seconds.extend(latency_s for _, latency_s in done)
            self._count += len(done)
        return done

    def record(self, consumption: Consumption, write: Callable[[Event], None]) -> None:
        """Write the latency of each change whose first batch the trainer has received since the last call."""
        for change, latency_s in self.match(consumption.follow()):
            at_step = consumption.step_at(change.acknowledged_s)
            steps = "" if at_step is None else f", {change.step - at_step} steps after it was taken"
            message = f"{change.what}: first batch at step {change.step}{steps}"
            write(Event(kind="control_latency", author="api", message=message, value=round(latency_s, 4)))

    def summary(self) -> dict[str, Any]:
        """Return "count", "p50_s", "p99_s" and "last_s"; seconds are None before the first."""
        with self._lock:
            seconds, count = list(self._seconds), self._count
        quantiles = {"p50_s": quantile(seconds, 0.5), "p99_s": quantile(seconds, 0.99)}
        return {"count": count, **quantiles, "last_s": seconds[-1] if seconds else None}


def quantile(values: list[float], share: float) -> float | None:
    """Return the value that at least this share of the values does not exceed; None for no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def bound_steps(window_steps: int, *, ranks: int = 1) -> int:
    """Return the most steps that the trainer takes from a request to the first batch drawn under it.

    It finishes its step, and one of several ranks may be at the next one already; the window that follows may have been
    drawn, and the prefetched one after it as well. A window has `window_steps` optimizer steps.
    """
    return min(ranks, 2) + window_steps * (1 + PREFETCHED_WINDOWS)
