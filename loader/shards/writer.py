"""Writes WebDataset shards: images with labels in, tars out, the same bytes every time.

Order and names come from the source, times and owners are fixed, so building twice gives identical files. Shards
are written under temporary names and renamed when all are whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

from loader.decode.header import read_header
from loader.errors import BadSampleError
from loader.shards.sources import ImageSample, ImageSource

Progress = Callable[[int, int], None]
CLASSES_FILE: Final = "classes.json"

Members = dict[str, str | bytes]
"""Extension -> bytes of a sample's files, and its key under `__key__`."""


def build_shards(
    source: ImageSource | Iterable[ImageSample],
    out_dir: str | Path,
    *,
    prefix: str = "shard",
    max_samples: int = 10_000,
    max_bytes: int = 1 << 30,
    progress: Progress | None = None,
) -> list[str]:
    """Write shards `<prefix>-000000.tar`, ... and `classes.json`, and return the shards' paths.

    Args:
        source: Images in order.
        out_dir: Made if missing; must hold no tars yet.
        prefix: Start of the shards' names.
        max_samples: Most samples in a shard.
        max_bytes: A shard is closed once it holds so many bytes.
        progress: Called with (samples written, samples in all, 0 when unknown).

    Raises:
        ValueError: If `out_dir` holds tars already, a key has a dot, or the source is empty.
        BadSampleError: If a sample is not an image.
    """
    if not isinstance(source, ImageSource):
        source = ImageSource(source)
    out = Path(out_dir)
    if not prefix or set(prefix) & set("%/:"):
        raise ValueError(f"prefix must be a plain file name; got {prefix!r}")
    if any(out.glob("*.tar")):
        raise ValueError(f"{out} already holds shards; give an empty directory or remove them")
    out.mkdir(parents=True, exist_ok=True)
    paths = _write_tars(source, out, prefix=prefix, max_samples=max_samples, max_bytes=max_bytes, progress=progress)
    if source.class_names:
        (out / CLASSES_FILE).write_text(json.dumps(list(source.class_names), indent=0) + "\n")
    return paths


def _write_tars(
    source: ImageSource, out: Path, *, prefix: str, max_samples: int, max_bytes: int, progress: Progress | None
) -> list[str]:
    import webdataset  # noqa: PLC0415 - loaders import this package in every process and never write

    names: list[str] = []
    with ExitStack() as open_files:

        def opened(name: str) -> BinaryIO:
            # We open the file ourselves: given a name, webdataset would run "pipe:" names in a shell.
            return open_files.enter_context((out / f".{name}.tmp").open("wb"))

        def finished(name: str) -> None:
            open_files.close()
            names.append(name)

        writer = webdataset.ShardWriter(
            f"{prefix}-%06d.tar",
            max_samples,
            max_bytes,
            finished,
            opener=opened,
            verbose=0,
            mtime=0,
            format="PAX_FORMAT",
        )
        try:
            for number, sample in enumerate(source.samples, start=1):
                writer.write(members(sample))
                if progress is not None:
                    progress(number, source.num_samples or 0)
            empty = writer.total == 0
            writer.close()
        except BaseException:
            writer.close()
            _remove(out.glob(f".{prefix}-*.tar.tmp"))
            raise
    if empty:
        _remove(out.glob(f".{prefix}-*.tar.tmp"))
        raise ValueError(f"no images to write into {out}")
    for name in names:
        (out / f".{name}.tmp").rename(out / name)
    return [str(out / name) for name in names]


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


def write_tar(path: Path, samples: Iterable[Members]) -> None:
    """Write one shard under a temporary name; it gets its own once it is whole and on disk."""
    import webdataset  # noqa: PLC0415 - loaders import this package in every process and never write

    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        writer = webdataset.TarWriter(file, mtime=0, format="PAX_FORMAT")
        for sample in samples:
            writer.write(sample)
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def members(sample: ImageSample) -> Members:
    """Return a sample as webdataset writes it.

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
    label = {"cls": str(sample.label).encode()} if sample.label >= 0 else {}
    return {"__key__": sample.key, {"jpeg": "jpg"}.get(kind, kind): sample.data, **label}
