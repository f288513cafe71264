"""The run log's file: its tables, the lock of its writer, and the conversion between rows and values.

SQLite stores any type in any column, and a file may be damaged or made by others: every row is checked when it is read.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import time
import zlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from scoring.errors import CorruptLog, LogInUse
from scoring.policies import SCORE_KINDS
from scoring.records import METRIC, SCHEDULE, LogEntry, Window, WindowFacts
from scoring.table.scores import ScoreReport

SCHEMA_VERSION = 2
APPLICATION_ID = 0x54454D50  # "TEMP", by which `file` and `connect` know a run log
LOCK_WAIT_S = 10.0

SCHEMA = """
CREATE TABLE meta (field TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE log (sequence INTEGER PRIMARY KEY, time REAL NOT NULL, author TEXT NOT NULL, kind TEXT NOT NULL,
    value TEXT NOT NULL, reason TEXT NOT NULL, "window" INTEGER NOT NULL, step INTEGER NOT NULL,
    version INTEGER NOT NULL, temperature REAL, effective_size REAL, in_force INTEGER NOT NULL, request TEXT NOT NULL,
    detail TEXT NOT NULL);
CREATE UNIQUE INDEX log_request ON log (request) WHERE request != '';
CREATE TABLE windows ("index" INTEGER PRIMARY KEY, version INTEGER NOT NULL, first_draw INTEGER NOT NULL,
    policy TEXT NOT NULL, temperature REAL NOT NULL, effective_size REAL NOT NULL, num_draws INTEGER NOT NULL,
    num_spares INTEGER NOT NULL, scores_through INTEGER NOT NULL, rounds_through INTEGER NOT NULL,
    digest TEXT NOT NULL, checksum INTEGER NOT NULL, ids BLOB, probability BLOB);
CREATE TABLE scores (sequence INTEGER PRIMARY KEY, producer TEXT NOT NULL, report INTEGER NOT NULL, kind TEXT NOT NULL,
    step INTEGER NOT NULL, checksum INTEGER NOT NULL, ids BLOB NOT NULL, vals BLOB NOT NULL,
    UNIQUE (producer, report, kind));
"""

TABLES = ("meta", "log", "windows", "scores")
SHAPE = {("table", name, name) for name in TABLES} | {
    ("index", "log_request", "log"),
    ("index", "sqlite_autoindex_meta_1", "meta"),
    ("index", "sqlite_autoindex_scores_1", "scores"),
}
"""Rows of a log's sqlite_schema: type, name and table."""

ENTRY_FIELDS = tuple(field.name for field in fields(LogEntry))
FACT_FIELDS = tuple(field.name for field in fields(WindowFacts))
SELECT_ENTRY = 'SELECT "' + '", "'.join(ENTRY_FIELDS) + '" FROM log'  # noqa: S608
SELECT_FACTS = 'SELECT "' + '", "'.join(FACT_FIELDS) + '", digest FROM windows'  # noqa: S608
ENTRY_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("sequence", "window", "step", "version", "in_force"), (int,)),
    **dict.fromkeys(("author", "kind", "value", "reason", "request", "detail"), (str,)),
    **dict.fromkeys(("temperature", "effective_size"), (float, int, type(None))),
    "time": (float, int),
}
FACT_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(FACT_FIELDS, (int,)),
    **dict.fromkeys(("temperature", "effective_size"), (float, int)),
    **dict.fromkeys(("policy", "digest"), (str,)),
}
REPORT_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("step", "sequence", "checksum"), (int,)),
    **dict.fromkeys(("ids", "vals"), (bytes,)),
    "producer": (str,),
}
DRAWS_KINDS: dict[str, tuple[type, ...]] = {"checksum": (int,), "ids": (bytes,), "probability": (bytes,)}
COUNTED = frozenset(
    ("sequence", "window", "step", "version", "index", "first_draw", "num_draws", "num_spares", "scores_through")
)
NUMBER_KINDS = ("effective_size", "temperature", SCHEDULE, METRIC)
SELECT_DRAWS = "SELECT checksum, ids, probability FROM windows"
SELECT_REPORT = "SELECT sequence, producer, report, kind, step, checksum, ids, vals FROM scores"


