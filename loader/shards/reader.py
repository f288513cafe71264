"""Reads members of shards: a range of bytes, checked against the CRC-32 that the index recorded.

A short read, a shard of another length, or bytes that do not match are told apart: a shard that was replaced since
it was indexed is a StaleIndexError (the run must stop), flipped bits inside a shard that is otherwise as indexed
are a BadSampleError (they cost one draw).
"""

from __future__ import annotations

import os
import stat
import threading
import time
import zlib
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import urlsplit
from urllib.request import url2pathname

from loader.errors import BadSampleError, BadShardError, StaleIndexError
from loader.shards.tar import BLOCK, is_member_header
from loader.storage.addresses import check_form
from loader.storage.connections import Connections
from loader.storage.remote import HttpShard, open_gs, open_s3

MAX_OPEN_SHARDS = 128
"""Descriptors kept open; far below the usual limit of 1,024."""


class ShardFile(Protocol):
    """A shard that can be read by range."""

    @property
    def num_bytes(self) -> int:
        """Length of the shard."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Return the range; fewer bytes only past the end."""

    def close(self) -> None:
        """Release it."""


class LocalShard:
    """A shard in the file system. Threads share a descriptor by `pread`; a mapping would die of a truncation."""

    def __init__(self, path: str | Path) -> None:
        self._fd = -1
        # A device acts when it is opened, and a pipe waits for its other end: neither is touched.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadShardError(f"a shard must be a regular file; {path} is none. Name a .tar file.")
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    @property
    def num_bytes(self) -> int:
        """Length of the shard."""
        return os.fstat(self._fd).st_size

    def read_at(self, offset: int, size: int) -> bytes:
        """Return the range; fewer bytes only past the end."""
        data = os.pread(self._fd, size, offset)
        while 0 < len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def close(self) -> None:
        """Release the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        # An evicted shard closes when its last reader lets go of it.
        self.close()


def local_path(url: str) -> Path | None:
    """Return the path that a plain path or a file: URL names, or None for other URLs."""
    if "://" not in url:
        return Path(url)
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"file: URLs must name this machine; got {url!r}")
    return Path(url2pathname(parts.path))


def open_shard(url: str, *, connections: Connections) -> ShardFile:
    """Open a shard for ranged reads.

    Args:
        url: A path, or a file:, https:, s3: or gs: URL.
        connections: Kept open between reads of remote shards; they say which private hosts are allowed.

    Raises:
        ValueError: If the URL is refused.
        FileNotFoundError: If there is no such shard.
        BadShardError: If it is a device, a pipe or a directory.
        StorageUnavailable: If remote storage does not answer.
    """
    parts = check_form(url, allow_hosts=connections.allow_hosts)
    path = local_path(url)
    if path is not None:
        return LocalShard(path)
    if parts.scheme == "s3":
        return open_s3(parts, connections=connections)
    return open_gs(parts) if parts.scheme == "gs" else HttpShard(url, connections=connections)


class ShardReader:
    """Checked, thread-safe reads from a set of shards, with a bounded number of them open."""

    def __init__(
        self, urls: list[str], num_bytes: list[int], *, index_path: str, allow_hosts: tuple[str, ...] = ()
    ) -> None:
        self._urls, self._num_bytes, self._index_path = urls, num_bytes, index_path
        self._connections = Connections(allow_hosts=allow_hosts)
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._opening: dict[int, threading.Lock] = {}
        self._under_way: dict[int, tuple[int, float]] = {}  # by thread, so that a stall can name what it waits for
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
        self._check_unchanged(shard, offset, size)
        raise BadSampleError(f"CRC-32 mismatch: {len(data)} bytes at {offset} differ from what was indexed")

    def read_range(self, shard: int, offset: int, size: int) -> bytes:
        """Return a range of a shard, unchecked: fewer bytes only past the shard's end.

        Raises:
            StaleIndexError: If the shard is gone or is not the one that was indexed.
        """
        thread = threading.get_ident()
        self._under_way[thread] = (shard, time.monotonic())
        try:
            return self._file(shard).read_at(offset, size)
        finally:
            del self._under_way[thread]

    def waits_for(self) -> tuple[str, float] | None:
        """Return the URL of the shard whose read has lasted longest of those under way, and for how many seconds."""
        oldest = min(list(self._under_way.values()), key=lambda read: read[1], default=None)
        return None if oldest is None else (self._urls[oldest[0]], time.monotonic() - oldest[1])

    def close(self) -> None:
        """Close every shard."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _file(self, shard: int) -> ShardFile:
        with self._lock:
            file = self._open.get(shard)
            if file is not None:
                self._open.move_to_end(shard)
                return file
            opening = self._opening.setdefault(shard, threading.Lock())
        # Remote shards take a round trip to open: others are read and opened meanwhile.
        with opening:
            with self._lock:
                file = self._open.get(shard)
            if file is not None:
                return file
            file = self._opened(shard)
            with self._lock:
                self._open[shard] = file
                self._opening.pop(shard, None)  # another thread may have opened it anew since it was evicted
                # A read may be in flight on the evicted file: dropping the reference closes it once nobody reads.
                if len(self._open) > MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)
            return file

    def _opened(self, shard: int) -> ShardFile:
        try:
            file = open_shard(self._urls[shard], connections=self._connections)
        except FileNotFoundError as error:
            raise stale(self._urls[shard], "it is missing", self._index_path) from error
        except BadShardError as error:
            raise stale(self._urls[shard], "it is no regular file", self._index_path) from error
        if file.num_bytes != self._num_bytes[shard]:
            found = file.num_bytes
            file.close()
            raise stale(self._urls[shard], f"it has {found} bytes, not {self._num_bytes[shard]}", self._index_path)
        return file

    def _check_unchanged(self, shard: int, offset: int, size: int) -> None:
        file = self._file(shard)
        if file.num_bytes != self._num_bytes[shard]:
            raise stale(self._urls[shard], f"its length changed to {file.num_bytes} bytes", self._index_path)
        if not is_member_header(self.read_range(shard, offset - BLOCK, BLOCK), size):
            raise stale(self._urls[shard], f"there is no member of {size} bytes at {offset}", self._index_path)


def stale(url: str, why: str, index_path: str) -> StaleIndexError:
    """Return the error for a shard that is not as indexed; it names the command that mends it."""
    return StaleIndexError(
        f"shard {url} is not the one that was indexed: {why}. "
        f"Restore it, or index again: `tempera shards index {Path(url).parent} --out {index_path}`"
    )
