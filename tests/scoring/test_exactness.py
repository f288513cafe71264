"""Is what is drawn what the weights say? Tests of stated power, and the wrong samplers that they must catch.

The statistics, each with a false alarm rate of one in a million:

- chi-square over 256 bins of equal mass, filled with the samples in random order: a distortion of any kind shows. With
  583,000 draws a distortion of half of the bins by +2 % and of the others by -2 % is caught with a chance above 0.999
  (noncentrality 583,000 * 0.02^2 = 233 on 255 degrees of freedom);
- the same with the bins filled in order of the ids, which shows local errors in the table, and in order of the weights,
  which shows wrong weights;
- the number of distinct samples, against its exact mean and variance under independent draws (z-test);
- that no sample of weight zero is ever drawn.
"""

import math

import numpy as np
import pytest
from scipy import stats

from scoring.draw import permuted_ids, random_uniforms
from scoring.policies import parse_policy
from scoring.table.samples import SampleTable
from scoring.table.weights import WeightKey
from scoring.temperature import expected_distinct
from tests.scoring.configs import weight_table

ALPHA = 1e-6
BINS = 256
DRAWS = 583_000


def equal_mass_bins(probability, order):
    """Bin of each sample when bins are filled in this order of the samples; -1 for weightless ones."""
    mass = np.cumsum(probability[order])
    bins = np.full(len(probability), -1, np.int64)
    bins[order] = np.minimum((mass / mass[-1] * BINS).astype(np.int64), BINS - 1)
    return bins


def random_bins(probability, seed=0):
    return equal_mass_bins(probability, np.random.default_rng(seed).permutation(np.flatnonzero(probability)))


def chi_square_p_value(ids, probability, bins):
    """Probability of a fill of the bins at least this uneven under these probabilities."""
    inside = bins >= 0
    expected = np.bincount(bins[inside], weights=probability[inside], minlength=BINS) * len(ids)
    seen = np.bincount(bins[ids][bins[ids] >= 0], minlength=BINS)
    used = expected > 0
    statistic = ((seen[used] - expected[used]) ** 2 / expected[used]).sum()
    return float(stats.chi2.sf(statistic, used.sum() - 1))


def distinct_p_value(ids, probability):
    """Two-sided probability of this number of distinct samples under independent draws."""
    n, p = len(ids), probability[probability > 0]
    mean = expected_distinct(p, np.ones_like(p), n)
    missed = np.exp(n * np.log1p(-np.minimum(p, 1 - 1e-16)))
    # Exact to first order (Rosen, 1969): Var = sum q (1 - q) - n * (sum p q)^2, q the chance of never being drawn.
    variance = max((missed * (1 - missed)).sum() - n * (p * missed).sum() ** 2, 1.0)
    return float(2 * stats.norm.sf(abs(len(np.unique(ids)) - mean) / math.sqrt(variance)))


def faults(ids, probability):
    """Names of the tests that find fault with these draws."""
    weighty = np.flatnonzero(probability)
    p_values = {
        "chi-square": chi_square_p_value(ids, probability, random_bins(probability)),
        "chi-square by id": chi_square_p_value(ids, probability, equal_mass_bins(probability, weighty)),
        "chi-square by weight": chi_square_p_value(
            ids, probability, equal_mass_bins(probability, weighty[np.argsort(probability[weighty], kind="stable")])
        ),
        "distinct": distinct_p_value(ids, probability),
        "weightless": float((probability[ids] > 0).all()),
    }
    return [name for name, p_value in p_values.items() if p_value < ALPHA]


def drawn(weights, uniforms, **segments):
    """What the real sampler draws from given weights."""
    return weight_table(weights, **segments).draw(uniforms)[0]


def softmax(num_samples, temperature=0.1, seed=0):
    """Softmax weights in id order of distance, with a tenth of the samples excluded."""
    rng = np.random.default_rng(seed)
    weights = np.exp(-np.sort(rng.beta(3.4, 2.38, num_samples)) / temperature)
    weights[rng.random(num_samples) < 0.1] = 0.0
    weights[0] = 1.0
    return weights


@pytest.mark.parametrize("num_samples", [1, 2, 4095, 4096, 4097])
def test_draws_follow_the_weights(num_samples):
    weights = softmax(num_samples)
    ids = drawn(weights, random_uniforms(11, num_samples % 97, DRAWS))
    assert faults(ids, weights / weights.sum()) == []


