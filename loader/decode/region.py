"""Decodes one box of a JPEG on the CPU: what lies around it is only entropy-decoded, rows below it not at all.

Photographs (baseline, gray or YCbCr) go through our own decoder, which is compiled when Tempera is installed
(`native/`); other JPEGs, and all of them where it was not compiled, are decoded to the box's last row. Either way the
pixels are those of the whole image: the tests compare every kind of subsampling.

Neither way reports damage, so only images that were decoded whole before may come here.
"""

from __future__ import annotations

import threading
from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from loader.decode import compiled
from loader.decode.header import ImageHeader
from loader.errors import BadSampleError

_CONTEXT_ROWS: Final = 8
"""Rows below a box that its last row needs: chroma is interpolated from the next row, at most 4 pixels further down."""
_KEPT_BYTES: Final = 8 << 20
"""Largest box whose memory a thread keeps for its next one."""


class RegionDecoder:
    """Decodes boxes of JPEGs that are known to be sound. Thread-safe; a thread's next call overwrites its last."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def decode(self, data: bytes, header: ImageHeader, box: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return the pixels of a (top, left, height, width) box, uint8[height, width, 3].

        Raises:
            BadSampleError: If the decoder refuses the image after all.
        """
        top, left, height, width = box.tolist()
        if compiled.decode_box is not None and not header.progressive:
            pixels = self._memory(3 * height * width).reshape(height, width, 3)
            if compiled.decode_box(data, top, left, height, width, pixels):
                return pixels
        return decode_top(data, header, top + height)[top:, left : left + width][:height]

    def _memory(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return this thread's memory, which its last box had too."""
        if num_bytes > _KEPT_BYTES:
            return np.empty(num_bytes, np.uint8)
        kept: NDArray[np.uint8] | None = getattr(self._thread, "memory", None)
        if kept is None or len(kept) < num_bytes:
            kept = self._thread.memory = np.empty(num_bytes, np.uint8)
        return kept[:num_bytes]


def decode_top(data: bytes, header: ImageHeader, num_rows: int) -> NDArray[np.uint8]:
    """Return at least the first rows of a JPEG that is known to be sound, uint8[at least num_rows, W, 3].

    The decoder is told of a lower image, so it stops early; that it then finds data left over is no fault.

    Raises:
        BadSampleError: If the decoder refuses it.
    """
    height = num_rows + _CONTEXT_ROWS
    if height >= header.height or header.progressive:
        return decode_jpeg(data)
    at = header.frame_offset + 5
    lower = b"".join((data[:at], height.to_bytes(2, "big"), data[at + 2 :]))
    return decode_jpeg(lower, strict=False)


def decode_jpeg(data: bytes, *, strict: bool = True) -> NDArray[np.uint8]:
    """Return all pixels of a gray or colour JPEG, uint8[H, W, 3].

    Args:
        data: The encoded image.
        strict: Take every warning of the decoder as an error.

    Raises:
        BadSampleError: If the decoder refuses it.
    """
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, strict=strict)
    except ValueError as error:
        raise BadSampleError(f"JPEG does not decode: {error}") from error
    return pixels
