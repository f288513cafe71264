"""The sample index: where every image of a dataset lies, in one Parquet file.

One row a sample, its row number being the sample id: shard, offset, size, CRC-32, width, height, label, key. The
file's metadata holds the shards' URLs and lengths, the class names and the dataset's fingerprint, which changes
whenever any byte of any image does and never because the data moved. Shards beside or below the index are stored
relative to it, so a dataset moves as a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loader.errors import MissingIndexError
from loader.shards.index_checks import (
    COLUMNS,
    FORMAT_VERSION,
    LARGEST_SHARD,
    blocks,
    check_places,
    check_schema,
    checked_metadata,
)
from loader.shards.reader import ShardReader, local_path
from loader.shards.tar import BLOCK

_METADATA_KEY: Final = b"tempera.index"
_ROWS_A_GROUP: Final = 1 << 15
"""Rows written together: to look up one key, so many are read."""
_ROWS_A_READ: Final = 1 << 14
_BYTES_A_READ: Final = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRows:
    """The numeric columns of an index, each of length N, and the keys."""

    columns: dict[str, NDArray[Any]]
    keys: list[str] = field(repr=False)


class ShardIndex:
    """A loaded sample index. Numeric columns are in memory (24 bytes a sample); keys are read when asked for."""

    def __init__(self, path: Path, columns: dict[str, NDArray[Any]], metadata: dict[str, Any]) -> None:
        self.path = path
        """Where the index lies."""
        self.shard_urls: list[str] = [_absolute(url, path.parent) for url in metadata["shard_urls"]]
        """URL or absolute path of each shard."""
        self.shard_bytes: list[int] = metadata["shard_bytes"]
        """Length of each shard in bytes."""
        self.class_names: list[str] = metadata["class_names"]
        """Name of each label; empty when unknown."""
        self.fingerprint: str = metadata["fingerprint"]
        """SHA-256 over the samples, hex."""
        self.shard: NDArray[np.int32] = columns["shard"]
        """int32[N], number of the shard."""
        self.block: NDArray[np.uint32] = columns["offset"]
        """uint32[N], where the image starts in its shard, in blocks of 512 bytes: tars align their members."""
        self.size: NDArray[np.int32] = columns["size"]
        """int32[N], encoded bytes."""
        self.crc32: NDArray[np.uint32] = columns["crc32"]
        """uint32[N], CRC-32 of the encoded bytes."""
        self.width: NDArray[np.uint16] = columns["width"]
        """uint16[N], pixels; 0 when the header is unreadable. Widen before multiplying."""
        self.height: NDArray[np.uint16] = columns["height"]
        """uint16[N], pixels; 0 when the header is unreadable."""
        self.label: NDArray[np.int32] = columns["label"]
        """int32[N], class; -1 when there is none."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open an index.

        Raises:
            MissingIndexError: If there is none at `path`, or it is not one of ours.
        """
        path = Path(path).absolute()
        try:
            # Read ahead, all columns would be here at once; unbuffered, one column would be here twice.
            with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BYTES_A_READ) as file:
                metadata = checked_metadata((file.schema_arrow.metadata or {})[_METADATA_KEY])
                check_schema(file, file_bytes=path.stat().st_size)
                columns = {name: _read_column(file, name, kind) for name, kind in COLUMNS.items()}
            check_places(columns, metadata["shard_bytes"])
        except FileNotFoundError as error:
            raise MissingIndexError(f"no sample index at {path}. Build one: `{_command(path)}`") from error
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise MissingIndexError(
                f"{path} is not a sample index ({error}). Build it again: `{_command(path)}`"
            ) from error
        return cls(path, columns, metadata)

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.shard)

    @property
    def offset(self) -> NDArray[np.int64]:
        """int64[N], where each image starts in its shard, in bytes: computed from `block` each time."""
        return self.block.astype(np.int64) * BLOCK

    @cached_property
    def keys(self) -> list[str]:
        """Name of each sample in its shard. A hundred bytes a sample stay in memory: `key` keeps none."""
        column = pq.read_table(self.path, columns=["key"])["key"]
        if column.null_count:
            raise MissingIndexError(f"{self.path} lacks keys. Build it again: `{_command(self.path)}`")
        keys: list[str] = column.to_pylist()
        return keys

    def key(self, sample_id: int) -> str:
        """Return the name of one sample in its shard; reads a part of the file."""
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            first = 0
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if sample_id < end:
                    name: str | None = file.read_row_group(group, columns=["key"])["key"][sample_id - first].as_py()
                    if name is not None:
                        return name
                    break
                first = end
        raise MissingIndexError(f"{self.path} lacks keys. Build it again: `{_command(self.path)}`")

    @property
    def remote(self) -> bool:
        """True when any shard is read over a network."""
        return any(local_path(url) is None for url in self.shard_urls)

    def reader(self, *, allow_hosts: tuple[str, ...] = ()) -> ShardReader:
        """Return a reader of these shards. The caller closes it."""
        return ShardReader(self.shard_urls, self.shard_bytes, index_path=str(self.path), allow_hosts=allow_hosts)

    def read(self, sample_id: int, reader: ShardReader) -> bytes:
        """Return the encoded bytes of a sample, checked against its CRC-32."""
        row = sample_id
        return reader.read(int(self.shard[row]), self.start(row), int(self.size[row]), int(self.crc32[row]))

    def start(self, sample_id: int) -> int:
        """Return where a sample's image starts in its shard, in bytes."""
        return int(self.block[sample_id]) * BLOCK

    def verify(
        self,
        *,
        full: bool = False,
        allow_hosts: tuple[str, ...] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Check that the shards are the ones that were indexed.

        Args:
            full: Check every image's CRC-32, not only the lengths and one image a shard.
            allow_hosts: Hosts of shards that may have private addresses.
            progress: Called with (samples checked, samples to check).

        Raises:
            StaleIndexError: Names the first shard that differs and the command that indexes it again.
            BadSampleError: If an image's bytes have changed in a shard that is otherwise as indexed.
        """
        rows = np.arange(len(self)) if full else np.unique(self.shard, return_index=True)[1]
        with self.reader(allow_hosts=allow_hosts) as reader:
            for done, row in enumerate(rows, start=1):
                try:
                    self.read(int(row), reader)
                except Exception as error:
                    error.add_note(f"shard={self.shard_urls[self.shard[row]]} sample_id={row} key={self.key(int(row))}")
                    raise
                if progress is not None and (done % 64 == 0 or done == len(rows)):
                    progress(done, len(rows))


def write_index(
    path: Path, rows: IndexRows, *, shard_urls: list[str], shard_bytes: list[int], class_names: list[str]
) -> None:
    """Write an index under a temporary name, then rename it: a reader sees all of it or none.

    Raises:
        ValueError: If a shard is too long.
    """
    longest = max(range(len(shard_bytes)), key=shard_bytes.__getitem__, default=None)
    if longest is not None and shard_bytes[longest] > LARGEST_SHARD:
        raise ValueError(
            f"a shard must have at most {LARGEST_SHARD} bytes; {shard_urls[longest]} has {shard_bytes[longest]}. "
            "Write it in several: `tempera shards build`"
        )
    metadata = {
        "format": FORMAT_VERSION,
        "shard_urls": [_relative(url, path.parent) for url in shard_urls],
        "shard_bytes": shard_bytes,
        "class_names": class_names,
        "fingerprint": fingerprint(rows),
    }
    table = pa.table({**rows.columns, "key": pa.array(rows.keys, pa.string())})
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata).encode()})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(
            table, temporary, compression="zstd", use_dictionary=["shard", "label"], row_group_size=_ROWS_A_GROUP
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_column(file: pq.ParquetFile, name: str, kind: Any) -> NDArray[Any]:
    """Return a numeric column, offsets in blocks. Arrow's buffers stay small and are given back column by column."""
    column, start = np.empty(file.metadata.num_rows, np.uint32 if name == "offset" else kind), 0
    for part in file.iter_batches(_ROWS_A_READ, columns=[name], use_threads=False):
        if part[name].null_count or start + len(part) > len(column):
            raise ValueError(f"column {name!r} has empty or further rows")
        values = part[name].to_numpy()
        column[start : start + len(part)] = blocks(values, first_row=start) if name == "offset" else values
        start += len(part)
    if start != len(column):
        raise ValueError(f"column {name!r} has {start} rows of {len(column)}")
    pa.default_memory_pool().release_unused()
    return column


def fingerprint(rows: IndexRows) -> str:
    """Return the SHA-256 of what a model could see: each sample's size, CRC-32, sides, label and key, in order."""
    digest = hashlib.sha256(b"tempera.index.1")
    for name in ("size", "crc32", "width", "height", "label"):
        digest.update(np.ascontiguousarray(rows.columns[name], dtype=np.dtype(COLUMNS[name]).newbyteorder("<")).data)
    digest.update("\0".join(rows.keys).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _command(path: Path) -> str:
    return f"tempera shards index SHARDS --out {path}"


def _absolute(url: str, base: Path) -> str:
    return url if "://" in url else str(base / url)


def _relative(url: str, base: Path) -> str:
    path = local_path(url)
    if path is None:
        return url
    path = path.absolute()
    return str(path.relative_to(base.absolute())) if path.is_relative_to(base.absolute()) else str(path)
