import json
import math

import numpy as np
import pytest

from scoring import (
    Control,
    Event,
    LogInUse,
    RunLog,
    RunMismatch,
    Selection,
    VersionConflict,
    effective_size,
    read_entries,
    sampling_probabilities,
)
from tests.scoring.configs import distances, selection_config, set_size


def config(**changes):
    return selection_config(**{"seed": 1, "global_batch": 32, "window_steps": 4, "start": 0.3, **changes})


def ticking():
    """A clock that a test can predict."""
    now = iter(range(10**9))
    return lambda: float(next(now))


def test_window_holds_draws_spares_and_their_probabilities():
    distance = distances()
    window = Selection(distance, config()).window(0)
    assert (window.index, window.version, window.first_draw) == (0, 1, 0)
    assert (len(window.sample_ids), len(window.spare_ids)) == (128, 1)
    assert effective_size(distance, window.temperature) == pytest.approx(0.3, abs=1e-9)
    probability = sampling_probabilities(distance, window.temperature)
    np.testing.assert_allclose(window.probability, probability[window.sample_ids], rtol=1e-9)
    np.testing.assert_allclose(window.spare_probability, probability[window.spare_ids], rtol=1e-9)
    assert not window.sample_ids.flags.writeable


def test_a_window_is_the_same_each_time_also_from_the_log():
    selection = Selection(distances(), config())
    windows = [selection.window(index) for index in range(10)]
    for window in windows:
        assert selection.window(window.index).digest == window.digest
        np.testing.assert_array_equal(selection.window(window.index).sample_ids, window.sample_ids)


def test_draws_are_numbered_through_and_windows_come_in_order():
    selection = Selection(distances(), config())
    assert [selection.window(index).first_draw for index in range(3)] == [0, 128, 256]
    with pytest.raises(ValueError, match=r"next \(3\); got 4"):
        selection.window(4)
    with pytest.raises(ValueError, match="got -1"):
        selection.window(-1)


def test_first_request_sets_the_schedule_and_later_ones_do_not():
    selection = Selection(distances(), config())
    first = selection.window(0, effective_size=0.4)
    assert first.effective_size == 0.4
    assert selection.window(0, effective_size=0.5).digest == first.digest
    assert selection.window(1).effective_size == 0.4
    (entry,) = selection.log()
    assert (entry.author, entry.kind, entry.value) == ("trainer", "schedule", 0.4)
    assert (entry.window, entry.in_force) == (0, True)
    assert entry.temperature == first.temperature


def test_version_grows_only_when_the_table_changes():
    selection = Selection(distances(), config())
    sizes = [0.3, 0.3, 0.4, 0.4, 0.3]
    assert [selection.window(i, effective_size=size).version for i, size in enumerate(sizes)] == [1, 1, 2, 2, 3]


def test_manual_value_takes_effect_in_the_named_window_and_holds_until_release():
    selection = Selection(distances(), config())
    selection.window(0, effective_size=0.2)
    reply = selection.control(set_size(0.5, reason="look wider"))
    assert (reply.version, reply.window, reply.step, reply.effective_size) == (1, 1, 4, 0.5)
    assert selection.window(1, effective_size=0.25).effective_size == 0.5
    overruled = selection.log()[-1]
    assert (overruled.author, overruled.value) == ("trainer", 0.25)
    assert (overruled.effective_size, overruled.in_force) == (0.5, False)
    released = selection.control(Control(kind="release", author="ann"))
    assert (released.window, released.effective_size) == (2, 0.25)
    assert selection.window(2, effective_size=0.3).effective_size == 0.3


def test_manual_temperature_is_used_as_it_is():
    distance = distances()
    selection = Selection(distance, config())
    reply = selection.control(Control(kind="temperature", value=0.08, author="ann"))
    window = selection.window(0, effective_size=0.6)
    assert window.temperature == reply.temperature == 0.08
    assert window.effective_size == pytest.approx(effective_size(distance, 0.08), rel=1e-12)


def test_policy_holds_until_another_is_set():
    selection = Selection(distances(), config())
    selection.window(0)
    selection.control(Control(kind="policy", value="hard", author="ann"))
    hard = selection.window(1)
    selection.control(Control(kind="release", author="ann"))
    assert (hard.policy, selection.window(2).policy) == ("hard", "hard")
    assert hard.effective_size == 0.3
    assert distances()[hard.sample_ids].mean() > distances().mean()


