from __future__ import annotations

import numpy as np
import pytest

from loader.batches.next_use import cache_hints, draws_until_next
from loader.batches.windows import FixedWindow
from loader.cache import Demand, PixelCache

IMAGE = np.zeros((10, 10, 3), np.uint8)


def test_the_next_draw_of_each_sample():
    inf = np.inf
    assert draws_until_next(np.array([3, 1, 3, 3, 2])).tolist() == [2, inf, 1, inf, inf]


@pytest.mark.parametrize("seed", range(5))
def test_the_next_draw_equals_a_slow_search(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 40, rng.integers(1, 300))
    slow = [next((d for d in range(1, len(ids) - at) if ids[at + d] == ids[at]), np.inf) for at in range(len(ids))]
    assert draws_until_next(ids).tolist() == slow


def window(index: int, ids: np.ndarray, probability: np.ndarray) -> FixedWindow:
    return FixedWindow(index=index, first_draw=index * len(ids), sample_ids=ids, probability=probability[ids])


def test_hints_are_the_rate_until_the_next_draw_or_the_probability():
    probability = np.array([0.7, 0.2, 0.1])
    first, second = window(0, np.array([0, 1, 1, 2]), probability), window(1, np.array([1, 2, 2, 2]), probability)
    assert cache_hints(first, None).tolist() == [0.7, 1.0, 0.2, 0.1]
    assert cache_hints(first, second).tolist() == [0.7, 1.0, 0.5, 0.5]
    assert cache_hints(second, None).tolist() == [0.2, 1.0, 1.0, 0.1]


def hit_rate(windows: list[FixedWindow], *, clairvoyant: bool) -> float:
    """Hits of a cache of a tenth of the samples in the second half of the windows."""
    cache = PixelCache(100 * IMAGE.nbytes)
    hits = asked = 0
    for number, draws in enumerate(windows):
        hints = cache_hints(draws, None) if clairvoyant else draws.probability
        for at, (sample, hint) in enumerate(zip(draws.sample_ids.tolist(), hints.tolist(), strict=True)):
            demand = Demand(hint, draws.first_draw + at)
            hit = cache.get(sample, demand) is not None
            if not hit and cache.wants(IMAGE.nbytes, encoded_bytes=100, demand=demand):
                cache.put(sample, IMAGE, encoded_bytes=100, demand=demand)
            if number >= len(windows) // 2:
                hits, asked = hits + hit, asked + 1
    return hits / asked


def test_a_cache_that_knows_the_window_hits_more_often():
    rng = np.random.default_rng(0)
    weight = np.exp(-3 * rng.random(1000))
    probability = weight / weight.sum()
    windows = [window(i, rng.choice(1000, 512, p=probability), probability) for i in range(30)]
    blind, seeing = (hit_rate(windows, clairvoyant=clairvoyant) for clairvoyant in (False, True))
    assert blind == pytest.approx(np.sort(probability)[-100:].sum(), abs=0.03)
    assert seeing > blind + 0.08