def connect(path: Path | None, *, read_only: bool) -> sqlite3.Connection:
    """Open the file; a new one is made when it is opened for writing.

    Raises:
        FileNotFoundError: if there is none to read.
        CorruptLog: if it is not a run log of this schema.
    """
    if read_only and path is not None and not path.exists():
        raise FileNotFoundError(f"run log {path} must exist; there is none. Name the directory of a run.")
    name = ":memory:" if path is None else f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    try:
        connection = sqlite3.connect(name, uri=path is not None, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA trusted_schema=OFF")  # a file from elsewhere must not run functions of its own
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if not read_only:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # a commit is on disk when it returns
            if (version, application) == (0, 0):
                # The version is written in the same transaction, so a half-made log does not exist.
                connection.executescript(
                    f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id={APPLICATION_ID}; "
                    f"PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
                )
                version, application = SCHEMA_VERSION, APPLICATION_ID
    except sqlite3.DatabaseError as error:
        raise CorruptLog(f"run log {path} must be a readable SQLite file; it is not ({error}).") from error
    if (version, application) != (SCHEMA_VERSION, APPLICATION_ID):
        raise CorruptLog(
            f"run log {path} must have schema {SCHEMA_VERSION}; got {version} (application {application:#x}). "
            "Use the release that wrote it, or begin a new run directory."
        )
    try:
        shape = set(connection.execute("SELECT type, name, tbl_name FROM sqlite_schema"))
    except sqlite3.DatabaseError as error:
        raise CorruptLog(f"run log {path} must be a readable SQLite file; it is not ({error}).") from error
    if shape != SHAPE:  # a view or a trigger would run code of the file's own
        raise CorruptLog(f"run log {path} must have a run log's tables and no others. Restore run.sqlite from a copy.")
    return connection


def lock(path: Path) -> IO[bytes]:
    """Take the writer's lock, held until the handle is closed; LogInUse if another process keeps it.

    The kernel releases a killed writer's lock, so a short wait covers its last moments.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = open(f"{path}.lock", "ab")  # noqa: SIM115 - the caller's to close
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


def select_entries(
    connection: sqlite3.Connection,
    *,
    limit: int | None = None,
    after: int = 0,
    before: int | None = None,
    without: Sequence[str] = (),
) -> list[LogEntry]:
    """Return the last entries of a log, oldest first.

    Args:
        connection: the open log.
        limit: how many; None for all.
        after: sequence of the entry before the first.
        before: sequence of the entry after the last; None for no bound.
        without: kinds that are left out.
    """
    left_out = ", ".join("?" * len(without))
    newest_first = (
        f"{SELECT_ENTRY} WHERE sequence > ? AND sequence < ? AND kind NOT IN ({left_out}) "
        "ORDER BY sequence DESC LIMIT ?"
    )
    bounds = (after, 2**63 - 1 if before is None else before)
    rows = connection.execute(newest_first, (*bounds, *without, -1 if limit is None else limit))
    return [entry_of(row) for row in rows][::-1]


def entry_row(entry: LogEntry) -> list[Any]:
    """Return a log entry as a row."""
    values = [getattr(entry, name) for name in ENTRY_FIELDS]
    values[ENTRY_FIELDS.index("value")] = json.dumps(entry.value)
    # A file name may hold bytes that are not text: they are escaped, so that the entry is not lost.
    return [v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v for v in values]


def entry_of(row: tuple[Any, ...]) -> LogEntry:
    """Return the entry of a row; CorruptLog if a field is of another type."""
    named = dict(zip(ENTRY_FIELDS, row, strict=True))
    _check_kinds(named, ENTRY_KINDS, "log entry", named["sequence"])
    try:
        value = json.loads(named["value"])
        if not (value is None or isinstance(value, str) or (isinstance(value, int | float) and float(value) == value)):
            raise ValueError("it is not a plain value")
        if value is not None and named["kind"] in NUMBER_KINDS:
            float(value)
    except (ValueError, OverflowError, RecursionError) as error:
        raise CorruptLog(f"the value of log entry {named['sequence']} must be a number or a text ({error}).") from error
    return LogEntry(**{**named, "value": value, "in_force": bool(named["in_force"])})


def facts_of(row: tuple[Any, ...]) -> tuple[WindowFacts, str]:
    """Return facts of a window and its digest; CorruptLog if a field is of another type."""
    named = dict(zip(FACT_FIELDS, row[:-1], strict=True))
    _check_kinds({**named, "digest": row[-1]}, FACT_KINDS, "window", named["index"])
    return WindowFacts(**named), str(row[-1])


def _check_kinds(named: dict[str, Any], kinds: dict[str, tuple[type, ...]], what: str, number: object) -> None:
    """Raise CorruptLog unless each field is of one of its types, and counts are not negative."""
    # SQLite stores any type in any column; by `type`, for a bool is an int to isinstance.
    for name, wanted in kinds.items():
        value = named[name]
        if type(value) not in wanted or (name in COUNTED and value < 0):
            raise CorruptLog(
                f"{name} of {what} {number} must not be {str(value)[:40]!r}. Restore run.sqlite from a copy."
            )


def window_row(facts: WindowFacts, window: Window) -> tuple[Any, ...]:
    """Return a window as a row: its facts, then digest, checksum, ids and probability.

    The draws come first and the spares after them; probabilities are little-endian float64. The checksum is the CRC-32
    of both columns: the digest does not cover the probabilities.
    """
    ids = pack_ids(np.concatenate([window.sample_ids, window.spare_ids]))
    probability = np.concatenate([window.probability, window.spare_probability]).astype("<f8").tobytes()
    checksum = zlib.crc32(probability, zlib.crc32(ids))
    return (*(getattr(facts, name) for name in FACT_FIELDS), window.digest, checksum, ids, probability)


def window_of(facts: WindowFacts, digest: str, checksum: int, ids: bytes, probability: bytes) -> Window:
    """Return the window of a row; CorruptLog if the draws do not match checksum and digest."""
    drawn_kinds = {"checksum": checksum, "ids": ids, "probability": probability}
    _check_kinds(drawn_kinds, DRAWS_KINDS, "window", facts.index)
    if len(probability) != 8 * (facts.num_draws + facts.num_spares):
        raise CorruptLog(f"window {facts.index} must hold {facts.num_draws + facts.num_spares} draws; it does not.")
    if zlib.crc32(probability, zlib.crc32(ids)) != checksum:
        raise CorruptLog(f"window {facts.index} must match its checksum; it does not. Restore run.sqlite from a copy.")
    drawn = np.frombuffer(probability, "<f8").astype(np.float64)
    window = Window.sealed(facts, unpack_ids(ids, len(drawn)), drawn)
    if window.digest != digest:
        raise CorruptLog(f"window {facts.index} must have digest {digest}; its stored draws give {window.digest}.")
    return window


def report_row(sequence: int, report: ScoreReport) -> tuple[Any, ...]:
    """Return a score report as a row."""
    ids, values = pack_ids(report.ids), report.values.astype("<f4", copy=False).tobytes()
    checksum = zlib.crc32(values, zlib.crc32(ids))
    return sequence, report.producer, report.sequence, report.kind, report.step, checksum, ids, values


def report_of(row: tuple[Any, ...]) -> tuple[int, ScoreReport]:
    """Return the sequence and the score report of a row; CorruptLog if it does not match its checksum."""
    position, producer, sequence, kind, step, checksum, ids, values = row
    named = {"producer": producer, "step": step, "sequence": sequence, "checksum": checksum, "ids": ids, "vals": values}
    _check_kinds(named, REPORT_KINDS, "score report", position)
    if zlib.crc32(values, zlib.crc32(ids)) != checksum:
        raise CorruptLog(
            f"score report {position} must match its checksum; it does not. Restore run.sqlite from a copy."
        )
    if kind not in SCORE_KINDS or len(values) % 4:
        raise CorruptLog(f"score report {position} must be of a known kind; got {str(kind)[:40]!r}.")
    scores = np.frombuffer(values, "<f4").astype(np.float32)
    if not (np.abs(scores) <= np.finfo(np.float32).max).all() or (scores < 0).any():
        raise CorruptLog(f"score report {position} must hold finite scores from 0 up.")
    return position, ScoreReport(
        ids=unpack_ids(ids, len(scores)), values=scores, kind=kind, step=step, producer=producer, sequence=sequence
    )


def pack_ids(ids: NDArray[np.int64]) -> bytes:
    """Return ids as little-endian bytes, 4 each where they fit, else 8."""
    wide = bool(len(ids)) and int(ids.max()) >= 2**32
    return bytes(ids.astype("<i8" if wide else "<u4").tobytes())


def unpack_ids(blob: bytes, count: int) -> NDArray[np.int64]:
    """Return the ids of `pack_ids`; CorruptLog if the length fits neither width."""
    if len(blob) not in (4 * count, 8 * count):
        raise CorruptLog(f"{count} stored ids must take {4 * count} or {8 * count} bytes; got {len(blob)}.")
    return np.frombuffer(blob, "<u4" if len(blob) == 4 * count else "<i8").astype(np.int64)
