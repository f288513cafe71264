"""Images that wait to be written into shards: what there is, in a fixed order, readable in parts by any process.

A listing is a value: a part of it can be sent to another process or machine that reaches the same files. What decides
the order is names only, so the same data gives the same shards wherever and by however many it is built.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from loader.errors import BadSampleError
from loader.shards.index import ShardIndex
from loader.shards.index_builder import IMAGE_EXTENSIONS, is_image
from loader.shards.reader import open_shard
from loader.shards.sources import ImageSample, ImageSource
from loader.storage.connections import Connections


class Listing(Protocol):
    """Images in order."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label; empty when unknown."""

    def __len__(self) -> int:
        """Return the number of images."""

    def part(self, start: int, stop: int) -> Self:
        """Return a run of the images, which stands alone: it can be sent elsewhere."""

    def read(self) -> Iterator[ImageSample]:
        """Yield the images in order, as they are: whoever takes one checks it."""

    def identity(self) -> str:
        """Return a digest that changes when the files change, as far as that is seen without reading them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderListing:
    """Images in files, one label a class folder."""

    files: tuple[str, ...]
    """Absolute paths."""
    keys: tuple[str, ...]
    """Unique names without dots."""
    labels: tuple[int, ...]
    """-1 for none."""
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def part(self, start: int, stop: int) -> FolderListing:
        """Return a run of the files."""
        run = slice(start, stop)
        return replace(self, files=self.files[run], keys=self.keys[run], labels=self.labels[run])

    def read(self) -> Iterator[ImageSample]:
        """Yield the files' images."""
        for file, key, label in zip(self.files, self.keys, self.labels, strict=True):
            yield ImageSample(key, Path(file).read_bytes(), label, origin=file)

    def identity(self) -> str:
        """Return a digest of names, lengths and times of change."""
        return _digest(_stamp(Path(file)) for file in self.files)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetListing:
    """Images in a column of Parquet files: bytes, or structs with a `bytes` field as the Hugging Face hub has them."""

    files: tuple[str, ...]
    """Absolute paths, in the order that numbers their rows."""
    rows: tuple[int, ...]
    """Rows of each file."""
    image: str
    label: str | None
    """None writes no labels."""
    class_names: tuple[str, ...] = ()
    start: int = 0
    """First row of this run, counted over all files."""
    stop: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> ParquetListing:
        """Return a run of the rows."""
        return replace(self, start=self.start + start, stop=min(self.start + stop, self.stop))

    def read(self) -> Iterator[ImageSample]:
        """Yield the rows' images. Only row groups that hold some are read."""
        first = 0
        for number, (file, rows) in enumerate(zip(self.files, self.rows, strict=True)):
            if first < self.stop and first + rows > self.start:
                yield from self._read_file(number, file, max(0, self.start - first), min(rows, self.stop - first))
            first += rows

    def identity(self) -> str:
        """Return a digest of names, lengths and times of change."""
        return _digest([*(_stamp(Path(file)) for file in self.files), self.image, str(self.label)])

    def _read_file(self, number: int, path: str, start: int, stop: int) -> Iterator[ImageSample]:
        columns = [self.image] if self.label is None else [self.image, self.label]
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = list(accumulate(sizes))
            groups = [g for g, size in enumerate(sizes) if ends[g] > start and ends[g] - size < stop]
            row = ends[groups[0]] - sizes[groups[0]]
            for batch in file.iter_batches(256, row_groups=groups, columns=columns):
                if row + len(batch) > start and row < stop:
                    inside = slice(max(0, start - row), min(len(batch), stop - row))
                    yield from self._samples(batch[inside], number, path, row + inside.start)
                row += len(batch)

    def _samples(self, batch: pa.RecordBatch, number: int, path: str, row: int) -> Iterator[ImageSample]:
        labels = [-1] * len(batch) if self.label is None else batch[self.label].to_pylist()
        for value, target in zip(batch[self.image].to_pylist(), labels, strict=True):
            data: bytes | None = value["bytes"] if isinstance(value, dict) else value
            if data is None:
                raise BadSampleError(f"{path} has no image in row {row}")
            label = -1 if target is None else int(target)
            yield ImageSample(f"{number:05d}-{row:08d}", data, label, origin=f"{path} row {row}")
            row += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TarListing:
    """Images in tars that exist."""

    urls: tuple[str, ...]
    shard: tuple[int, ...]
    """Number of each image's tar."""
    places: tuple[tuple[int, int], ...]
    """Offset and length of each image."""
    keys: tuple[str, ...]
    labels: tuple[int, ...]
    fingerprint: str
    allow_hosts: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.shard)

    def part(self, start: int, stop: int) -> TarListing:
        """Return a run of the images."""
        run = slice(start, stop)
        return replace(
            self, shard=self.shard[run], places=self.places[run], keys=self.keys[run], labels=self.labels[run]
        )

    def read(self) -> Iterator[ImageSample]:
        """Yield the images from their places."""
        with Connections(allow_hosts=self.allow_hosts) as connections:
            opened, file = -1, None
            for shard, (offset, size), key, label in zip(self.shard, self.places, self.keys, self.labels, strict=True):
                if shard != opened or file is None:
                    opened, file = shard, open_shard(self.urls[shard], connections=connections)
                yield ImageSample(key, file.read_at(offset, size), label, origin=f"{key} in {self.urls[shard]}")

    def identity(self) -> str:
        """Return the fingerprint of the images."""
        return self.fingerprint


