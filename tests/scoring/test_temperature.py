import math

import numpy as np
import pytest

from scoring.temperature import (
    LARGEST_EFFECTIVE_SIZE,
    DistanceProfile,
    effective_size,
    sampling_probabilities,
    solve_temperature,
)

PAPER = {0.01: 0.004, 0.05: 0.122, 0.08: 0.236, 0.2: 0.495, 0.4: 0.592, 0.6: 0.614, math.inf: 0.632}
"""Effective size by temperature on ImageNet, as the prototype paper prints it."""


def imagenet_like(num_samples=1_281_167):
    return np.random.default_rng(0).beta(3.40, 2.38, num_samples).astype(np.float32)


def test_hand_computed_law_of_four_samples():
    distance = np.array([0, 0.25, 0.5, 1.0])
    expected = [0.727099, 0.208317, 0.059684, 0.004899]
    np.testing.assert_allclose(sampling_probabilities(distance, 0.2), expected, atol=5e-7)
    assert effective_size(distance, 0.2) == pytest.approx(0.4598193674, abs=1e-10)
    assert effective_size(distance, math.inf) == 0.68359375


def test_hard_is_prototypical_of_the_mirrored_distance():
    distance = np.random.default_rng(1).random(1000)
    np.testing.assert_allclose(
        sampling_probabilities(distance, 0.3, "hard"), sampling_probabilities(1 - distance, 0.3), rtol=1e-12
    )


@pytest.mark.parametrize(("temperature", "printed"), PAPER.items())
def test_paper_table_of_effective_sizes(temperature, printed):
    assert effective_size(imagenet_like(), temperature) == pytest.approx(printed, abs=1.1e-3)


@pytest.mark.parametrize("num_samples", [2, 17, 1000, 4097])
@pytest.mark.parametrize("direction", ["prototypical", "hard"])
def test_probabilities_sum_to_one_and_size_grows_with_temperature(num_samples, direction):
    distance = np.random.default_rng(num_samples).random(num_samples)
    sizes = []
    for temperature in np.geomspace(0.01, 100, 24):
        assert sampling_probabilities(distance, temperature, direction).sum() == pytest.approx(1.0, abs=1e-12)
        sizes.append(effective_size(distance, temperature, direction))
    assert (np.diff(sizes) > 0).all()
    assert sizes[-1] < effective_size(distance, math.inf, direction) + 1e-12


@pytest.mark.parametrize("direction", ["prototypical", "hard"])
@pytest.mark.parametrize("temperature", [0.02, 0.07, 0.3, 0.6, 2.0])
def test_solve_inverts_the_effective_size(temperature, direction):
    distance = np.random.default_rng(5).beta(3.4, 2.38, 20_000)
    size = effective_size(distance, temperature, direction)
    assert solve_temperature(distance, size, direction) == pytest.approx(temperature, rel=1e-8)


@pytest.mark.parametrize("direction", ["prototypical", "hard"])
def test_histogram_agrees_with_every_sample_to_a_millionth(direction):
    distance = imagenet_like(1_281_167)
    profile = DistanceProfile(distance)
    for size in (0.003, 0.02, 0.2, 0.4, 0.6, LARGEST_EFFECTIVE_SIZE):
        temperature = profile.solve(size, direction)
        assert effective_size(distance, temperature, direction) == pytest.approx(size, abs=1e-6)


def test_one_sample_is_always_drawn():
    assert effective_size([0.3], 0.5) == 1.0


def test_equal_distances_have_one_size_only():
    with pytest.raises(ValueError, match=r"effective_size must be at least 0.632305"):
        solve_temperature(np.zeros(1000), 0.5)


@pytest.mark.parametrize("size", [0.0, -0.1, 0.64, 1.0, math.nan])
def test_effective_size_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match="effective_size must be in"):
        solve_temperature([0.0, 1.0], size)


def test_effective_size_below_reach_is_refused():
    with pytest.raises(ValueError, match=r"effective_size must be at least 0.25"):
        solve_temperature([0.0, 0.2, 0.5, 1.0], 0.1)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        sampling_probabilities([0.0, 1.0], temperature)


@pytest.mark.parametrize("distance", [[], [[0.0]], [0.0, math.nan], [math.inf, 0.0]])
def test_bad_distances_are_refused(distance):
    with pytest.raises(ValueError, match="distance must be"):
        effective_size(distance, 0.5)


def test_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="direction must be one of"):
        sampling_probabilities([0.0, 1.0], 0.5, "easy")
