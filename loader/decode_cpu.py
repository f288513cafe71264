"""Encoded bytes and a box to RGB pixels on the CPU: libjpeg-turbo, then torch's uint8 antialiased resize.

This is the reference: the other decoder is compared with it. Both stages release the GIL, so a thread a core is all
the parallelism it needs. PNG and WebP go through Pillow.
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
from loader.config import Transform
from loader.errors import BadSampleError
from loader.header import ImageHeader


class CpuDecoder:
    """Decodes images one after another in the calling thread; callers bring the threads."""

    rows_a_task: Final = 4
    """Rows that one thread takes at a time: small enough to balance, large enough to be cheap."""

    def decode(self, images: Sequence[Encoded], transform: Transform, out: torch.Tensor) -> list[str | None]:
        """Decode and transform images.

        Args:
            images: n encoded images with their boxes and flips.
            transform: Applied to each.
            out: uint8[n, 3, size, size], written.

        Returns:
            For each image None, or the reason why it cannot be decoded.
        """
        reasons: list[str | None] = [None] * len(images)
        for row, image in enumerate(images):
            try:
                pixels = decode(image.data, image.header)
            except BadSampleError as error:
                reasons[row] = str(error)
            else:
                transform_pixels(pixels, image.box, flip=image.flip, transform=transform, out=out[row])
        return reasons


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


def transform_pixels(
    pixels: NDArray[np.uint8], box: NDArray[np.int32], *, flip: bool, transform: Transform, out: torch.Tensor
) -> None:
    """Crop, resize and flip into a row of a batch.

    Args:
        pixels: uint8[H, W, 3].
        box: (top, left, height, width) in pixels.
        flip: Mirror left to right.
        transform: Size, kernel, and for center crops the resized short side.
        out: uint8[3, size, size], written.
    """
    top, left, height, width = box.tolist()
    crop = torch.from_numpy(pixels[top : top + height, left : left + width])
    size = output_size(height, width, transform)
    image = crop.permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
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


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    except ValueError as error:
        raise BadSampleError(f"JPEG does not decode: {error}") from error
    return pixels


def _decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadSampleError(f"image does not decode: {error}") from error
