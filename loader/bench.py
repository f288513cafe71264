"""Measures the loader: images per second from raw decoding to the whole service, and of the peers that are installed.

Figures of one run are to be read as ratios: the machine is the same for all of them. The work is
RandomResizedCrop(224, scale .2-1, bicubic with antialias) and a flip, to uint8, on two threads or two processes,
after a warm-up.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from loader.batch import BatchSpec
from loader.bench_peers import PEERS
from loader.config import LoaderConfig, StreamConfig, Transform
from loader.index import ShardIndex
from loader.index_builder import build_index
from loader.listings import class_folders
from loader.memory import keep_freed_memory
from loader.pool import LoaderPool
from loader.shard_writer import build_shards
from loader.stream import BatchStream
from loader.windows import FixedWindow
from loader.worker import LoaderWorker

THREADS: Final = 2
EFFECTIVE_SIZES: Final = (0.61, 0.25, 0.12)
CACHED_SHARE: Final = 0.4
"""Share of the decoded images that the caches of all loaders together hold."""
_BATCH: Final = 64
_TRANSFORM: Final = Transform()

Progress = Callable[[str], None]


def bench_loader(
    images: str | Path,
    *,
    peers: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    seconds: float = 4.0,
) -> dict[str, Any]:
    """Measure and return images per second as plain values.

    Args:
        images: A folder of images, a folder of tars, or a tar.
        peers: Measure other loaders that are installed, too.
        device: "cpu", or "cuda" for a sweep of the GPU decoder's settings.
        progress: Told the name of each measurement when it starts.
        seconds: Length of each measurement, after its warm-up.

    Returns:
        `{"raw_decode", "in_process", "service", "cached": {"0.61", "0.25", "0.12"}, "peers": {name: ...}}`, all
        images/s; with "cuda" `{"raw_decode", "gpu": [{"threads", "hw_decoder_load", "images_per_s", "host_cpus"}]}`.

    Raises:
        ValueError: If there are no images, or the device is unknown.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda; got {device!r}")
    keep_freed_memory()
    say = progress or (lambda _: None)
    with tempfile.TemporaryDirectory(prefix="tempera-bench-") as scratch:
        index = _index(Path(images), Path(scratch))
        with index.reader() as reader:
            encoded = [index.read(row, reader) for row in range(len(index))]
        if device == "cuda":
            say("raw decode")
            with _raw_decode(encoded) as raw:
                limit = rate(raw, seconds)
            return {"raw_decode": limit, "gpu": [_gpu(index, point, seconds, say) for point in _gpu_sweep()]}
        report: dict[str, Any] = {}
        say("raw decode and in process")
        config = LoaderConfig(index=str(index.path), threads=THREADS)
        with _raw_decode(encoded) as raw, _in_process(config) as ours:
            report |= rates({"raw_decode": raw, "in_process": ours}, seconds)
        report |= _services(index, seconds, say)
        report["peers"] = _peers(encoded, seconds, say) if peers else {}
    return report


def probabilities(num_samples: int, effective_size: float) -> NDArray[np.float64]:
    """Return float64[N] draw probabilities of a given effective size, shaped as on ImageNet.

    Distances have the quantiles of Beta(3.40, 2.38), which reproduces the published effective sizes; the probability is
    softmax(-distance / temperature), the temperature found by bisection on the effective size (Lin et al., Eq. 4-5).
    """
    grid = np.linspace(0, 1, 4097)[1:-1]
    density = grid**2.40 * (1 - grid) ** 1.38
    quantiles = (np.arange(num_samples) + 0.5) / num_samples
    distance = np.interp(quantiles, np.cumsum(density) / density.sum(), grid)
    low, high = 1e-4, 1e4
    for _ in range(100):
        temperature = float(np.sqrt(low * high))
        weight = np.exp(-(distance - distance.min()) / temperature)
        share = weight / weight.sum()
        drawn = -np.expm1(num_samples * np.log1p(-np.minimum(share, 1 - 1e-12))).mean()
        low, high = (low, temperature) if drawn > effective_size else (temperature, high)
    return np.random.default_rng(0).permutation(share)


def rate(batches: Iterable[int], seconds: float, *, warm_up: float = 0.3) -> float:
    """Return items per second of an iterable of counts, after a warm-up of a share of the time."""
    start = time.perf_counter()
    counted, began = 0, 0.0
    for count in batches:
        now = time.perf_counter()
        if began:
            counted += count
        elif now - start >= warm_up * seconds:
            began = now
        if began and now - began >= seconds:
            return counted / (now - began)
    raise ValueError(f"the measurement ended before {seconds:g} s: too few images")


def rates(sources: dict[str, Iterator[int]], seconds: float, *, slice_s: float = 0.25) -> dict[str, float]:
    """Return items per second of several iterators that take turns: what else the machine does falls on all of them."""
    counted, spent = dict.fromkeys(sources, 0), dict.fromkeys(sources, 0.0)
    for source in sources.values():
        next(source)
    while min(spent.values()) < seconds:
        for name, source in sources.items():
            start = now = time.perf_counter()
            while now - start < slice_s:
                counted[name] += next(source)
                now = time.perf_counter()
            spent[name] += now - start
    return {name: counted[name] / spent[name] for name in sources}