def test_uniform_policy_is_a_permutation_of_the_data_each_epoch():
    selection = Selection(None, config(policy="uniform", num_samples=100, global_batch=10, window_steps=5))
    ids = np.concatenate([selection.window(index).sample_ids for index in range(6)])
    for epoch in ids.reshape(3, 100):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(100))
    window = selection.window(0)
    assert (window.effective_size, window.temperature) == (1.0, math.inf)
    assert (window.probability == 0.01).all()


def test_uniform_replacement_repeats_samples():
    selection = Selection(None, config(policy="uniform_replacement", num_samples=100, global_batch=100, window_steps=1))
    window = selection.window(0)
    assert window.effective_size == pytest.approx(1 - 0.99**100)
    assert len(np.unique(window.sample_ids)) < 80


def test_same_log_same_windows_and_another_seed_others():
    def run(seed):
        selection = Selection(distances(), config(seed=seed), clock=ticking())
        selection.window(0)
        selection.control(set_size(0.5))
        return [selection.window(index).digest for index in range(4)]

    assert run(1) == run(1)
    assert not set(run(1)) & set(run(2))


def test_times_drawn_counts_draws_but_not_spares():
    selection = Selection(distances(), config())
    windows = [selection.window(index) for index in range(6)]
    expected = np.bincount(np.concatenate([window.sample_ids for window in windows]), minlength=1797)
    np.testing.assert_array_equal(selection.times_drawn(), expected)
    assert selection.state()["times_drawn"]["never"] == int((expected == 0).sum())


def test_run_recovers_from_its_log(tmp_path):
    log = RunLog(tmp_path / "run.sqlite")
    first = Selection(distances(), config(), runlog=log)
    digests = [first.window(index, effective_size=0.2 + index / 50).digest for index in range(5)]
    first.control(set_size(0.55))
    first.report_scores([1, 2], [0.5, 0.25], step=3, producer="rank-0", sequence=0)
    first.record(Event(kind="scale", author="ann", message="2 -> 4 loaders", value=4))
    before, drawn, history = first.state(), first.times_drawn(), first.log()
    log.close()

    second = Selection(distances(), config(), runlog=RunLog(tmp_path / "run.sqlite"))
    assert second.state() == before
    assert second.log() == history
    np.testing.assert_array_equal(second.times_drawn(), drawn)
    np.testing.assert_array_equal(second.scores()[[1, 2, 3]], [0.5, 0.25, np.nan])
    assert [second.window(index).digest for index in range(5)] == digests
    twin = Selection(distances(), config())
    for index in range(5):
        twin.window(index, effective_size=0.2 + index / 50)
    twin.control(set_size(0.55))
    assert second.window(5).digest == twin.window(5).digest


def test_log_of_another_run_is_refused_by_field(tmp_path):
    path = tmp_path / "run.sqlite"
    log = RunLog(path)
    Selection(distances(), config(fingerprint="aa"), runlog=log)
    log.close()
    cases = {"seed": (distances(), {"seed": 2}), "fingerprint": (distances(), {"fingerprint": "bb"})}
    cases["distance"] = (distances(seed=9), {})
    for field, (distance, changes) in cases.items():
        log = RunLog(path)
        with pytest.raises(RunMismatch, match=f"{field} must be the run's own"):
            Selection(distance, config(**{"fingerprint": "aa", **changes}), runlog=log)
        log.close()


def test_second_writer_is_refused_and_a_reader_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("scoring.log.schema.LOCK_WAIT_S", 0.1)
    selection = Selection(distances(), config(), runlog=RunLog(tmp_path / "run.sqlite"))
    selection.control(set_size(0.4))
    with pytest.raises(LogInUse, match="one writer"):
        RunLog(tmp_path / "run.sqlite")
    assert [entry.value for entry in read_entries(tmp_path / "run.sqlite")] == [0.4]


def test_history_shows_events_with_author_and_window():
    selection = Selection(distances(), config(), clock=ticking())
    selection.window(0)
    selection.record(Event(kind="scale", author="ann", message="why", value=4, request="r1"))
    selection.record(Event(kind="scale", author="ann", message="why", value=4, request="r1"))
    (entry,) = selection.log()
    assert (entry.kind, entry.author, entry.value, entry.reason) == ("scale", "ann", 4, "why")
    assert (entry.window, entry.step) == (1, 4)
    assert selection.log(limit=0) == []


def test_old_version_number_is_refused_and_changes_nothing():
    selection = Selection(distances(), config())
    selection.control(set_size(0.4, expected_version=0))
    with pytest.raises(VersionConflict, match=r"current control version \(1\); got 0"):
        selection.control(set_size(0.5, author="bob", expected_version=0))
    assert selection.state()["effective_size"] == 0.4
    assert len(selection.log()) == 1


