"""What must hold of an index file before its rows are believed, or memory is taken for them.

An index says where to read and how much: its claims are checked against each other and against the file's own length
when it is opened, so that nothing later has to ask again.
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
_FREE_ROWS: Final = 1 << 20
"""Any file may have so many rows (24 MB); one with more takes a byte a row at least: checksums do not compress."""
_SLACK_BYTES: Final = 16 << 20
_MOST_PACKED: Final = 32
"""Most that an index is packed: keys of one form pack twentyfold, checksums not at all."""
_ROWS_AT_ONCE: Final = 1 << 16
LARGEST_SHARD: Final = BLOCK << 32
"""2 TiB: what 32 bits count in blocks."""


def checked_metadata(text: bytes) -> dict[str, Any]:
    """Return what the file says of its shards.

    Raises:
        ValueError: If a field is missing or of another kind, or the format is another version's.
    """
    try:
        metadata = json.loads(text)
    except RecursionError as error:
        raise ValueError("its metadata is nested too deeply") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT_VERSION:
        found = metadata.get("format") if isinstance(metadata, dict) else None
        raise ValueError(f"index format {found!r}; this version reads {FORMAT_VERSION}")
    for name in ("shard_urls", "class_names"):
        if not isinstance(metadata.get(name), list) or not all(isinstance(text, str) for text in metadata[name]):
            raise ValueError(f"{name} must be a list of texts")
    lengths = metadata.get("shard_bytes")
    if not isinstance(lengths, list) or not all(type(n) is int and 0 <= n <= LARGEST_SHARD for n in lengths):
        raise ValueError("shard_bytes must be a list of lengths")
    if len(lengths) != len(metadata["shard_urls"]):
        raise ValueError(f"it has {len(metadata['shard_urls'])} shards and {len(lengths)} lengths")
    if not isinstance(metadata.get("fingerprint"), str):
        raise ValueError("fingerprint must be a text")
    return metadata


def check_schema(file: pq.ParquetFile, *, file_bytes: int) -> None:
    """Check the columns' types, and that what the file claims to hold can be in a file of its length.

    Raises:
        ValueError: If it cannot.
    """
    wanted = {name: pa.from_numpy_dtype(np.dtype(kind)) for name, kind in COLUMNS.items()} | {"key": pa.string()}
    schema, claims = file.schema_arrow, file.metadata
    for name, kind in wanted.items():
        found = schema.field(name).type
        if found != kind:
            raise ValueError(f"column {name!r} must be {kind}; it is {found}")
    if claims.num_rows > max(_FREE_ROWS, file_bytes) or claims.num_row_groups > 1 + claims.num_rows:
        raise ValueError(f"it claims {claims.num_rows} rows in {file_bytes} bytes")
    # Of a row group only its own fields are asked: Arrow ends the process where those of its columns do not fit.
    unpacked = sum(claims.row_group(number).total_byte_size for number in range(claims.num_row_groups))
    if unpacked > _SLACK_BYTES + _MOST_PACKED * file_bytes:
        raise ValueError(f"it claims to unpack {file_bytes} bytes to {unpacked}")


def blocks(offset: NDArray[np.int64], *, first_row: int) -> NDArray[np.uint32]:
    """Return where images start, in blocks.

    Args:
        offset: int64[n], bytes.
        first_row: Number of the first of them, for messages.

    Raises:
        ValueError: Naming the first row that is not behind a header, or that no tar could hold there.
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
    """Check that every sample lies within its shard.

    Args:
        columns: Of the index, "offset" in blocks.
        shard_bytes: Length of each shard.

    Raises:
        ValueError: Naming the first row that does not.
    """
    lengths = np.array(shard_bytes, np.int64)
    for start in range(0, len(columns["shard"]), _ROWS_AT_ONCE):
        shard, block, size, label = (
            columns[name][start : start + _ROWS_AT_ONCE] for name in ("shard", "offset", "size", "label")
        )
        offset = block.astype(np.int64) * BLOCK
        outside = (shard < 0) | (shard >= len(lengths))
        if not outside.any():
            outside = (size < 0) | (offset > lengths[shard] - size) | (label < -1)
        if outside.any():
            at = int(np.argmax(outside))
            raise ValueError(
                f"row {start + at} must lie in one of {len(lengths)} shards, with a label from -1 up; "
                f"got shard {shard[at]}, offset {offset[at]}, size {size[at]}, label {label[at]}"
            )
