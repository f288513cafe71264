import numpy as np
import pytest

from scoring.draw import Stream, feistel, permuted_ids, random_uniforms, random_words
from scoring.policies import parse_policy
from scoring.table.samples import SampleTable
from scoring.table.scores import ScoreReport
from scoring.table.weights import WeightKey
from tests.scoring.configs import weight_table


def some_weights(num_samples):
    rng = np.random.default_rng(num_samples)
    weights = rng.random(num_samples)
    weights[rng.random(num_samples) < 0.3] = 0.0
    weights[rng.integers(num_samples)] = 1.0
    return weights


@pytest.mark.parametrize("num_samples", [1, 2, 63, 64, 65, 4095, 4096, 4097, 100_003])
def test_draw_equals_a_plain_cumulative_sum(num_samples):
    weights = some_weights(num_samples)
    uniforms = random_uniforms(1, 2, 20_000)
    ids, probability = weight_table(weights, segment_blocks=4).draw(uniforms)
    expected = np.searchsorted(np.cumsum(weights), uniforms * weights.sum(), side="right")
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(probability, weights[ids] / weights.sum(), rtol=1e-12)


def test_extreme_uniforms_never_reach_a_weightless_sample():
    weights = np.zeros(1000)
    weights[[70, 500]] = [1e-300, 3.0]
    uniforms = np.array([0.0, np.nextafter(0, 1), 0.5, 1 - 2.0**-53])
    ids, _ = weight_table(weights, segment_blocks=4).draw(uniforms)
    assert set(ids) <= {70, 500}
    assert ids[-1] == 500


def test_uniforms_are_keyed_by_seed_and_window():
    np.testing.assert_array_equal(random_uniforms(7, 3, 100), random_uniforms(7, 3, 100))
    assert not np.isin(random_uniforms(7, 3, 1000), random_uniforms(7, 4, 1000)).any()
    assert not np.isin(random_uniforms(7, 3, 1000), random_uniforms(3, 7, 1000)).any()


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_bad_weight_is_refused_by_name(bad):
    weights = np.ones(100)
    weights[42] = bad
    with pytest.raises(ValueError, match="for sample 42"):
        weight_table(weights, segment_blocks=4)


def test_all_zero_weights_are_refused():
    with pytest.raises(ValueError, match="at least one weight must be above zero"):
        weight_table(np.zeros(10))


def test_effective_size_of_a_table_is_that_of_its_weights():
    weights = np.array([4.0, 3.0, 2.0, 1.0])
    expected = (1 - (1 - weights / 10) ** 4).mean()
    assert weight_table(weights, segment_blocks=4).effective_size == pytest.approx(expected, rel=1e-14)


def test_table_keeps_fourteen_bytes_a_sample_and_the_block_sums():
    num_samples = 1 << 16
    table = SampleTable(np.zeros(num_samples, np.float32), num_samples=num_samples)
    weights = table.weigh(WeightKey(policy="prototypical", temperature=0.1), parse_policy("prototypical"))
    report = ScoreReport(
        ids=np.arange(10), values=np.ones(10, np.float32), kind="loss", step=0, producer="a", sequence=0
    )
    table.score_table("loss").merge(report)
    assert table.nbytes / num_samples == pytest.approx(14, abs=0.01)  # 4 + 4 + 4 + 2
    assert weights.nbytes / num_samples == 8 / 64


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
