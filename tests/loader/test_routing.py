from __future__ import annotations

import numpy as np
import pytest

from loader import LoaderLost
from loader.batches.routing import Deadline, route

IDS = np.arange(40_000)
MEMBERS = [f"loader-{number}" for number in range(5)]


def owners(members: list[str], **options: object) -> np.ndarray:
    return np.array(members)[route(IDS, members, **options)]


def test_samples_spread_evenly():
    counts = np.bincount(route(IDS, MEMBERS), minlength=5)
    expected = len(IDS) / 5
    assert ((counts - expected) ** 2 / expected).sum() < 20


@pytest.mark.parametrize("size", [1, 2, 4, 7, 16])
def test_one_more_loader_moves_its_share_of_the_samples_and_no_other(size):
    names = [f"loader-{number}" for number in range(size + 1)]
    before, after = route(IDS, names[:size]), route(IDS, names)
    moved = before != after
    assert (after[moved] == size).all()
    assert moved.mean() == pytest.approx(1 / (size + 1), rel=0.1)


def test_the_order_of_the_members_does_not_matter():
    assert (owners(MEMBERS) == owners(MEMBERS[::-1])).all()


def test_an_avoided_member_gives_its_samples_to_the_next_choice():
    without = owners([name for name in MEMBERS if name != "loader-2"])
    assert (owners(MEMBERS, avoid={"loader-2"}) == without).all()


def test_avoiding_everybody_avoids_nobody():
    assert (owners(MEMBERS, avoid=set(MEMBERS)) == owners(MEMBERS)).all()


def test_no_members_is_an_error():
    with pytest.raises(LoaderLost, match="no loader is alive"):
        route(IDS, [])


def test_a_deadline_is_three_times_the_95th_percentile_and_never_below_its_floor():
    deadline = Deadline(least_s=1.0)
    assert deadline.seconds == 1.0
    for _ in range(50):
        deadline.add(0.1, member="loader-0")
    assert deadline.seconds == 1.0
    for _ in range(200):
        deadline.add(2.0, member="loader-0")
    assert deadline.seconds == pytest.approx(6.0)


def test_a_straggler_does_not_make_its_own_lateness_usual():
    deadline = Deadline(least_s=0.1)
    for _ in range(20):
        for member, seconds in (("loader-0", 0.2), ("loader-1", 5.0)):
            deadline.add(seconds, member=member)
    assert deadline.seconds == pytest.approx(0.6)
