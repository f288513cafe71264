import numpy as np
import pytest

from scoring.draw import Stream, feistel, permuted_ids, random_words


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7, 64, 1000, 4097])
def test_every_epoch_is_a_permutation_however_it_is_cut(num_samples):
    whole = permuted_ids(0, 3 * num_samples, num_samples=num_samples, seed=5)
    for epoch in whole.reshape(3, num_samples):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_samples))
    cut = [permuted_ids(d, 2, num_samples=num_samples, seed=5) for d in range(0, 3 * num_samples - 1, 2)]
    np.testing.assert_array_equal(np.concatenate(cut), whole[: 2 * len(cut)])


@pytest.mark.parametrize("num_samples", [1, 2, 3, 5, 100, 4096, 99_991])
def test_feistel_network_is_a_bijection(num_samples):
    keys = random_words(1, 2, 8, Stream.SHUFFLE)
    ids = feistel(np.arange(num_samples, dtype=np.uint64), keys, num_samples)
    np.testing.assert_array_equal(np.sort(ids), np.arange(num_samples))


def test_feistel_order_looks_random():
    num_samples, cells = 1 << 17, 16
    ids = feistel(np.arange(num_samples, dtype=np.uint64), random_words(9, 0, 8, Stream.SHUFFLE), num_samples)
    table, *_ = np.histogram2d(np.arange(num_samples), ids, bins=cells)
    expected = num_samples / cells**2
    statistic = ((table - expected) ** 2 / expected).sum()
    degrees = (cells - 1) ** 2
    assert abs(statistic - degrees) < 6 * np.sqrt(2 * degrees)
    assert np.abs(np.diff(ids)).min() >= 1
    assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 6 / np.sqrt(num_samples)


def test_large_sets_use_no_memory_and_repeat_nothing():
    ids = permuted_ids(10**9 - 500, 1000, num_samples=10**9, seed=3)
    assert len(np.unique(ids[:500])) == 500
    assert ids.min() >= 0
    assert ids.max() < 10**9
