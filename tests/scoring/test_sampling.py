import numpy as np
import pytest

from scoring.draw.sampling import random_uniforms
from scoring.policies import PolicyOptions, PolicyPlan, parse_policy
from scoring.table.columns import Columns
from scoring.table.samples import SampleTable, local_ranges, range_borders


def table_of(weights, *, ranges=1, segment_blocks=4):
    """A sample table whose weights are given."""
    parts = local_ranges(None, len(weights), ranges=ranges, segment_blocks=segment_blocks)
    plan = PolicyPlan(name="given", factors=("given",), functions=(lambda rows: weights[rows.sample_ids()],))
    table = SampleTable(parts, options=PolicyOptions())
    return table, table.weights(plan, 1.0)


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
    ids, probability = table_of(weights)[1].draw(uniforms)
    expected = np.searchsorted(np.cumsum(weights), uniforms * weights.sum(), side="right")
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(probability, weights[ids] / weights.sum(), rtol=1e-12)


@pytest.mark.parametrize("num_samples", [1, 255, 256, 257, 5000])
@pytest.mark.parametrize("ranges", [2, 3, 4, 7])
def test_ranges_draw_the_same_samples_bit_for_bit(num_samples, ranges):
    weights, uniforms = some_weights(num_samples), random_uniforms(1, 2, 5_000)
    whole = table_of(weights)[1].draw(uniforms)
    parts = table_of(weights, ranges=ranges)[1].draw(uniforms)
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_array_equal(parts[1], whole[1])


def test_range_borders_cover_everything_and_end_with_segments():
    assert range_borders(1000, ranges=3, segment_blocks=4) == [(0, 256), (256, 512), (512, 1000)]
    assert range_borders(10, ranges=4, segment_blocks=4) == [(0, 10)]


def test_extreme_uniforms_never_reach_a_weightless_sample():
    weights = np.zeros(1000)
    weights[[70, 500]] = [1e-300, 3.0]
    uniforms = np.array([0.0, np.nextafter(0, 1), 0.5, 1 - 2.0**-53])
    ids, _ = table_of(weights)[1].draw(uniforms)
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


def test_effective_size_of_a_table_is_that_of_its_law():
    weights = np.array([4.0, 3.0, 2.0, 1.0])
    expected = (1 - (1 - weights / 10) ** 4).mean()
    assert table_of(weights)[1].effective_size() == pytest.approx(expected, rel=1e-14)


def test_table_keeps_fourteen_bytes_a_sample_and_the_block_sums():
    num_samples = 1 << 16
    part = Columns(np.zeros(num_samples, np.float32), num_samples=num_samples)
    table = SampleTable([part], options=PolicyOptions())
    table.weights(parse_policy("prototypical"), 0.1)
    from scoring.table.scores import ScoreReport

    ids = np.arange(10)
    report = ScoreReport(ids=ids, values=np.ones(10, np.float32), kind="loss", step=0, producer="a", sequence=0)
    table.merge([report])
    assert table.bytes_kept() / num_samples == pytest.approx(14.125, abs=0.01)  # 4 + 4 + 4 + 2, and 8 for 64
