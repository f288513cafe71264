import numpy as np
import pytest

from scoring.sampling import WeightTable, random_uniforms


def table_of(weights):
    return WeightTable(lambda rows: weights[rows], len(weights))


@pytest.mark.parametrize("num_samples", [1, 2, 63, 64, 65, 4095, 4096, 4097, 100_003])
def test_draw_equals_a_plain_cumulative_sum(num_samples):
    rng = np.random.default_rng(num_samples)
    weights = rng.random(num_samples)
    weights[rng.random(num_samples) < 0.3] = 0.0
    weights[rng.integers(num_samples)] = 1.0
    uniforms = random_uniforms(1, 2, 20_000)
    ids, probability = table_of(weights).draw(uniforms)
    expected = np.searchsorted(np.cumsum(weights), uniforms * weights.sum(), side="right")
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(probability, weights[ids] / weights.sum(), rtol=1e-12)


def test_extreme_uniforms_never_reach_a_weightless_sample():
    weights = np.zeros(1000)
    weights[[70, 500]] = [1e-300, 3.0]
    uniforms = np.array([0.0, np.nextafter(0, 1), 0.5, 1 - 2.0**-53])
    ids, _ = table_of(weights).draw(uniforms)
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
        table_of(weights)


def test_all_zero_weights_are_refused():
    with pytest.raises(ValueError, match="at least one weight must be above zero"):
        table_of(np.zeros(10))
