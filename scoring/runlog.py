"""RunLog: the durable history of a run, one SQLite file in WAL mode.

What the model saw is fixed by this file and the data: the run's identity, every change with its author and the window
that it took effect in, every window as it was handed out, every accepted score. A row is committed to disk before the
answer that depends on it is given. One process writes (a lock file says so); any number may read.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from scoring.errors import CorruptLog, LogInUse, RunMismatch
from scoring.records import LogEntry, Window
from scoring.scores import ScoreReport

SCHEMA_VERSION = 1
APPLICATION_ID = 0x54454D50  # "TEMP", so that `file` and we know our own
LOCK_WAIT_S = 10.0

SCHEMA = """
CREATE TABLE meta (field TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE log (sequence INTEGER PRIMARY KEY, time REAL NOT NULL, author TEXT NOT NULL, kind TEXT NOT NULL,
    value TEXT NOT NULL, reason TEXT NOT NULL, window INTEGER NOT NULL, step INTEGER NOT NULL, version INTEGER NOT NULL,
    temperature REAL, effective_size REAL, in_force INTEGER NOT NULL, request TEXT NOT NULL);
CREATE UNIQUE INDEX log_request ON log (request) WHERE request != '';
CREATE TABLE windows (number INTEGER PRIMARY KEY, sequence INTEGER NOT NULL, version INTEGER NOT NULL,
    first_draw INTEGER NOT NULL, policy TEXT NOT NULL, temperature REAL NOT NULL, effective_size REAL NOT NULL,
    scores_through INTEGER NOT NULL, digest TEXT NOT NULL, num_spares INTEGER NOT NULL, ids BLOB, probability BLOB);
CREATE TABLE scores (sequence INTEGER PRIMARY KEY, producer TEXT NOT NULL, report INTEGER NOT NULL, kind TEXT NOT NULL,
    step INTEGER NOT NULL, ids BLOB NOT NULL, vals BLOB NOT NULL, UNIQUE (producer, report, kind));
"""

ENTRY_FIELDS = tuple(field.name for field in fields(LogEntry))


class RunLog:
    """A run's log, open for writing; without a path it lives in memory. Safe to use from several threads."""

    def __init__(self, path: str | Path | None = None) -> None:
        """Open or create the log.

        Raises:
            LogInUse: if another process writes it.
            CorruptLog: if the file is not a run log of this schema.
        """
        self.path = None if path is None else Path(path)
        self._mutex = threading.RLock()
        self._lock_file = None if self.path is None else _lock(self.path)
        self._connection = _connect(self.path, read_only=False)
        self._next_sequence: int = 1 + max(
            self._connection.execute(f"SELECT COALESCE(MAX(sequence), 0) FROM {table}").fetchone()[0]  # noqa: S608
            for table in ("log", "windows", "scores")
        )

    def close(self) -> None:
        """Close the file and release the lock."""
        with self._mutex:
            self._connection.close()
            if self._lock_file is not None:
                self._lock_file.close()

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Write the run's identity into a new log, or compare it with an old one's.

        Raises:
            RunMismatch: naming the first field that differs.
        """
        wanted = {name: json.dumps(value) for name, value in identity.items()}
        with self._transaction() as connection:
            stored = dict(connection.execute("SELECT field, value FROM meta"))
            if not stored:
                connection.executemany("INSERT INTO meta VALUES (?, ?)", wanted.items())
                return
        for name in sorted(wanted.keys() | stored.keys()):
            if wanted.get(name) != stored.get(name):
                raise RunMismatch(
                    f"{name} must be the run's own ({stored.get(name)}); got {wanted.get(name)}. "
                    f"Resume with the run's configuration, or begin a new run directory (log: {self.path})."
                )

    def take_sequence(self) -> int:
        """The next position in the log. A position whose write fails stays empty."""
        with self._mutex:
            sequence = self._next_sequence
            self._next_sequence += 1
            return sequence

    def append(self, entry: LogEntry) -> None:
        """Write one entry."""
        with self._transaction() as connection:
            _insert_entry(connection, entry)

    def append_window(self, window: Window, *, scores_through: int, entries: Iterable[LogEntry] = ()) -> None:
        """Write a window, and the entries that came with its request, in one transaction."""
        sequence = self.take_sequence()
        ids = np.concatenate([window.sample_ids, window.spare_ids])
        probability = np.concatenate([window.probability, window.spare_probability])
        law = (window.policy, window.temperature, window.effective_size, scores_through)
        row = (window.index, sequence, window.version, window.first_draw, *law, window.digest, len(window.spare_ids))
        with self._transaction() as connection:
            for entry in entries:
                _insert_entry(connection, entry)
            connection.execute(
                "INSERT INTO windows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, pack_ids(ids), probability.astype("<f8").tobytes()),
            )

    def append_scores(self, report: ScoreReport) -> int:
        """Write a score report; returns its sequence, or 0 if this very report is here already."""
        sequence = self.take_sequence()
        row = (sequence, report.producer, report.sequence, report.kind, report.step)
        with self._transaction() as connection:
            cursor = connection.execute(
                "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*row, pack_ids(report.ids), report.values.astype("<f4").tobytes()),
            )
            return sequence if cursor.rowcount else 0

    def entries(self, *, limit: int | None = None) -> list[LogEntry]:
        """The last `limit` entries (all by default), oldest first."""
        with self._mutex:
            return _entries(self._connection, limit)

    def entry_of(self, request: str) -> LogEntry | None:
        """The entry that a control with this identity left, if it came before."""
        with self._mutex:
            rows = self._connection.execute(f"{SELECT_ENTRY} WHERE request = ?", (request,)).fetchall()
        return _entry(rows[0]) if rows and request else None

    def window(self, index: int) -> Window | None:
        """A stored window, checked against its digest; None if it was not materialised."""
        with self._mutex:
            row = self._connection.execute(f"{SELECT_WINDOW} WHERE number = ?", (index,)).fetchone()
        return _window(row) if row else None

    def last_window(self) -> tuple[Window, int] | None:
        """The newest window and the last score it was drawn from; None at the start."""
        with self._mutex:
            row = self._connection.execute(f"{SELECT_WINDOW} ORDER BY number DESC LIMIT 1").fetchone()
        return (_window(row), int(row[-1])) if row else None

    def windows(self) -> Iterator[Window]:
        """Every stored window in order."""
        last = self.last_window()
        for index in range(last[0].index + 1 if last else 0):
            window = self.window(index)
            assert window is not None, "windows are numbered without gaps"
            yield window

    def reports(self, *, after: int = 0) -> Iterator[tuple[int, ScoreReport]]:
        """Score reports with a sequence above `after`, in order of arrival."""
        while True:
            with self._mutex:
                rows = self._connection.execute(
                    "SELECT sequence, producer, report, kind, step, ids, vals FROM scores WHERE sequence > ? "
                    "ORDER BY sequence LIMIT 256",
                    (after,),
                ).fetchall()
            for row in rows:
                after = int(row[0])
                yield after, _report(row)
            if not rows:
                return

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, on disk when it ends."""
        with self._mutex:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def read_entries(path: str | Path, *, limit: int | None = None) -> list[LogEntry]:
    """The last entries of a log that another process may be writing, oldest first.

    Raises:
        FileNotFoundError: if there is no log.
        CorruptLog: if the file is not a run log of this schema.
    """
    connection = _connect(Path(path), read_only=True)
    try:
        return _entries(connection, limit)
    finally:
        connection.close()


def pack_ids(ids: NDArray[np.int64]) -> bytes:
    """Ids as little-endian bytes, 4 each where they fit, else 8."""
    wide = bool(len(ids)) and int(ids.max()) >= 2**32
    return bytes(ids.astype("<i8" if wide else "<u4").tobytes())


def unpack_ids(blob: bytes, count: int) -> NDArray[np.int64]:
    """The inverse of `pack_ids`; CorruptLog if the length fits neither width."""
    if len(blob) not in (4 * count, 8 * count):
        raise CorruptLog(f"{count} stored ids must take {4 * count} or {8 * count} bytes; got {len(blob)}.")
    return np.frombuffer(blob, "<u4" if len(blob) == 4 * count else "<i8").astype(np.int64)


SELECT_ENTRY = f"SELECT {', '.join(ENTRY_FIELDS)} FROM log"  # noqa: S608
SELECT_WINDOW = (
    "SELECT number, version, first_draw, policy, temperature, effective_size, digest, num_spares, ids, probability, "
    "scores_through FROM windows"
)


def _connect(path: Path | None, *, read_only: bool) -> sqlite3.Connection:
    if read_only and path is not None and not path.exists():
        raise FileNotFoundError(f"run log {path} must exist; there is none. Name the directory of a run.")
    name = ":memory:" if path is None else f"file:{path.absolute()}?mode={'ro' if read_only else 'rwc'}"
    try:
        connection = sqlite3.connect(name, uri=path is not None, isolation_level=None, check_same_thread=False)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if not read_only:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            if (version, application) == (0, 0):
                _create(connection)
                version, application = SCHEMA_VERSION, APPLICATION_ID
    except sqlite3.DatabaseError as error:
        raise CorruptLog(f"run log {path} must be a SQLite file; it is not ({error}).") from error
    if (version, application) != (SCHEMA_VERSION, APPLICATION_ID):
        raise CorruptLog(f"run log {path} must have schema {SCHEMA_VERSION}; got {version} (id {application:#x}).")
    return connection


def _create(connection: sqlite3.Connection) -> None:
    """Make the tables; the version is written in the same transaction, so a half-made log does not exist."""
    connection.executescript(
        f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id={APPLICATION_ID}; "
        f"PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
    )


def _lock(path: Path) -> IO[bytes]:
    """Hold the writer's lock; a killed writer loses it at once, so a short wait covers its last moments."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = open(f"{path}.lock", "ab")  # noqa: SIM115 - held until close()
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > deadline:
                handle.close()
                raise LogInUse(
                    f"run log {path} must have one writer; another process holds it. Stop that run, or use another "
                    "run directory."
                ) from None
            time.sleep(0.05)


def _insert_entry(connection: sqlite3.Connection, entry: LogEntry) -> None:
    values = [getattr(entry, name) for name in ENTRY_FIELDS]
    values[ENTRY_FIELDS.index("value")] = json.dumps(entry.value)
    connection.execute(f"INSERT INTO log VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608


def _entries(connection: sqlite3.Connection, limit: int | None) -> list[LogEntry]:
    newest_first = f"{SELECT_ENTRY} ORDER BY sequence DESC LIMIT ?"
    return [_entry(row) for row in connection.execute(newest_first, (-1 if limit is None else limit,))][::-1]


def _entry(row: tuple[Any, ...]) -> LogEntry:
    named = dict(zip(ENTRY_FIELDS, row, strict=True))
    return LogEntry(**{**named, "value": json.loads(named["value"]), "in_force": bool(named["in_force"])})


def _window(row: tuple[Any, ...]) -> Window:
    number, version, first_draw, policy, temperature, size, digest, num_spares, ids, probability, _ = row
    drawn = np.frombuffer(probability, "<f8").astype(np.float64)
    window = Window.sealed(
        index=number,
        version=version,
        first_draw=first_draw,
        drawn=(unpack_ids(ids, len(drawn)), drawn),
        num_spares=num_spares,
        policy=policy,
        temperature=temperature,
        effective_size=size,
    )
    if window.digest != digest:
        raise CorruptLog(f"window {number} must have digest {digest}; its stored draws give {window.digest}.")
    return window


def _report(row: tuple[Any, ...]) -> ScoreReport:
    _, producer, sequence, kind, step, ids, values = row
    scores = np.frombuffer(values, "<f4").astype(np.float32)
    return ScoreReport(
        ids=unpack_ids(ids, len(scores)), values=scores, kind=kind, step=step, producer=producer, sequence=sequence
    )
