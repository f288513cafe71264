"""The sample index: the place of every image of a dataset, in one Parquet file.

One row per sample: shard, offset, size, CRC-32, width, height, label, key; the row number is the sample id. The file's
metadata holds the shards' URLs and lengths, the class names and the dataset's fingerprint, which changes with any byte
of any image and not when the data moves. Paths of shards beside or below the index are stored relative to it, so a
dataset moves as a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
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
    check_places,
    check_schema,
    parse_metadata,
    to_blocks,
)
from loader.shards.parallel import Progress
from loader.shards.reader import ShardReader
from loader.shards.tar import BLOCK
from loader.storage.shard_files import local_path

_METADATA_KEY: Final = b"tempera.index"
_BUILD: Final = "tempera shards index SHARDS --out"
_ROWS_PER_GROUP: Final = 1 << 15
"""Rows of a Parquet row group; looking up one key reads a whole group."""
_ROWS_PER_READ: Final = 1 << 14
_BYTES_PER_READ: Final = 1 << 16


class ShardIndex:
    """A loaded sample index. Numeric columns are in memory (24 bytes per sample); keys are read on demand."""

    def __init__(self, path: Path, columns: dict[str, NDArray[Any]], metadata: dict[str, Any]) -> None:
        self.path = path
        self.shard_urls: list[str] = [url if "://" in url else str(path.parent / url) for url in metadata["shard_urls"]]
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
        """uint32[N], start of the image in its shard, in blocks of 512 bytes: tars align their members."""
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
            MissingIndexError: If there is no index at `path`.
        """
        path = Path(path).absolute()
        try:
            # With pre_buffer all columns would be in memory at once; without a buffer size one column would be twice.
            with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BYTES_PER_READ) as file:
                metadata = parse_metadata((file.schema_arrow.metadata or {})[_METADATA_KEY])
                check_schema(file, file_bytes=path.stat().st_size)
                columns = {name: _read_column(file, name, kind) for name, kind in COLUMNS.items()}
            check_places(columns, metadata["shard_bytes"])
        except FileNotFoundError as error:
            raise MissingIndexError(f"no sample index at {path}. Build one: `{_BUILD} {path}`") from error
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise MissingIndexError(
                f"{path} is not a sample index ({error}). Build it again: `{_BUILD} {path}`"
            ) from error
        return cls(path, columns, metadata)

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def offset(self) -> NDArray[np.int64]:
        """int64[N], start of each image in its shard, in bytes; computed anew each time."""
        return self.block.astype(np.int64) * BLOCK

    @cached_property
    def keys(self) -> list[str]:
        """Name of each sample in its shard. Stays in memory, about 100 bytes per sample; `key` reads a single one."""
        column = pq.read_table(self.path, columns=["key"])["key"]
        if column.null_count:
            raise MissingIndexError(f"{self.path} lacks keys. Build it again: `{_BUILD} {self.path}`")
        keys: list[str] = column.to_pylist()
        return keys

    def key(self, sample_id: int) -> str:
        """Return the name of one sample in its shard, read from the file.

        Raises:
            MissingIndexError: If the index has no such row, or no key in it.
        """
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            first = 0
            # Only the row group that holds the row is read, and only its keys.
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if sample_id < end:
                    name: str | None = file.read_row_group(group, columns=["key"])["key"][sample_id - first].as_py()
                    if name is not None:
                        return name
                    break
                first = end
        raise MissingIndexError(f"{self.path} lacks keys. Build it again: `{_BUILD} {self.path}`")

    @property
    def remote(self) -> bool:
        """True when any shard is read over a network."""
        return any(local_path(url) is None for url in self.shard_urls)

    def reader(self, *, allow_hosts: tuple[str, ...] = ()) -> ShardReader:
        """Return a reader of these shards. The caller closes it."""
        return ShardReader(self.shard_urls, self.shard_bytes, index_path=str(self.path), allow_hosts=allow_hosts)

    def read(self, sample_id: int, reader: ShardReader) -> bytes:
        """Return the encoded bytes of a sample, checked against its CRC-32.

        Raises:
            StaleIndexError: If its shard is gone or is not the one that was indexed.
            BadSampleError: If only its own bytes have changed.
        """
        shard, size, crc32 = (int(column[sample_id]) for column in (self.shard, self.size, self.crc32))
        return reader.read(shard, self.start(sample_id), size, crc32)

    def start(self, sample_id: int) -> int:
        """Return the start of a sample's image in its shard, in bytes."""
        return int(self.block[sample_id]) * BLOCK

    def verify(
        self, *, full: bool = False, allow_hosts: tuple[str, ...] = (), progress: Progress | None = None
    ) -> None:
        """Check the shards' lengths and the first image of each, or with `full` every image's CRC-32.

        `progress` is called with (samples checked, samples to check).

        Raises:
            StaleIndexError: If a shard differs; names the first one and the command that indexes it again.
            BadSampleError: If an image's bytes have changed in a shard that is otherwise as indexed.
        """
        # A shard that was replaced fails at any of its samples, so its first one is enough for the quick check.
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
    path: Path,
    columns: dict[str, NDArray[Any]],
    keys: list[str],
    *,
    shard_urls: list[str],
    shard_bytes: list[int],
    class_names: list[str],
) -> None:
    """Write an index under a temporary name, then rename it, so that a reader never sees a part of it.

    `columns` are the arrays of `COLUMNS`, [N] each, with "offset" in bytes.

    Raises:
        ValueError: If a shard is too long.
    """
    base, stored_urls = path.parent.absolute(), []
    for url, length in zip(shard_urls, shard_bytes, strict=True):
        if length > LARGEST_SHARD:
            raise ValueError(
                f"a shard must have at most {LARGEST_SHARD} bytes; {url} has {length}. "
                "Write it in several: `tempera shards build`"
            )
        local = local_path(url)
        if local is None:
            stored_urls.append(url)
        else:
            # Relative where the shard lies beside or below the index, so that the folder can be moved.
            local = local.absolute()
            stored_urls.append(str(local.relative_to(base) if local.is_relative_to(base) else local))
    metadata = {
        "format": FORMAT_VERSION,
        "shard_urls": stored_urls,
        "shard_bytes": shard_bytes,
        "class_names": class_names,
        "fingerprint": fingerprint(columns, keys),
    }
    table = pa.table({**columns, "key": pa.array(keys, pa.string())})
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata).encode()})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(
            table, temporary, compression="zstd", use_dictionary=["shard", "label"], row_group_size=_ROWS_PER_GROUP
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_column(file: pq.ParquetFile, name: str, kind: Any) -> NDArray[Any]:
    """Return a numeric column, offsets in blocks. Small reads keep Arrow's buffers small."""
    column, start = np.empty(file.metadata.num_rows, np.uint32 if name == "offset" else kind), 0
    for part in file.iter_batches(_ROWS_PER_READ, columns=[name], use_threads=False):
        if part[name].null_count or start + len(part) > len(column):
            raise ValueError(f"column {name!r} has empty or further rows")
        values: NDArray[Any] = np.from_dlpack(part[name])  # `to_numpy` imports pandas: 25 MB and .3 s of every loader
        column[start : start + len(part)] = to_blocks(values, first_row=start) if name == "offset" else values
        start += len(part)
    if start != len(column):
        raise ValueError(f"column {name!r} has {start} rows of {len(column)}")
    # Arrow keeps freed memory for later; a loader would hold it for good.
    pa.default_memory_pool().release_unused()
    return column


def fingerprint(columns: dict[str, NDArray[Any]], keys: list[str]) -> str:
    """Return the SHA-256 of everything that a model could see: size, CRC-32, sides, label and key of each sample."""
    digest = hashlib.sha256(b"tempera.index.1")
    # Places are left out, and bytes are little-endian: the same images packed differently have the same digest.
    for name in ("size", "crc32", "width", "height", "label"):
        digest.update(np.ascontiguousarray(columns[name], dtype=np.dtype(COLUMNS[name]).newbyteorder("<")).data)
    digest.update("\0".join(keys).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
