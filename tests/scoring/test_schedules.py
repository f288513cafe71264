import itertools
import math

import pytest

from scoring.schedules import SCHEDULES, cosine, linear


def test_cosine_follows_the_paper():
    schedule = cosine(start=0.199, end=0.614)
    printed = {0: 0.199, 0.1: 0.209, 0.25: 0.260, 0.5: 0.406, 0.75: 0.553, 0.9: 0.604, 1: 0.614}
    for progress, size in printed.items():
        assert schedule(progress) == pytest.approx(size, abs=6e-4)


def test_linear_reaches_its_end_and_stays():
    schedule = linear(start=0.1, end=0.5, ramp=0.5)
    assert [schedule(p) for p in (0, 0.25, 0.5, 0.8, 1)] == pytest.approx([0.1, 0.3, 0.5, 0.5, 0.5])


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_stays_in_range_and_never_shrinks(name):
    schedule = SCHEDULES[name]()
    sizes = [schedule(step / 50) for step in range(51)]
    assert all(0 < size <= 1 - math.exp(-1) for size in sizes)
    assert all(later >= earlier for earlier, later in itertools.pairwise(sizes))


def test_progress_past_the_end_is_the_end():
    assert cosine()(1.01) == cosine()(1.0)


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="effective_size must be in"):
        cosine(start=0.0)
    with pytest.raises(ValueError, match="ramp must be"):
        linear(ramp=0.0)
    with pytest.raises(ValueError, match="progress must be"):
        cosine()(-0.1)
