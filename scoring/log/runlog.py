"""RunLog: the durable history of a run, one SQLite file in WAL mode.

This file and the data fix what the model saw: the run's identity, every change with its author and the window that it
took effect in, every window as it was handed out, every accepted score. A row is committed to disk before the answer
that depends on it is given. One process writes and holds a lock file; any number may read.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scoring.errors import CorruptLog, LogUnavailable, RunMismatch
from scoring.log import schema
from scoring.log.snapshots import FAILPOINT
from scoring.log.unlogged_windows import UnloggedWindows
from scoring.records import TABLE_CHANGES, LogEntry, Window, WindowFacts
from scoring.table.scores import ScoreReport

LAST_SEQUENCE = 1 << 62
REPORTS_AT_ONCE = 256
TRIMMED_AT_ONCE = 16
"""Reports cut in one transaction: few, for others wait to be acknowledged."""


class RunLog:
    """A run's log, open for writing; without a path it lives in memory. Safe to use from several threads."""

    def __init__(self, path: str | Path | None = None) -> None:
        """Open or create the log.

        Raises:
            LogInUse: if another process writes it.
            CorruptLog: if the file is not a run log of this schema.
        """
        self.path = None if path is None else Path(path)
        self._mutex = threading.RLock()  # one connection: SQLite runs one transaction at a time on it
        self._lock_file = None if self.path is None else schema.lock(self.path)
        try:
            self._connection = schema.connect(self.path, read_only=False)
            with self._reading():
                last = max(
                    self._connection.execute(f"SELECT COALESCE(MAX(sequence), 0) FROM {table}").fetchone()[0]  # noqa: S608
                    for table in ("log", "scores")
                )
            if not 0 <= last < LAST_SEQUENCE:
                raise CorruptLog(f"run log {self.path} must count its rows from 1; got {last}. Restore it from a copy.")
            self._next_sequence = 1 + int(last)
            self.unlogged = UnloggedWindows(self.path and self.path.with_name(f"{self.path.name}.unlogged"))
            """Windows that were handed out and are not in the log."""
        except BaseException:
            if self._lock_file is not None:
                self._lock_file.close()
            raise

    def close(self) -> None:
        """Close the file and release the lock."""
        with self._mutex:
            self._connection.close()
            if self._lock_file is not None:
                self._lock_file.close()

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Write the run's identity into a new log, or compare it with the one in the log.

        Raises:
            RunMismatch: naming the first field that differs.
        """
        wanted = {name: json.dumps(value) for name, value in identity.items()}
        with self._transaction() as connection:
            stored = {str(name): value for name, value in connection.execute("SELECT field, value FROM meta")}
            if not stored:
                connection.executemany("INSERT INTO meta VALUES (?, ?)", wanted.items())
                self.unlogged.clear()
                return
        for name in sorted(wanted.keys() | stored.keys()):
            if wanted.get(name) != stored.get(name):
                raise RunMismatch(
                    f"{name} must be the run's own ({stored.get(name)}); got {wanted.get(name)}. "
                    f"Resume with the run's configuration, or begin a new run directory (log: {self.path})."
                )

    def identity(self) -> dict[str, Any]:
        """Return the identity that `begin` wrote; empty for a log that no run has begun.

        Raises:
            CorruptLog: if a value is not JSON.
        """
        with self._reading():
            stored = dict(self._connection.execute("SELECT field, value FROM meta"))
        try:
            return {name: json.loads(value) for name, value in stored.items()}
        except (ValueError, TypeError, RecursionError) as error:
            raise CorruptLog(f"the identity in run log {self.path} must be JSON; it is not ({error}).") from error

    def take_sequence(self) -> int:
        """Return the next position in the log. A position whose write fails stays empty."""
        with self._mutex:
            sequence = self._next_sequence
            self._next_sequence += 1
            return sequence

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(self, entry: LogEntry) -> None:
        """Write one entry.

        Raises:
            LogUnavailable: if the disk does not take it; so do the other writing methods.
        """
        with self._transaction() as connection:
            _insert(connection, "log", schema.entry_row(entry))

    def append_windows(self, windows: Sequence[tuple[WindowFacts, Window, Sequence[LogEntry]]]) -> None:
        """Write windows, and the entries that came with their requests, in one transaction."""
        with self._transaction() as connection:
            for facts, window, entries in windows:
                for entry in entries:
                    _insert(connection, "log", schema.entry_row(entry))
                _insert(connection, "windows", schema.window_row(facts, window))

    def append_reports(self, reports: Sequence[ScoreReport]) -> list[int]:
        """Write score reports in one transaction; return their sequences, 0 for one that is here already."""
        with self._transaction() as connection:
            rows = [schema.report_row(self.take_sequence(), report) for report in reports]
            # (producer, report, kind) is unique in the table: a report that is sent twice is ignored.
            return [row[0] if _insert(connection, "scores", row, or_ignore=True).rowcount else 0 for row in rows]

    def drop_draws(self, *, before: int) -> None:
        """Drop the draws, not the facts, of windows below an index; they can be drawn again."""
        # Only rows that still have draws: without that each call would rewrite all windows of the run.
        with self._transaction() as connection:
            connection.execute(
                'UPDATE windows SET ids = NULL, probability = NULL WHERE "index" < ? AND ids IS NOT NULL', (before,)
            )

    def trim_reports(self, *, through: int, keep: Callable[[ScoreReport], ScoreReport]) -> None:
        """Reduce the score reports with a sequence up to `through` to the part that `keep` returns, some at a time.

        A crash in between leaves some reports whole, which merge to the same scores.
        """
        after = 0
        while True:
            with self._transaction() as connection:
                query = f"{schema.SELECT_REPORT} WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?"
                rows = connection.execute(query, (after, through, TRIMMED_AT_ONCE)).fetchall()
                for sequence, report in map(schema.report_of, rows):
                    kept = keep(report)
                    if len(kept.ids) == len(report.ids):
                        continue
                    connection.execute("DELETE FROM scores WHERE sequence = ?", (sequence,))
                    if len(kept.ids):
                        _insert(connection, "scores", schema.report_row(sequence, kept))
            if len(rows) < TRIMMED_AT_ONCE:
                return
            after = int(rows[-1][0])

    # -- reading ------------------------------------------------------------------------------------------------------

    def entries(
        self, *, limit: int | None = None, after: int = 0, before: int | None = None, without: Sequence[str] = ()
    ) -> list[LogEntry]:
        """Return the last `limit` entries with a sequence in (after, before), oldest first, but for some kinds."""
        with self._reading():
            return schema.select_entries(self._connection, limit=limit, after=after, before=before, without=without)

    def entry_of(self, request: str) -> LogEntry | None:
        """Return the entry of the message with this identity, if it came before."""
        if not request:
            return None
        with self._reading():
            row = self._connection.execute(f"{schema.SELECT_ENTRY} WHERE request = ?", (request,)).fetchone()
        return schema.entry_of(row) if row else None

    def table_changes(self, *, after: int = 0) -> list[LogEntry]:
        """Return the changes of the table (rounds, other distances) with a sequence above `after`, in order."""
        with self._reading():
            kinds = ", ".join("?" * len(TABLE_CHANGES))
            query = f"{schema.SELECT_ENTRY} WHERE kind IN ({kinds}) AND sequence > ? ORDER BY sequence"
            return [schema.entry_of(row) for row in self._connection.execute(query, (*TABLE_CHANGES, after))]

    def facts(self, *, first: int = 0) -> list[tuple[WindowFacts, str]]:
        """Return facts and digests of all windows from an index on, in order."""
        with self._reading():
            query = f'{schema.SELECT_FACTS} WHERE "index" >= ? ORDER BY "index"'
            return [schema.facts_of(row) for row in self._connection.execute(query, (first,))]

    def last_facts(self) -> tuple[WindowFacts, str] | None:
        """Return facts and digest of the newest window; None at the start."""
        with self._reading():
            row = self._connection.execute(f'{schema.SELECT_FACTS} ORDER BY "index" DESC LIMIT 1').fetchone()
        return schema.facts_of(row) if row else None

    def window(self, index: int) -> Window | None:
        """Return a stored window, checked; None if its draws are not kept any more, or it was not drawn.

        Raises:
            CorruptLog: if it does not match its checksum or digest.
        """
        with self._reading():
            row = self._connection.execute(f'{schema.SELECT_FACTS} WHERE "index" = ?', (index,)).fetchone()
            draws = self._connection.execute(f'{schema.SELECT_DRAWS} WHERE "index" = ?', (index,)).fetchone()
        return schema.window_of(*schema.facts_of(row), *draws) if row and draws[1] is not None else None

    def reports(self, *, after: int = 0, through: int | None = None) -> Iterator[tuple[int, ScoreReport]]:
        """Yield score reports with a sequence in (after, through], in order of arrival."""
        # In portions, so that neither memory nor the mutex is held for a whole log of millions of scores.
        last = 2**63 - 1 if through is None else through
        query = f"{schema.SELECT_REPORT} WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?"
        while True:
            with self._reading():
                rows = self._connection.execute(query, (after, last, REPORTS_AT_ONCE)).fetchall()
            yield from map(schema.report_of, rows)
            if len(rows) < REPORTS_AT_ONCE:
                return
            after = int(rows[-1][0])

    def stored_scores(self) -> int:
        """Return the number of scores in the log, also those that newer ones have replaced."""
        with self._reading():
            return int(self._connection.execute("SELECT COALESCE(SUM(LENGTH(vals)), 0) / 4 FROM scores").fetchone()[0])

    def scores_were_read(self) -> bool:
        """Return whether a window or a round depends on the scores at some point of the log."""
        with self._reading():
            # Every window notes how far its weights read; a round reads all scores, and is in the log itself.
            query = "SELECT EXISTS (SELECT 1 FROM windows WHERE scores_through > 0)"
            rounds = any(entry.kind == "round" for entry in self.table_changes())
            return bool(rounds or self._connection.execute(query).fetchone()[0])

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._mutex, _whole(self.path):
            yield

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit all or nothing; on disk when it ends."""
        with self._reading():
            try:
                # IMMEDIATE takes the write lock now: a full or locked disk fails before anything is prepared.
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    sys.audit(FAILPOINT, "selection.append")
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
                sys.audit(FAILPOINT, "selection.appended")
            except (sqlite3.OperationalError, OSError) as error:
                raise LogUnavailable(
                    f"run log {self.path} must be writable; it is not ({error}). Free some disk space; what was "
                    "acknowledged is not lost."
                ) from error


