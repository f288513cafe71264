"""Checks of an index file before its rows are used, or memory is allocated for them.

An index says where to read and how many bytes. Its claims are checked against each other and against the file's own
length when it is opened, so that later code can rely on them.
"""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loader.shards.tar import BLOCK

FORMAT_VERSION: Final = 1
COLUMNS: Final = {
    "shard": np.int32,
    "offset": np.int64,
    "size": np.int32,
    "crc32": np.uint32,
    "width": np.uint16,
    "height": np.uint16,
    "label": np.int32,
}
"""Type of each numeric column in the file. 16-bit sides hold JPEG's limit; width 0 marks an unreadable header."""
_ALWAYS_ALLOWED_ROWS: Final = 1 << 20
"""Rows that any file may claim (24 MB). A file with more has at least a byte per row: checksums do not compress."""
_ALWAYS_ALLOWED_BYTES: Final = 16 << 20
_MAX_COMPRESSION: Final = 32
"""Largest ratio that is believed: keys of one form compress twentyfold, checksums not at all."""
_ROWS_PER_CHECK: Final = 1 << 16
LARGEST_SHARD: Final = BLOCK << 32
"""2 TiB: 2^32 blocks, which the index counts in 32 bits."""


def parse_metadata(text: bytes) -> dict[str, Any]:
    """Parse and check the JSON about the shards in the file's metadata.

    Raises:
        ValueError: If a field is missing or of another type, or the format is of another version.
    """
    try:
        parsed = json.loads(text)
    except RecursionError as error:
        raise ValueError("its metadata is nested too deeply") from error
    metadata: dict[str, Any] = parsed if isinstance(parsed, dict) else {}
    if metadata.get("format") != FORMAT_VERSION:
        raise ValueError(f"index format {metadata.get('format')!r}; this version reads {FORMAT_VERSION}")
    for name in ("shard_urls", "class_names"):
        if not isinstance(metadata.get(name), list) or not all(isinstance(text, str) for text in metadata[name]):
            raise ValueError(f"{name} must be a list of texts")
    lengths = metadata.get("shard_bytes")
    # `type(n) is int`, since JSON's true and false are ints to `isinstance`.
    if not isinstance(lengths, list) or not all(type(n) is int and 0 <= n <= LARGEST_SHARD for n in lengths):
        raise ValueError("shard_bytes must be a list of lengths")
    if len(lengths) != len(metadata["shard_urls"]):
        raise ValueError(f"it has {len(metadata['shard_urls'])} shards and {len(lengths)} lengths")
    if not isinstance(metadata.get("fingerprint"), str):
        raise ValueError("fingerprint must be a text")
    return metadata


def check_schema(file: pq.ParquetFile, *, file_bytes: int) -> None:
    """Check the columns' types, and that a file of this length can hold the rows it claims.

    Raises:
        ValueError: If it cannot.
    """
    wanted = {name: pa.from_numpy_dtype(np.dtype(kind)) for name, kind in COLUMNS.items()} | {"key": pa.string()}
    schema, claims = file.schema_arrow, file.metadata
    for name, kind in wanted.items():
        found = schema.field(name).type
        if found != kind:
            raise ValueError(f"column {name!r} must be {kind}; it is {found}")
    if claims.num_rows > max(_ALWAYS_ALLOWED_ROWS, file_bytes) or claims.num_row_groups > 1 + claims.num_rows:
        raise ValueError(f"it claims {claims.num_rows} rows in {file_bytes} bytes")
    # Only the row groups' own fields are read: Arrow aborts the process on inconsistent fields of their columns.
    unpacked = sum(claims.row_group(number).total_byte_size for number in range(claims.num_row_groups))
    if unpacked > _ALWAYS_ALLOWED_BYTES + _MAX_COMPRESSION * file_bytes:
        raise ValueError(f"it claims to unpack {file_bytes} bytes to {unpacked}")


def to_blocks(offset: NDArray[np.int64], *, first_row: int) -> NDArray[np.uint32]:
    """Convert offsets in bytes to blocks; messages count rows from `first_row`.

    Raises:
        ValueError: If a row cannot be a member of a tar; names the first one.
    """
    outside = (offset < BLOCK) | (offset % BLOCK != 0) | (offset >= LARGEST_SHARD)
    if outside.any():
        at = int(np.argmax(outside))
        raise ValueError(
            f"row {first_row + at} must lie behind a header, at a multiple of {BLOCK} bytes under {LARGEST_SHARD}; "
            f"got offset {offset[at]}"
        )
    return (offset // BLOCK).astype(np.uint32)


def check_places(columns: dict[str, NDArray[Any]], shard_bytes: list[int]) -> None:
    """Check that every sample lies within its shard; "offset" is in blocks here.

    Raises:
        ValueError: If one does not; names the first one.
    """
    lengths = np.array(shard_bytes, np.int64)
    # In parts: int64 copies of whole columns would take about as much memory again as the index.
    for start in range(0, len(columns["shard"]), _ROWS_PER_CHECK):
        shard, block, size, label = (
            columns[name][start : start + _ROWS_PER_CHECK] for name in ("shard", "offset", "size", "label")
        )
        offset = block.astype(np.int64) * BLOCK
        # Shard numbers first: the lengths are looked up by them.
        outside = (shard < 0) | (shard >= len(lengths))
        if not outside.any():
            outside = (size < 0) | (offset > lengths[shard] - size) | (label < -1)
        if outside.any():
            at = int(np.argmax(outside))
            raise ValueError(
                f"row {start + at} must lie in one of {len(lengths)} shards, with a label from -1 up; "
                f"got shard {shard[at]}, offset {offset[at]}, size {size[at]}, label {label[at]}"
            )
