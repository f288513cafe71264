"""Loaders that come and go under load, streams over fixed weights, and requests that are worth sending."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from loader import (
    Batch,
    BatchStream,
    LoaderConfig,
    LoaderWorker,
    LocalLoaders,
    StreamConfig,
    Transform,
    WeightedWindows,
)
from loader.batch import BatchSpec, Pixels
from tests.bench.digests import digest

CONFIG = StreamConfig(seed=9, global_batch=48, total_steps=48, window_steps=8, transform=Transform(size=16))


class ElasticLoaders(LocalLoaders):
    """Sixteen loaders in this process, of which the first `desired` are members."""

    def __init__(self, workers: list[LoaderWorker]) -> None:
        super().__init__(workers)
        self.desired = 1
        self.sent: list[int] = []
        self.asked: set[str] = set()

    def members(self) -> tuple[str, ...]:
        return super().members()[: self.desired]

    def submit(self, member: str, spec: object) -> object:
        self.sent.append(len(spec))
        self.asked.add(member)
        return super().submit(member, spec)


@pytest.fixture(scope="module")
def pool(photo_index):
    pool = ElasticLoaders([LoaderWorker(photo_index.path, LoaderConfig()) for _ in range(16)])
    yield pool
    pool.close()


def test_one_to_sixteen_and_back_under_load_loses_and_repeats_nothing(pool, random_windows):
    config = replace(CONFIG, total_steps=120)
    pool.desired = 1
    draws: list[int] = []
    expected = digest(BatchStream(random_windows(24, config), pool, config))
    sizes = [1, 2, 4, 8, 16, 11, 16, 5, 2, 1]
    stream = BatchStream(random_windows(24, config), pool, config)
    pool.asked.clear()

    def scaled() -> Iterator[Batch]:
        for batch in stream:
            pool.desired = sizes[batch.step * len(sizes) // config.total_steps]
            draws.extend(batch.draws.tolist())
            yield batch

    assert digest(scaled()) == expected
    assert draws == list(range(config.total_steps * config.global_batch))
    assert len(pool.asked) == 16


def test_a_mixed_fleet_gives_the_same_draws_and_pixels_that_are_equal_but_for_rounding(photo_index, random_windows):
    config = replace(CONFIG, total_steps=8, transform=Transform(size=64), request_deadline_s=60, stall_timeout_s=120)
    configs = [LoaderConfig(), LoaderConfig(decoder="dali", device_id=None)]
    batches = []
    for workers in (configs[:1], configs):
        fleet = LocalLoaders([LoaderWorker(photo_index.path, config) for config in workers])
        batches.append(list(BatchStream(random_windows(24, config), fleet, config)))
        fleet.close()
    for alone, mixed in zip(*batches, strict=True):
        assert (alone.draws == mixed.draws).all()
        assert (alone.sample_ids == mixed.sample_ids).all()
        differ = (alone.images.int() - mixed.images.int()).abs().float()
        assert differ.mean() < 1.0
        # A box of its own for every draw: another box would differ everywhere.
        by_image = differ.flatten(1).mean(1)
        assert by_image.max() < 3.0
        assert (by_image > 0).any(), "both decoders took part"


@pytest.mark.parametrize("size", [1, 4, 8, 16])
def test_requests_carry_what_they_should_however_many_loaders_there_are(pool, random_windows, size):
    config = replace(CONFIG, window_steps=48, total_steps=48, min_request_images=32)
    pool.desired, pool.sent = size, []
    digest(BatchStream(random_windows(24, config), pool, config))
    # 24 samples do not divide evenly among many loaders: what counts is the number of calls.
    assert len(pool.sent) <= 48 * 48 / 32


class BlackLoaders(LocalLoaders):
    """Loaders that answer at once, with black images."""

    def __init__(self, size: int) -> None:
        self.size, self.sent = size, []

    def members(self) -> tuple[str, ...]:
        return tuple(f"loader-{number}" for number in range(self.size))

    def submit(self, member: str, spec: BatchSpec) -> Future[Pixels]:
        self.sent.append(len(spec))
        size, answer = spec.transform.size, Future()
        images = np.zeros((len(spec), size, size, 3), np.uint8).transpose(0, 3, 1, 2)
        answer.set_result(Pixels(images=images, bad=(), decode_s=0))
        return answer


@pytest.mark.parametrize("batch", [64, 256])
@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_by_default_a_call_carries_about_64_images_at_least(size, batch):
    config = StreamConfig(seed=0, global_batch=batch, total_steps=32, transform=Transform())
    loaders = BlackLoaders(size)
    images = sum(len(one.draws) for one in BatchStream(WeightedWindows(np.ones(20_000), config), loaders, config))
    assert images == 32 * batch
    assert np.mean(loaders.sent) >= 60
    assert np.percentile(loaders.sent, 5) >= 40, "rendezvous hashing spreads a little unevenly"


def test_memory_bounds_how_far_requests_grow(pool, random_windows):
    step_bytes = 3 * 16 * 16 * 48
    config = replace(CONFIG, window_steps=48, total_steps=48, min_request_images=64, prefetch_bytes=2 * step_bytes)
    pool.desired, pool.sent = 16, []
    digest(BatchStream(random_windows(24, config), pool, config))
    assert max(pool.sent) <= config.prefetch_steps // 2 * 48


def test_fixed_weights_are_drawn_in_proportion_and_zero_never(pool, photo_index):
    weights = np.arange(24, dtype=np.float64)
    config = replace(CONFIG, global_batch=5000, window_steps=4)
    ids = np.concatenate([WeightedWindows(weights, config).window(index).sample_ids for index in range(5)])
    counts = np.bincount(ids, minlength=24)
    assert counts[0] == 0
    expected = len(ids) * weights[1:] / weights.sum()
    assert (((counts[1:] - expected) ** 2) / expected).sum() < 56  # chi-square of 22 degrees, p = 1e-4


def test_windows_of_fixed_weights_are_the_same_for_every_rank_and_restart(pool):
    weights = np.random.default_rng(0).random(24)
    config = replace(CONFIG, total_steps=12)
    whole = digest(BatchStream(WeightedWindows(weights, config), pool, config))
    assert digest(BatchStream(WeightedWindows(weights, config), pool, config)) == whole
    first, second = WeightedWindows(weights, config).window(3), WeightedWindows(weights * 7, config).window(3)
    assert (first.sample_ids == second.sample_ids).all()
    assert np.allclose(first.probability, weights[first.sample_ids] / weights.sum())
    assert len(first.spare_ids) == 3
    for wrong in (np.zeros(4), np.array([1.0, -1.0, 3.0]), np.array([np.nan, 1.0]), np.zeros(0)):
        with pytest.raises(ValueError, match="weights must be finite"):
            WeightedWindows(wrong, config)
