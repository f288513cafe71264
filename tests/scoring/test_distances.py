"""Other distances taken into use while a run is under way."""

import json

import numpy as np
import pytest

from scoring import Control, CorruptLog, Event, Prototypes, RunLog, Selection, replay_run
from tests.scoring.configs import distances, selection_config

N = 700
RNG = np.random.default_rng(0)
FIRST, SECOND = distances(N, 0), distances(N, 1)


def save(path, distance, fingerprint="ab"):
    path.parent.mkdir(exist_ok=True)
    one = np.zeros((1, 1), np.float32)
    Prototypes(
        distance=distance, cluster=np.zeros(len(distance), np.int32), centroids=one, davies_bouldin={1: 0.0}
    ).save(path, fingerprint)
    return str(path)


def config(**changes):
    return selection_config(
        **{"seed": 3, "global_batch": 16, "window_steps": 4, "start": 0.3, "fingerprint": "ab", **changes}
    )


def swap(path, **changes):
    return Control(**{"kind": "distances", "value": path, "author": "ann", **changes})


def test_the_reply_names_the_first_window_drawn_by_them(tmp_path):
    part = config()
    log = RunLog(tmp_path / "run.sqlite")
    selection = Selection(FIRST, part, runlog=log)
    before = selection.window(0)
    reply = selection.control(swap(save(tmp_path / "p" / "second.parquet", SECOND)))
    assert (reply.window, reply.version, reply.effective_size) == (1, 1, 0.3)
    after = selection.window(1)
    fresh = Selection(SECOND, config())
    fresh.window(0)
    assert after.version == before.version + 1
    np.testing.assert_array_equal(after.sample_ids, fresh.window(1).sample_ids)
    np.testing.assert_allclose(after.probability, fresh.window(1).probability)
    assert replay_run(log, part, FIRST).reproduced
    log.close()


def test_a_restart_and_a_replay_use_them_where_they_were_in_force(tmp_path):
    part = config(snapshot_windows=2, policy="importance*prototypical", kept_windows=1)
    log = RunLog(tmp_path / "run.sqlite")
    selection = Selection(FIRST, part, runlog=log)
    digests = []
    for index in range(7):
        digests.append(selection.window(index, effective_size=0.3 + index / 100).digest)
        selection.report_scores(np.arange(N), RNG.random(N), kind="loss", step=index, producer="a", sequence=index)
        if index in (1, 4):
            selection.control(swap(save(tmp_path / "p" / f"{index}.parquet", (FIRST, SECOND)[index == 1])))
        if index == 5:
            selection.record(Event(kind="scale", author="ann"))
    state = selection.state()
    log.close()
    log = RunLog(tmp_path / "run.sqlite")
    recovered = Selection(FIRST, part, runlog=log)
    assert recovered.state() == state
    assert [recovered.window(index).digest for index in range(7)] == digests
    assert replay_run(log, part, FIRST).reproduced
    log.close()

    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    log = RunLog(moved / "run.sqlite")
    assert replay_run(log, part, FIRST).reproduced, "a run directory may be moved with the files inside"
    log.close()
    save(moved / "p" / "1.parquet", FIRST)
    log = RunLog(moved / "run.sqlite")
    with pytest.raises(CorruptLog, match="as they did"):
        replay_run(log, part, FIRST)
    log.close()


def test_distances_that_do_not_fit_change_nothing(tmp_path):
    selection = Selection(FIRST, config(), runlog=RunLog(tmp_path / "run.sqlite"))
    selection.window(0)
    lone = np.ones(N, np.float32)
    lone[:600] = 0.0  # 600 equal nearest samples: no temperature gives an effective size below their share
    cases = {
        "of the run's data": save(tmp_path / "other.parquet", SECOND, "cd"),
        "each of the 700 samples": save(tmp_path / "short.parquet", SECOND[:-1]),
        "must be finite": save(tmp_path / "nan.parquet", np.append(SECOND[1:], np.float32(np.nan))),
        "effective_size must be at least": save(tmp_path / "lone.parquet", lone),
        "that the service reaches": str(tmp_path / "none.parquet"),
        "distances must name a file": 7,
    }
    (tmp_path / "text.parquet").write_text("x")
    cases["must be a file of `tempera score`"] = str(tmp_path / "text.parquet")
    expected = Selection(FIRST, config())
    expected.window(0)
    for message, value in cases.items():
        with pytest.raises(ValueError, match=message):
            selection.control(swap(value))
    assert selection.state()["control_version"] == 0
    assert selection.window(1).digest == expected.window(1).digest


def test_a_control_sent_twice_is_one_change(tmp_path):
    selection = Selection(FIRST, config(), runlog=RunLog(tmp_path / "run.sqlite"))
    control = swap(save(tmp_path / "second.parquet", SECOND), request="once", reason="scored anew")
    assert selection.control(control) == selection.control(control)
    (entry,) = selection.log()
    assert (entry.reason, entry.version) == ("scored anew", 1)
    assert set(json.loads(entry.detail)) == {"path", "digest", "scores_through"}
