from __future__ import annotations

import numpy as np
import pytest

from loader import BatchSpec, LoaderConfig, LoaderWorker, ShardIndex, Transform
from loader.cache import Demand, PixelCache

IMAGE = np.zeros((10, 10, 3), np.uint8)


def offer(cache: PixelCache, sample_id: int, probability: float, *, draw: int = 0, encoded_bytes: int = 100) -> None:
    demand = Demand(probability, draw)
    if cache.wants(IMAGE.nbytes, encoded_bytes=encoded_bytes, demand=demand):
        cache.put(sample_id, IMAGE, encoded_bytes=encoded_bytes, demand=demand)


def held(cache: PixelCache, num_samples: int = 10, *, draw: int = 0) -> list[int]:
    return [i for i in range(num_samples) if i in cache._entries]


def test_the_most_probable_samples_are_kept_whatever_the_order():
    probability = np.array([0.1, 0.5, 0.2, 0.05, 0.15])
    for seed in range(10):
        cache = PixelCache(2 * IMAGE.nbytes)
        for sample in np.random.default_rng(seed).permutation(5):
            offer(cache, int(sample), probability[sample])
        assert held(cache) == [1, 2]


def test_what_is_dear_to_decode_is_kept_first():
    cache = PixelCache(IMAGE.nbytes)
    offer(cache, 0, 0.1, encoded_bytes=100)
    offer(cache, 1, 0.1, encoded_bytes=300)
    offer(cache, 2, 0.1, encoded_bytes=200)
    assert held(cache) == [1]


def test_bytes_stay_within_the_capacity():
    rng = np.random.default_rng(0)
    cache = PixelCache(50_000)
    for draw in range(2000):
        pixels = np.zeros((*rng.integers(5, 60, 2), 3), np.uint8)
        cache.put(int(rng.integers(0, 300)), pixels, encoded_bytes=100, demand=Demand(float(rng.random()), draw))
        used = sum(entry.pixels.nbytes for entry in cache._entries.values())
        assert used == cache.stats()["cache_bytes"] <= 50_000


def test_room_is_not_made_for_what_then_does_not_fit():
    cache = PixelCache(2 * IMAGE.nbytes)
    offer(cache, 0, 0.1)
    offer(cache, 1, 0.5)
    large = np.zeros((20, 10, 3), np.uint8)
    cache.put(2, large, encoded_bytes=200, demand=Demand(0.3, 0))
    assert held(cache) == [0, 1]


def test_an_image_larger_than_the_cache_is_never_wanted():
    assert not PixelCache(10).wants(IMAGE.nbytes, encoded_bytes=1, demand=Demand(1.0, 0))
    assert not PixelCache(0).wants(1, encoded_bytes=1, demand=Demand(1.0, 0))


def test_a_new_probability_counts_from_the_next_draw_on():
    cache = PixelCache(2 * IMAGE.nbytes)
    offer(cache, 0, 0.5)
    offer(cache, 1, 0.4)
    assert cache.get(0, Demand(0.01, 1)) is not None
    offer(cache, 2, 0.3)
    assert held(cache) == [1, 2]


def test_samples_that_stopped_being_drawn_lose_their_place():
    cache = PixelCache(IMAGE.nbytes)
    offer(cache, 0, 0.9)
    offer(cache, 1, 0.001, draw=5)
    assert held(cache) == [0]
    offer(cache, 1, 0.001, draw=10**6)
    assert held(cache) == [1]


@pytest.mark.parametrize("capacity", [150_000, 400_000, 10**9])
def test_hits_and_misses_give_the_same_bytes(photo_index: ShardIndex, capacity):
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.full(24, 0.3))
    plain = LoaderConfig()
    cached = LoaderConfig(cache_bytes=capacity, threads=2)
    with LoaderWorker(photo_index.path, plain) as reference, LoaderWorker(photo_index.path, cached) as worker:
        for first in range(0, 400, 50):
            ids = rng.choice(24, 50, p=probability)
            options = {"sample_ids": ids, "draws": np.arange(first, first + 50), "seed": 1}
            for transform in (Transform(size=32), Transform(kind="center_crop", size=32, short_side=40)):
                spec = BatchSpec(**options, transform=transform, probability=probability[ids])
                assert (worker.load(spec).images == reference.load(spec).images).all()
        stats = worker.stats()
    assert stats["cache_hits"] > 100
    assert 0 < stats["cache_bytes"] <= capacity
    assert stats["cache_hits"] + stats["cache_misses"] == 800
