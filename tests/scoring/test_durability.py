"""What survives a crash: every durable operation of a scenario is made to fail, in each of several ways."""

import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from scoring import Control, CorruptLog, Event, RunLog, Selection, replay_run
from scoring.log.snapshots import BadSnapshot, SnapshotStore, read_snapshot
from tests.scoring.crashes import CONNECT, Crash, Faults, FaultyDisk, N, died, failing_connect, small_config


def scenario(path, faults, monkeypatch):
    """A short run with everything in it; returns what was acknowledged, in order, up to the crash."""
    with monkeypatch.context() as patch:
        patch.setattr(CONNECT, failing_connect(faults, path))
        patch.setattr("scoring.log.snapshots.Disk", lambda: FaultyDisk(faults))
        patch.setattr("scoring.log.snapshots.KEPT", 1)
        acknowledged = []
        rng = np.random.default_rng(0)
        try:
            faults.log = RunLog(path)
            selection = Selection(None, small_config(snapshot_windows=1, kept_windows=1), runlog=faults.log)
            for index in range(2):
                window = selection.window(index, effective_size=0.3 + index / 100)
                acknowledged.append(("window", index, window.digest))
                ids = rng.permutation(N)
                about = {"step": index, "producer": "rank-0"}
                selection.report_scores(ids, rng.random(N), kind="bss", sequence=2 * index, **about)
                selection.report_scores(ids[:50], rng.random(50), kind="loss", sequence=2 * index + 1, **about)
                acknowledged.append(("scores", index, selection.scores("loss"), selection.scores("bss")))
                policy = ("bss", "uniform_replacement", "importance")[index % 3]
                reply = selection.control(Control(kind="policy", value=policy, author="ann"))
                acknowledged.append(("control", reply.version, reply.window, policy))
                if index == 1:
                    selection.control(Control(kind="round", value="bss", author="trainer"))
                    acknowledged.append(("round", selection.state()["control_version"]))
                selection.record(Event(kind="scale", author="ann", value=index))
                acknowledged.append(("event", index))
        except Crash:
            pass
        return acknowledged


def check(acknowledged, path):
    """The acknowledged state is there, and nothing else but what was under way."""
    log = RunLog(path)
    recovered = Selection(None, small_config(), runlog=log)
    for what, *rest in acknowledged:
        if what == "window":
            assert recovered.window(rest[0]).digest == rest[1]
        elif what == "control":
            assert any((e.version, e.window, e.value) == tuple(rest) for e in recovered.log() if e.kind == "policy")
        elif what == "round":
            assert recovered.state()["control_version"] >= rest[0]
        elif what == "event":
            assert any(e.kind == "scale" and e.value == rest[0] for e in recovered.log())
    windows = recovered.next_window
    assert windows - sum(what == "window" for what, *_ in acknowledged) in (0, 1)
    drawn = sum(np.bincount(recovered.window(i).sample_ids, minlength=N) for i in range(windows)) if windows else 0
    np.testing.assert_array_equal(recovered.times_drawn(), drawn)
    scores = [rest for what, *rest in acknowledged if what == "scores"]
    if scores:
        _, loss, bss = scores[-1]
        steps_after = [r for _, r in log.reports() if r.step > scores[-1][0]]
        untouched = np.setdiff1d(np.arange(N), np.concatenate([r.ids for r in steps_after]) if steps_after else [])
        np.testing.assert_array_equal(recovered.scores("loss")[untouched], loss[untouched])
        np.testing.assert_array_equal(recovered.scores("bss")[untouched], bss[untouched])
    assert replay_run(log, small_config(), None).reproduced
    return log, recovered


def test_every_crash_point_recovers_what_was_acknowledged(tmp_path, monkeypatch, record_property):
    complete = Faults()
    whole = scenario(tmp_path / "whole" / "run.sqlite", complete, monkeypatch)
    assert len(whole) == 9
    assert set(complete.names) >= {"commit", "snapshot write", "snapshot sync", "snapshot rename", "snapshot remove"}
    points = 0
    for at in range(1, complete.count + 1):
        for how in ("before", "torn", "after"):
            points += 1
            path = tmp_path / f"{at}-{how}" / "run.sqlite"
            faults = Faults(at, how)
            acknowledged = scenario(path, faults, monkeypatch)
            assert faults.count == at, "the fault fired"
            assert len(acknowledged) < len(whole)
            copy = died(path, tmp_path / f"{at}-{how}-after")
            faults.log.close()
            log, _ = check(acknowledged, copy)
            log.close()
            shutil.rmtree(path.parent)
            shutil.rmtree(copy.parent)
    assert points == 3 * complete.count
    record_property("crash_points", points)


@pytest.fixture
def run(tmp_path):
    """A run with two snapshots behind it."""
    path = tmp_path / "run.sqlite"
    log = RunLog(path)
    selection = Selection(None, small_config(), runlog=log)
    rng = np.random.default_rng(1)
    for index in range(7):
        selection.window(index)
        selection.report_scores(np.arange(N), rng.random(N), kind="loss", step=index, producer="a", sequence=index)
    selection.scores("loss")
    state, drawn, scores = selection.state(), selection.times_drawn(), selection.scores("loss")
    digests = [selection.window(index).digest for index in range(7)]
    log.close()
    return path, state, drawn, scores, digests


