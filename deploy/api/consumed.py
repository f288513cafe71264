"""What the trainer has taken from its stream, told to whoever watches: `consumed.jsonl`, one line a window and a while.

The first rank writes it at the moment that its loop takes a batch, so that the time from a request to the first batch
drawn under it is measured where that batch is used. The file is of the run that is alive and begins anew with it.
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
from deploy.rank.oracle import Stream
from loader import Batch

log = logging.getLogger(__name__)

NOTE_S = 0.25
"""Within a window a line is written at most so often."""
FILE_BYTES, LAST_LINES = 256 * 1024, 256
"""Size at which the file begins again, with so many of its last lines."""
NOTED = 4096
"""Notes that are remembered."""
SPEED_S = 20.0
"""The present speed is that of so many last seconds."""


class NotedStream:
    """A stream of batches that notes when the first of a window is taken."""

    def __init__(
        self, stream: Stream, path: Path, *, window_steps: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._stream, self._path, self._window_steps, self._clock = stream, path, window_steps, clock
        self._noted_s, self._bytes = 0.0, 0
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._warned = False

    def __iter__(self) -> Iterator[Batch]:
        with closing(self._stream.__iter__()) as batches:  # type: ignore[type-var]  # it is a generator
            for batch in batches:
                self._note(batch.step)
                yield batch

    def state_dict(self) -> dict[str, int]:
        """See `BatchStream.state_dict`."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """See `BatchStream.load_state_dict`."""
        self._stream.load_state_dict(state)

    def stats(self) -> dict[str, float | int]:
        """See `BatchStream.stats`."""
        return self._stream.stats()

    def _note(self, step: int) -> None:
        now = self._clock()
        if step % self._window_steps and now - self._noted_s < NOTE_S:
            return
        self._noted_s = now
        try:
            self._write(json.dumps({"step": step, "time": round(now, 4)}) + "\n")
        except OSError:  # a full disk must not end a run for the sake of its watchers
            if not self._warned:
                log.warning("what is consumed could not be noted; control latency is not measured", exc_info=True)
            self._warned = True

    def _write(self, line: str) -> None:
        """Append; a file that has grown large begins again with its last lines."""
        self._last.append(line)
        self._bytes += len(line)
        if self._bytes <= FILE_BYTES:
            with self._path.open("a", encoding="ascii") as file:
                file.write(line)
            return
        aside = self._path.with_name(self._path.name + ".part")
        aside.write_text("".join(self._last), "ascii")
        aside.replace(self._path)
        self._bytes = 0


class Consumption:
    """The other end: how far the trainer is, how fast, and when it took which step. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        self._lines = LineIndex(path)
        self._lock = threading.Lock()
        self._read = self._restarts = 0
        self._noted: deque[tuple[int, float]] = deque(maxlen=NOTED)

    def follow(self) -> list[tuple[int, float]]:
        """(step, time) of the batches noted since the last call, in order."""
        with self._lock:
            self._lines.update()
            if self._lines.restarts != self._restarts:
                self._read, self._restarts = 0, self._lines.restarts
            rows = self._lines.rows_from(self._read)
            self._read += len(rows)
            newest_s = self._noted[-1][1] if self._noted else 0.0
            fresh = [(int(row["step"]), float(row["time"])) for row in rows if row["time"] > newest_s]
            self._noted.extend(fresh)
            return fresh

    @property
    def step(self) -> int | None:
        """The newest step whose batch was seen to be taken; None before the first."""
        with self._lock:
            return self._noted[-1][0] if self._noted else None

    def step_at(self, time_s: float) -> int | None:
        """The step that the trainer was at, between two that were noted; None where that is not known."""
        with self._lock:
            noted = list(self._noted)
        after = bisect_right(noted, time_s, key=lambda note: note[1])
        if not 0 < after < len(noted):
            return None
        (first, began_s), (last, ended_s) = noted[after - 1], noted[after]
        return first + int((last - first) * (time_s - began_s) / (ended_s - began_s))

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
