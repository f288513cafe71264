"""A process that dies at a chosen durable operation of its log, and what it leaves behind."""

import shutil
import sqlite3

from scoring.log.snapshots import Disk
from tests.scoring.configs import changed, selection_config

N = 300
CONFIG = selection_config(
    seed=5, global_batch=16, window_steps=4, policy="importance", snapshot_windows=2, kept_windows=3, start=0.3
)
CONNECT = "scoring.log.schema.sqlite3.connect"
"""What opens a log, to be patched with `failing_connect`."""


def small_config(**changes):
    """The runs of these tests: few samples, a snapshot every other window."""
    return changed(CONFIG, num_samples=N, **changes)


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


def failing_connect(faults, path):
    """A `sqlite3.connect` for the log at `path`, whose commits pass through `faults`."""
    original = sqlite3.connect
    return lambda *a, **k: original(*a, **{**k, "factory": faulty_connection(faults, path)})


def died(path, to):
    """The files as a dead process leaves them: nothing is closed or flushed."""
    to.mkdir()
    for file in path.parent.iterdir():
        if not file.name.endswith((".lock", "-shm")):
            shutil.copy(file, to / file.name)
    return to / path.name
