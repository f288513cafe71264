"""Reads members of shards: a range of bytes, checked against the CRC-32 in the index.

A mismatch has one of two causes, told apart here. A shard that was replaced since it was indexed is a StaleIndexError:
the run must stop. Flipped bits in a shard that is otherwise as indexed are a BadSampleError: they cost one draw.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Final, Self

from loader.errors import BadSampleError, BadShardError, StaleIndexError
from loader.shards.tar import BLOCK, is_member_header
from loader.storage.connections import Connections
from loader.storage.shard_files import ShardFile, open_shard

MAX_OPEN_SHARDS: Final = 128
"""Descriptors kept open; far below the usual limit of 1,024."""


class ShardReader:
    """Checked, thread-safe reads from a set of shards, of which a bounded number is open.

    `num_bytes` are the lengths that the index recorded; `index_path` names it in error messages.
    """

    def __init__(
        self, urls: list[str], num_bytes: list[int], *, index_path: str, allow_hosts: tuple[str, ...] = ()
    ) -> None:
        self._urls, self._num_bytes, self._index_path = urls, num_bytes, index_path
        self._connections = Connections(allow_hosts=allow_hosts)
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._opening: dict[int, threading.Lock] = {}
        # By thread: the shard that it reads and since when, so that a stall can name what it waits for.
        self._reads: dict[int, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int, crc32: int) -> bytes:
        """Return the bytes of one member.

        Raises:
            StaleIndexError: If the shard is gone or is not the one that was indexed.
            BadSampleError: If only these bytes differ from what was indexed.
        """
        data = self.read_range(shard, offset, size)
        if len(data) == size and zlib.crc32(data) == crc32:
            return data
        # Which of the two causes? A replaced shard has another length, or no such member at this place.
        num_bytes = self._file(shard).num_bytes
        if num_bytes != self._num_bytes[shard]:
            raise self._stale(shard, f"its length changed to {num_bytes} bytes")
        if not is_member_header(self.read_range(shard, offset - BLOCK, BLOCK), size):
            raise self._stale(shard, f"there is no member of {size} bytes at {offset}")
        raise BadSampleError(f"CRC-32 mismatch: {len(data)} bytes at {offset} differ from what was indexed")

    def read_range(self, shard: int, offset: int, size: int) -> bytes:
        """Return a range of a shard, unchecked: fewer bytes only past the shard's end.

        Raises:
            StaleIndexError: If the shard is gone or is not the one that was indexed.
        """
        thread = threading.get_ident()
        self._reads[thread] = (shard, time.monotonic())
        try:
            return self._file(shard).read_at(offset, size)
        finally:
            del self._reads[thread]

    def waits_for(self) -> tuple[str, float] | None:
        """Return the URL of the shard whose read has lasted longest of those under way, and its age in seconds."""
        # A copy, since the reading threads add and remove items meanwhile.
        oldest = min(list(self._reads.values()), key=lambda read: read[1], default=None)
        return None if oldest is None else (self._urls[oldest[0]], time.monotonic() - oldest[1])

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _file(self, shard: int) -> ShardFile:
        """Return an open shard, opening it if need be."""
        with self._lock:
            file = self._open.get(shard)
            if file is not None:
                self._open.move_to_end(shard)
                return file
            opening = self._opening.setdefault(shard, threading.Lock())
        # A remote shard takes a round trip to open. Only threads that need the same shard wait for it.
        with opening:
            with self._lock:
                file = self._open.get(shard)
            if file is not None:
                return file
            url = self._urls[shard]
            try:
                file = open_shard(url, connections=self._connections)
            except FileNotFoundError as error:
                raise self._stale(shard, "it is missing") from error
            except BadShardError as error:
                raise self._stale(shard, "it is no regular file") from error
            num_bytes = file.num_bytes
            if num_bytes != self._num_bytes[shard]:
                file.close()
                raise self._stale(shard, f"it has {num_bytes} bytes, not {self._num_bytes[shard]}")
            with self._lock:
                self._open[shard] = file
                self._opening.pop(shard, None)  # another thread may have opened it anew since it was evicted
                # Evicting only drops the reference: a read may be in flight, and the file closes after the last one.
                if len(self._open) > MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)
            return file

    def _stale(self, shard: int, why: str) -> StaleIndexError:
        url = self._urls[shard]
        return StaleIndexError(
            f"shard {url} is not the one that was indexed: {why}. "
            f"Restore it, or index again: `tempera shards index {Path(url).parent} --out {self._index_path}`"
        )
