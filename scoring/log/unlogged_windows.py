"""UnloggedWindows: notes the windows handed out while the log could not be written, even on a full disk.

Its file of a few bytes is made at the start of the run and overwritten in place. After a crash the log ends before
those windows, but trainers have them, so they must be drawn again as they were. Until then, changes take effect after
them, and scores wait.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from pathlib import Path

log = logging.getLogger(__name__)

RECORD = struct.Struct("<qqI")
"""End, scores_through, CRC-32 of both."""


class UnloggedWindows:
    """The windows handed out beyond the log; without a path they are kept in memory. Takes no lock."""

    def __init__(self, path: Path | None = None) -> None:
        self.end = 0
        """First window that no trainer was given."""
        self.scores_through = 0
        """Log sequence of the last score report that the table had when they were drawn."""
        self._path = path
        if path is not None:
            self._open(path)

    def add(self, window: int, *, scores_through: int) -> None:
        """Note a window; a disk that takes not even this is no reason to stop drawing."""
        self.end, self.scores_through = max(self.end, window + 1), scores_through
        if self._path is None:
            return
        try:
            self._write(self._path)
        except OSError as error:
            log.warning("window %d is not noted (%s): if this process dies, a change may alter it", window, error)

    def clear(self) -> None:
        """Begin with no windows: the log is of a new run."""
        self.end = self.scores_through = 0
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._open(self._path)

    def _open(self, path: Path) -> None:
        try:
            stored = path.read_bytes() if path.exists() else b""
            if len(stored) < RECORD.size:
                self._write(path)
                return
            end, scores_through, checksum = RECORD.unpack_from(stored)
        except OSError as error:
            log.warning("%s cannot be used (%s)", path, error)
            return
        if checksum == zlib.crc32(stored[: RECORD.size - 4]) and min(end, scores_through) >= 0:
            self.end, self.scores_through = end, scores_through

    def _write(self, path: Path) -> None:
        body = RECORD.pack(self.end, self.scores_through, 0)[:-4]
        # In place, over bytes that the disk has given already: a full one refuses a new file, not these.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, body + zlib.crc32(body).to_bytes(4, "little"), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
