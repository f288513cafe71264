"""Measures the loader in images per second, from raw decoding to the whole service, and the peers that are installed.

Read the figures of one run as ratios: all come from the same machine. The work is RandomResizedCrop(224, scale .2-1,
bicubic with antialias) and a flip, to uint8, on two threads or in two processes, after a warm-up.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from loader.batch import BatchSpec
from loader.batches.windows import WeightedWindows
from loader.bench.index import bench_index
from loader.bench.peers import PEERS
from loader.bench.rates import rate, rates
from loader.config import LoaderConfig, StreamConfig, Transform
from loader.decode.memory import keep_freed_memory
from loader.pool import LoaderPool
from loader.shards.index import ShardIndex
from loader.shards.index_builder import build_index
from loader.shards.listings import class_folders
from loader.shards.writer import build_shards
from loader.stream import BatchStream
from loader.worker import LoaderWorker

THREADS: Final = 2
EFFECTIVE_SIZES: Final = (0.61, 0.25, 0.12)
CACHED_SHARE: Final = 0.4
"""Share of the decoded images that the caches of all loaders together hold."""
_BATCH: Final = 64
_TRANSFORM: Final = Transform()

_TURNS: Final = 4
_REST_S: Final = 1.5
"""Pause after a service's turn: its loaders still decode the requests that its stream had sent ahead."""
_TRANSPORTS: Final = {"ring": "through shared memory", "object_store": "through the object store"}
_RING_BYTES: Final = {"ring": 320 << 20, "object_store": 0}

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

    `images` is a folder of images or of tars, or a tar. With device "cuda" the GPU decoder's settings are swept.
    `progress` is called with the name of each measurement when it starts; each lasts `seconds` after its warm-up.

    Returns:
        `{"raw_decode", "in_process", "service", "cached": {"0.61", "0.25", "0.12"}, "peers": {name: ...}}`, all
        images/s, with these beside them: "object_store" has the figures of "service" and "cached" without shared
        memory, "cache_hit_rate" the share of hits by effective size, "index" what `bench_index` measures. With "cuda"
        `{"raw_decode", "gpu": [{"threads", "hw_decoder_load", "images_per_s", "host_cpus", "gpu_memory_mb"}]}`.

    Raises:
        ValueError: There are no images, or the device is unknown or missing.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda; got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda needs a GPU and its driver; none was found here. Use cpu")
    keep_freed_memory()
    say = progress or (lambda _: None)
    with tempfile.TemporaryDirectory(prefix="tempera-bench-") as scratch:
        tars = shards_of(Path(images), Path(scratch))
        index = build_index(tars, Path(scratch) / "index.parquet")
        with index.reader() as reader:
            encoded = [index.read(row, reader) for row in range(len(index))]
        if device == "cuda":
            say("raw decode")
            with _raw_decode(encoded) as raw:
                limit = rate(raw, seconds)
            return {"raw_decode": limit, "gpu": sweep_dali(index, seconds, device_id=0, say=say)}
        report = _in_turns(index, encoded, seconds, say)
        _add_cached(report, index, seconds, say)
        report["peers"] = _peers(encoded, seconds, say) if peers else {}
        say("index")
        report["index"] = bench_index(tars, Path(scratch), seconds=seconds / 2)
    return report


def probabilities(num_samples: int, effective_size: float) -> NDArray[np.float64]:
    """Return float64[N] draw probabilities of a given effective size, shaped as on ImageNet.

    Distances have the quantiles of Beta(3.40, 2.38), which reproduces the published effective sizes; the probability is
    softmax(-distance / temperature), the temperature found by bisection on the effective size (Lin et al., Eq. 4-5).
    """
    grid = np.linspace(0, 1, 4097)[1:-1]
    # The density of Beta(a, b) is x^(a-1) (1-x)^(b-1); its cumulative sum gives the quantiles.
    density = grid**2.40 * (1 - grid) ** 1.38
    quantiles = (np.arange(num_samples) + 0.5) / num_samples
    distance = np.interp(quantiles, np.cumsum(density) / density.sum(), grid)
    low, high = 1e-4, 1e4
    for _ in range(100):
        temperature = float(np.sqrt(low * high))
        weight = np.exp(-(distance - distance.min()) / temperature)
        share = weight / weight.sum()
        # Share of the samples drawn at least once in N draws: the mean of 1 - (1 - p)^N, exact for tiny p.
        drawn = -np.expm1(num_samples * np.log1p(-np.minimum(share, 1 - 1e-12))).mean()
        low, high = (low, temperature) if drawn > effective_size else (temperature, high)
    return np.random.default_rng(0).permutation(share)


