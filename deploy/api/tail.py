"""Follows files of JSON lines that another process appends to, without reading them twice or keeping their rows.

Of each line only its step and its place in the file are kept, so a long run costs 17 bytes a line; a selection of rows
is parsed when it is asked for. A file that is replaced or cut (a resumed run rewinds its metrics) is begun again.
"""

from __future__ import annotations

import json
import re
import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STEP = re.compile(rb'^\{"step": (\d+)[,}]')
LOSS, RESTS = b'"loss":', b'"paused":'


class LineIndex:
    """The lines of one file: step, place, and whether they carry a loss. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._identity = -1
        self.restarts = -1
        """How often the file was begun again."""
        self._clear()

    def update(self) -> int:
        """Take in what was appended; returns how many whole lines there are."""
        with self._lock:
            try:
                facts = self._path.stat()
            except FileNotFoundError:
                if self._end:
                    self._clear()
                return 0
            if facts.st_ino != self._identity or facts.st_size < self._end:
                self._clear()
                self._identity = facts.st_ino
            if facts.st_size > self._end:
                with self._path.open("rb") as file:
                    file.seek(self._end)
                    self._take(file.read(facts.st_size - self._end))
            return len(self._steps)

    def choose(self, *, since: int, points: int) -> list[dict[str, Any]]:
        """At most `points` rows with a loss from a step on, evenly chosen, the newest always, and those without a loss.

        Rows without one (evaluations, rests) are kept whole up to as many, the newest.
        """
        with self._lock:
            self.update()
            first = bisect_left(self._steps, since)
            lines = range(first, len(self._steps))
            with_loss = [line for line in lines if self._has_loss[line]]
            others = [line for line in lines if not self._has_loss[line]][-points:]
            stride = -(-len(with_loss) // points) if with_loss else 1
            return self._rows(sorted([*with_loss[::-1][::stride], *others]))

    def rows_from(self, line: int) -> list[dict[str, Any]]:
        """The rows from a line on."""
        with self._lock:
            return self._rows(range(min(line, len(self._steps)), self.update()))

    def last_with_loss(self) -> dict[str, Any]:
        """The newest row with a loss; empty where there is none."""
        with self._lock:
            for line in range(self.update() - 1, -1, -1):
                if self._has_loss[line]:
                    return self._rows([line])[0]
            return {}

    def _rows(self, lines: Iterable[int]) -> list[dict[str, Any]]:
        chosen = list(lines)
        if not chosen:
            return []
        with self._path.open("rb") as file:
            rows = []
            for line in chosen:
                file.seek(self._starts[line])
                rows.append(json.loads(file.readline()))
            return rows

    def _take(self, data: bytes) -> None:
        """Index whole lines; a torn last one is read again when it is whole."""
        at = 0
        while (stop := data.find(b"\n", at)) >= 0:
            line = data[at:stop]
            found = STEP.match(line)
            if found:
                self._steps.append(int(found[1]))
                self._starts.append(self._end + at)
                self._has_loss.append(LOSS in line)
                if RESTS in line:
                    self.rests = b"true" in line.partition(RESTS)[2][:6]
            at = stop + 1
        self._end += at

    def _clear(self) -> None:
        self._steps, self._starts, self._has_loss = array("q"), array("q"), array("b")
        self._end = 0
        self.restarts += 1
        self.rests = False
        """Whether the trainer wrote last that it rests."""
