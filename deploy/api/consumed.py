"""What the trainer has taken from its stream, told to whoever watches: `consumed.jsonl`, one line a step.

The first rank notes when its loop asks for a batch and when it takes it, so that the time from a request to the first
batch drawn under it is measured where that batch is used. Lines are written when a window begins, and every so often.
The file is of the run that is alive and begins anew with it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from deploy.api.tail import LineIndex
from deploy.launch.watched import Stream, WatchedStream
from loader import Batch

log = logging.getLogger(__name__)

NOTE_S = 0.25
"""Within a window lines are written at most so often."""
FILE_BYTES, LAST_LINES = 512 * 1024, 1024
"""Size at which the file begins again, with so many of its last lines."""
NOTED = 8192
"""Notes that are remembered."""
SPEED_S = 20.0
"""The present speed is that of so many last seconds."""


class NotedStream(WatchedStream):
    """A stream of batches that notes when each is asked for, and when it is taken."""

    def __init__(
        self, stream: Stream, path: Path, *, window_steps: int, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(stream)
        self._path, self._window_steps, self._clock = path, window_steps, clock
        self._written_s, self._bytes = 0.0, 0
        self._fresh: list[str] = []
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._warned = False

    def __iter__(self) -> Iterator[Batch]:
        with closing(self._stream.__iter__()) as batches:  # type: ignore[type-var]  # it is a generator
            try:
                asked_s = self._clock()
                for batch in batches:
                    self._note(batch.step, asked_s)
                    yield batch
                    asked_s = self._clock()
            finally:
                self._write()

    def _note(self, step: int, asked_s: float) -> None:
        now = self._clock()
        note = {"step": step, "asked": round(asked_s, 4), "time": round(now, 4)}
        self._fresh.append(json.dumps(note) + "\n")
        if step % self._window_steps == 0 or now - self._written_s >= NOTE_S:
            self._written_s = now
            self._write()

    def _write(self) -> None:
        """Append what is fresh; a file that has grown large begins again with its last lines."""
        lines, self._fresh = self._fresh, []
        if not lines:
            return
        self._last.extend(lines)
        self._bytes += sum(map(len, lines))
        try:
            if self._bytes <= FILE_BYTES:
                with self._path.open("a", encoding="ascii") as file:
                    file.write("".join(lines))
                return
            aside = self._path.with_name(self._path.name + ".part")
            aside.write_text("".join(self._last), "ascii")
            aside.replace(self._path)
            self._bytes = sum(map(len, self._last))
        except OSError:  # a full disk must not end a run for the sake of its watchers
            if not self._warned:
                log.warning("what is consumed could not be noted; control latency is not measured", exc_info=True)
            self._warned = True


class Consumption:
    """The other end: how far the trainer is, how fast, and when it took which step. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        self._lines = LineIndex(path)
        self._lock = threading.Lock()
        self._read = self._restarts = 0
        self._noted: deque[tuple[int, float]] = deque(maxlen=NOTED)
        self._asked: deque[float] = deque(maxlen=NOTED)

    def follow(self) -> list[tuple[int, float]]:
        """(step, time taken) of the batches noted since the last call, in order."""
        with self._lock:
            self._lines.update()
            if self._lines.restarts != self._restarts:
                self._read, self._restarts = 0, self._lines.restarts
            rows = self._lines.rows_from(self._read)
            self._read += len(rows)
            newest_s = self._noted[-1][1] if self._noted else 0.0
            fresh = [row for row in rows if row["time"] > newest_s]
            taken = [(int(row["step"]), float(row["time"])) for row in fresh]
            self._noted.extend(taken)
            self._asked.extend(float(row["asked"]) for row in fresh)
            return taken

    @property
    def step(self) -> int | None:
        """The newest step whose batch was seen to be taken; None before the first."""
        with self._lock:
            return self._noted[-1][0] if self._noted else None

    def step_at(self, time_s: float) -> int | None:
        """The step that the trainer was at: the last that it had asked for by then; None where that is not known."""
        with self._lock:
            before = bisect_right(self._asked, time_s)
            return self._noted[before - 1][0] if before else None

    def seconds_a_step(self) -> float | None:
        """At the present speed; None before it is known."""
        with self._lock:
            noted = list(self._noted)
        if not noted:
            return None
        begin = bisect_left(noted, noted[-1][1] - SPEED_S, key=lambda note: note[1])
        (first, began_s), (last, ended_s) = noted[max(0, min(begin, len(noted) - 2))], noted[-1]
        return (ended_s - began_s) / (last - first) if last > first and ended_s > began_s else None


def quantile(values: list[float], share: float) -> float | None:
    """The value that at least this share of them does not exceed; None of none."""
    ordered: list[Any] = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