def shards_of(images: Path, scratch: Path) -> list[Path]:
    """Return the tars at a path, or write the images of its folders as tars and return those."""
    tars = [images] if images.suffix == ".tar" else sorted(images.glob("*.tar"))
    return tars or [Path(path) for path in build_shards(class_folders(images), scratch / "shards")]


@contextmanager
def _raw_decode(encoded: list[bytes]) -> Iterator[Iterator[int]]:
    """Yield counts of images decoded by libjpeg-turbo alone: the limit without a cache."""
    with ThreadPoolExecutor(THREADS) as threads:

        def chunk(images: list[bytes]) -> int:
            for data in images:
                simplejpeg.decode_jpeg(data)
            return len(images)

        chunks = [encoded[at : at + 4] for at in range(0, len(encoded), 4)]
        yield (sum(threads.map(chunk, chunks)) for _ in itertools.count())


@contextmanager
def _in_process(index: ShardIndex, config: LoaderConfig, *, ahead: int = 0) -> Iterator[Iterator[int]]:
    """Yield counts of images decoded by a worker in this process, with `ahead` more requests under way."""
    with LoaderWorker(index.path, config) as worker, ThreadPoolExecutor(1 + ahead) as requests:
        rng = np.random.default_rng(0)
        # Large requests, as in a stream: with small ones each thread waits for the other's last image.
        size = 4 * _BATCH

        def load(number: int) -> int:
            spec = BatchSpec(
                sample_ids=rng.integers(0, len(worker.index), size),
                draws=np.arange(number * size, (number + 1) * size),
                seed=0,
                transform=_TRANSFORM,
            )
            return len(worker.load(spec).images)

        # Every image once, untimed: the first decode of each is a whole one, to prove that it is sound.
        everything = np.arange(len(worker.index))
        worker.load(BatchSpec(sample_ids=everything, draws=everything, seed=0, transform=_TRANSFORM))

        def counts() -> Iterator[int]:
            under_way = deque(requests.submit(load, number) for number in range(ahead))
            for number in itertools.count(ahead):
                under_way.append(requests.submit(load, number))
                yield under_way.popleft().result()

        yield counts()


def _in_turns(index: ShardIndex, encoded: list[bytes], seconds: float, say: Progress) -> dict[str, Any]:
    """Measure raw decoding, a worker in this process, and loader actors through each transport, in turns.

    A shared machine may be a quarter faster a moment later, and these figures are read as ratios.
    """
    from loader.actors import RayLoaders  # noqa: PLC0415 - Ray is needed only here
    from loader.fleet.actors import local_fleet  # noqa: PLC0415 - Ray is needed only here

    uniform = np.full(len(index), 1 / len(index))
    ours = LoaderConfig(threads=THREADS)
    turns: list[dict[str, float]] = []
    with (
        _raw_decode(encoded) as raw,
        _in_process(index, ours) as in_process,
        local_fleet(index.path, LoaderConfig(), size=THREADS) as fleet,
    ):
        pools = {name: RayLoaders(fleet, ring_bytes=ring_bytes) for name, ring_bytes in _RING_BYTES.items()}
        for turn in range(_TURNS):
            say(f"raw decode, in process and service, {turn + 1} of {_TURNS}")
            figures = rates({"raw_decode": raw, "in_process": in_process}, seconds / 2)
            for name, pool in pools.items():
                figures[name] = _service(pool, uniform, seconds / 2)
                time.sleep(min(_REST_S, seconds))
            turns.append(figures)
    mean = {name: sum(figures[name] for figures in turns) / _TURNS for name in turns[0]}
    service, object_store = mean.pop("ring"), mean.pop("object_store")
    return {**mean, "service": service, "object_store": {"service": object_store}}