def _index(images: Path, scratch: Path) -> ShardIndex:
    """Index the images, after writing them into shards if they are files."""
    tars = [images] if images.suffix == ".tar" else sorted(images.glob("*.tar"))
    if not tars:
        tars = [Path(path) for path in build_shards(class_folders(images), scratch / "shards")]
    return build_index(tars, scratch / "index.parquet")


@contextmanager
def _raw_decode(encoded: list[bytes]) -> Iterator[Iterator[int]]:
    """The limit without a cache: libjpeg-turbo alone, on as many threads."""
    with ThreadPoolExecutor(THREADS) as threads:

        def chunk(images: list[bytes]) -> int:
            for data in images:
                simplejpeg.decode_jpeg(data)
            return len(images)

        chunks = [encoded[at : at + 4] for at in range(0, len(encoded), 4)]
        yield (sum(threads.map(chunk, chunks)) for _ in itertools.count())


@contextmanager
def _in_process(config: LoaderConfig) -> Iterator[Iterator[int]]:
    """Our decoder, its cache of sound images warm."""
    with LoaderWorker(config) as worker:
        rng = np.random.default_rng(0)
        size = 2 * _BATCH  # as large as the requests of a stream

        def load(number: int) -> int:
            spec = BatchSpec(
                sample_ids=rng.integers(0, len(worker.index), size),
                draws=np.arange(number * size, (number + 1) * size),
                seed=0,
                transform=_TRANSFORM,
            )
            return len(worker.load(spec).images)

        everything = np.arange(len(worker.index))
        worker.load(BatchSpec(sample_ids=everything, draws=everything, seed=0, transform=_TRANSFORM))
        yield (load(number) for number in itertools.count())


@dataclass(frozen=True, slots=True)
class _Draws:
    """Windows of draws from fixed probabilities."""

    probability: NDArray[np.float64]
    config: StreamConfig

    def window(self, index: int) -> FixedWindow:
        """Return a window drawn with a generator seeded by its number."""
        draws = self.config.window_steps * self.config.global_batch
        rng = np.random.default_rng([1, index])
        ids = np.searchsorted(np.cumsum(self.probability), rng.random(draws) * self.probability.sum())
        ids = ids.clip(max=len(self.probability) - 1)
        return FixedWindow(index=index, first_draw=index * draws, sample_ids=ids, probability=self.probability[ids])


def _services(index: ShardIndex, seconds: float, say: Progress) -> dict[str, Any]:
    """The whole way: loader actors to this process, without a cache and with one."""
    uniform = np.full(len(index), 1 / len(index))
    plain = LoaderConfig(index=str(index.path))
    decoded = 3 * int((index.width.astype(np.int64) * index.height).sum())
    cached = LoaderConfig(index=str(index.path), cache_bytes=int(CACHED_SHARE * decoded / THREADS))
    say("service")
    with _actors(plain) as pool:
        service = _service(pool, uniform, seconds)
    shares = {}
    with _actors(cached) as pool:
        for size in EFFECTIVE_SIZES:
            say(f"service with a cache at effective size {size}")
            shares[str(size)] = _service(pool, probabilities(len(index), size), seconds)
    return {"service": service, "cached": shares}


@contextmanager
def _actors(config: LoaderConfig) -> Iterator[LoaderPool]:
    from loader.actors import RayLoaders, local_fleet  # noqa: PLC0415 - Ray is needed only here

    with local_fleet(config, size=THREADS) as fleet:
        yield RayLoaders(fleet)


def _service(pool: LoaderPool, probability: NDArray[np.float64], seconds: float) -> float:
    config = StreamConfig(
        seed=0, global_batch=2 * _BATCH, total_steps=10**6, window_steps=64, prefetch_steps=6, transform=_TRANSFORM
    )
    stream = BatchStream(_Draws(probability, config), pool, config)
    # The caches have to fill: half of the time is warm-up.
    return rate((len(batch.images) for batch in stream), seconds, warm_up=1.0)


def _peers(encoded: list[bytes], seconds: float, say: Progress) -> dict[str, float]:
    found = {}
    for name, start in PEERS.items():
        say(name)
        try:
            with start(encoded, THREADS) as batches:
                found[name] = rate(batches, seconds, warm_up=0.5)
        except ImportError:
            say(f"{name} is not installed")
    return found


def _gpu_sweep() -> list[tuple[int, float]]:
    return list(itertools.product((4, 8, 16), (0.0, 0.5, 0.65, 0.8, 0.95)))


def _gpu(index: ShardIndex, point: tuple[int, float], seconds: float, say: Progress) -> dict[str, float]:
    threads, hw_decoder_load = point
    say(f"GPU, {threads} threads, hardware decoder load {hw_decoder_load}")
    config = LoaderConfig(
        index=str(index.path), threads=threads, decoder="dali", device_id=0, hw_decoder_load=hw_decoder_load
    )
    began_s, cpu_s = time.perf_counter(), time.process_time()
    with _in_process(config) as batches:
        images_per_s = rate(batches, seconds)
    host_cpus = (time.process_time() - cpu_s) / (time.perf_counter() - began_s)
    return {
        "threads": threads,
        "hw_decoder_load": hw_decoder_load,
        "images_per_s": images_per_s,
        "host_cpus": host_cpus,
    }
