"""What survives a crash: every durable operation of a scenario is made to fail, in each of several ways."""

import errno
import shutil
import sqlite3
import threading

import numpy as np
import pytest

from scoring import Control, CorruptLog, Event, LogUnavailable, RunLog, Selection, SelectionConfig, replay_run
from scoring.log.snapshots import BadSnapshot, Disk, SnapshotStore, read_snapshot

N = 300
CONFIG = SelectionConfig(
    seed=5, global_batch=16, window_steps=4, policy="importance", snapshot_windows=2, kept_windows=3, effective_size=0.3
)


class Crash(BaseException):
    """The process dies here."""


class Faults:
    """Counts durable operations, and kills the process at one of them: before it, in its middle, or after it."""

    def __init__(self, at=None, how="before"):
        self.at, self.how, self.count, self.names = at, how, 0, []
        self.log = None  # the dead process's log: were it collected, SQLite would close it and tidy up

    def pass_through(self, name, act, torn=lambda: None):
        self.count += 1
        self.names.append(name)
        if self.count != self.at:
            return act()
        if self.how == "before":
            raise Crash
        if self.how == "torn":
            torn()
            raise Crash
        act()
        raise Crash


class FaultyDisk(Disk):
    def __init__(self, faults):
        self.faults = faults

    def write(self, file, data):
        half = bytes(data)[: len(bytes(data)) // 2]
        self.faults.pass_through(
            "snapshot write", lambda: super(FaultyDisk, self).write(file, data), lambda: file.write(half)
        )

    def sync(self, file):
        self.faults.pass_through("snapshot sync", lambda: super(FaultyDisk, self).sync(file))

    def rename(self, source, target):
        torn = lambda: (source.write_bytes(source.read_bytes()[:-100]), source.rename(target))  # noqa: E731
        self.faults.pass_through("snapshot rename", lambda: super(FaultyDisk, self).rename(source, target), torn)

    def remove(self, path):
        self.faults.pass_through("snapshot remove", lambda: super(FaultyDisk, self).remove(path))


def faulty_connection(faults, path):
    """A SQLite connection whose commits are durable operations; a torn one loses the end of the write-ahead log."""

    class Connection(sqlite3.Connection):
        def execute(self, sql, *arguments):
            if sql != "COMMIT":
                return super().execute(sql, *arguments)

            def torn():
                wal = path.with_name(f"{path.name}-wal")
                before = wal.stat().st_size
                super(Connection, self).execute(sql)
                written = wal.read_bytes()[before:]
                wal.write_bytes(
                    wal.read_bytes()[:before] + written[: len(written) // 2] + b"\xff" * (len(written) // 4)
                )

            return faults.pass_through("commit", lambda: super(Connection, self).execute(sql), torn)

    return Connection


def scenario(path, faults, monkeypatch):
    """A short run with everything in it; returns what was acknowledged, in order, up to the crash."""
    original = sqlite3.connect
    with monkeypatch.context() as patch:
        patch.setattr(
            "scoring.log.schema.sqlite3.connect",
            lambda *a, **k: original(*a, **{**k, "factory": faulty_connection(faults, path)}),
        )
        patch.setattr("scoring.log.snapshots.Disk", lambda: FaultyDisk(faults))
        patch.setattr("scoring.log.snapshots.KEPT", 1)
        acknowledged = []
        rng = np.random.default_rng(0)
        try:
            faults.log = RunLog(path)
            selection = Selection(None, _config(snapshot_windows=1, kept_windows=1), runlog=faults.log)
            for index in range(2):
                window = selection.window(index, effective_size=0.3 + index / 100)
                acknowledged.append(("window", index, window.digest))
                ids = rng.permutation(N)
                selection.report_scores(
                    ids, rng.random(N), kind="bss", step=index, producer="rank-0", sequence=2 * index
                )
                selection.report_scores(
                    ids[:50], rng.random(50), kind="loss", step=index, producer="rank-0", sequence=2 * index + 1
                )
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


def _config(**changes):
    from dataclasses import replace

    return replace(CONFIG, num_samples=N, **changes)


def died(path, to):
    """The files as a dead process leaves them: nothing is closed or flushed."""
    to.mkdir()
    for file in path.parent.iterdir():
        if not file.name.endswith((".lock", "-shm")):
            shutil.copy(file, to / file.name)
    return to / path.name


def check(acknowledged, path):
    """The acknowledged state is there, and nothing else but what was under way."""
    log = RunLog(path)
    recovered = Selection(None, _config(), runlog=log)
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
    assert replay_run(log, _config(), None).reproduced
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
    selection = Selection(None, _config(), runlog=log)
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
    recovered = Selection(None, _config(), runlog=RunLog(path))
    assert recovered.state() == state
    np.testing.assert_array_equal(recovered.times_drawn(), drawn)
    np.testing.assert_array_equal(recovered.scores("loss"), scores)
    assert [recovered.window(index).digest for index in range(7)] == digests


def test_table_may_be_cut_otherwise_after_a_restart(tmp_path):
    def run(ranges, windows, *, first=0):
        log = RunLog(tmp_path / "run.sqlite")
        selection = Selection(None, _config(ranges=ranges, segment_samples=64), runlog=log)
        digests = [selection.window(index).digest for index in range(first, windows)]
        drawn = selection.times_drawn()
        selection.close()
        return digests, drawn

    before, drawn = run(1, 5)
    again, drawn_again = run(3, 5)
    assert again == before
    np.testing.assert_array_equal(drawn_again, drawn)
    assert run(2, 6)[0][:5] == before


def test_old_windows_are_drawn_again_when_their_draws_are_dropped(run):
    path, *_, digests = run
    log = RunLog(path)
    assert [log.window(index) is None for index in range(7)] == [True, True, True, False, False, False, False]
    recovered = Selection(None, _config(), runlog=log)
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
    recovered = Selection(None, _config(), runlog=RunLog(path))
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
    Selection(None, _config(), runlog=log).window(0)
    log.close()
    for snapshot in SnapshotStore(path).paths():
        shutil.copy(snapshot, other.parent)
    with pytest.raises(CorruptLog, match="every window of its snapshot"):
        Selection(None, _config(), runlog=RunLog(other))


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


class FullDisk:
    """Stands before a connection and refuses to commit while the disk is full."""

    def __init__(self, connection):
        self.connection, self.full = connection, False

    def execute(self, sql, *arguments):
        if self.full and sql == "COMMIT":
            raise sqlite3.OperationalError(errno.ENOSPC, "database or disk is full")
        return self.connection.execute(sql, *arguments)

    def __getattr__(self, name):
        return getattr(self.connection, name)


def test_full_disk_stops_acknowledging_but_not_sampling(tmp_path, caplog):
    log = RunLog(tmp_path / "run.sqlite")
    disk = log._connection = FullDisk(log._connection)
    selection = Selection(None, _config(policy="uniform_replacement"), runlog=log)
    first = selection.window(0)
    disk.full = True
    unwritten = [selection.window(index) for index in (1, 2, 3)]
    assert "handed out unwritten" in caplog.text
    for act in (
        lambda: selection.control(Control(kind="policy", value="bss", author="ann")),
        lambda: selection.record(Event(kind="scale", author="ann")),
        lambda: selection.report_scores([1], [1.0], step=0, producer="a", sequence=0),
    ):
        with pytest.raises(LogUnavailable, match="Free some disk space"):
            act()
    assert selection.state()["control_version"] == 0
    assert selection.window(1).digest == unwritten[0].digest
    assert [facts.index for facts, _ in log.facts()] == [0]
    disk.full = False
    assert selection.control(Control(kind="policy", value="bss", author="ann")).window == 4
    assert [digest for _, digest in log.facts()] == [first.digest, *(window.digest for window in unwritten)]


def test_windows_handed_out_unwritten_are_drawn_alike_after_a_crash(tmp_path):
    log = RunLog(tmp_path / "run.sqlite")
    disk = log._connection = FullDisk(log._connection)
    selection = Selection(None, _config(policy="uniform_replacement"), runlog=log)
    disk.full = True
    before = [selection.window(index, effective_size=0.3 + index / 50).digest for index in range(3)]
    log.close()
    again = Selection(None, _config(policy="uniform_replacement"), runlog=RunLog(tmp_path / "run.sqlite"))
    assert [again.window(index, effective_size=0.3 + index / 50).digest for index in range(3)] == before


def test_many_writers_lose_nothing_and_share_commits(tmp_path):
    log = RunLog(tmp_path / "run.sqlite")
    selection = Selection(None, _config(), runlog=log)

    def write(rank):
        for sequence in range(20):
            ids = np.arange(rank, N, 8)
            selection.report_scores(
                ids,
                np.full(len(ids), float(sequence)),
                kind="loss",
                step=sequence,
                producer=f"rank-{rank}",
                sequence=sequence,
            )

    threads = [threading.Thread(target=write, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    windows = [selection.window(index) for index in range(5)]
    for thread in threads:
        thread.join()
    assert (selection.scores("loss") == 19.0).all()
    assert len(list(log.reports())) == 160
    assert replay_run(log, _config(), None).reproduced
    assert len({window.digest for window in windows}) == 5


def trimmed_run(path, faults, monkeypatch, *, policy="uniform"):
    """Reports that overwrite each other, in a run that trims its log; scores as acknowledged, up to the crash."""
    original, acknowledged, rng = sqlite3.connect, [np.full(N, np.nan)], np.random.default_rng(2)
    with monkeypatch.context() as patch:
        patch.setattr(
            "scoring.log.schema.sqlite3.connect",
            lambda *a, **k: original(*a, **{**k, "factory": faulty_connection(faults, path)}),
        )
        patch.setattr("scoring.log.runlog.TRIMMED_AT_ONCE", 3)
        try:
            faults.log = RunLog(path)
            config = _config(policy=policy, snapshot_windows=2, ranges=2, segment_samples=128)
            selection = Selection(None, config, runlog=faults.log)
            for index in range(8):
                ids = rng.permutation(N)[: 60 if index < 2 else N]
                report = {"kind": "loss", "step": index, "producer": "ab"[index % 2], "sequence": index}
                selection.report_scores(ids, rng.random(len(ids)), **report)
                acknowledged.append(selection.scores("loss"))
                selection.window(index)
        except Crash:
            pass
    return acknowledged


def test_reports_that_hold_nothing_leave_the_log(tmp_path, monkeypatch):
    complete = Faults()
    *_, scores = trimmed_run(tmp_path / "run.sqlite", complete, monkeypatch)
    assert complete.log.stored_scores() <= 2 * N < 6 * N
    config = _config(policy="uniform", ranges=2, segment_samples=128)
    for snapshot in SnapshotStore(tmp_path / "run.sqlite").paths():
        snapshot.unlink()
    complete.log.close()
    log = RunLog(tmp_path / "run.sqlite")
    recovered = Selection(None, config, runlog=log)
    np.testing.assert_array_equal(recovered.scores("loss"), scores)
    again = {"kind": "loss", "step": 3, "producer": "b", "sequence": 3}
    recovered.report_scores(np.arange(N), np.zeros(N), **again)  # sent again after it has left the log
    np.testing.assert_array_equal(recovered.scores("loss"), scores)
    assert replay_run(log, config, None).reproduced
    log.close()


def test_reports_that_a_window_has_read_stay(tmp_path, monkeypatch):
    faults = Faults()
    trimmed_run(tmp_path / "run.sqlite", faults, monkeypatch, policy="importance")
    assert faults.log.stored_scores() == 2 * 60 + 6 * N


def test_a_crash_while_the_log_is_trimmed_loses_no_score(tmp_path, monkeypatch):
    complete = Faults()
    trimmed_run(tmp_path / "whole.sqlite", complete, monkeypatch)
    for at in range(complete.count - 12, complete.count + 1):
        faults = Faults(at, ("before", "torn", "after")[at % 3])
        path = tmp_path / f"{at}" / "run.sqlite"
        acknowledged = trimmed_run(path, faults, monkeypatch)
        copy = died(path, tmp_path / f"{at}-after")
        faults.log.close()
        log = RunLog(copy)
        recovered = Selection(None, _config(policy="uniform", ranges=2, segment_samples=128), runlog=log)
        last = recovered.scores("loss")
        in_doubt = max((r.step for _, r in log.reports()), default=-1) >= len(acknowledged) - 1
        if not in_doubt:
            np.testing.assert_array_equal(last, acknowledged[-1])
        held = ~np.isnan(acknowledged[-1])
        assert not np.isnan(last[held]).any()
        log.close()