def list_folder(root: str | Path) -> FolderListing:
    """List images in `root/<class>/*`, or in a flat `root/*` without labels, sorted by path.

    Raises:
        ValueError: If there are no images.
    """
    root = Path(root).absolute()
    files = sorted(path for path in root.rglob("*") if path.is_file() and is_image(path.name))
    if not files:
        raise ValueError(f"no images under {root}; looked for files ending in {', '.join(IMAGE_EXTENSIONS)}")
    relative = [path.relative_to(root) for path in files]
    folder = [path.parts[0] if len(path.parts) > 1 else "" for path in relative]
    names = sorted(set(folder) - {""})
    labels = {name: number for number, name in enumerate(names)} | {"": -1}
    return FolderListing(
        files=tuple(str(path) for path in files),
        keys=_unique([str(path.with_suffix("")).replace(".", "_") for path in relative], [p.suffix for p in relative]),
        labels=tuple(labels[name] for name in folder),
        class_names=tuple(names),
    )


def list_parquet(paths: Sequence[str | Path], *, image: str = "image", label: str = "label") -> ParquetListing:
    """List the rows of Parquet files.

    Args:
        paths: The files, in the order that numbers their samples.
        image: Column of encoded images.
        label: Column of integer labels; without it there are none.

    Raises:
        ValueError: If there are no files, or the image column is missing or of another kind.
    """
    if not paths:
        raise ValueError("no Parquet files; give at least one")
    files = [Path(path).absolute() for path in paths]
    schema = pq.read_schema(files[0])
    kind = schema.field(image).type if image in schema.names else None
    if kind is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)):
        raise ValueError(f"{files[0]} must have a column {image!r} of image bytes; it has {', '.join(schema.names)}")
    has_label = label in schema.names
    rows = tuple(pq.read_metadata(path).num_rows for path in files)
    return ParquetListing(
        files=tuple(str(path) for path in files),
        rows=rows,
        image=image,
        label=label if has_label else None,
        class_names=_hub_class_names(schema, label) if has_label else (),
        stop=sum(rows),
    )


def list_tars(index: ShardIndex, *, allow_hosts: tuple[str, ...] = ()) -> TarListing:
    """List the images of tars that have been indexed. Keys that occur in several tars get the tar's name in front."""
    keys = index.keys
    if max(Counter(keys).values()) > 1:
        keys = [f"{Path(index.shard_urls[s]).stem}/{key}" for s, key in zip(index.shard, keys, strict=True)]
    keys = [key.replace(".", "_") for key in keys]
    return TarListing(
        urls=tuple(index.shard_urls),
        shard=tuple(index.shard.tolist()),
        places=tuple(zip(index.offset.tolist(), index.size.tolist(), strict=True)),
        keys=_unique(keys, [""] * len(keys)),
        labels=tuple(index.label.tolist()),
        fingerprint=index.fingerprint,
        allow_hosts=allow_hosts,
        class_names=tuple(index.class_names),
    )


def class_folders(root: str | Path) -> ImageSource:
    """Read images from `root/<class>/*`, or from a flat `root/*` without labels, sorted by path.

    Raises:
        ValueError: If there are no images.
    """
    return as_source(list_folder(root))


def parquet_images(paths: Sequence[str | Path], *, image: str = "image", label: str = "label") -> ImageSource:
    """Read images from Parquet as the Hugging Face hub lays them out; see `list_parquet`."""
    return as_source(list_parquet(paths, image=image, label=label))


def as_source(listing: Listing) -> ImageSource:
    """Return a listing as images to read one after another in this process."""
    return ImageSource(listing.read(), listing.class_names, len(listing))


def parquet_files(path: Path) -> list[Path]:
    """Return the Parquet files of a folder, sorted, or the one that the path names."""
    return sorted(path.rglob("*.parquet")) if path.is_dir() else [path]


def tar_files(path: Path) -> list[Path]:
    """Return the tars of a folder, sorted, or the one that the path names."""
    return sorted(path.rglob("*.tar")) if path.is_dir() else [path]


def _unique(keys: list[str], suffixes: list[str]) -> tuple[str, ...]:
    """Tell apart keys that differ only in what a key cannot hold: a.jpg and a.png, b.c.jpg and b_c.jpg."""
    taken: set[str] = set()
    unique = []
    for key, suffix in zip(keys, suffixes, strict=True):
        candidate, number = key, 1
        while candidate in taken:
            candidate = f"{key}_{suffix.lstrip('.')}" if number == 1 and suffix else f"{key}_{number}"
            number += 1
        taken.add(candidate)
        unique.append(candidate)
    return tuple(unique)


def _hub_class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the class names that the Hugging Face libraries store in a file's metadata, or none."""
    stored: dict[str, Any] = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = stored.get("info", {}).get("features", {}).get(label, {}).get("names", [])
    return tuple(str(name) for name in names)


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _digest(parts: Sequence[str] | Iterator[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()
