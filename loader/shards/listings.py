"""Listings of the images that go into shards: a fixed order, readable in parts by any process.

A listing is a value: a part of it can be sent to another process or machine that reaches the same files. Only names
decide the order, so the same data gives the same shards on any machine and with any number of processes. `parquet` has
the listing of Parquet files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

from loader.shards.index import ShardIndex
from loader.shards.index_builder import IMAGE_EXTENSIONS
from loader.shards.sources import ImageSample, ImageSource
from loader.storage.connections import Connections
from loader.storage.shard_files import open_shard


class Listing(Protocol):
    """Images in order."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label; empty when unknown."""

    @property
    def identity(self) -> str:
        """Digest of the whole listing that changes when its files do, as far as that shows without reading them."""

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> Self:
        """Return images start..stop as a listing of their own, which can be sent elsewhere."""

    def read(self) -> Iterator[ImageSample]:
        """Yield the images in order, unchecked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderListing:
    """Images in files, one label per class folder."""

    files: tuple[str, ...]
    """Absolute paths."""
    keys: tuple[str, ...]
    """Unique names without dots."""
    labels: tuple[int, ...]
    """-1 for none."""
    identity: str
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def part(self, start: int, stop: int) -> FolderListing:
        run = slice(start, stop)
        return replace(self, files=self.files[run], keys=self.keys[run], labels=self.labels[run])

    def read(self) -> Iterator[ImageSample]:
        for file, key, label in zip(self.files, self.keys, self.labels, strict=True):
            yield ImageSample(key, Path(file).read_bytes(), label, origin=file)


@dataclass(frozen=True, kw_only=True, slots=True)
class TarListing:
    """Images in existing tars."""

    urls: tuple[str, ...]
    shard: tuple[int, ...]
    """Number of each image's tar."""
    places: tuple[tuple[int, int], ...]
    """Offset and length of each image, in bytes."""
    keys: tuple[str, ...]
    labels: tuple[int, ...]
    identity: str
    """The index's fingerprint."""
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.shard)

    def part(self, start: int, stop: int) -> TarListing:
        run = slice(start, stop)
        return replace(
            self, shard=self.shard[run], places=self.places[run], keys=self.keys[run], labels=self.labels[run]
        )

    def read(self) -> Iterator[ImageSample]:
        with Connections() as connections:
            # Samples are in the order of their shards, so one open file at a time is enough.
            opened, file = -1, None
            for shard, (offset, size), key, label in zip(self.shard, self.places, self.keys, self.labels, strict=True):
                if shard != opened or file is None:
                    opened, file = shard, open_shard(self.urls[shard], connections=connections)
                yield ImageSample(key, file.read_at(offset, size), label, origin=f"{key} in {self.urls[shard]}")


def list_folder(root: str | Path) -> FolderListing:
    """List images in `root/<class>/*`, or in a flat `root/*` without labels, sorted by path.

    Raises:
        ValueError: If there are no images.
    """
    root = Path(root).absolute()
    files = sorted(
        path for path in root.rglob("*") if path.is_file() and path.name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
    )
    if not files:
        raise ValueError(f"no images under {root}; looked for files ending in {', '.join(IMAGE_EXTENSIONS)}")
    relative = [path.relative_to(root) for path in files]
    # The class is the first folder below the root, however deep the file lies.
    folder = [path.parts[0] if len(path.parts) > 1 else "" for path in relative]
    names = sorted(set(folder) - {""})
    labels = {name: number for number, name in enumerate(names)} | {"": -1}
    paths = tuple(str(path) for path in files)
    return FolderListing(
        files=paths,
        keys=_unique([str(path.with_suffix("")).replace(".", "_") for path in relative], [p.suffix for p in relative]),
        labels=tuple(labels[name] for name in folder),
        identity=files_digest(paths),
        class_names=tuple(names),
    )


def list_tars(index: ShardIndex) -> TarListing:
    """List the images of indexed tars. If any key occurs twice, all keys get their tar's name in front."""
    keys = index.keys
    if max(Counter(keys).values()) > 1:
        keys = [f"{Path(index.shard_urls[s]).stem}/{key}" for s, key in zip(index.shard, keys, strict=True)]
    # A key ends at its first dot in WebDataset, so dots cannot stay.
    keys = [key.replace(".", "_") for key in keys]
    return TarListing(
        urls=tuple(index.shard_urls),
        shard=tuple(index.shard.tolist()),
        places=tuple(zip(index.offset.tolist(), index.size.tolist(), strict=True)),
        keys=_unique(keys, [""] * len(keys)),
        labels=tuple(index.label.tolist()),
        identity=index.fingerprint,
        class_names=tuple(index.class_names),
    )


def class_folders(root: str | Path) -> ImageSource:
    """Read images from `root/<class>/*`, or from a flat `root/*` without labels, sorted by path.

    Raises:
        ValueError: If there are no images.
    """
    listing = list_folder(root)
    return ImageSource(listing.read(), listing.class_names, len(listing))


def files_with_suffix(path: Path, suffix: str) -> list[Path]:
    """Return the files of a folder that end in `suffix`, sorted; or the path itself when it is not a folder."""
    return sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path]


def files_digest(files: Iterable[str], *options: str) -> str:
    """Return a digest of files' names, lengths and times of change, and of options."""
    digest = hashlib.sha256()
    for file in files:
        status = Path(file).stat()
        digest.update(f"{file} {status.st_size} {status.st_mtime_ns}".encode("utf-8", "surrogateescape") + b"\0")
    for option in options:
        digest.update(option.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _unique(keys: list[str], suffixes: list[str]) -> tuple[str, ...]:
    """Tell apart keys that differ only in characters a key cannot hold: a.jpg and a.png, b.c.jpg and b_c.jpg."""
    taken: dict[str, None] = {}
    for key, suffix in zip(keys, suffixes, strict=True):
        candidate, number = key, 1
        while candidate in taken:
            candidate = f"{key}_{suffix.lstrip('.')}" if number == 1 and suffix else f"{key}_{number}"
            number += 1
        taken[candidate] = None
    return tuple(taken)
