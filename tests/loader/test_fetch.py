from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from loader.shards.fetch import MAX_GAP_BYTES, MAX_RANGE_BYTES, MAX_WASTE, plan_ranges


def index_of(sizes: list[int], *, gap: int = 1024, shards: int = 1) -> SimpleNamespace:
    """An index of samples that lie one after another, the same number in each shard."""
    size = np.array(sizes, np.int32)
    per_shard = len(sizes) // shards
    start = np.concatenate([np.cumsum(np.r_[512, part + gap])[:-1] for part in np.split(size.astype(np.int64), shards)])
    shard = np.repeat(np.arange(shards, dtype=np.int32), per_shard)
    return SimpleNamespace(
        shard=shard, offset=start, block=start, size=size, start=lambda sample_id: int(start[sample_id])
    )


def test_neighbours_are_read_together_and_others_alone():
    index = index_of([100_000] * 12, shards=2)
    ranges = list(plan_ranges(index, [1, 0, 2, 5, 6, 7, 11, 7]))
    assert [part.sample_ids for part in ranges] == [(0, 1, 2), (5,), (6, 7), (11,)]
    assert (ranges[0].offset, ranges[0].size) == (512, 3 * 100_000 + 2 * 1024)
    assert [part.shard for part in ranges] == [0, 0, 1, 1]


def test_samples_across_a_small_gap_are_joined_and_across_a_large_one_not():
    index = index_of([30_000] * 20, gap=1024)
    assert [part.sample_ids for part in plan_ranges(index, [0, 1, 2, 3, 5])] == [(0, 1, 2, 3, 5)]
    assert [part.sample_ids for part in plan_ranges(index, [0, 1, 2, 3, 7])] == [(0, 1, 2, 3), (7,)]


def test_the_waste_is_bounded_even_when_every_gap_is_small():
    index = index_of([2_000] * 100, gap=1024)
    for part in plan_ranges(index, list(range(0, 100, 2))):
        assert len(part.sample_ids) == 1


@pytest.mark.parametrize("seed", range(5))
def test_ranges_cover_every_sample_once_within_their_bounds(seed):
    rng = np.random.default_rng(seed)
    index = index_of(rng.integers(0, 300_000, 400).tolist(), gap=1536, shards=4)
    ids = rng.integers(0, 400, 300)
    ranges = list(plan_ranges(index, ids.tolist()))
    covered = [sample for part in ranges for sample in part.sample_ids]
    assert sorted(covered) == sorted(set(ids.tolist()))
    for part in ranges:
        wanted = sum(int(index.size[sample]) for sample in part.sample_ids)
        starts = [int(index.offset[sample]) for sample in part.sample_ids]
        ends = [int(index.offset[sample]) + int(index.size[sample]) for sample in part.sample_ids]
        assert (part.offset, part.offset + part.size) == (starts[0], ends[-1])
        assert {int(index.shard[sample]) for sample in part.sample_ids} == {part.shard}
        assert len(starts) == 1 or part.size <= MAX_RANGE_BYTES
        assert part.size - wanted <= MAX_WASTE * part.size
        assert all(0 <= start - end <= MAX_GAP_BYTES for start, end in zip(starts[1:], ends[:-1], strict=True))


def test_nothing_asked_is_nothing_read():
    assert list(plan_ranges(index_of([10]), [])) == []
