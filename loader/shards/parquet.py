"""The listing of images in Parquet files, as the Hugging Face hub stores them; see `listings`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loader.errors import BadSampleError
from loader.shards.listings import files_digest
from loader.shards.sources import ImageSample


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetListing:
    """Images in a column of Parquet files: bytes, or structs with a `bytes` field as the Hugging Face hub has them."""

    files: tuple[str, ...]
    """Absolute paths, in the order that numbers their rows."""
    rows: tuple[int, ...]
    """Rows of each file."""
    image: str
    """Column of encoded images."""
    label: str | None
    """Column of labels; None writes no labels."""
    identity: str
    """Digest of the files, and of the two columns."""
    class_names: tuple[str, ...] = ()
    start: int = 0
    """First row of this part, counted over all files."""
    stop: int = 0
    """Row after the last one of this part."""

    def __len__(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> ParquetListing:
        return replace(self, start=self.start + start, stop=min(self.start + stop, self.stop))

    def read(self) -> Iterator[ImageSample]:
        """Yield the rows' images. Row groups outside this part are not read.

        Raises:
            BadSampleError: If a row has no image.
        """
        first = 0
        for number, (file, rows) in enumerate(zip(self.files, self.rows, strict=True)):
            if first < self.stop and first + rows > self.start:
                yield from self._read_file(number, file, max(0, self.start - first), min(rows, self.stop - first))
            first += rows

    def _read_file(self, number: int, path: str, start: int, stop: int) -> Iterator[ImageSample]:
        """Yield rows start..stop of one file."""
        columns = [self.image] if self.label is None else [self.image, self.label]
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = list(accumulate(sizes))
            groups = [g for g, size in enumerate(sizes) if ends[g] > start and ends[g] - size < stop]
            row = ends[groups[0]] - sizes[groups[0]]
            # Small batches: a row holds a whole image.
            for batch in file.iter_batches(256, row_groups=groups, columns=columns):
                low, high = max(0, start - row), min(len(batch), stop - row)
                inside = batch.slice(low, max(0, high - low))
                images = inside[self.image].to_pylist()
                labels = [None] * len(images) if self.label is None else inside[self.label].to_pylist()
                for at, (value, label) in enumerate(zip(images, labels, strict=True), start=row + low):
                    data: bytes | None = value["bytes"] if isinstance(value, dict) else value
                    if data is None:
                        raise BadSampleError(f"every row must have an image; {path} has no image in row {at}")
                    key, origin = f"{number:05d}-{at:08d}", f"{path} row {at}"
                    yield ImageSample(key, data, -1 if label is None else int(label), origin=origin)
                row += len(batch)


def list_parquet(paths: Sequence[str | Path], *, image: str = "image", label: str = "label") -> ParquetListing:
    """List the rows of Parquet files.

    Args:
        paths: The files, in the order that numbers their samples.
        image: Column of encoded images.
        label: Column of integer labels; without it there are none.

    Raises:
        ValueError: If there are no files, or the image column is missing or of another type.
    """
    if not paths:
        raise ValueError("no Parquet files; give at least one")
    files = tuple(str(Path(path).absolute()) for path in paths)
    schema = pq.read_schema(files[0])
    kind = schema.field(image).type if image in schema.names else None
    if kind is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)):
        raise ValueError(f"{files[0]} must have a column {image!r} of image bytes; it has {', '.join(schema.names)}")
    names: list[Any] = []
    if label in schema.names:
        # The Hugging Face libraries store class names in the file's metadata.
        stored: dict[str, Any] = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = stored.get("info", {}).get("features", {}).get(label, {}).get("names", [])
    label_column = label if label in schema.names else None
    # From the files' footers: no image is read.
    rows = tuple(pq.read_metadata(path).num_rows for path in files)
    return ParquetListing(
        files=files,
        rows=rows,
        image=image,
        label=label_column,
        identity=files_digest(files, image, str(label_column)),
        class_names=tuple(str(name) for name in names),
        stop=sum(rows),
    )
