"""Encoded bytes and a box to RGB pixels on the CPU: libjpeg-turbo's pixels, then torch's uint8 antialiased resize.

This is the reference: the other decoder is compared with it. Both stages release the GIL, so a thread a core is all
the parallelism it needs. PNG and WebP go through Pillow.

An image that this process meets for the first time is decoded whole, with every warning of the decoder an error. After
that its bytes are known to be sound, and only its box is decoded (`decode_region`): the same pixels for less work.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loader.batch import Encoded
from loader.cache import PixelCache
from loader.config import Transform
from loader.decode import compiled
from loader.decode.header import ImageHeader
from loader.decode.region import RegionDecoder, decode_jpeg
from loader.decode.resize import Rgb, resize_into
from loader.errors import BadSampleError


class CpuDecoder:
    """Decodes images one after another in the calling thread; callers bring the threads.

    Args:
        num_samples: Samples in the index, to remember which are sound.
        cache: Takes images that were decoded whole.
    """

    rows_a_task: Final = 1
    """Rows that a thread takes at a time: no thread waits long for the last one."""

    def __init__(self, num_samples: int, cache: PixelCache) -> None:
        compiled.warn_if_missing()
        self._sound = bytearray(num_samples)
        self._cache = cache
        self._regions = RegionDecoder()

    def decode(self, images: Sequence[Encoded], transform: Transform, out: Sequence[Rgb]) -> list[str | None]:
        """Decode and transform images.

        Args:
            images: n encoded images with their boxes and flips.
            transform: Applied to each.
            out: For each image uint8[size, size, 3], written.

        Returns:
            For each image None, or the reason why it cannot be decoded.
        """
        reasons: list[str | None] = [None] * len(images)
        for row, image in enumerate(images):
            try:
                pixels = self._decode_box(image)
            except BadSampleError as error:
                reasons[row] = str(error)
            else:
                resize_into(out[row], pixels, flip=image.flip, transform=transform)
        return reasons

    def _decode_box(self, image: Encoded) -> NDArray[np.uint8]:
        """Return the pixels of an image's box, uint8[height, width, 3]."""
        num_bytes = 3 * image.header.width * image.header.height
        wanted = self._cache.wants(num_bytes, encoded_bytes=len(image.data), demand=image.demand)
        header = image.header
        if self._sound[image.sample_id] and header.format == "jpeg" and header.components != 4 and not wanted:
            return self._regions.decode(image.data, header, image.box)
        whole = decode(image.data, header)
        self._sound[image.sample_id] = True
        if wanted:
            self._cache.put(image.sample_id, whole, encoded_bytes=len(image.data), demand=image.demand)
        return cut(whole, image.box)


def decode(data: bytes, header: ImageHeader) -> NDArray[np.uint8]:
    """Return all pixels of an image as uint8[H, W, 3], RGB.

    Gray is repeated; CMYK and transparency are converted as Pillow does. The orientation tag is not applied, as in the
    published recipes.

    Raises:
        BadSampleError: If the decoder refuses it.
    """
    if header.format == "jpeg" and header.components != 4:
        return decode_jpeg(data)
    return _decode_with_pillow(data)


def cut(pixels: NDArray[np.uint8], box: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the part of uint8[H, W, 3] that a (top, left, height, width) box names, without copying."""
    top, left, height, width = box.tolist()
    return pixels[top : top + height, left : left + width]


def _decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadSampleError(f"image does not decode: {error}") from error
