"""LoaderWorker: a spec in, pixels out. A plain class; threads inside, safe to call from several threads.

For each row of a spec: crop box and flip from the draw number, ranged read with CRC check, header check, decode,
transform. A row that fails is reported and left zero; the others are not touched by it. What cannot be one sample's
fault (a missing or replaced shard, storage that does not answer) is raised instead.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Protocol, Self

import torch

from loader.batch import BadSample, BatchSpec, Encoded, Pixels
from loader.cache import Demand, PixelCache
from loader.config import LoaderConfig, Transform
from loader.decode import crops
from loader.decode.buffers import ImageBuffers
from loader.decode.cpu import CpuDecoder, cut
from loader.decode.header import read_header
from loader.decode.resize import Rgb, resize_into
from loader.errors import BadSampleError
from loader.shards.fetch import Fetched, Fetcher
from loader.shards.index import ShardIndex
from loader.storage.disk_cache import DiskCache

_TURN_S: Final = 1.0
"""So long a request waits for those before it. Two at once on one core take each other's place in its caches."""
FAILPOINT = "tempera.failpoint"
"""Audit event of a place that can be made to fail: nothing, unless somebody listens."""


class Decoder(Protocol):
    """Turns checked bytes into pixels. Called from several threads at once."""

    @property
    def rows_a_task(self) -> int:
        """Rows that it likes to get in one call."""

    def decode(self, images: Sequence[Encoded], transform: Transform, out: Sequence[Rgb]) -> list[str | None]:
        """Write uint8[size, size, 3] into each of `out`; return for each image None or why it failed."""


