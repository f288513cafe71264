"""Writes WebDataset shards: images with labels in, tars out, always the same bytes for the same images.

Order and names come from the source; times and owners are fixed. Shards are written under temporary names and renamed
when all are complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from loader.decode.header import read_header
from loader.errors import BadSampleError
from loader.shards.index_builder import CLASSES_FILE
from loader.shards.parallel import Progress
from loader.shards.sources import ImageSample, ImageSource

Members = dict[str, str | bytes]
"""Extension -> bytes of a sample's files, and the key under `__key__`, as webdataset takes them."""


def build_shards(
    source: ImageSource | Iterable[ImageSample],
    out_dir: str | Path,
    *,
    max_samples: int = 10_000,
    max_bytes: int = 1 << 30,
    progress: Progress | None = None,
) -> list[str]:
    """Write shards `shard-000000.tar`, ... and `classes.json`, and return the shards' paths.

    Args:
        source: Images in order.
        out_dir: Made if missing; must hold no tars yet.
        max_samples: Most samples in a shard.
        max_bytes: A shard ends with the sample that reaches this number of bytes.
        progress: Called with (samples written, samples in all, 0 when unknown).

    Raises:
        ValueError: If `out_dir` holds tars already, a key has a dot, or the source is empty.
        BadSampleError: If a sample is not an image.
    """
    if not isinstance(source, ImageSource):
        source = ImageSource(source)
    out = Path(out_dir)
    if any(out.glob("*.tar")):
        raise ValueError(f"{out} already holds shards; give an empty directory or remove them")
    out.mkdir(parents=True, exist_ok=True)

    # One sample is read ahead, so that no shard is opened for nothing when the source ends.
    samples, total, written = iter(source.samples), source.num_samples or 0, 0
    pending = list(islice(samples, 1))
    if not pending:
        raise ValueError(f"no images to write into {out}")

    def next_shard() -> Iterator[Members]:
        nonlocal written
        count = num_bytes = 0
        while pending and count < max_samples and num_bytes < max_bytes:
            members = members_of(pending[0])
            yield members
            count += 1
            num_bytes += sum(len(data) for data in members.values() if isinstance(data, bytes))
            written += 1
            if progress is not None:
                progress(written, total)
            pending[:] = islice(samples, 1)

    temporaries: list[Path] = []
    try:
        while pending:
            temporaries.append(out / f".shard-{len(temporaries):06d}.tar.tmp")
            write_tar(temporaries[-1], next_shard())
    except BaseException:
        for path in temporaries:
            path.unlink(missing_ok=True)
        raise
    write_class_names(out, source.class_names)
    return [str(path.rename(out / path.name[1:].removesuffix(".tmp"))) for path in temporaries]


def write_tar(path: Path, samples: Iterable[Members]) -> None:
    """Write one shard to a path; it is on disk when this returns."""
    import webdataset  # noqa: PLC0415 - loaders import this package in every process and never write

    # We open the file ourselves: given a name, webdataset would run "pipe:" names in a shell.
    with path.open("wb") as file:
        writer = webdataset.TarWriter(file, mtime=0, format="PAX_FORMAT")
        for members in samples:
            writer.write(members)
        writer.close()
        # The rename that follows must not be on disk before the bytes are.
        file.flush()
        os.fsync(file.fileno())


def write_class_names(out: Path, names: tuple[str, ...]) -> None:
    """Write `classes.json` beside the shards, unless the names are unknown."""
    if names:
        (out / CLASSES_FILE).write_text(json.dumps(list(names), indent=0) + "\n")


def members_of(sample: ImageSample) -> Members:
    """Return the files of a sample: `.cls` if it has a label, and the image under its format's extension.

    Raises:
        ValueError: If its key has a dot, or is empty.
        BadSampleError: If it is not an image.
    """
    if "." in sample.key or not sample.key:
        raise ValueError(f"sample keys must have no dots; got {sample.key!r}")
    # The format decides the extension: names in real datasets are often wrong. Loaders have their own limit of pixels.
    try:
        kind = read_header(sample.data, max_pixels=2**40).format
    except BadSampleError as error:
        error.add_note(f"file={sample.origin or sample.key}")
        raise
    label = {"cls": str(sample.label).encode()} if sample.label >= 0 else {}
    return {"__key__": sample.key, "jpg" if kind == "jpeg" else kind: sample.data, **label}
