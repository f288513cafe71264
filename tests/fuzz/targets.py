"""What is fuzzed: each target gives bytes to one reader of ours, and fails where that does what it must not.

A target returns whether the reader accepted the bytes. A refusal is one of the errors that the reader documents; any
other exception is a finding, and so is an answer that another implementation contradicts. Where a checksum guards the
bytes, the target makes it right first: a fuzzer would never get past it, somebody who means harm would.
"""

from __future__ import annotations

import atexit
import io
import json
import shutil
import sqlite3
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import ValidationError

from deploy.api.changes import ControlRequest
from loader.decode.cpu import decode_image
from loader.decode.header import read_header
from loader.errors import BadSampleError, BadShardError, MissingIndexError
from loader.shards.index import ShardIndex
from loader.shards.tar import walk_tar
from scoring import Control, CorruptLog, RunLog, RunMismatch, Selection, VersionConflict, replay_run
from scoring.log.runlog import read_entries
from scoring.log.schema import SCHEMA
from scoring.log.snapshots import CHECKSUM, MAGIC, PREFIX, SCHEMA_VERSION, BadSnapshot, read_snapshot
from scoring.table.samples import SampleTable
from tests.scoring.configs import selection_config

Target = Callable[[bytes], bool]

MAX_PIXELS = 1_000_000
NUM_SAMPLES = 300
CONFIG = selection_config(seed=7, global_batch=8, window_steps=2, snapshot_windows=3)
DISTANCE = np.linspace(0.0, 1.0, NUM_SAMPLES, dtype=np.float32)
REFUSED_LOG = (CorruptLog, RunMismatch, ValueError)


@cache
def scratch() -> Path:
    """A folder of this process, in memory where there is one."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="tempera-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def index(data: bytes) -> bool:
    """An index file; its first byte says whether it is taken as it is, or only as the metadata of a sound one."""
    if not data:
        return False
    path = scratch() / "index.parquet"
    if data[0] % 2:
        table = sound_rows(data[1:9]).replace_schema_metadata({b"tempera.index": data[9:]})
        pq.write_table(table, path)
    else:
        path.write_bytes(data[1:])
    try:
        loaded = ShardIndex.load(path)
    except MissingIndexError:
        return False
    assert len(loaded.shard_urls) == len(loaded.shard_bytes)
    if len(loaded):
        ends = loaded.offset + loaded.size
        assert (ends <= np.array(loaded.shard_bytes, np.int64)[loaded.shard]).all(), "a sample beyond its shard"
        assert (loaded.offset >= 512).all()
        assert (loaded.size >= 0).all()
    try:
        assert len(loaded.keys) == len(loaded)
    except (MissingIndexError, pa.ArrowException, OSError):
        return False  # keys are read when first asked for
    return True


def sound_rows(seed: bytes) -> pa.Table:
    """Rows of an index; bytes of the seed are added to the places, so that they may lie outside."""
    far, long, shard, label = (*seed, 0, 0, 0, 0)[:4]
    return pa.table(
        {
            "shard": pa.array([0, shard], pa.int32()),
            "offset": pa.array([512, 1 << min(far, 62)], pa.int64()),
            "size": pa.array([4, long - 2], pa.int32()),
            "crc32": pa.array([1, 2], pa.uint32()),
            "width": pa.array([8, 8], pa.uint16()),
            "height": pa.array([8, 8], pa.uint16()),
            "label": pa.array([0, label - 2], pa.int32()),
            "key": pa.array(["a", "b"]),
        }
    )


def tar(data: bytes) -> bool:
    """A tar; what both accept must be the same to Python's tarfile. The checksums of its headers are made right."""
    data = with_checksums(data)
    asked, padded = 0, True

    def read_at(offset: int, size: int) -> bytes:
        nonlocal asked, padded
        assert 0 <= size <= 1 << 20, "an unbounded read"
        asked, end = asked + size, offset + size
        padded &= not data[end : end + -end % 512].strip(b"\0")
        return data[offset : offset + size]

    try:
        ours = [(m.name, m.offset, m.size) for m in walk_tar(read_at, len(data), url="x.tar")]
    except BadShardError:
        return False
    assert asked <= 2 * len(data) + 1024, "bytes are read again and again"
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors="surrogateescape") as theirs:
            members = [m for m in theirs if m.isreg()]
    except (tarfile.TarError, ValueError, OSError, OverflowError, UnicodeError):
        return True
    if padded and ends_alike(data, theirs.offset, ours):  # tarfile also reads what lies behind a record
        places = [(m.offset_data, m.size) for m in members]
        assert [place[1:] for place in ours] == places, f"{places} to tarfile, {ours} to us"
        if b"hdrcharset" not in data:
            names = [name for name, _, _ in ours]
            assert names == [m.name for m in members] or has_prefix_of_its_own(data)
    return True


