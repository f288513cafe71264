"""Opens a shard by its URL: a file, an HTTPS server, an S3 bucket or a Google Cloud Storage bucket."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from loader.errors import BadShardError
from loader.storage.addresses import check_form
from loader.storage.buckets import open_gs, open_s3
from loader.storage.connections import Connections
from loader.storage.https import HttpShard


class ShardFile(Protocol):
    """A shard that can be read by range."""

    @property
    def num_bytes(self) -> int:
        """Length of the shard."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Return the range; fewer bytes only past the end."""

    def close(self) -> None: ...


class LocalShard:
    """A shard in the file system. Threads share a descriptor by `pread`; a mapping would crash on a truncated file."""

    def __init__(self, path: str | Path) -> None:
        self._fd = -1  # `__del__` runs even when this raises
        # Opening a device can have effects, and opening a pipe waits for its other end: neither is opened.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadShardError(f"a shard must be a regular file; {path} is none. Name a .tar file.")
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    @property
    def num_bytes(self) -> int:
        return os.fstat(self._fd).st_size

    def read_at(self, offset: int, size: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        # One call may return less than is there: Linux stops at 2 GiB.
        while 0 < len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        # An evicted shard closes when its last reader drops it.
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
    """Open a path, or a file:, https:, s3: or gs: URL, for ranged reads over `connections`, which stay open.

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