def _add_cached(report: dict[str, Any], index: ShardIndex, seconds: float, say: Progress) -> None:
    """Measure loader actors that cache decoded images, through each transport."""
    from loader.actors import RayLoaders  # noqa: PLC0415 - Ray is needed only here
    from loader.fleet.actors import local_fleet  # noqa: PLC0415 - Ray is needed only here

    # Widened first: the index's 16-bit sides would overflow.
    decoded = 3 * int((index.width.astype(np.int64) * index.height).sum())
    config = LoaderConfig(cache_bytes=int(CACHED_SHARE * decoded / THREADS))
    figures: dict[str, dict[str, float]] = {"ring": {}, "object_store": {}}
    hit_rate = {}
    hits = uses = 0  # of all loaders' caches since they started, as of their last check
    with local_fleet(index.path, config, size=THREADS) as fleet:
        for size, transport in itertools.product(EFFECTIVE_SIZES, figures):
            say(f"service with a cache at effective size {size}, {_TRANSPORTS[transport]}")
            pool = RayLoaders(fleet, ring_bytes=_RING_BYTES[transport])
            figures[transport][str(size)] = _service(pool, probabilities(len(index), size), seconds)
            loaders, hits_before, uses_before = fleet.status()["loaders"], hits, uses
            hits = sum(loader.get("cache_hits", 0) for loader in loaders)
            uses = hits + sum(loader.get("cache_misses", 0) for loader in loaders)
            hit_rate[str(size)] = (hits - hits_before) / max(1, uses - uses_before)
    report |= {"cached": figures["ring"], "cache_hit_rate": hit_rate}
    report["object_store"]["cached"] = figures["object_store"]


def _service(pool: LoaderPool, probability: NDArray[np.float64], seconds: float) -> float:
    config = StreamConfig(
        seed=0, global_batch=4 * _BATCH, total_steps=10**6, window_steps=32, prefetch_steps=3, transform=_TRANSFORM
    )
    stream = BatchStream(WeightedWindows(probability, config), pool, config)
    # Half of the time is warm-up, in which the caches fill.
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


def sweep_dali(
    index: ShardIndex,
    seconds: float,
    *,
    device_id: int | None,
    say: Progress,
    threads: Sequence[int] = (4, 8, 16),
    loads: Sequence[float] = (0.0, 0.5, 0.65, 0.8, 0.95),
) -> list[dict[str, float]]:
    """Measure DALI's decoder for each number of host threads and share of the hardware JPEG engine, in [0, 1].

    Without a `device_id` DALI runs on the CPU.

    Returns:
        For each point threads, hw_decoder_load, images_per_s, host_cpus (processors kept busy by this process) and
        gpu_memory_mb (in use on the whole device afterwards).
    """
    points = []
    for number, load in itertools.product(threads, loads):
        say(f"DALI, {number} threads, hardware decoder load {load}")
        config = LoaderConfig(threads=number, decoder="dali", device_id=device_id, hw_decoder_load=load)
        with _in_process(index, config, ahead=1) as batches:
            next(batches)  # builds the pipeline, which takes seconds
            began_s, cpu_s = time.perf_counter(), time.process_time()
            images_per_s = rate(batches, seconds)
            host_cpus = (time.process_time() - cpu_s) / (time.perf_counter() - began_s)
            free, total = (0, 0) if device_id is None else torch.cuda.mem_get_info(device_id)
        points.append(
            {
                "threads": number,
                "hw_decoder_load": load,
                "images_per_s": images_per_s,
                "host_cpus": host_cpus,
                "gpu_memory_mb": (total - free) / 1e6,
            }
        )
    return points
