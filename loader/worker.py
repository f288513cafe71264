"""LoaderWorker: a spec in, pixels out. A plain class with threads inside; several threads may call it at once.

For each row of a spec, in this order:
1. crop box and flip from the draw number, for all rows at once;
2. the cache: a hit is cropped and resized right away;
3. otherwise a ranged read with its CRC check, and the header check;
4. decode and resize, into the row of the batch.

A row that fails is reported and left zero; the other rows are not affected. A fault that no single sample can cause (a
missing or replaced shard, storage that does not answer) is raised instead.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from loader.batch import BadSample, BatchSpec, Pixels
from loader.cache import Demand, PixelCache
from loader.config import LoaderConfig
from loader.decode import crops
from loader.decode.buffers import ImageBuffers
from loader.decode.cpu import CpuDecoder, crop
from loader.decode.decoder import Decoder, EncodedImage
from loader.decode.header import read_header
from loader.decode.resize import Rgb, resize_into
from loader.errors import BadSampleError
from loader.shards.fetch import Fetched, Fetcher
from loader.shards.index import ShardIndex
from loader.storage.disk_cache import DiskCache

_TURN_TIMEOUT_S: Final = 1.0
"""Longest wait of a request for those before it."""
FAILPOINT = "tempera.failpoint"
"""Audit event of a place that fault tests can make fail; it does nothing without a listener."""


class LoaderWorker:
    """Loads the pixels of specs from the shards of one index. A context manager.

    Raises:
        MissingIndexError: The index does not exist or cannot be read.
    """

    def __init__(self, index: str | Path, config: LoaderConfig) -> None:
        self.config = config
        self.index = ShardIndex.load(index)
        self._reader = self.index.reader(allow_hosts=config.allow_hosts)
        # Only remote reads are worth starting ahead: a local one is short, and a decoding thread does it by itself.
        self._fetcher: Fetcher | None = None
        if self.index.remote:
            disk = DiskCache(config.disk_cache, max_bytes=config.disk_cache_bytes) if config.disk_cache else None
            self._fetcher = Fetcher(self.index, self._reader, reads_in_flight=config.reads_in_flight, disk=disk)
        self._cache = PixelCache(config.cache_bytes)
        self._buffers = ImageBuffers()
        self._decoder: Decoder
        if config.decoder == "cpu":
            self._decoder = CpuDecoder(len(self.index))
        else:
            from loader.decode.dali import DaliDecoder  # noqa: PLC0415 - DALI loads a gigabyte of libraries

            self._decoder = DaliDecoder(
                num_threads=config.threads, device_id=config.device_id, hw_decoder_load=config.hw_decoder_load
            )
        self._threads = ThreadPoolExecutor(config.threads, thread_name_prefix="loader")
        self._turns = threading.Semaphore(config.threads)
        self._lock = threading.Lock()
        self._images = self._bad = self._requests = 0
        self._decode_s = 0.0
        self._started = time.monotonic()

    def load(self, spec: BatchSpec, *, out: NDArray[np.uint8] | None = None) -> Pixels:
        """Return the pixels of a spec: always the same bytes for the same spec.

        They are written into `out`, uint8[n, 3, size, size] such as shared memory, or else into new memory. Nothing
        writes to it after this returns or raises.

        Raises:
            StaleIndexError: If a shard is gone or was replaced.
            StorageUnavailable: If remote storage does not deliver.
            ValueError: If a sample id is not in the index.
        """
        started = time.monotonic()
        sys.audit(FAILPOINT, "loader.request")
        outside = (spec.sample_ids < 0) | (spec.sample_ids >= len(self.index))
        if outside.any():
            raise ValueError(
                f"sample ids must be in 0..{len(self.index) - 1}; got {int(spec.sample_ids[outside][0])}. "
                "The spec was made for another index: give loaders and selection the same one."
            )
        images = self._buffers.take(len(spec), spec.transform.size) if out is None else out
        # Decoders write rows of RGB: this view is contiguous, and `images` itself is not.
        rgb: Rgb = images.transpose(0, 2, 3, 1)
        plan = self._plan(spec)
        step = self._decoder.rows_per_call
        # Threads take chunks of rows from one iterator, so that none waits long for the last one.
        chunks = iter([range(at, min(at + step, len(spec))) for at in range(0, len(spec), step)])

        def load_chunks() -> list[BadSample]:
            return [sample for rows in chunks for sample in self._load_rows(plan, rgb, rows)]

        # A single chunk is decoded in the caller's thread: the others could not help.
        if self.config.threads == 1 or len(spec) <= step:
            # As many callers decode at a time as there are threads: two on one core evict each other's cache lines. One
            # that waited a second goes ahead all the same, since those before it may be waiting for storage.
            acquired = self._turns.acquire(timeout=_TURN_TIMEOUT_S)
            try:
                started = time.monotonic()  # the wait for the turn is not decoding time
                bad = load_chunks()
            finally:
                if acquired:
                    self._turns.release()
        else:
            tasks = [self._threads.submit(load_chunks) for _ in range(self.config.threads)]
            wait(tasks)  # all of them, before an error is raised: nothing may write to `out` afterwards
            bad = [sample for task in tasks for sample in task.result()]
        sys.audit(FAILPOINT, "loader.decoded")
        seconds = time.monotonic() - started
        with self._lock:
            self._images += len(spec)
            self._bad += len(bad)
            self._requests += 1
            self._decode_s += seconds
        sys.audit(FAILPOINT, "loader.reply")
        # Threads finish in any order; the answer must not depend on it.
        return Pixels(images=images, bad=tuple(sorted(bad, key=lambda sample: sample.row)), decode_s=seconds)

    def stats(self) -> dict[str, float | int]:
        """Return totals since the start: images, bad, requests, decode_s, images_per_s, uptime_s and the cache's."""
        with self._lock:
            return {
                "images": self._images,
                "bad": self._bad,
                "requests": self._requests,
                "decode_s": self._decode_s,
                "uptime_s": time.monotonic() - self._started,
                "images_per_s": self._images / max(self._decode_s, 1e-9),
                **self._cache.stats(),
            }

    def waits_for(self) -> str:
        """Return which shard the oldest read under way waits for and how long, as text."""
        waiting = self._reader.waits_for()
        return "no shard" if waiting is None else f"{waiting[0]} for {waiting[1]:.0f} s"

    def close(self) -> None:
        self._threads.shutdown()
        if self._fetcher is not None:
            self._fetcher.close()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _plan(self, spec: BatchSpec) -> _Plan:
        """Compute boxes and flips, and start the reads from remote storage."""
        # An unreadable header has side 0 in the index; its row fails at the header check, so any box will do.
        width, height = (side[spec.sample_ids].clip(min=1) for side in (self.index.width, self.index.height))
        fetched: Fetched = {}
        if self._fetcher is not None:  # all reads start here, so that the waits for storage overlap
            fetched = self._fetcher.start([i for i in spec.sample_ids.tolist() if i not in self._cache])
        return _Plan(
            spec=spec,
            boxes=crops.boxes(spec.seed, spec.draws, spec.transform, width=width, height=height),
            flips=crops.flips(spec.seed, spec.draws, spec.transform),
            fetched=fetched,
        )

    def _load_rows(self, plan: _Plan, rgb: Rgb, rows: range) -> list[BadSample]:
        """Read, check and decode neighbouring rows. Return the bad ones."""
        spec, reasons = plan.spec, dict[int, str]()
        encoded: dict[int, EncodedImage] = {}
        for row in rows:
            probability = 0.0 if spec.probability is None else float(spec.probability[row])
            demand = Demand(probability, int(spec.draws[row]))
            # A hit also tells the cache how soon the sample is wanted again.
            cached = self._cache.get(int(spec.sample_ids[row]), demand)
            if cached is not None:
                box = crop(cached, plan.boxes[row])
                resize_into(rgb[row], box, flip=bool(plan.flips[row]), transform=spec.transform)
                continue
            try:
                encoded[row] = self._read(plan, row, demand)
            except BadSampleError as error:
                reasons[row] = str(error)
        # All rows that were read go in one call, since DALI decodes them as a batch.
        failures = self._decoder.decode(list(encoded.values()), spec.transform, [rgb[row] for row in encoded])
        reasons |= {row: reason for row, reason in zip(encoded, failures, strict=True) if reason is not None}
        bad = []
        for row, reason in sorted(reasons.items()):
            rgb[row] = 0  # memory is reused: it holds another image's pixels
            sample_id = int(spec.sample_ids[row])
            key = self.index.key(sample_id)
            bad.append(BadSample(row=row, sample_id=sample_id, draw=int(spec.draws[row]), key=key, reason=reason))
        return bad

    def _read(self, plan: _Plan, row: int, demand: Demand) -> EncodedImage:
        """Read and check one image, and decide whether the cache is to have it whole."""
        sample_id = int(plan.spec.sample_ids[row])
        if self._fetcher is not None and sample_id in plan.fetched:
            data = self._fetcher.take(plan.fetched, sample_id)
        else:
            data = self.index.read(sample_id, self._reader)
        # Before any pixel is allocated: a few bytes can claim an image of gigabytes.
        header = read_header(data, max_pixels=self.config.max_pixels)
        indexed = (int(self.index.width[sample_id]), int(self.index.height[sample_id]))
        if indexed != (header.width, header.height):  # the box was computed from the index's sides
            raise BadSampleError(
                f"image is {header.width} x {header.height}; the index says {indexed[0]} x {indexed[1]}"
            )
        # An image that the cache will not keep is decoded in its box only, which is cheaper.
        keep = None
        if self._cache.wants(3 * header.width * header.height, encoded_bytes=len(data), demand=demand):
            keep = partial(self._cache.put, sample_id, encoded_bytes=len(data), demand=demand)
        return EncodedImage(sample_id, data, header, plan.boxes[row], bool(plan.flips[row]), keep)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A spec with the boxes, flips and reads of all its rows."""

    spec: BatchSpec
    boxes: NDArray[np.int32]
    flips: NDArray[np.bool_]
    fetched: Fetched