def ends_alike(data: bytes, end: int, ours: list[tuple[str, int, int]]) -> bool:
    """Whether tarfile went on to the end: at a header that it cannot read it stops without a word, as we do not."""
    return data[end : end + 512] == bytes(512) and all(offset <= end for _, offset, _ in ours)


def has_prefix_of_its_own(data: bytes) -> bool:
    """Whether a header has bytes where only USTAR has the begin of a name: GNU has times there, tarfile a name."""
    heads = (data[at : at + 512] for at in range(0, len(data), 512))
    return any(head[257:263] != b"ustar\0" and head[345:500].strip(b"\0") for head in heads)


def with_checksums(data: bytes) -> bytes:
    """The same bytes, the checksum made right of every block that has the mark of a header where it should be."""
    blocks = bytearray(data)
    for at in range(0, len(blocks) - 511, 512):
        if blocks[at + 257 : at + 262] == b"ustar":
            blocks[at + 148 : at + 156] = b" " * 8
            blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + 512])
    return bytes(blocks)


def image(data: bytes) -> bool:
    """An image: what passes the header check decodes to its sides or is refused, and Pillow sees the same sides."""
    try:
        header = read_header(data, max_pixels=MAX_PIXELS)
    except BadSampleError:
        return False
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as opened:
            theirs = opened.size
    except Exception:
        theirs = None
    try:
        pixels = decode_image(data, header)
    except BadSampleError:
        return theirs == (header.width, header.height)
    assert pixels.shape == (header.height, header.width, 3)
    assert theirs in (None, (header.width, header.height)), f"{theirs} to Pillow, {header} to us"
    return True


def replay(data: bytes) -> bool:
    """A run log, opened and replayed: any file, or a sound log of which some fields have other values."""
    if not data:
        return False
    path = scratch() / "run.sqlite"
    for old in scratch().glob("run.sqlite*"):
        old.unlink()
    path.write_bytes(data[1:] if data[0] % 2 else sound_log())
    if not data[0] % 2:
        edit_log(path, data[1:])
    log = None
    try:
        read_entries(path)
        log = RunLog(path)
        selection = Selection(DISTANCE, CONFIG, runlog=log)
        selection.window(selection.next_window)
        replay_run(log, CONFIG, DISTANCE)
    except REFUSED_LOG:
        return False
    finally:
        if log is not None:
            log.close()
    return True


@cache
def sound_log() -> bytes:
    """A log with windows, controls, events and scores, folded into one file."""
    path = scratch() / "sound.sqlite"
    log = RunLog(path)
    selection = Selection(DISTANCE, CONFIG, runlog=log)
    for number in range(4):
        selection.window(number, effective_size=0.2 + 0.05 * number)
        selection.report_scores([number, 5], [0.5, 0.25], step=number, producer="rank-0", sequence=number)
        size = 0.3 + 0.02 * number
        selection.control(Control(kind="effective_size", value=size, author="ann", request=f"r{number}"))
    log.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    return path.read_bytes()