def test_control_sent_twice_is_applied_once_and_answered_alike():
    selection = Selection(distances(), config())
    first = selection.control(set_size(0.4, request="abc"))
    selection.window(0)
    assert selection.control(set_size(0.4, request="abc")) == first
    assert selection.state()["control_version"] == 1


@pytest.mark.parametrize(
    ("control", "message"),
    [
        (set_size(0.0), "effective_size must be in"),
        (set_size(0.7), "effective_size must be in"),
        (set_size("wide"), "effective_size must be a number"),
        (set_size(True), "effective_size must be a number"),
        (set_size(1e-5), "effective_size must be at least"),
        (set_size(0.4, author="trainer"), "author must name"),
        (set_size(0.4, author=""), "author must name"),
        (Control(kind="temperature", value=0.0, author="ann"), "temperature must be positive"),
        (Control(kind="temperature", value=math.nan, author="ann"), "temperature must be positive"),
        (Control(kind="policy", value="best", author="ann"), "policy must be one of"),
        (Control(kind="policy", value="hard*prototypical", author="ann"), "policy may hold one of"),
        (Control(kind="release", value=1.0, author="ann"), "value must be empty"),
        (Control(kind="size", value=1.0, author="ann"), "kind must be one of"),
    ],
)
def test_bad_control_names_its_field_and_changes_nothing(control, message):
    selection = Selection(distances(), config())
    before = selection.state()
    with pytest.raises(ValueError, match=message):
        selection.control(control)
    assert selection.state() == before
    assert selection.log() == []


def test_size_without_a_temperature_policy_is_refused():
    selection = Selection(None, config(policy="uniform", num_samples=10))
    with pytest.raises(ValueError, match="Set the policy first"):
        selection.control(set_size(0.4))
    with pytest.raises(ValueError, match="needs prototype distances"):
        selection.control(Control(kind="policy", value="hard", author="ann"))


def test_bad_scores_are_refused_one_by_one_and_counted():
    selection = Selection(distances(), config())
    ids = [0, 1, 2, 3, -1, 1797, 4]
    values = [0.5, math.nan, math.inf, -1.0, 0.5, 0.5, 1e39]
    ack = selection.report_scores(ids, values, step=0, producer="rank-0", sequence=0)
    assert ack.accepted == 1
    assert ack.rejected == {"not_finite": 3, "negative": 1, "unknown_id": 2}
    assert np.flatnonzero(np.isfinite(selection.scores())).tolist() == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "best"}, "kind must be one of"),
        ({"step": -1}, "step must be an integer"),
        ({"sequence": -1}, "sequence must be an integer"),
        ({"producer": ""}, "producer must be a name"),
        ({"ids": [0.5]}, "ids must be integers"),
        ({"ids": [1, 2]}, "two lists of one length"),
        ({"fingerprint": "bb"}, r"fingerprint must be the run's own \(\); got bb"),
    ],
)
def test_bad_score_report_is_refused_whole(change, message):
    selection = Selection(distances(), config())
    report = {"ids": [1], "values": [1.0], "kind": "bss", "step": 0, "producer": "rank-0", "sequence": 0, **change}
    with pytest.raises(ValueError, match=message):
        selection.report_scores(report.pop("ids"), report.pop("values"), **report)
    assert selection.state()["scored"] == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed must be"),
        ({"global_batch": 0}, "global_batch must be 1"),
        ({"window_steps": 0}, "window_steps must be 1"),
        ({"spare_fraction": 2.0}, "spare_fraction must be"),
        ({"num_samples": -1}, "num_samples must be"),
        ({"start": 1.0}, "effective_size must be in"),
        ({"start": 0.0}, "effective_size must be in"),
        ({"policy": "none"}, "policy must be one of"),
        ({"rho": 0.0}, "rho must be"),
        ({"reported_score": "best"}, "importance_kind must be"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"schedule": "adaptive", "start": 0.6, "end": 0.5}, "end must be at least start"),
    ],
)
def test_bad_configuration_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_data_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_samples must be given"):
        Selection(None, config(policy="uniform"))
    with pytest.raises(ValueError, match="for each of the 5 samples; got 1797"):
        Selection(distances(), config(num_samples=5))
    with pytest.raises(ValueError, match="at least one; got shape"):
        Selection(np.zeros(0, np.float32), config())
    with pytest.raises(ValueError, match=r"sample|effective"):
        Selection(np.zeros(1, np.float32), config(num_samples=1))


def test_state_is_plain_json():
    selection = Selection(distances(), config())
    selection.window(0)
    assert json.loads(json.dumps(selection.state(), allow_nan=False)) == selection.state()