class LoaderWorker:
    """Makes the pixels of specs from the shards of one index."""

    def __init__(self, config: LoaderConfig) -> None:
        self.config = config
        self.index = ShardIndex.load(config.index)
        self._reader = self.index.reader(allow_hosts=config.allow_hosts)
        self._fetcher = self._build_fetcher() if self.index.remote else None
        self._cache = PixelCache(config.cache_bytes)
        self._buffers = ImageBuffers()
        self._decoder = build_decoder(config, num_samples=len(self.index), cache=self._cache)
        self._threads = ThreadPoolExecutor(config.threads, thread_name_prefix="loader")
        self._turns = threading.Semaphore(config.threads)
        self._lock = threading.Lock()
        self._images = self._bad = self._requests = 0
        self._decode_s = 0.0
        self._started = time.monotonic()

    def load(self, spec: BatchSpec, *, out: torch.Tensor | None = None) -> Pixels:
        """Return the pixels of a spec: the same bytes for the same spec, always.

        Args:
            spec: What to load.
            out: uint8[n, 3, size, size] to write into, such as shared memory; None allocates. Nothing writes to it
                once this returns or raises.

        Raises:
            StaleIndexError: If a shard is gone or was replaced.
            ValueError: If a sample id is not in the index.
        """
        started = time.monotonic()
        sys.audit(FAILPOINT, "loader.request")
        self._check_ids(spec)
        images = self._buffers.take(len(spec), spec.transform.size) if out is None else out
        rgb: Rgb = images.permute(0, 2, 3, 1).numpy()
        plan = _Plan(spec, self.index)
        if self._fetcher is not None:  # cached samples apart: the waits for storage overlap
            ids = [sample_id for sample_id in spec.sample_ids.tolist() if sample_id not in self._cache]
            plan.fetched = self._fetcher.start(ids)
        step = self._decoder.rows_a_task
        chunks = iter([range(at, min(at + step, len(spec))) for at in range(0, len(spec), step)])
        if self.config.threads == 1 or len(spec) <= step:
            with self._in_turn():
                started = time.monotonic()  # waiting for the turn is no work
                results = [self._load_chunks(plan, rgb, chunks)]
        else:
            tasks = [self._threads.submit(self._load_chunks, plan, rgb, chunks) for _ in range(self.config.threads)]
            wait(tasks)
            results = [task.result() for task in tasks]
        sys.audit(FAILPOINT, "loader.decoded")
        bad = tuple(sorted((sample for result in results for sample in result), key=lambda sample: sample.row))
        seconds = time.monotonic() - started
        self._count(len(spec), len(bad), seconds)
        sys.audit(FAILPOINT, "loader.reply")
        return Pixels(images=images.numpy(), bad=bad, decode_s=seconds)

    def stats(self) -> dict[str, float | int]:
        """Return totals since the start: images, bad, requests, decode_s, images_per_s, uptime_s and the cache's."""
        with self._lock:
            uptime_s = time.monotonic() - self._started
            return {
                "images": self._images,
                "bad": self._bad,
                "requests": self._requests,
                "decode_s": self._decode_s,
                "uptime_s": uptime_s,
                "images_per_s": self._images / max(self._decode_s, 1e-9),
                **self._cache.stats(),
            }

    def waits_for(self) -> str:
        """Return what its reading threads wait for, for people."""
        waiting = self._reader.waits_for()
        return "no shard" if waiting is None else f"{waiting[0]} for {waiting[1]:.0f} s"

    def close(self) -> None:
        """Stop the threads and close the shards."""
        self._threads.shutdown()
        if self._fetcher is not None:
            self._fetcher.close()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_ids(self, spec: BatchSpec) -> None:
        outside = (spec.sample_ids < 0) | (spec.sample_ids >= len(self.index))
        if outside.any():
            found = int(spec.sample_ids[outside][0])
            raise ValueError(
                f"sample ids must be in 0..{len(self.index) - 1}; got {found}. "
                "The spec was made for another index: give loaders and selection the same one."
            )

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Let as many callers decode at a time as there are threads, unless they wait for storage too long."""
        mine = self._turns.acquire(timeout=_TURN_S)
        try:
            yield
        finally:
            if mine:
                self._turns.release()

    def _load_chunks(self, plan: _Plan, rgb: Rgb, chunks: Iterator[range]) -> list[BadSample]:
        """Load chunks of rows until none is left; several threads take from the same iterator."""
        return [sample for rows in chunks for sample in self._load_rows(plan, rgb, rows)]

    def _load_rows(self, plan: _Plan, rgb: Rgb, rows: range) -> list[BadSample]:
        """Read, check and decode neighbouring rows. Returns the bad ones."""
        reasons: dict[int, str] = {}
        encoded: dict[int, Encoded] = {}
        for row in rows:
            demand = plan.demand(row)
            try:
                if not self._from_cache(plan, row, demand, rgb[row]):
                    encoded[row] = self._read(plan, row, demand)
            except BadSampleError as error:
                reasons[row] = str(error)
        failures = self._decoder.decode(list(encoded.values()), plan.spec.transform, [rgb[row] for row in encoded])
        reasons |= {row: reason for row, reason in zip(encoded, failures, strict=True) if reason is not None}
        return [self._bad_sample(plan.spec, rgb, row, reason) for row, reason in sorted(reasons.items())]

    def _build_fetcher(self) -> Fetcher:
        config = self.config
        disk = DiskCache(config.disk_cache, max_bytes=config.disk_cache_bytes) if config.disk_cache else None
        return Fetcher(self.index, self._reader, reads_in_flight=config.reads_in_flight, disk=disk)

    def _read(self, plan: _Plan, row: int, demand: Demand) -> Encoded:
        sample_id = int(plan.spec.sample_ids[row])
        if plan.fetched is not None and sample_id in plan.fetched:
            data = plan.fetched.take(sample_id)
        else:
            data = self.index.read(sample_id, self._reader)
        header = read_header(data, max_pixels=self.config.max_pixels)
        indexed = (int(self.index.width[sample_id]), int(self.index.height[sample_id]))
        if indexed != (header.width, header.height):  # the box was made for the index's sides
            raise BadSampleError(
                f"image is {header.width} x {header.height}; the index says {indexed[0]} x {indexed[1]}"
            )
        return Encoded(sample_id, data, header, plan.boxes[row], bool(plan.flips[row]), demand)

    def _from_cache(self, plan: _Plan, row: int, demand: Demand, out: Rgb) -> bool:
        """Write a row from the cache if its sample is there."""
        pixels = self._cache.get(int(plan.spec.sample_ids[row]), demand)
        if pixels is None:
            return False
        box = cut(pixels, plan.boxes[row])
        resize_into(out, box, flip=bool(plan.flips[row]), transform=plan.spec.transform)
        return True

    def _bad_sample(self, spec: BatchSpec, rgb: Rgb, row: int, reason: str) -> BadSample:
        rgb[row] = 0
        sample_id = int(spec.sample_ids[row])
        key = self.index.key(sample_id)
        return BadSample(row=row, sample_id=sample_id, draw=int(spec.draws[row]), key=key, reason=reason)

    def _count(self, images: int, bad: int, seconds: float) -> None:
        with self._lock:
            self._images += images
            self._bad += bad
            self._requests += 1
            self._decode_s += seconds


class _Plan:
    """A spec with its boxes and flips, computed at once for all rows."""

    __slots__ = ("boxes", "fetched", "flips", "spec")

    def __init__(self, spec: BatchSpec, index: ShardIndex) -> None:
        self.spec = spec
        self.fetched: Fetched | None = None
        # An unreadable header has side 0; its row fails at the header check, so any box will do.
        width, height = (side[spec.sample_ids].clip(min=1) for side in (index.width, index.height))
        self.boxes = crops.boxes(spec.seed, spec.draws, spec.transform, width=width, height=height)
        self.flips = crops.flips(spec.seed, spec.draws, spec.transform)

    def demand(self, row: int) -> Demand:
        """Return how much the sample of a row is wanted."""
        known = self.spec.probability
        return Demand(0.0 if known is None else float(known[row]), int(self.spec.draws[row]))


def build_decoder(config: LoaderConfig, *, num_samples: int, cache: PixelCache) -> Decoder:
    """Return the decoder that a config names, for an index of so many samples."""
    if config.decoder == "cpu":
        return CpuDecoder(num_samples, cache)
    from loader.decode.dali import DaliDecoder  # noqa: PLC0415 - DALI loads a gigabyte of libraries: only when it is used

    return DaliDecoder(num_threads=config.threads, device_id=config.device_id, hw_decoder_load=config.hw_decoder_load)
