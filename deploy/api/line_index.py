"""Follows a file of JSON lines that another process appends to, without reading a line twice or keeping its rows.

Only the step and the place of each line are kept, 17 bytes a line, so that a long run costs little; rows are parsed
when they are asked for. A file that is replaced or cut (a resumed run rewinds its metrics) is indexed anew.
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
LOSS, PAUSED = b'"loss":', b'"paused":'


class LineIndex:
    """The lines of one file: step, place, and whether they have a loss. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Reentrant: the readers update first.
        self._lock = threading.RLock()
        self._inode = -1
        self.restarts = -1
        """How often the file was indexed anew."""
        self._clear()

    def update(self) -> int:
        """Index what was appended and return the number of whole lines."""
        with self._lock:
            try:
                facts = self._path.stat()
            except FileNotFoundError:
                if self._end:
                    self._clear()
                return 0
            # A resumed run rewinds its metrics: another file, or a shorter one.
            if facts.st_ino != self._inode or facts.st_size < self._end:
                self._clear()
                self._inode = facts.st_ino
            if facts.st_size > self._end:
                with self._path.open("rb") as file:
                    file.seek(self._end)
                    self._index(file.read(facts.st_size - self._end))
            return len(self._steps)

    def choose(self, *, since: int, points: int) -> list[dict[str, Any]]:
        """Return rows from step `since` on: at most `points` with a loss, and the newest `points` without one.

        Rows with a loss are chosen evenly, always with the newest; the others are evaluations and pauses.
        """
        with self._lock:
            self.update()
            lines = range(bisect_left(self._steps, since), len(self._steps))
            with_loss = [line for line in lines if self._has_loss[line]]
            others = [line for line in lines if not self._has_loss[line]][-points:]
            stride = -(-len(with_loss) // points) if with_loss else 1
            # From the end on, so that the newest row is always among them.
            return self._rows(sorted([*with_loss[::-1][::stride], *others]))

    def rows_from(self, line: int) -> list[dict[str, Any]]:
        with self._lock:
            return self._rows(range(min(line, len(self._steps)), self.update()))

    def last_with_loss(self) -> dict[str, Any]:
        """Return the newest row with a loss; an empty one where there is none."""
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

    def _index(self, data: bytes) -> None:
        # A torn last line is not counted: it is read again when it is whole.
        at = 0
        while (stop := data.find(b"\n", at)) >= 0:
            line = data[at:stop]
            if found := STEP.match(line):
                self._steps.append(int(found[1]))
                self._starts.append(self._end + at)
                self._has_loss.append(LOSS in line)
                if PAUSED in line:
                    self.is_paused = b"true" in line.partition(PAUSED)[2][:6]
            at = stop + 1
        self._end += at

    def _clear(self) -> None:
        self._steps, self._starts, self._has_loss = array("q"), array("q"), array("b")
        self._end = 0
        self.restarts += 1
        self.is_paused = False
        """Whether the last line about a pause says that the trainer is paused."""
