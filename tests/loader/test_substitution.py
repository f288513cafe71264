from __future__ import annotations

import numpy as np
import pytest

from loader import BadSample, TooManyBadSamplesError
from loader.batches.substitution import BadSampleLimit, substitute

BAD = BadSample(row=0, sample_id=4, draw=9, key="cat/4", reason="CRC-32 mismatch")


def test_a_position_takes_the_spare_of_its_share_then_the_following_ones():
    assert substitute(50, 0, num_draws=100, num_spares=4) == 2
    assert substitute(50, 1, num_draws=100, num_spares=4) == 3
    assert substitute(50, 2, num_draws=100, num_spares=4) == 0
    assert substitute(50, 3, num_draws=100, num_spares=4) == 1
    assert substitute(50, 4, num_draws=100, num_spares=4) is None
    assert substitute(0, 0, num_draws=100, num_spares=0) is None


def test_spares_are_used_evenly():
    chosen = [substitute(j, 0, num_draws=1000, num_spares=10) for j in range(1000)]
    assert np.bincount(chosen).tolist() == [100] * 10


def run_burst(limit: BadSampleLimit, share: float, *, draws: int = 20_000, group: int = 64) -> int:
    """Return the draw at which the limit stops the run, or -1."""
    rng = np.random.default_rng(0)
    for first in range(0, draws, group):
        limit.planned(group)
        for draw in np.flatnonzero(rng.random(group) < share):
            try:
                limit.add(BAD)
            except TooManyBadSamplesError:
                return first + int(draw)
    return -1


def test_one_percent_bad_never_stops_a_run():
    assert run_burst(BadSampleLimit(0.05), 0.01) == -1


def test_a_burst_of_errors_stops_within_200_draws():
    assert 0 <= run_burst(BadSampleLimit(0.05), 1.0) < 200


def test_the_error_lists_keys_and_reasons():
    limit = BadSampleLimit(0.0)
    limit.planned(8)
    with pytest.raises(TooManyBadSamplesError, match=r"1 of the last 8 draws.*cat/4: CRC-32 mismatch.*verify"):
        limit.add(BAD)
