"""From the pixels of a box to a row of a batch: antialiased resize, central window, flip.

torch's uint8 interpolation is the definition. Where Tempera was compiled (`native/`) the same bytes come from one call
that needs neither torch's dispatch nor a copy: the tests compare the two over seeded sizes, kernels and windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from loader.config import Transform
from loader.decode import compiled

Rgb = NDArray[np.uint8]
"""Rows of pixels, uint8[height, width, 3]."""


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a resized box that becomes a row of a batch."""

    height: int
    """Of the whole box after the resize, pixels."""
    width: int
    """Likewise."""
    top: int
    """First row that is kept."""
    left: int
    """First column that is kept."""


def window_of(height: int, width: int, transform: Transform) -> Window:
    """Return how a box of a given size is resized: to the square, or by its short side and then to the middle."""
    if transform.kind == "random_resized_crop":
        return Window(transform.size, transform.size, 0, 0)
    resized = output_size(height, width, transform)
    return Window(*resized, *middle(resized, transform))


def resize_into(out: Rgb, pixels: Rgb, *, flip: bool, transform: Transform) -> None:
    """Resize and flip a box into a row of a batch.

    Args:
        out: uint8[size, size, 3] without gaps, written.
        pixels: uint8[height, width, 3], the pixels of the box.
        flip: Mirror left to right.
        transform: Size, kernel, and for center crops the resized short side.
    """
    window = window_of(len(pixels), len(pixels[0]), transform)
    to = (window.height, window.width, window.top, window.left, transform.size)
    bicubic = transform.interpolation == "bicubic"
    if compiled.resize is None or not compiled.resize(pixels, out, *to, bicubic, flip):
        np.copyto(out, resized_by_torch(pixels, window, flip=flip, transform=transform))


def resized_by_torch(pixels: Rgb, window: Window, *, flip: bool, transform: Transform) -> Rgb:
    """Return uint8[size, size, 3], the reference."""
    height, width, _ = pixels.shape
    # Channels-last strides, batch dimension included: without them torch's fast paths go through planes.
    image = torch.from_numpy(np.ascontiguousarray(pixels).reshape(1, height, width, 3).transpose(0, 3, 1, 2))
    size = (window.height, window.width)
    if size != (height, width):
        image = interpolate(image, size=size, mode=transform.interpolation, antialias=True, align_corners=False)
    rows: Rgb = image.numpy()[0].transpose(1, 2, 0)
    rows = rows[window.top : window.top + transform.size, window.left : window.left + transform.size]
    return rows[:, ::-1] if flip else rows


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
