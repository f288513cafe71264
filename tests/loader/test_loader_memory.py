"""A loader's memory over a whole stream, and what the object store writes to disk when pixels go through it."""

# Ray reads its authentication settings when it is imported, so every import of it follows the fixture that sets them.

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from loader import (
    BatchSpec,
    BatchStream,
    ImageSample,
    LoaderConfig,
    LoaderWorker,
    LocalLoaders,
    ShardIndex,
    StreamConfig,
    Transform,
    build_index,
    build_shards,
)
from loader.bench.index import IMAGENET_SAMPLES, fresh_open_cost, write_large_index
from tests.local_ray import local_ray

CONFIG = StreamConfig(seed=3, global_batch=32, total_steps=100, window_steps=20, transform=Transform())
STORE_BYTES = 80 << 20
"""Ray takes no less than 75 MiB."""
NUM_SAMPLES, SIDES = 100, (700, 900)
CACHE_BYTES = 48 << 20
WINDOW_BYTES = CONFIG.prefetch_steps * CONFIG.global_batch * 3 * CONFIG.transform.size**2
SCRATCH_BYTES = 64 << 20
"""Libraries that load with the first image, and one image of each thread on its way from bytes to pixels."""


@pytest.fixture(scope="module")
def large_index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Photographs that are decoded to 189 MB, several times what the cache holds."""
    root = tmp_path_factory.mktemp("large")
    ramp = np.add.outer(np.arange(SIDES[0]), np.arange(SIDES[1]))
    samples = []
    for number in range(NUM_SAMPLES):
        pixels = np.stack([ramp * scale + 7 * number for scale in (1, 2, 3)], axis=-1).astype(np.uint8)
        samples.append(ImageSample(f"{number:03d}", simplejpeg.encode_jpeg(pixels, quality=60)))
    return build_index(build_shards(samples, root), root / "index.parquet")


@pytest.fixture(scope="module")
def small_store():
    """Ray with little room for objects."""
    with local_ray(object_store_memory=STORE_BYTES) as ray:
        yield ray


def spilled_bytes() -> int:
    """Return what the object store has written to disk since it started."""
    from ray._private import internal_api, state

    return int(internal_api.get_memory_info_reply(state.state).store_stats.spilled_bytes_total)


def own_bytes(pid: int) -> int:
    """Return the memory of a process that it shares with nobody."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon in /proc/PID/status")


@pytest.mark.ray
@pytest.mark.slow
def test_a_loader_keeps_to_its_cache_and_a_prefetch_window_and_nothing_is_spilled(
    small_store, large_index, random_windows
):
    from loader.actors import RayLoaders
    from loader.fleet.actors import start_fleet

    decoded = 3 * SIDES[0] * SIDES[1] * NUM_SAMPLES
    through_store = CONFIG.total_steps * CONFIG.global_batch * 3 * CONFIG.transform.size**2
    assert decoded > CACHE_BYTES + WINDOW_BYTES + SCRATCH_BYTES, "an unbounded cache would pass"
    assert through_store > 2 * STORE_BYTES, "a store that keeps everything would not spill"
    config = LoaderConfig(cache_bytes=CACHE_BYTES)
    fleet = start_fleet(large_index.path, config, size=1, num_cpus=0)
    try:
        pid = fleet.status()["loaders"][0]["pid"]
        idle = own_bytes(pid)
        stream = BatchStream(random_windows(NUM_SAMPLES, CONFIG), RayLoaders(fleet, ring_bytes=0), CONFIG)
        most = max(own_bytes(pid) for _ in stream)
        assert fleet.status()["loaders"][0]["cache_bytes"] <= CACHE_BYTES
        assert most - idle > CACHE_BYTES // 2, "the cache did not fill"
        assert most - idle <= CACHE_BYTES + WINDOW_BYTES + SCRATCH_BYTES
        assert spilled_bytes() == 0
    finally:
        fleet.close()
    held = [small_store.put(np.zeros(20 << 20, np.uint8)) for _ in range(6)]
    assert spilled_bytes() > 0, "the measure does not see what is spilled"
    del held


@pytest.fixture(scope="module")
def imagenet_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of as many samples as ImageNet has."""
    return write_large_index(tmp_path_factory.mktemp("imagenet") / "index.parquet", IMAGENET_SAMPLES)


@pytest.mark.parametrize("allocator", ["mimalloc", "system"])
def test_opening_an_index_never_takes_more_than_its_columns_and_a_few_megabytes(imagenet_index, monkeypatch, allocator):
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", allocator)  # the process that opens it inherits this
    cost = fresh_open_cost(imagenet_index)
    columns = 24 * IMAGENET_SAMPLES  # 31 MB
    assert columns <= cost.held_bytes + (1 << 20), "the columns are not in memory"
    assert cost.peak_bytes <= columns + (6 << 20), "the target is 40 MB"


@pytest.mark.parametrize("threads", [1, 2])
def test_loading_works_where_torch_runs_in_inference_mode(photo_index, threads):
    spec = BatchSpec(sample_ids=np.arange(24), draws=np.arange(24), seed=0, transform=Transform(size=32))
    with LoaderWorker(photo_index.path, LoaderConfig(threads=threads)) as worker:
        expected = worker.load(spec).images
        with torch.inference_mode():
            assert (worker.load(spec).images == expected).all()
            shared = torch.zeros(24, 3, 32, 32, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
            worker.load(spec, out=shared.numpy())
        assert (shared.numpy() == expected).all()


def test_batches_from_inference_mode_are_ordinary_tensors(photo_index, random_windows):
    config = StreamConfig(seed=3, global_batch=8, total_steps=6, window_steps=3, transform=Transform(size=32))
    with torch.inference_mode():
        pool = LocalLoaders([LoaderWorker(photo_index.path, LoaderConfig(threads=2))])
        batches = list(BatchStream(random_windows(24, config), pool, config))
        pool.close()
    weight = torch.ones((), requires_grad=True)
    for batch in batches:
        (batch.images.float().mean() * weight).backward()
        batch.images.add_(1)
    assert weight.grad is not None