def edit_log(path: Path, data: bytes) -> None:
    """Give fields other values: each edit is table, column, row, kind of value, and eight bytes of it."""
    tables = {line.split("(")[0].split()[2]: line for line in SCHEMA.split(";") if "CREATE TABLE" in line}
    with closing(sqlite3.connect(path)) as connection:
        columns = {name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")] for name in tables}
        for at in range(0, len(data) - 11, 12):
            table = sorted(tables)[data[at] % len(tables)]
            column = columns[table][data[at + 1] % len(columns[table])]
            value = field_value(data[at + 3], data[at + 4 : at + 12])
            try:
                connection.execute(f'UPDATE {table} SET "{column}" = ? WHERE rowid = ?', (value, 1 + data[at + 2] % 6))
            except (sqlite3.IntegrityError, sqlite3.OperationalError, OverflowError):
                continue
        for table, first, second in (("scores", "ids", "vals"), ("windows", "ids", "probability")):
            for row, ids, values in connection.execute(f"SELECT rowid, {first}, {second} FROM {table}").fetchall():
                if isinstance(ids, bytes) and isinstance(values, bytes):
                    checksum = zlib.crc32(values, zlib.crc32(ids))
                    connection.execute(f"UPDATE {table} SET checksum = ? WHERE rowid = ?", (checksum, row))
        connection.commit()


ROUND = ("threshold", "last_id", "scores_through")
KINDS = ("round", "distances", "release", "policy", "temperature", "effective_size", "metric", "bss")


def field_value(kind: int, raw: bytes) -> Any:
    """A value for a field of a row."""
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: int.from_bytes(raw, "little", signed=True),
        lambda: raw[0],
        lambda: struct.unpack("<d", raw)[0],
        lambda: raw.decode("latin-1"),
        lambda: raw,
        lambda: json.dumps(raw[0]),
        lambda: json.dumps({**dict(zip(ROUND, raw, strict=False)), "path": "x", "digest": "y"}),
        lambda: KINDS[raw[0] % len(KINDS)],
        lambda: raw * 50,
        lambda: "[" * (raw[0] * 40),
    )
    return kinds[kind % len(kinds)]()


def snapshot(data: bytes) -> bool:
    """A snapshot whose checksums are right: two bytes for the header's length, the header, the arrays."""
    if len(data) < 2:
        return False
    length = int.from_bytes(data[:2], "little")
    header, arrays = right_checksums(data[2 : 2 + length], data[2 + length :])
    prefix = PREFIX.pack(MAGIC, SCHEMA_VERSION, len(header)) + header + CHECKSUM.pack(zlib.crc32(header))
    path = scratch() / "run.sqlite.snapshot-000000000003"
    path.write_bytes(prefix + arrays)
    try:
        _, packed = read_snapshot(path)
    except BadSnapshot:
        return False
    assert all(array.nbytes <= len(arrays) for array in packed[0].values())
    table = SampleTable(DISTANCE, num_samples=NUM_SAMPLES, options=CONFIG.policy_options)
    if not table.accepts(*packed):
        return False
    table.unpack(*packed)
    assert len(table.counts.part(0, NUM_SAMPLES)) == NUM_SAMPLES
    table.scored()
    return True


def right_checksums(header: bytes, arrays: bytes) -> tuple[bytes, bytes]:
    """The header with the CRC-32 of each array that it describes, where it is one that can be read."""
    try:
        described, at = json.loads(header), 0
        for array in described["arrays"]:
            array["crc32"] = zlib.crc32(arrays[at : at + array["bytes"]])
            at += array["bytes"]
        return json.dumps(described).encode(), arrays
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return header, arrays


@cache
def sound_snapshot() -> bytes:
    """A snapshot with draws and scores, in the form that the target takes."""
    runlog = scratch() / "snap.sqlite"
    log = RunLog(runlog)
    selection = Selection(DISTANCE, CONFIG, runlog=log)
    selection.report_scores([1, 2], [0.5, 0.25], step=1, producer="rank-0", sequence=0)
    selection.window(0)
    selection.window(1)
    selection._compaction.snapshot()
    log.close()
    whole = next(scratch().glob("snap.sqlite.snapshot-*")).read_bytes()
    length = PREFIX.unpack_from(whole)[2]
    start = PREFIX.size
    return length.to_bytes(2, "little") + whole[start : start + length] + whole[start + length + CHECKSUM.size :]


@cache
def _selection() -> Selection:
    return Selection(DISTANCE, CONFIG)


def control(data: bytes) -> bool:
    """The body of a request for a control: checked as the API does, then applied to a selection that draws on."""
    try:
        request = ControlRequest.model_validate_json(data)
    except ValidationError:
        return False
    selection = _selection()
    before = selection.state()["control_version"]
    fields = ("kind", "value", "author", "reason", "expected_version")
    try:
        reply = selection.control(Control(**{name: getattr(request, name) for name in fields}))
    except (ValueError, VersionConflict):
        assert selection.state()["control_version"] == before, "refused, and yet something changed"
        return False
    assert reply.version == before + 1
    window = selection.window(selection.next_window)
    assert np.isfinite(window.probability).all()
    assert (window.probability > 0).all()
    json.dumps(selection.state(), allow_nan=False)
    return True


TARGETS: dict[str, Target] = {target.__name__: target for target in (index, tar, image, replay, snapshot, control)}
