"""The reference decoder, on the CPU: libjpeg-turbo's pixels, then torch's uint8 antialiased resize.

1. The first time a process meets an image it decodes all of it, with every warning of libjpeg-turbo an error.
2. From then on the bytes are known to be sound, and only the box is decoded: our own decoder (`native/`)
   entropy-decodes what lies around it and stops below it. It handles baseline JPEGs that are gray or YCbCr. Others, and
   all of them where it was not compiled, are decoded by libjpeg-turbo down to the box's last row. Every way gives the
   same pixels.
3. The box is resized into the batch (`resize`).

PNG, WebP and CMYK go through Pillow. Decoding and resizing release the GIL, so one thread per core keeps all cores
busy.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from loader.config import Transform
from loader.decode import compiled
from loader.decode.decoder import EncodedImage
from loader.decode.header import ImageHeader
from loader.decode.resize import Rgb, resize_into
from loader.errors import BadSampleError

_CONTEXT_ROWS: Final = 8
"""Rows below a box that its last row needs: chroma is interpolated from the next row, at most 4 pixels further down."""
_MAX_SCRATCH_BYTES: Final = 8 << 20
"""Largest box whose memory a thread keeps for its next one."""


class CpuDecoder:
    """Decodes images one after another in the calling thread; parallelism comes from the callers.

    It remembers which of the index's `num_samples` are sound.
    """

    rows_per_call: Final = 1
    """Images per call: with one, all threads end at about the same time."""

    def __init__(self, num_samples: int) -> None:
        compiled.warn_if_missing()
        self._sound = bytearray(num_samples)
        self._scratch = threading.local()

    def decode(self, images: Sequence[EncodedImage], transform: Transform, out: Sequence[Rgb]) -> list[str | None]:
        """Decode and transform images; see `Decoder.decode`."""
        reasons: list[str | None] = [None] * len(images)
        for row, image in enumerate(images):
            header = image.header
            try:
                # Whole the first time, since neither way to decode a box reports damage; CMYK goes through Pillow.
                if (
                    image.keep is None
                    and self._sound[image.sample_id]
                    and header.format == "jpeg"
                    and header.components != 4
                ):
                    pixels = self.decode_box(image.data, header, image.box)
                else:
                    whole = decode_image(image.data, header)
                    self._sound[image.sample_id] = True
                    if image.keep is not None:
                        image.keep(whole)
                    pixels = crop(whole, image.box)
            except BadSampleError as error:
                reasons[row] = str(error)
            else:
                resize_into(out[row], pixels, flip=image.flip, transform=transform)
        return reasons

    def decode_box(self, data: bytes, header: ImageHeader, box: NDArray[np.int32]) -> Rgb:
        """Return a box (top, left, height, width) of a gray or colour JPEG that has been decoded as a whole before.

        Neither of the two ways reports damage in the file, so an image that was not decoded whole must not come here.
        The pixels, uint8[height, width, 3], are overwritten by the same thread's next call.

        Raises:
            BadSampleError: If libjpeg-turbo refuses the image after all.
        """
        top, left, height, width = box.tolist()
        if compiled.decode_box is not None and not header.progressive:
            num_bytes = 3 * height * width
            # Fresh memory costs a fault and zeroing per page: a thread decodes into the same block again.
            scratch: NDArray[np.uint8] | None = getattr(self._scratch, "block", None)
            if scratch is None or len(scratch) < num_bytes:
                scratch = np.empty(num_bytes, np.uint8)
                if num_bytes <= _MAX_SCRATCH_BYTES:
                    self._scratch.block = scratch
            pixels = scratch[:num_bytes].reshape(height, width, 3)
            if compiled.decode_box(data, top, left, height, width, pixels):
                return pixels
        return decode_top(data, header, top + height)[top:, left : left + width][:height]


def decode_image(data: bytes, header: ImageHeader) -> Rgb:
    """Return all pixels of an image as uint8[H, W, 3], RGB.

    Gray is repeated; CMYK and transparency are converted as Pillow does. The orientation tag is ignored, as in the
    published recipes.

    Raises:
        BadSampleError: If the decoder refuses it.
    """
    if header.format == "jpeg" and header.components != 4:
        return _decode_jpeg(data)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadSampleError(f"image does not decode: {error}") from error


def decode_top(data: bytes, header: ImageHeader, num_rows: int) -> Rgb:
    """Return at least the first `num_rows` rows of a JPEG that is known to be sound, uint8[>= num_rows, W, 3].

    Raises:
        BadSampleError: If the decoder refuses it.
    """
    height = num_rows + _CONTEXT_ROWS
    if height >= header.height or header.progressive:
        return _decode_jpeg(data)
    # A smaller height in the frame header makes libjpeg-turbo stop early. Data left over is a warning, so not strict.
    at = header.frame_offset + 5
    return _decode_jpeg(b"".join((data[:at], height.to_bytes(2, "big"), data[at + 2 :])), strict=False)


def crop(pixels: Rgb, box: NDArray[np.int32]) -> Rgb:
    """Return the view of uint8[H, W, 3] inside a (top, left, height, width) box."""
    top, left, height, width = box.tolist()
    return pixels[top : top + height, left : left + width]


def _decode_jpeg(data: bytes, *, strict: bool = True) -> Rgb:
    """Decode a gray or colour JPEG; `strict` makes every warning of libjpeg-turbo an error."""
    try:
        pixels: Rgb = simplejpeg.decode_jpeg(data, strict=strict)
    except ValueError as error:
        raise BadSampleError(f"JPEG does not decode: {error}") from error
    return pixels
