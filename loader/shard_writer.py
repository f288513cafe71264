"""Writes WebDataset shards: images with labels in, tars out, the same bytes every time.

Order and names come from the source, times and owners are fixed, so building twice gives identical files. Shards
are written under temporary names and renamed when all are whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from loader.errors import BadSampleError
from loader.header import read_header
from loader.index_builder import IMAGE_EXTENSIONS, is_image

Progress = Callable[[int, int], None]
CLASSES_FILE: Final = "classes.json"


@dataclass(frozen=True, slots=True)
class ImageSample:
    """One image on its way into a shard."""

    key: str
    """Unique name; directories allowed, dots not."""
    data: bytes
    """The encoded image."""
    label: int = -1
    """Class; -1 writes no `.cls`."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Images to build shards from."""

    samples: Iterable[ImageSample]
    """In the order that numbers them."""
    class_names: tuple[str, ...] = ()
    """Name of each label; empty when unknown."""
    num_samples: int | None = None
    """How many, for progress; None when unknown."""


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


def class_folders(root: str | Path) -> ImageSource:
    """Read images from `root/<class>/*`, or from a flat `root/*` without labels, sorted by path.

    Raises:
        ValueError: If there are no images.
    """
    root = Path(root)
    files = sorted(path for path in root.rglob("*") if path.is_file() and is_image(path.name))
    if not files:
        raise ValueError(f"no images under {root}; looked for files ending in {', '.join(IMAGE_EXTENSIONS)}")
    names = sorted({path.relative_to(root).parts[0] for path in files if path.parent != root})
    labels = {name: number for number, name in enumerate(names)}
    return ImageSource(_folder_samples(root, files, labels), tuple(names), len(files))


def digits(*, side: int = 32, quality: int = 95) -> ImageSource:
    """Return scikit-learn's 1,797 handwritten digits (8 x 8, real scans) as gray JPEGs enlarged to `side` pixels."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes seconds to import; loaders never need it

    data = load_digits()
    return ImageSource(_digit_samples(data.images, data.target, side, quality), tuple("0123456789"), len(data.images))


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
                writer.write(_members(sample))
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


def _members(sample: ImageSample) -> dict[str, str | bytes]:
    if "." in sample.key or not sample.key:
        raise ValueError(f"sample keys must have no dots; got {sample.key!r}")
    extension = {"jpeg": "jpg"}.get(kind := read_header(sample.data, max_pixels=2**40).format, kind)
    label = {"cls": str(sample.label).encode()} if sample.label >= 0 else {}
    return {"__key__": sample.key, extension: sample.data, **label}


def _folder_samples(root: Path, files: list[Path], labels: dict[str, int]) -> Iterator[ImageSample]:
    for path in files:
        relative = path.relative_to(root)
        label = labels[relative.parts[0]] if len(relative.parts) > 1 else -1
        data = path.read_bytes()
        try:
            read_header(data, max_pixels=2**40)
        except BadSampleError as error:
            error.add_note(f"file={path}")
            raise
        yield ImageSample(str(relative.with_suffix("")).replace(".", "_"), data, label)


def _digit_samples(
    images: NDArray[np.float64], labels: NDArray[np.int64], side: int, quality: int
) -> Iterator[ImageSample]:
    gray = torch.from_numpy(images).float()[:, None] * (255 / 16)  # scikit-learn stores 0..16
    enlarged = interpolate(gray, size=(side, side), mode="bicubic", align_corners=False)
    pixels = enlarged.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        data = simplejpeg.encode_jpeg(image, quality=quality, colorspace="GRAY", colorsubsampling="Gray")
        yield ImageSample(f"{number:06d}", data, int(label))