def test_snapshots_are_two_and_change_nothing(run):
    path, state, drawn, scores, digests = run
    assert [file.name[-2:] for file in SnapshotStore(path).paths()] == ["06", "04"]
    recovered = Selection(None, small_config(), runlog=RunLog(path))
    assert recovered.state() == state
    np.testing.assert_array_equal(recovered.times_drawn(), drawn)
    np.testing.assert_array_equal(recovered.scores("loss"), scores)
    assert [recovered.window(index).digest for index in range(7)] == digests


def test_old_windows_are_drawn_again_when_their_draws_are_dropped(run):
    path, *_, digests = run
    log = RunLog(path)
    assert [log.window(index) is None for index in range(7)] == [True, True, True, False, False, False, False]
    recovered = Selection(None, small_config(), runlog=log)
    assert [recovered.window(index).digest for index in range(3)] == digests[:3]


@pytest.mark.parametrize("spoil", ["truncate", "flip", "empty", "garbage", "longer"])
@pytest.mark.parametrize("which", [1, 2])
def test_spoiled_snapshots_are_passed_over(run, spoil, which, caplog):
    path, state, drawn, scores, _ = run
    for snapshot in SnapshotStore(path).paths()[:which]:
        data = bytearray(snapshot.read_bytes())
        data[len(data) // 2] ^= 1
        spoiled = {
            "truncate": bytes(data[: len(data) // 2]),
            "flip": bytes(data),
            "empty": b"",
            "garbage": b"\xff" * len(data),
            "longer": snapshot.read_bytes() + b"x",
        }
        snapshot.write_bytes(spoiled[spoil])
        with pytest.raises(BadSnapshot, match=r"it must|its header|column"):
            read_snapshot(snapshot)
    recovered = Selection(None, small_config(), runlog=RunLog(path))
    assert recovered.state() == state
    np.testing.assert_array_equal(recovered.times_drawn(), drawn)
    np.testing.assert_array_equal(recovered.scores("loss"), scores)
    assert caplog.text.count("is passed over") == which


def test_every_flipped_byte_of_a_snapshot_is_found(run):
    snapshot = SnapshotStore(run[0]).paths()[0]
    whole = snapshot.read_bytes()
    for place in np.random.default_rng(0).choice(len(whole), 300, replace=False):
        data = bytearray(whole)
        data[place] ^= 1 << int(place % 8)
        snapshot.write_bytes(data)
        with pytest.raises(BadSnapshot):
            read_snapshot(snapshot)


def test_snapshot_ahead_of_its_log_is_refused(run, tmp_path):
    path, *_ = run
    other = tmp_path / "other" / "run.sqlite"
    log = RunLog(other)
    Selection(None, small_config(), runlog=log).window(0)
    log.close()
    for snapshot in SnapshotStore(path).paths():
        shutil.copy(snapshot, other.parent)
    with pytest.raises(CorruptLog, match="every window of its snapshot"):
        Selection(None, small_config(), runlog=RunLog(other))


def test_flipped_bytes_in_the_log_are_a_typed_error(run):
    path, *_ = run
    log = RunLog(path)
    log._connection.execute('UPDATE windows SET ids = zeroblob(length(ids)) WHERE "index" = 6')
    with pytest.raises(CorruptLog, match="window 6 must match its checksum"):
        log.window(6)
    log._connection.execute("UPDATE scores SET vals = zeroblob(length(vals)) WHERE sequence = 3")
    with pytest.raises(CorruptLog, match="score report 3 must match"):
        list(log.reports())


def test_file_that_is_no_log_is_a_typed_error(tmp_path):
    (tmp_path / "text.sqlite").write_text("not a database, but long enough to have a header of a hundred bytes" * 4)
    with pytest.raises(CorruptLog, match="must be a readable SQLite file"):
        RunLog(tmp_path / "text.sqlite")
    sqlite3.connect(tmp_path / "other.sqlite").execute("PRAGMA user_version = 7")
    with pytest.raises(CorruptLog, match="must have schema"):
        RunLog(tmp_path / "other.sqlite")


def test_many_writers_lose_nothing_and_share_commits(tmp_path):
    log = RunLog(tmp_path / "run.sqlite")
    selection = Selection(None, small_config(), runlog=log)

    def write(rank):
        for sequence in range(20):
            ids, about = np.arange(rank, N, 8), {"step": sequence, "producer": f"rank-{rank}", "sequence": sequence}
            selection.report_scores(ids, np.full(len(ids), float(sequence)), kind="loss", **about)

    with ThreadPoolExecutor(8) as threads:
        writing = [threads.submit(write, rank) for rank in range(8)]
        windows = [selection.window(index) for index in range(5)]
        for writer in writing:
            writer.result()
    assert (selection.scores("loss") == 19.0).all()
    assert len(list(log.reports())) == 160
    assert replay_run(log, small_config(), None).reproduced
    assert len({window.digest for window in windows}) == 5