def test_more_samples_than_float32_can_count_are_all_reachable():
    """Above 2^24 samples float32 sums and `torch.multinomial` fail; bins here are random, not of quite equal mass."""
    num_samples = 2**24 + 1
    rng = np.random.default_rng(0)
    distance = rng.random(num_samples, dtype=np.float32)
    weights = SampleTable(distance, num_samples=num_samples).weigh(
        WeightKey(policy="prototypical", temperature=0.3), parse_policy("prototypical")
    )
    ids, drawn_probability = weights.draw(random_uniforms(11, 1, DRAWS))
    probability = np.exp((distance.min() - distance.astype(np.float64)) / 0.3)
    probability /= probability.sum()
    np.testing.assert_allclose(drawn_probability, probability[ids], rtol=1e-9)
    bins = rng.integers(0, BINS, num_samples, dtype=np.uint8).astype(np.int64)
    assert chi_square_p_value(ids, probability, bins) > ALPHA
    assert chi_square_p_value(ids, probability, (distance * BINS).astype(np.int64)) > ALPHA
    assert distinct_p_value(ids, probability) > ALPHA
    assert (ids > 2**24 - 2**20).any()


def test_many_segments_draw_from_the_same_distribution():
    weights = softmax(50_000)
    ids = drawn(weights, random_uniforms(12, 4, DRAWS), segment_blocks=16)
    assert faults(ids, weights / weights.sum()) == []


