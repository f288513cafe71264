"""Images on their way into shards: one by one, the bundled digits, and made smaller. `listings` finds them in files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from loader.decode.cpu import decode_image
from loader.decode.header import read_header

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
    origin: str = ""
    """Where it came from, for messages."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Images to build shards from."""

    samples: Iterable[ImageSample]
    """In the order that numbers them."""
    class_names: tuple[str, ...] = ()
    """Name of each label; empty when unknown."""
    num_samples: int | None = None
    """How many, for progress; None when unknown."""


def digits(*, side: int = 32, quality: int = 95) -> ImageSource:
    """Return scikit-learn's 1,797 handwritten digits (8 x 8, real scans) as gray JPEGs enlarged to `side` pixels."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes seconds to import; loaders never need it

    data = load_digits()
    return ImageSource(_digit_samples(data.images, data.target, side, quality), tuple("0123456789"), len(data.images))


def shrink(source: ImageSource, *, short_side: int, quality: int = 90) -> ImageSource:
    """Re-encode as JPEG every image whose short side is longer than `short_side`; leave the others as they are.

    Args:
        source: The images.
        short_side: Length of the short side afterwards, in pixels.
        quality: JPEG quality, 1..100.

    Raises:
        ValueError: If a number is out of range.
    """
    check_shrinking(short_side, quality)
    samples = (replace(sample, data=shrunk(sample.data, short_side, quality)) for sample in source.samples)
    return replace(source, samples=samples)


def check_shrinking(short_side: int, quality: int) -> None:
    """Refuse sizes and qualities that do not exist.

    Raises:
        ValueError: If a number is out of range.
    """
    if short_side < 1 or not 1 <= quality <= 100:
        raise ValueError(f"short_side must be at least 1 and quality in 1..100; got {short_side} and {quality}")


def shrunk(data: bytes, short_side: int, quality: int) -> bytes:
    """Return an image re-encoded as JPEG with that short side, or as it is when it is not larger.

    Raises:
        BadSampleError: If it does not decode.
    """
    header = read_header(data, max_pixels=_MAX_PIXELS)
    if min(header.width, header.height) <= short_side:
        return data
    scale = short_side / min(header.width, header.height)
    size = (round(scale * header.height), round(scale * header.width))
    pixels = torch.from_numpy(decode_image(data, header)).permute(2, 0, 1)[None]
    resized = interpolate(pixels, size=size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).contiguous().numpy()
    encoded: bytes = simplejpeg.encode_jpeg(resized, quality=quality, colorsubsampling="420")
    return encoded


def _digit_samples(
    images: NDArray[np.float64], labels: NDArray[np.int64], side: int, quality: int
) -> Iterator[ImageSample]:
    gray = torch.from_numpy(images).float()[:, None] * (255 / 16)  # scikit-learn stores 0..16
    enlarged = interpolate(gray, size=(side, side), mode="bicubic", align_corners=False)
    pixels = enlarged.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        data = simplejpeg.encode_jpeg(image, quality=quality, colorspace="GRAY", colorsubsampling="Gray")
        yield ImageSample(f"{number:06d}", data, int(label))
