"""Encoded bytes and a box to RGB pixels on the CPU: libjpeg-turbo, then torch's uint8 antialiased resize.

This is the reference: the other decoder is compared with it. Both stages release the GIL, so a thread a core is all
the parallelism it needs. PNG and WebP go through Pillow.

An image that this process meets for the first time is decoded whole, with every warning of the decoder an error. After
that its bytes are known to be sound, and decoding stops after the box's last row: the same pixels for less work.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from loader.batch import Encoded
from loader.cache import PixelCache
from loader.config import Transform
from loader.errors import BadSampleError
from loader.header import ImageHeader

_CONTEXT_ROWS: Final = 8
"""Rows below a box that its last row needs: chroma is interpolated from the next row, at most 4 pixels further down."""


class CpuDecoder:
    """Decodes images one after another in the calling thread; callers bring the threads.

    Args:
        num_samples: Samples in the index, to remember which are sound.
        cache: Takes images that were decoded whole.
    """

    rows_a_task: Final = 4
    """Rows that one thread takes at a time: small enough to balance, large enough to be cheap."""

    def __init__(self, num_samples: int, cache: PixelCache) -> None:
        self._sound = bytearray(num_samples)
        self._cache = cache

    def decode(self, images: Sequence[Encoded], transform: Transform, out: Sequence[torch.Tensor]) -> list[str | None]:
        """Decode and transform images.

        Args:
            images: n encoded images with their boxes and flips.
            transform: Applied to each.
            out: For each image uint8[3, size, size], written.

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
        if self._sound[image.sample_id] and image.header.format == "jpeg" and not wanted:
            return cut(decode_top(image.data, image.header, int(image.box[0] + image.box[2])), image.box)
        whole = decode(image.data, image.header)
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
        return _decode_jpeg(data)
    return _decode_with_pillow(data)


def decode_top(data: bytes, header: ImageHeader, num_rows: int) -> NDArray[np.uint8]:
    """Return at least the first rows of a JPEG that is known to be sound, uint8[at least num_rows, W, 3].

    The decoder is told of a lower image, so it stops early; that it then finds data left over is no fault.

    Raises:
        BadSampleError: If the decoder refuses it.
    """
    height = num_rows + _CONTEXT_ROWS
    if height >= header.height or header.progressive or header.components == 4:
        return decode(data, header)
    at = header.frame_offset + 5
    lower = b"".join((data[:at], height.to_bytes(2, "big"), data[at + 2 :]))
    return _decode_jpeg(lower, strict=False)


def cut(pixels: NDArray[np.uint8], box: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the part of uint8[H, W, 3] that a (top, left, height, width) box names, without copying."""
    top, left, height, width = box.tolist()
    return pixels[top : top + height, left : left + width]


def resize_into(out: torch.Tensor, pixels: NDArray[np.uint8], *, flip: bool, transform: Transform) -> None:
    """Resize and flip a box into a row of a batch.

    Args:
        out: uint8[3, size, size], written.
        pixels: uint8[height, width, 3], the pixels of the box.
        flip: Mirror left to right.
        transform: Size, kernel, and for center crops the resized short side.
    """
    height, width, _ = pixels.shape
    size = output_size(height, width, transform)
    # Strict channels-last strides, batch dimension included: without them torch's fast path goes through planes.
    dense = torch.from_numpy(np.ascontiguousarray(pixels))
    image = dense.as_strided((1, 3, height, width), (3 * height * width, 1, 3 * width, 3))
    if size != (height, width):
        image = interpolate(image, size=size, mode=transform.interpolation, antialias=True, align_corners=False)
    image = image[0]
    if transform.kind == "center_crop":
        top, left = middle(size, transform)
        image = image[:, top : top + transform.size, left : left + transform.size]
    out.copy_(image.flip(2) if flip else image)


def output_size(height: int, width: int, transform: Transform) -> tuple[int, int]:
    """Return (height, width) after the resize: square for random crops, by the short side for center crops."""
    if transform.kind == "random_resized_crop":
        return transform.size, transform.size
    short = transform.short_side
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def middle(size: tuple[int, int], transform: Transform) -> tuple[int, int]:
    """Return (top, left) of the central square of a resized image, rounding halves to even as torchvision does."""
    return round((size[0] - transform.size) / 2), round((size[1] - transform.size) / 2)


def _decode_jpeg(data: bytes, *, strict: bool = True) -> NDArray[np.uint8]:
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, strict=strict)
    except ValueError as error:
        raise BadSampleError(f"JPEG does not decode: {error}") from error
    return pixels


def _decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadSampleError(f"image does not decode: {error}") from error
