"""Reads a request's samples from remote storage: many ranges in flight, neighbours of a shard in one range.

Neighbours are merged while the bytes between them are few, so a pass in shard order reads megabytes at a time and a
random draw reads little more than it needs. Each sample's CRC-32 is checked when its bytes arrive. With a disk cache,
samples are looked up there first and stored there afterwards.
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
"""Longest gap between two samples of a range: reading it costs less than another round trip."""
MAX_RANGE_BYTES: Final = 4 << 20
"""Longest merged range: several go in flight, and a failed one is cheap to repeat."""
MAX_WASTE: Final = 0.25
"""Largest share of a merged range that lies in gaps."""
_READ_TIMEOUT_S: Final = 60.0
"""Only a safeguard: storage gives up long before."""


Fetched = dict[int, Future[dict[int, bytes | BadSampleError]]]
"""Sample id -> the range that has it or will have it, as the checked bytes or the error of each of its samples."""


@dataclass(frozen=True, slots=True)
class Range:
    """Samples of one shard that are read together: `size` bytes from `offset` on, ids in the order of their places."""

    shard: int
    offset: int
    size: int
    sample_ids: tuple[int, ...]


def plan_ranges(index: ShardIndex, sample_ids: Sequence[int]) -> Iterator[Range]:
    """Yield ranges that cover samples, in the order of shards and places; repeated samples are read once."""
    ids = np.unique(np.asarray(sample_ids, np.int64))
    ids = ids[np.lexsort((index.block[ids], index.shard[ids]))]
    # A greedy pass in the order of places: a sample joins the range before it, or begins the next one.
    merged: list[int] = []
    shard = start = end = useful = 0
    for sample_id in ids.tolist():
        at, size = index.start(sample_id), int(index.size[sample_id])
        length = at + size - start
        if merged and not (
            index.shard[sample_id] == shard
            and at - end <= MAX_GAP_BYTES
            and length <= MAX_RANGE_BYTES
            and length - (useful + size) <= MAX_WASTE * length
        ):
            yield Range(shard, start, end - start, tuple(merged))
            merged = []
        if not merged:
            shard, start, useful = int(index.shard[sample_id]), at, 0
        merged.append(sample_id)
        end, useful = at + size, useful + size
    if merged:
        yield Range(shard, start, end - start, tuple(merged))


class Fetcher:
    """Fetches the samples of requests, `reads_in_flight` ranges at a time; `disk` keeps what was read."""

    def __init__(
        self, index: ShardIndex, reader: ShardReader, *, reads_in_flight: int, disk: DiskCache | None = None
    ) -> None:
        self._index, self._reader, self._disk = index, reader, disk
        self._threads = ThreadPoolExecutor(reads_in_flight, "reads")

    def start(self, sample_ids: Sequence[int]) -> Fetched:
        """Start to read samples, in any order and repeated or not; return at once."""
        fetched: Fetched = {}
        # The disk cache first, so that ranges are planned only for what it lacks.
        if self._disk is not None:
            for sample_id in dict.fromkeys(sample_ids):
                data = self._disk.get(self._name(sample_id), int(self._index.crc32[sample_id]))
                if data is not None:
                    fetched[sample_id] = Future()
                    fetched[sample_id].set_result({sample_id: data})
        for part in plan_ranges(self._index, [sample_id for sample_id in sample_ids if sample_id not in fetched]):
            fetched |= dict.fromkeys(part.sample_ids, self._threads.submit(self._read, part))
        return fetched

    def take(self, fetched: Fetched, sample_id: int) -> bytes:
        """Wait for the checked bytes of a sample, and return them.

        Raises:
            BadSampleError: If they are not as indexed.
            StaleIndexError: If their shard is gone or was replaced.
            StorageUnavailable: If storage does not deliver.
        """
        sample = fetched[sample_id].result(_READ_TIMEOUT_S)[sample_id]
        if isinstance(sample, BadSampleError):
            raise sample
        return sample

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        if self._disk is not None:
            self._disk.close()

    def _read(self, part: Range) -> dict[int, bytes | BadSampleError]:
        """Read a range and split it into samples."""
        index = self._index
        whole = memoryview(self._reader.read_range(part.shard, part.offset, part.size))
        samples: dict[int, bytes | BadSampleError] = {}
        for sample_id in part.sample_ids:
            at, size = index.start(sample_id) - part.offset, int(index.size[sample_id])
            data = bytes(whole[at : at + size])
            try:
                if len(data) != size or zlib.crc32(data) != int(index.crc32[sample_id]):
                    # Read alone, the error says whether the sample is bad or its shard was replaced.
                    data = index.read(sample_id, self._reader)
            except BadSampleError as error:
                samples[sample_id] = error
                continue
            samples[sample_id] = data
            if self._disk is not None:
                self._disk.put(self._name(sample_id), data)
        return samples

    def _name(self, sample_id: int) -> str:
        """Return a sample's name in the disk cache; it changes with the bytes that the index expects."""
        index, shard = self._index, self._index.shard[sample_id]
        # The CRC-32 is in the name, so that an image of a rebuilt shard never meets the old one's file.
        place = f"{index.start(sample_id)} {index.size[sample_id]} {index.crc32[sample_id]}"
        return f"{index.shard_urls[shard]} {index.shard_bytes[shard]} {place}"
