"""Encoded images from remote storage, cached on a local disk within a byte limit and shared by the loaders of a node.

One file per image, named after its shard, place and CRC-32, written under a temporary name and renamed. A reader checks
the CRC-32 as for any other read, so neither a crash during a write nor a damaged disk can give a wrong byte: such a
file is removed and the image fetched again. Eviction removes the files used longest ago, under a lock that one process
holds at a time; meanwhile the other processes read, and add nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_KEPT_SHARE: Final = 0.9
"""Share of the limit that an eviction leaves filled. A small step would list the directory for every image."""
_RESERVED_FRACTION: Final = 1024
_MAX_RESERVED_BYTES: Final = 64 << 20
"""A process reserves 1/1024 of the limit at a time, at most this much, and needs no lock until it is used up."""
_ABANDONED_S: Final = 600.0
"""A temporary file of this age was left by a process that died."""
_TEMPORARY: Final = "t-"
_FOLDERS: Final = 256


class DiskCache:
    """A directory of images. Thread-safe, and safe to share between processes.

    It is made if missing, and nothing else may be kept in it. `max_bytes` limits the images of all processes together.

    Raises:
        ValueError: If the directory cannot be written.
    """

    def __init__(self, path: str | Path, *, max_bytes: int) -> None:
        self._root, self._max_bytes = Path(path), max_bytes
        self._numbers = itertools.count()
        self._mutex = threading.Lock()
        self._reserved = 0
        try:
            for number in range(_FOLDERS):
                (self._root / f"{number:02x}").mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ValueError(f"the disk cache must be a writable directory; got {path}: {error}") from error
        with self._locked(wait=True):
            self._evict()

    def get(self, name: str, crc32: int) -> bytes | None:
        """Return the image that was `put` under a name, or None when it is missing or its CRC-32 differs."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        # A torn write or a bad disk: removed, so that the image is fetched and written anew.
        if zlib.crc32(data) != crc32:
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # not every file system keeps access times
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keep an image, unless another process is evicting at this moment. A full disk costs a warning only."""
        if not self._reserve(len(data)):
            return
        path = self._path(name)
        temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{next(self._numbers)}")
        try:
            temporary.write_bytes(data)
            temporary.rename(path)
        except OSError as error:
            log.warning("an image was not kept in the disk cache: %s", error)
            with suppress(OSError):
                temporary.unlink()

    def close(self) -> None:
        """Close the lock. The images stay for the next loader."""
        os.close(self._lock)

    @property
    def num_bytes(self) -> int:
        """Bytes in the cache and reserved in it. A crash leaves the count too high, until the next eviction."""
        stored = os.pread(self._lock, 8, 0)
        return int(struct.unpack("<q", stored)[0]) if len(stored) == 8 else 0

    def _reserve(self, num_bytes: int) -> bool:
        """Take room for an image out of the bytes that this process has reserved."""
        # A larger image could not fit even after an eviction.
        if num_bytes > self._max_bytes * (1 - _KEPT_SHARE):
            return False
        with self._mutex:
            if self._reserved < num_bytes:
                with self._locked(wait=False) as held:
                    if not held:
                        return False
                    more = max(num_bytes, min(self._max_bytes // _RESERVED_FRACTION, _MAX_RESERVED_BYTES))
                    if self.num_bytes + more > self._max_bytes:
                        self._evict()
                    # Counted before the write: a crash leaves the count too high, never the directory too full.
                    os.pwrite(self._lock, struct.pack("<q", max(0, self.num_bytes + more)), 0)
                    self._reserved += more
            self._reserved -= num_bytes
            return True

    def _evict(self) -> None:
        """Count the images, and remove those used longest ago until enough of the limit is free."""
        found, now = [], time.time()
        for number in range(_FOLDERS):
            with os.scandir(self._root / f"{number:02x}") as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # a reader removes damaged images meanwhile
                        status = entry.stat()
                        if not entry.name.startswith(_TEMPORARY):
                            found.append((status.st_mtime, status.st_size, entry.path))
                        elif now - status.st_mtime > _ABANDONED_S:
                            Path(entry.path).unlink()
        total = sum(size for _, size, _ in found)
        if total > self._max_bytes * _KEPT_SHARE:
            for _, size, path in sorted(found):
                Path(path).unlink(missing_ok=True)
                total -= size
                if total <= self._max_bytes * _KEPT_SHARE:
                    break
        os.pwrite(self._lock, struct.pack("<q", total), 0)

    def _path(self, name: str) -> Path:
        # Hashed, since names hold URLs of any length and slashes; 256 folders keep each of them short.
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()
        return self._root / digest[:2] / digest[2:]

    @contextmanager
    def _locked(self, *, wait: bool) -> Iterator[bool]:
        """Hold the lock that all processes share. Yield False when another holds it and `wait` is False."""
        # flock belongs to an open file description: threads that share one would not exclude each other.
        try:
            own = os.open(self._root / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            log.warning("the disk cache is not used: %s", error)
            yield False
            return
        try:
            fcntl.flock(own, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(own)
