"""Snapshots: the sample table at one position of the log, so that recovery need not fold the whole log.

A file is: magic, schema version, header length, header (JSON: position, facts, arrays with size and CRC-32), CRC-32 of
the header, the arrays. It is written under another name, synced and renamed; the newest two are kept. The header is
believed only where it is complete and consistent. A file that is torn, truncated or flipped is passed over with a
warning, and recovery uses the one before it, or the log alone.
"""

from __future__ import annotations

import json
import logging
import math
import os
import struct
import sys
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Packed = tuple[dict[str, NDArray[Any]], dict[str, Any]]
"""Arrays and facts of a sample table, see `SampleTable.pack`."""

FAILPOINT = "tempera.failpoint"
"""Audit event of a place that tests make fail; without a listener it does nothing."""

MAGIC = b"TEMPERA\n"
SCHEMA_VERSION = 3
PREFIX = struct.Struct("<8sIQ")
CHECKSUM = struct.Struct("<I")
HEADER_LIMIT = 1 << 26
KEPT = 2

DTYPES = ("<u2", "<u4", "<f4", "<i8", "|u1")
MAX_SIDE = 1 << 40


class BadSnapshot(Exception):
    """A snapshot file is not whole; the message names the place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """How far a sample table has followed the log."""

    next_window: int
    """Draws of windows below it are counted."""
    scores_through: int
    """Score reports up to this sequence are merged."""
    rounds_through: int
    """Selection rounds up to this sequence are closed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayHeader:
    """One array of a snapshot, before it is read."""

    name: str
    dtype: str
    """One of DTYPES."""
    shape: tuple[int, ...]
    num_bytes: int
    """Its size in the file."""
    crc32: int


class Disk:
    """The durable operations of a snapshot; a crash can fall between any two."""

    def write(self, file: IO[bytes], data: bytes | memoryview) -> None:
        """Write some bytes; until the sync a crash may lose all or half of them."""
        sys.audit(FAILPOINT, "snapshot.write", file, data)
        file.write(data)

    def sync(self, file: IO[bytes]) -> None:
        """Force the written bytes to the disk."""
        file.flush()
        os.fsync(file.fileno())

    def rename(self, source: Path, target: Path) -> None:
        """Give a file its name, and force the name to the disk."""
        sys.audit(FAILPOINT, "snapshot.rename")
        os.replace(source, target)
        sys.audit(FAILPOINT, "snapshot.renamed")
        # The name is in the folder, not in the file: without a sync of the folder a power cut takes it back.
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


class SnapshotStore:
    """The snapshots of one run log."""

    def __init__(self, runlog: Path, *, disk: Disk | None = None) -> None:
        self._directory, self._stem, self._disk = runlog.parent, f"{runlog.name}.snapshot-", disk or Disk()

    def paths(self) -> list[Path]:
        """Return the snapshot files, newest first."""
        found = [path for path in self._directory.glob(f"{self._stem}*") if path.suffix != ".part"]
        return sorted(found, key=lambda path: path.name, reverse=True)

    def save(self, position: Position, packed: Packed) -> Path:
        """Write a snapshot and delete all but the newest two."""
        target = self._directory / f"{self._stem}{position.next_window:012d}"
        aside = target.with_name(f"{target.name}.part")
        columns, facts = packed
        arrays = {name: np.ascontiguousarray(array) for name, array in columns.items()}
        described = []
        for name, array in arrays.items():
            assert array.dtype.str in DTYPES, "columns are little-endian numbers"
            size = {"dtype": array.dtype.str, "shape": array.shape, "bytes": array.nbytes}
            described.append({"name": name, **size, "crc32": zlib.crc32(_bytes_of(array))})
        header = json.dumps({"position": asdict(position), "facts": facts, "arrays": described}).encode()
        # Content, then sync, then rename: under the final name there is only ever a whole file.
        # Columns are written from where they are: a copy would double the memory of the table.
        with open(aside, "wb") as file:
            self._disk.write(file, PREFIX.pack(MAGIC, SCHEMA_VERSION, len(header)) + header)
            self._disk.write(file, CHECKSUM.pack(zlib.crc32(header)))
            for array in arrays.values():
                self._disk.write(file, _bytes_of(array))
            self._disk.sync(file)
        self._disk.rename(aside, target)
        for old in self.paths()[KEPT:]:
            self._disk.remove(old)
        return target

    def load(self) -> tuple[Position, Packed] | None:
        """Return the newest whole snapshot; None without one."""
        # An older one serves as well: the log holds all that came after it, and recovery only takes longer.
        for path in self.paths():
            try:
                return read_snapshot(path)
            except (BadSnapshot, OSError) as error:
                log.warning("snapshot %s is passed over: %s", path, error)
        return None