def test_permutations_are_uniform_over_all_orders():
    orders = np.stack([permuted_ids(4 * epoch, 4, num_samples=4, seed=3) for epoch in range(24_000)])
    ranks = orders @ np.array([64, 16, 4, 1])
    counts = np.unique(ranks, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > ALPHA


def test_p_values_are_calibrated_over_two_hundred_seeds():
    weights = softmax(2_000)
    probability = weights / weights.sum()
    bins = random_bins(probability)
    p_values = np.array(
        [
            [chi_square_p_value(ids, probability, bins), distinct_p_value(ids, probability)]
            for ids in (drawn(weights, random_uniforms(seed, 0, 30_000)) for seed in range(200))
        ]
    )
    for column in p_values.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
        assert column.min() > ALPHA


def test_two_percent_distortion_is_caught_with_the_stated_power():
    noncentrality = DRAWS * 0.02**2
    power = stats.ncx2.sf(stats.chi2.isf(ALPHA, BINS - 1), BINS - 1, noncentrality)
    assert power > 0.999
    rng = np.random.default_rng(5)
    weights = np.ones(BINS)
    distorted = weights * np.where(np.arange(BINS) % 2, 1.02, 0.98)
    caught = [
        chi_square_p_value(drawn(distorted, rng.random(DRAWS)), weights / BINS, random_bins(weights / BINS, seed))
        < ALPHA
        for seed in range(5)
    ]
    assert all(caught)


# -- twelve wrong samplers ---------------------------------------------------------------------------------------------
# Each takes (distance, temperature, uniforms) and should draw by softmax(-distance / temperature), zero where distance
# is above EXCLUDED. Each is wrong in one way that has been seen in real samplers.

EXCLUDED = 0.9


def weights_of(distance, temperature):
    weights = np.exp(-distance / temperature)
    weights[distance > EXCLUDED] = 0.0
    return weights


def right(distance, temperature, uniforms):
    return drawn(weights_of(distance, temperature), uniforms)


def float32_sums(distance, temperature, uniforms):
    cumulative = np.cumsum(weights_of(distance, temperature).astype(np.float32), dtype=np.float32)
    return np.searchsorted(cumulative, (uniforms * cumulative[-1]).astype(np.float32), side="right").clip(
        max=len(distance) - 1
    )


def off_by_one_row(distance, temperature, uniforms):
    return (right(distance, temperature, uniforms) + 1) % len(distance)


def left_side_search(distance, temperature, uniforms):
    """A uniform of 0, as coarse uniforms often are, lands on the first sample even if that one weighs nothing."""
    cumulative = np.cumsum(weights_of(distance, temperature))
    return np.searchsorted(cumulative, np.floor(uniforms * 2**16) / 2**16 * cumulative[-1], side="left")


def temperature_inverted(distance, temperature, uniforms):
    return right(distance, 1 / temperature, uniforms)


def direction_flipped(distance, temperature, uniforms):
    return drawn(np.where(distance > EXCLUDED, 0.0, np.exp(distance / temperature)), uniforms)


def without_replacement(distance, temperature, uniforms):
    keys = -np.log(np.random.default_rng(1).random(len(distance))) / np.maximum(
        weights_of(distance, temperature), 1e-300
    )
    order = np.argsort(keys)
    order = order[distance[order] <= EXCLUDED]
    return np.resize(order[: len(uniforms) // 4], len(uniforms))


def same_generator_on_two_ranks(distance, temperature, uniforms):
    half = right(distance, temperature, uniforms[: len(uniforms) // 2])
    return np.concatenate([half, half])


def stale_normaliser(distance, temperature, uniforms):
    """The total is that of an older, broader table: points beyond the end go to the last sample."""
    cumulative = np.cumsum(weights_of(distance, temperature))
    stale = cumulative[-1] * 1.001
    return np.searchsorted(cumulative, uniforms * stale, side="right").clip(
        max=np.flatnonzero(distance <= EXCLUDED)[-1]
    )


def stale_block(distance, temperature, uniforms):
    """One block of 64 keeps the weights of an older temperature."""
    weights = weights_of(distance, temperature)
    heavy = int(np.argmax(weights)) // 64 * 64
    weights[heavy : heavy + 64] *= 1.5
    return drawn(weights, uniforms)


def last_block_lost(distance, temperature, uniforms):
    whole = len(distance) // 64 * 64
    return drawn(weights_of(distance, temperature)[:whole], uniforms)


def segments_of_equal_share(distance, temperature, uniforms):
    """Four segments each draw a quarter, instead of a share by their masses."""
    weights, quarter = weights_of(distance, temperature), len(distance) // 4
    parts = [slice(k * quarter, len(distance) if k == 3 else (k + 1) * quarter) for k in range(4)]
    return np.concatenate([drawn(weights[part], uniforms[k::4]) + part.start for k, part in enumerate(parts)])


def modulo_bias(distance, temperature, uniforms):
    """Uniform ids from 16 random bits by remainder, accepted by weight: low ids come more often."""
    rng = np.random.default_rng(2)
    weights = weights_of(distance, temperature)
    ids = rng.integers(0, 1 << 16, 40 * len(uniforms)) % len(distance)
    accepted = ids[rng.random(len(ids)) < weights[ids] / weights.max()]
    return np.resize(accepted, len(uniforms)) if len(accepted) < len(uniforms) else accepted[: len(uniforms)]


MUTANTS = {
    float32_sums: "distinct",
    off_by_one_row: "weightless",
    left_side_search: "weightless",
    temperature_inverted: "chi-square",
    direction_flipped: "chi-square",
    without_replacement: "distinct",
    same_generator_on_two_ranks: "distinct",
    stale_normaliser: "chi-square",
    stale_block: "chi-square by id",
    last_block_lost: "chi-square",
    segments_of_equal_share: "chi-square by id",
    modulo_bias: "chi-square by id",
}
"""The wrong samplers, and the test that must catch each."""

SORTED = (float32_sums, stale_block, segments_of_equal_share)


def case(sampler):
    """Distances (sorted where it matters), uniforms and the probabilities that the sampler should follow."""
    distance = np.random.default_rng(9).beta(3.4, 2.38, 1 << 22 if sampler is float32_sums else 40_030)
    distance[0] = 1.0
    if sampler is last_block_lost:
        distance[-30:] = 0.0
    if sampler in SORTED:
        distance.sort()
    weights = weights_of(distance, 0.1)
    return distance, random_uniforms(13, 0, DRAWS), weights / weights.sum()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_wrong_sampler_is_caught(mutant):
    distance, uniforms, probability = case(mutant)
    assert MUTANTS[mutant] in faults(mutant(distance, 0.1, uniforms), probability)


@pytest.mark.parametrize("mutant", [float32_sums, stale_block, last_block_lost, off_by_one_row])
def test_right_sampler_passes_where_the_wrong_ones_fail(mutant):
    distance, uniforms, probability = case(mutant)
    assert faults(right(distance, 0.1, uniforms), probability) == []
