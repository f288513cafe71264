"""Where images come from on their way into shards: class folders, a flat folder, Parquet, the bundled digits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from loader.decode_cpu import decode
from loader.errors import BadSampleError
from loader.header import read_header
from loader.index_builder import IMAGE_EXTENSIONS, is_image

_MAX_PIXELS: Final = 200_000_000
"""Largest image that is decoded to be made smaller."""


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


def parquet_images(paths: Sequence[str | Path], *, image: str = "image", label: str = "label") -> ImageSource:
    """Read images from Parquet as the Hugging Face hub lays them out: bytes, or structs with a `bytes` field.

    Args:
        paths: The files, in the order that numbers their samples.
        image: Column of encoded images.
        label: Column of integer labels; without it there are none.

    Raises:
        ValueError: If there are no files, or the image column is missing or of another kind.
    """
    if not paths:
        raise ValueError("no Parquet files; give at least one")
    files = [Path(path) for path in paths]
    schema = pq.read_schema(files[0])
    kind = schema.field(image).type if image in schema.names else None
    if kind is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)):
        raise ValueError(f"{files[0]} must have a column {image!r} of image bytes; it has {', '.join(schema.names)}")
    has_label = label in schema.names
    num_samples = sum(pq.read_metadata(path).num_rows for path in files)
    samples = _parquet_samples(files, image, label if has_label else None)
    return ImageSource(samples, _hub_class_names(schema, label) if has_label else (), num_samples)


def shrink(source: ImageSource, *, short_side: int, quality: int = 90) -> ImageSource:
    """Re-encode as JPEG every image whose short side is longer than `short_side`; leave the others as they are.

    Args:
        source: The images.
        short_side: Length of the short side afterwards, in pixels.
        quality: JPEG quality, 1..100.

    Raises:
        ValueError: If a number is out of range.
    """
    if short_side < 1 or not 1 <= quality <= 100:
        raise ValueError(f"short_side must be at least 1 and quality in 1..100; got {short_side} and {quality}")
    samples = (replace(sample, data=_shrunk(sample.data, short_side, quality)) for sample in source.samples)
    return replace(source, samples=samples)


def _shrunk(data: bytes, short_side: int, quality: int) -> bytes:
    header = read_header(data, max_pixels=_MAX_PIXELS)
    if min(header.width, header.height) <= short_side:
        return data
    scale = short_side / min(header.width, header.height)
    size = (round(scale * header.height), round(scale * header.width))
    pixels = torch.from_numpy(decode(data, header)).permute(2, 0, 1)[None]
    resized = interpolate(pixels, size=size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).contiguous().numpy()
    encoded: bytes = simplejpeg.encode_jpeg(resized, quality=quality, colorsubsampling="420")
    return encoded


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


def _parquet_samples(files: list[Path], image: str, label: str | None) -> Iterator[ImageSample]:
    for number, path in enumerate(files):
        row = 0
        for batch in pq.ParquetFile(path).iter_batches(256, columns=[image] if label is None else [image, label]):
            labels = [-1] * len(batch) if label is None else batch[label].to_pylist()
            for value, target in zip(batch[image].to_pylist(), labels, strict=True):
                data: bytes | None = value["bytes"] if isinstance(value, dict) else value
                if data is None:
                    raise BadSampleError(f"{path} has no image in row {row}")
                yield ImageSample(f"{number:05d}-{row:08d}", data, -1 if target is None else int(target))
                row += 1


def _hub_class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the class names that the Hugging Face libraries store in a file's metadata, or none."""
    stored: dict[str, Any] = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = stored.get("info", {}).get("features", {}).get(label, {}).get("names", [])
    return tuple(str(name) for name in names)
