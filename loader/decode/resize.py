"""Pixels of a box to a row of a batch: antialiased resize, central window, flip.

torch's uint8 interpolation is the definition. Where Tempera was compiled (`native/`) the same bytes come from one call
without torch's dispatch and without a copy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loader.config import Transform
from loader.decode import compiled

Rgb = NDArray[np.uint8]
"""Rows of pixels, uint8[height, width, 3]."""


class Window(NamedTuple):
    """Sides of a whole box after the resize, and the corner of the square in it that becomes a row of a batch."""

    height: int
    width: int
    top: int
    left: int


def resize_window(height: int, width: int, transform: Transform) -> Window:
    """Return how a box of height x width is resized, and which square of the result is kept.

    Random crops are resized to the square. Center crops are resized by their short side, keeping their shape, and the
    central square is kept; its corner rounds halves to even, as torchvision's does.
    """
    size, short = transform.size, transform.short_side
    if transform.kind == "random_resized_crop":
        return Window(size, size, 0, 0)
    resized = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    return Window(*resized, round((resized[0] - size) / 2), round((resized[1] - size) / 2))


def resize_into(out: Rgb, pixels: Rgb, *, flip: bool, transform: Transform) -> None:
    """Resize and flip a box into a row of a batch.

    Args:
        out: uint8[size, size, 3] without gaps, written.
        pixels: uint8[height, width, 3], the pixels of the box.
        flip: Mirror left to right.
        transform: Size, kernel, and for center crops the resized short side.
    """
    window = resize_window(len(pixels), len(pixels[0]), transform)
    bicubic = transform.interpolation == "bicubic"
    # The compiled resize returns False for memory layouts that it does not handle.
    if compiled.resize is None or not compiled.resize(pixels, out, *window, transform.size, bicubic, flip):
        np.copyto(out, resize_with_torch(pixels, window, flip=flip, transform=transform))


def resize_with_torch(pixels: Rgb, window: Window, *, flip: bool, transform: Transform) -> Rgb:
    """Return uint8[size, size, 3]: the reference that the compiled resize equals."""
    import torch  # noqa: PLC0415  # a compiled Tempera does without: 200 MB and seconds of every loader
    from torch.nn.functional import interpolate  # noqa: PLC0415

    height, width, _ = pixels.shape
    # Channels-last strides, batch dimension included: without them torch's fast paths copy into planes first.
    image = torch.from_numpy(np.ascontiguousarray(pixels).reshape(1, height, width, 3).transpose(0, 3, 1, 2))
    size = (window.height, window.width)
    if size != (height, width):
        image = interpolate(image, size=size, mode=transform.interpolation, antialias=True, align_corners=False)
    rows: Rgb = image.numpy()[0].transpose(1, 2, 0)
    rows = rows[window.top : window.top + transform.size, window.left : window.left + transform.size]
    return rows[:, ::-1] if flip else rows
