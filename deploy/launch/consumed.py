"""Records what the trainer takes from its stream: consumed.jsonl, one line a step; the API reads it to measure latency.

The first rank records when its loop asks for a batch and when it receives it, so that the time from a request to the
first batch drawn under it is measured where that batch is used. The file begins anew at each start of the run.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loader import Batch
    from trainer.record.recorder import Stream

log = logging.getLogger(__name__)

WRITE_EVERY_S = 0.25
"""Least time between two writes within a window; the first step of a window is always written at once."""
FILE_BYTES, KEPT_LINES = 512 * 1024, 1024
"""A file that grows beyond this size is replaced by its last lines."""


class RecordedStream:
    """A stream of batches that records when each batch was requested and received."""

    def __init__(
        self, stream: Stream, path: Path, *, window_steps: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._stream, self._path, self._window_steps, self._clock = stream, path, window_steps, clock
        self._written_s, self._bytes = 0.0, 0
        self._unwritten: list[str] = []
        self._last: deque[str] = deque(maxlen=KEPT_LINES)
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stream.load_state_dict(state)

    def __iter__(self) -> Iterator[Batch]:
        with closing(self._stream.__iter__()) as batches:  # type: ignore[type-var]  # it is a generator
            try:
                asked_s = self._clock()
                for batch in batches:
                    # Between the two moments the rank waited; between this one and the next request it trained.
                    now = self._clock()
                    line = {"step": batch.step, "asked": round(asked_s, 4), "time": round(now, 4)}
                    self._unwritten.append(json.dumps(line) + "\n")
                    # A change is in force from a window's first step, so latency is known as soon as that is written;
                    # the other steps share a write, which may be slow on storage that nodes share.
                    if batch.step % self._window_steps == 0 or now - self._written_s >= WRITE_EVERY_S:
                        self._written_s = now
                        self._write()
                    yield batch
                    asked_s = self._clock()
            finally:
                self._write()

    def _write(self) -> None:
        """Append the unwritten lines; replace a file that has grown large by its last lines."""
        lines, self._unwritten = self._unwritten, []
        if not lines:
            return
        self._last.extend(lines)
        self._bytes += sum(map(len, lines))
        try:
            if self._bytes <= FILE_BYTES:
                with self._path.open("a", encoding="ascii") as file:
                    file.write("".join(lines))
                return
            # The reader may be at any place of the old file: it gets a new inode and begins again.
            aside = self._path.with_name(self._path.name + ".part")
            aside.write_text("".join(self._last), "ascii")
            aside.replace(self._path)
            self._bytes = sum(map(len, self._last))
        except OSError:  # a full disk must not end a run for the sake of a measurement
            if not self._warned:
                log.warning("%s cannot be written; control latency is not measured", self._path, exc_info=True)
            self._warned = True
