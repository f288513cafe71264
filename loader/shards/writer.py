"""Writes WebDataset shards: images with labels in, tars out, always the same bytes for the same images.

Order and names come from the source; times and owners are fixed. Shards are written under temporary names and renamed
when all are complete.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from loader.decode.header import read_header
from loader.errors import BadSampleError
from loader.shards.index_builder import CLASSES_FILE
from loader.shards.parallel import Progress
from loader.shards.sources import ImageSample, ImageSource

_OWNER: Final = "bigdata"
"""Owner of the members: webdataset's default, so that its writer gives the same bytes."""

Members = list[tuple[str, bytes]]
"""Names and bytes of one sample's files, in the order of the tar."""


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

    samples, total, written = iter(source.samples), source.num_samples or 0, 0
    pending = list(islice(samples, 1))  # the next sample; empty at the end
    if not pending:
        raise ValueError(f"no images to write into {out}")

    def next_shard() -> Iterator[Members]:
        nonlocal written
        count = num_bytes = 0
        while pending and count < max_samples and num_bytes < max_bytes:
            members = members_of(pending[0])
            yield members
            count, num_bytes = count + 1, num_bytes + sum(len(data) for _, data in members)
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
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w|") as tar:
            for members in samples:
                for name, data in members:
                    info = tarfile.TarInfo(name)
                    info.size, info.mode, info.uname, info.gname = len(data), 0o444, _OWNER, _OWNER
                    tar.addfile(info, io.BytesIO(data))
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
    try:
        kind = read_header(sample.data, max_pixels=2**40).format
    except BadSampleError as error:
        error.add_note(f"file={sample.origin or sample.key}")
        raise
    label = [(f"{sample.key}.cls", str(sample.label).encode())] if sample.label >= 0 else []
    return [*label, (f"{sample.key}.{'jpg' if kind == 'jpeg' else kind}", sample.data)]
