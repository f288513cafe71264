from __future__ import annotations

import itertools

import pytest

from loader.fleet.scaling import Autoscaler, ScalePolicy, ScaleTo

POLICY = ScalePolicy(min_size=1, max_size=16, patience=3, cooldown_s=10)


def run(observations: list[tuple[float, float]], *, size: int = 2, policy: ScalePolicy = POLICY) -> list[int]:
    """Sizes after each (wait share, busy share), one a second."""
    scaler, sizes = Autoscaler(policy, started_s=0.0), []
    for second, (wait, busy) in enumerate(observations):
        decision = scaler.observe(size=size, wait_share=wait, busy_share=busy, now_s=float(second))
        size = decision.size if decision else size
        sizes.append(size)
    return sizes


def test_waiting_trainers_get_half_as_many_loaders_more():
    assert run([(0.2, 1.0)] * 3, size=8) == [8, 8, 12]


def test_one_slow_step_changes_nothing():
    assert run([(0.9, 1.0), (0.0, 1.0), (0.9, 1.0), (0.0, 1.0)] * 5) == [2] * 20


def test_idle_loaders_go_one_at_a_time():
    assert run([(0.0, 0.1)] * 24, size=3) == [3, 3] + [2] * 10 + [1] * 12


def test_the_size_stays_within_its_bounds():
    assert max(run([(1.0, 1.0)] * 200)) == 16
    assert min(run([(0.0, 0.0)] * 200, size=5)) == 1


def test_between_the_thresholds_nothing_swings():
    assert run([(0.04, 0.1), (0.03, 0.9), (0.0, 0.6)] * 20) == [2] * 60


def test_changes_keep_their_distance():
    sizes = run([(0.5, 1.0)] * 30, size=1)
    changes = [i for i in range(1, 30) if sizes[i] != sizes[i - 1]]
    assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(changes))


def test_a_load_that_needs_four_loaders_settles_at_four():
    scaler, size, history = Autoscaler(POLICY, started_s=0.0), 1, []
    for second in range(600):
        wait, busy = max(0.0, 1 - size / 4), min(1.0, 4 / size) * 0.9
        decision = scaler.observe(size=size, wait_share=wait, busy_share=busy, now_s=float(second))
        size = decision.size if decision else size
        history.append(size)
    assert set(history[200:]) == {4}


def test_a_decision_carries_its_reason():
    scaler = Autoscaler(ScalePolicy(patience=1), started_s=0.0)
    decision = scaler.observe(size=2, wait_share=0.12, busy_share=1.0, now_s=0.0)
    assert decision == ScaleTo(3, "trainers wait for 12% of their time, over 5%")


def test_reports_of_a_period_count_once_and_busy_is_the_work_since_the_last_period():
    scaler = Autoscaler(ScalePolicy(patience=1, period_s=5.0, cooldown_s=0.0, busy_share=0.5), started_s=0.0)

    def report(now_s: float, wait_share: float, worked_s: float, uptime_s: float) -> ScaleTo | None:
        loaders = {"loader-0": {"decode_s": worked_s, "uptime_s": uptime_s}, "loader-1": {}}
        return scaler.report(wait_share, loaders, size=2, now_s=now_s)

    assert report(4.0, 0.9, 4.0, 4.0) is None, "the period is not over"
    assert report(5.0, 0.0, 5.0, 5.0) == ScaleTo(3, "trainers wait for 90% of their time, over 5%")
    assert report(10.0, 0.0, 6.0, 10.0) == ScaleTo(1, "loaders work for 20% of their time, under 50%, and nobody waits")
    assert report(15.0, 0.0, 0.5, 1.0) is None, "a replaced loader counts from 0 again: nobody knows how busy it was"


@pytest.mark.parametrize(
    "options", [{"min_size": 0}, {"min_size": 9, "max_size": 3}, {"wait_share": 0}, {"busy_share": 1}, {"patience": 0}]
)
def test_wrong_policies_are_refused(options):
    with pytest.raises(ValueError, match="got"):
        ScalePolicy(**options)