def read_snapshot(path: Path) -> tuple[Position, Packed]:
    """Read and check one file; BadSnapshot if a byte of it is wrong. Sizes are checked before memory is taken."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(PREFIX.size)
        if len(prefix) < PREFIX.size:
            raise BadSnapshot(f"it must have a prefix of {PREFIX.size} bytes; got {len(prefix)}")
        # Each size is checked against the file before memory is taken: a flipped bit must not ask for terabytes.
        magic, schema, length = PREFIX.unpack(prefix)
        if (magic, schema) != (MAGIC, SCHEMA_VERSION) or length > min(size, HEADER_LIMIT):
            raise BadSnapshot(
                f"it must begin with {MAGIC!r}, schema {SCHEMA_VERSION} and a header length; got {prefix!r}"
            )
        header, stored = file.read(length), file.read(CHECKSUM.size)
        if len(stored) < CHECKSUM.size or CHECKSUM.unpack(stored)[0] != zlib.crc32(header):
            raise BadSnapshot("its header must match its checksum; it does not")
        position, described, facts = _checked_header(header)
        total = file.tell() + sum(array.num_bytes for array in described)
        if total != size:
            raise BadSnapshot(f"it must have {total} bytes; got {size}")
        return position, ({array.name: _read(file, array) for array in described}, facts)


def _read(file: IO[bytes], described: ArrayHeader) -> NDArray[Any]:
    array = np.empty(described.shape, described.dtype)
    view = _bytes_of(array)
    if file.readinto(view) != described.num_bytes or zlib.crc32(view) != described.crc32:  # type: ignore[attr-defined]
        raise BadSnapshot(f"column {described.name} must match its checksum; it does not")
    return array


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _checked_header(text: bytes) -> tuple[Position, list[ArrayHeader], dict[str, Any]]:
    """Return position, arrays and facts.

    Raises:
        BadSnapshot: if a field is missing, of another kind, or does not go with the others.
    """
    try:
        header = json.loads(text)
        position = Position(**{field.name: _count(header["position"][field.name]) for field in fields(Position)})
        facts = dict(header["facts"])
        producers = {str(kind): [_text(name) for name in names] for kind, names in dict(facts["producers"]).items()}
        checked = {"num_samples": _count(facts["num_samples"]), "producers": producers}
        return position, [_array(array) for array in header["arrays"]], checked
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadSnapshot(f"its header must describe a position and arrays; it does not ({error!r})") from error


def _array(array: dict[str, Any]) -> ArrayHeader:
    """Return the header of one array; ValueError, KeyError or TypeError if a field is wrong."""
    dtype, shape = _text(array["dtype"]), tuple(_count(side) for side in array["shape"])
    header = ArrayHeader(
        name=_text(array["name"]),
        dtype=dtype,
        shape=shape,
        num_bytes=_count(array["bytes"]),
        crc32=_count(array["crc32"]),
    )
    if len(shape) > 2 or max(shape, default=0) > MAX_SIDE:
        raise ValueError(f"an array of sides {shape}")
    if dtype not in DTYPES or math.prod(shape) * np.dtype(dtype).itemsize != header.num_bytes:
        raise ValueError(f"{dtype} of {shape} in {header.num_bytes} bytes")
    return header


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{str(value)[:40]} is not a count")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]} is not a text")
    return value
