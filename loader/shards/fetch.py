"""Reads a request's samples from remote storage: many ranges in flight, neighbours of a shard in one range.

Neighbours are merged while the bytes between them are few, so a pass in shard order reads megabytes at a time and a
random draw reads what it needs. Each sample's CRC-32 is checked where its bytes arrive; with a disk cache they are
kept there, and found there the next time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from loader.errors import BadSampleError
from loader.shards.index import ShardIndex
from loader.shards.reader import ShardReader
from loader.storage.disk_cache import DiskCache

MAX_GAP_BYTES: Final = 64 << 10
"""Bytes between two samples that are read and thrown away rather than asked around; a round trip costs more."""
MAX_RANGE_BYTES: Final = 4 << 20
"""Longest merged range: several go in flight, and a failed one is cheap to repeat."""
MAX_WASTE: Final = 0.25
"""Largest share of a merged range that nobody asked for."""
_READ_TIMEOUT_S: Final = 60.0
"""Storage gives up by itself long before."""


@dataclass(frozen=True, slots=True)
class Range:
    """Samples of one shard that are read together."""

    shard: int
    offset: int
    size: int
    sample_ids: tuple[int, ...]
    """In order of their place."""


def plan_ranges(index: ShardIndex, sample_ids: Sequence[int]) -> Iterator[Range]:
    """Merge samples into ranges.

    Args:
        index: Says where they lie.
        sample_ids: In any order; repeated ones are read once.

    Yields:
        Ranges that together cover every sample, in order of shard and place.
    """
    ids = np.unique(np.asarray(sample_ids, np.int64))
    ids = ids[np.lexsort((index.block[ids], index.shard[ids]))]
    merged: list[int] = []
    wanted = 0
    for sample_id in ids.tolist():
        size = int(index.size[sample_id])
        if merged and not _joins(index, merged, sample_id, wanted + size):
            yield _range(index, merged)
            merged, wanted = [], 0
        merged.append(sample_id)
        wanted += size
    if merged:
        yield _range(index, merged)


class Fetcher:
    """Fetches the samples of requests in threads of its own.

    Args:
        index: The samples.
        reader: Reads their shards.
        reads_in_flight: Ranges that are waited for at the same time.
        disk: Keeps what was read; None keeps nothing.
    """

    def __init__(
        self, index: ShardIndex, reader: ShardReader, *, reads_in_flight: int, disk: DiskCache | None = None
    ) -> None:
        self._index, self._reader, self._disk = index, reader, disk
        self._threads = ThreadPoolExecutor(reads_in_flight, "reads")

    def start(self, sample_ids: Sequence[int]) -> Fetched:
        """Ask for samples, and return where they arrive."""
        found: dict[int, bytes | BadSampleError] = {}
        if self._disk is not None:
            for sample_id in dict.fromkeys(sample_ids):
                data = self._disk.get(self._name(sample_id), int(self._index.crc32[sample_id]))
                if data is not None:
                    found[sample_id] = data
        missing = [sample_id for sample_id in sample_ids if sample_id not in found]
        arriving: dict[int, Future[dict[int, bytes | BadSampleError]]] = {}
        for part in plan_ranges(self._index, missing):
            future = self._threads.submit(self._read, part)
            arriving |= dict.fromkeys(part.sample_ids, future)
        return Fetched(found, arriving)

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(cancel_futures=True)
        if self._disk is not None:
            self._disk.close()

    def _read(self, part: Range) -> dict[int, bytes | BadSampleError]:
        """Read a range and take it apart. Samples that do not match are read once more, alone, to learn why."""
        index = self._index
        whole = memoryview(self._reader.read_range(part.shard, part.offset, part.size))
        samples: dict[int, bytes | BadSampleError] = {}
        for sample_id in part.sample_ids:
            at, size = index.start(sample_id) - part.offset, int(index.size[sample_id])
            data = bytes(whole[at : at + size])
            try:
                if len(data) != size or zlib.crc32(data) != int(index.crc32[sample_id]):
                    data = index.read(sample_id, self._reader)
            except BadSampleError as error:
                samples[sample_id] = error
                continue
            samples[sample_id] = data
            if self._disk is not None:
                self._disk.put(self._name(sample_id), data)
        return samples

    def _name(self, sample_id: int) -> str:
        index = self._index
        shard = index.shard[sample_id]
        place = f"{index.start(sample_id)} {index.size[sample_id]} {index.crc32[sample_id]}"
        return f"{index.shard_urls[shard]} {index.shard_bytes[shard]} {place}"


class Fetched:
    """The samples of one request: here, or on their way."""

    __slots__ = ("_arriving", "_found")

    def __init__(
        self,
        found: dict[int, bytes | BadSampleError],
        arriving: dict[int, Future[dict[int, bytes | BadSampleError]]],
    ) -> None:
        self._found, self._arriving = found, arriving

    def __contains__(self, sample_id: int) -> bool:
        return sample_id in self._found or sample_id in self._arriving

    def take(self, sample_id: int) -> bytes:
        """Return the checked bytes of a sample, waiting for them.

        Raises:
            BadSampleError: If they are not as indexed.
            StaleIndexError: If their shard is gone or was replaced.
            StorageUnavailable: If storage does not deliver.
        """
        sample = self._found.get(sample_id)
        if sample is None:
            sample = self._arriving[sample_id].result(_READ_TIMEOUT_S)[sample_id]
        if isinstance(sample, BadSampleError):
            raise sample
        return sample


def _joins(index: ShardIndex, merged: list[int], sample_id: int, wanted: int) -> bool:
    """Return whether a sample is close enough to the ones before it to be read with them."""
    first, last = merged[0], merged[-1]
    if index.shard[sample_id] != index.shard[first]:
        return False
    start, end = index.start(first), index.start(sample_id) + int(index.size[sample_id])
    gap = index.start(sample_id) - index.start(last) - int(index.size[last])
    length = end - start
    return gap <= MAX_GAP_BYTES and length <= MAX_RANGE_BYTES and length - wanted <= MAX_WASTE * length


def _range(index: ShardIndex, merged: list[int]) -> Range:
    first, last = merged[0], merged[-1]
    start = index.start(first)
    size = index.start(last) + int(index.size[last]) - start
    return Range(int(index.shard[first]), start, size, tuple(merged))
