"""A disk that is full: nothing more is acknowledged, and sampling goes on."""

import errno
import sqlite3

import pytest

from scoring import Control, Event, LogUnavailable, RunLog, Selection
from tests.scoring.crashes import small_config


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
    selection = Selection(None, small_config(policy="uniform_replacement"), runlog=log)
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
    selection = Selection(None, small_config(policy="uniform_replacement"), runlog=log)
    disk.full = True
    before = [selection.window(index, effective_size=0.3 + index / 50).digest for index in range(3)]
    log.close()
    again = Selection(None, small_config(policy="uniform_replacement"), runlog=RunLog(tmp_path / "run.sqlite"))
    assert [again.window(index, effective_size=0.3 + index / 50).digest for index in range(3)] == before