def read_entries(path: str | Path, **bounds: Any) -> list[LogEntry]:
    """Return the last entries of a log that another process may be writing; `bounds` are those of `RunLog.entries`.

    Raises:
        FileNotFoundError: if there is no log.
        CorruptLog: if the file is not a run log of this schema.
    """
    connection = schema.connect(Path(path), read_only=True)
    try:
        with _whole(Path(path)):
            return schema.select_entries(connection, **bounds)
    finally:
        connection.close()


def _insert(
    connection: sqlite3.Connection, table: str, row: Iterable[Any], *, or_ignore: bool = False
) -> sqlite3.Cursor:
    values = tuple(row)
    verb = "INSERT OR IGNORE" if or_ignore else "INSERT"
    return connection.execute(f"{verb} INTO {table} VALUES ({', '.join('?' * len(values))})", values)


@contextmanager
def _whole(path: Path | None) -> Iterator[None]:
    """Turn SQLite's error for a damaged file into CorruptLog."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        # What cannot be read now (locked, an I/O error) may be read later; other subclasses are our own mistakes.
        if type(error) is not sqlite3.DatabaseError and "Could not decode" not in str(error):
            raise
        raise CorruptLog(
            f"run log {path} must be whole; it is not ({error}). Restore run.sqlite from a copy."
        ) from error
