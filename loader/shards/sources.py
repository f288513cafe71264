"""Images on their way into shards: the values, the bundled digits, and re-encoding at a smaller size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import simplejpeg
import torch
from torch.nn.functional import interpolate

from loader.decode.cpu import decode_image
from loader.decode.header import read_header

_MAX_PIXELS: Final = 200_000_000
"""Largest image that is decoded to be shrunk."""


@dataclass(frozen=True, slots=True)
class ImageSample:
    """One image on its way into a shard."""

    key: str
    """Unique name. It may have directories, but no dots."""
    data: bytes
    label: int = -1
    """Class; -1 writes no `.cls`."""
    origin: str = ""
    """Where it came from, for messages."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Images to build shards from, read one after another in this process."""

    samples: Iterable[ImageSample]
    """The images in the order that numbers them."""
    class_names: tuple[str, ...] = ()
    """Name of each label; empty when unknown."""
    num_samples: int | None = None
    """Number of samples, for progress; None when unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shrink:
    """Re-encode larger images on their way into shards."""

    short_side: int
    """Longest short side that is kept as it is, and the short side of the others afterwards, in pixels."""
    quality: int = 90
    """JPEG quality, 1..100."""

    def __post_init__(self) -> None:
        if self.short_side < 1 or not 1 <= self.quality <= 100:
            raise ValueError(
                f"short_side must be at least 1 and quality in 1..100; got {self.short_side} and {self.quality}"
            )

    def apply(self, data: bytes) -> bytes:
        """Return an image re-encoded as JPEG with this short side, or as it is when it is not larger.

        Raises:
            BadSampleError: If it does not decode.
        """
        header = read_header(data, max_pixels=_MAX_PIXELS)
        # Smaller images keep their bytes: encoding them again would cost quality for nothing.
        short = min(header.width, header.height)
        if short <= self.short_side:
            return data
        scale = self.short_side / short
        size = (round(scale * header.height), round(scale * header.width))
        pixels = torch.from_numpy(decode_image(data, header)).permute(2, 0, 1)[None]
        resized = interpolate(pixels, size=size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).contiguous()
        # 4:2:0 chroma, as in nearly all photographs: the compiled decoder of boxes handles it.
        encoded: bytes = simplejpeg.encode_jpeg(resized.numpy(), quality=self.quality, colorsubsampling="420")
        return encoded


def digits() -> ImageSource:
    """Return scikit-learn's 1,797 handwritten digits (8 x 8, real scans) as gray JPEGs of 32 x 32 pixels."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes seconds to import; loaders never need it

    data = load_digits()

    def samples() -> Iterator[ImageSample]:
        gray = torch.from_numpy(data.images).float()[:, None] * (255 / 16)  # scikit-learn stores 0..16
        enlarged = interpolate(gray, size=(32, 32), mode="bicubic", align_corners=False)
        pixels = enlarged.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        for number, (image, label) in enumerate(zip(pixels, data.target, strict=True)):
            encoded = simplejpeg.encode_jpeg(image, quality=95, colorspace="GRAY", colorsubsampling="Gray")
            yield ImageSample(f"{number:06d}", encoded, int(label))

    return ImageSource(samples(), tuple("0123456789"), len(data.images))
