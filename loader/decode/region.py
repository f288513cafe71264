"""Decodes one box of a JPEG on the CPU: rows above it are only entropy-decoded, rows below it not at all.

nvImageCodec, which comes with DALI, does it with the libjpeg-turbo of its CPU backend; no driver is needed and no
thread is started. Where it is not installed, decoding stops after the box's last row. Either way the pixels are
those of the whole image: the tests compare every kind of subsampling.

Neither way reports damage, so only images that were decoded whole before may come here.
"""

# nvImageCodec is optional and has no types.
# mypy: disable-error-code="import-untyped,import-not-found,attr-defined"

from __future__ import annotations

import logging
import threading
from functools import cache
from typing import Any, Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from loader.decode.header import ImageHeader
from loader.errors import BadSampleError

log = logging.getLogger(__name__)

_CONTEXT_ROWS: Final = 8
"""Rows below a box that its last row needs: chroma is interpolated from the next row, at most 4 pixels further down."""
_OPTIONS: Final = ":fancy_upsampling=1 :fast_idct=0"
"""The settings of a plain libjpeg-turbo decoder, which the whole decoding uses."""
_KEPT_BYTES: Final = 8 << 20
"""Largest box whose memory a thread keeps for its next one."""


class RegionDecoder:
    """Decodes boxes of JPEGs that are known to be sound. Thread-safe; a thread's next call overwrites its last."""

    def __init__(self) -> None:
        self._codec = _codec()
        self._thread = threading.local()

    def decode(self, data: bytes, header: ImageHeader, box: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return the pixels of a (top, left, height, width) box, uint8[height, width, 3].

        Raises:
            BadSampleError: If the decoder refuses the image after all.
        """
        top, left, height, width = box.tolist()
        if self._codec is not None:
            pixels = self._with_codec(self._codec, data, (top, left, top + height, left + width))
            if pixels is not None:
                return pixels
        return decode_top(data, header, top + height)[top:, left : left + width][:height]

    def _with_codec(self, codec: Any, data: bytes, edges: tuple[int, int, int, int]) -> NDArray[np.uint8] | None:
        """Decode into this thread's buffer; None when nvImageCodec cannot."""
        thread = self._thread
        if not hasattr(thread, "decoder"):
            thread.decoder = codec.Decoder(
                device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY,
                max_num_cpu_threads=1,
                backends=[codec.Backend(codec.CPU_ONLY)],
                options=_OPTIONS,
            )
            thread.settings = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.SRGB)
            thread.image = None
        region = codec.CodeStream(data).get_sub_code_stream(0, codec.Region(*edges))
        image = thread.decoder.decode(region, params=thread.settings, image=thread.image)
        if image is None:
            return None
        pixels: NDArray[np.uint8] = np.asarray(image)
        thread.image = image if pixels.nbytes <= _KEPT_BYTES else None
        return pixels


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


@cache
def _codec() -> Any:
    """Return the nvImageCodec module, or None where there is none or it does not start."""
    try:
        from nvidia import nvimgcodec  # noqa: PLC0415 - optional
    except (ImportError, OSError) as error:
        log.info("no nvImageCodec (%s): boxes are decoded from the image's first row on, a little slower", error)
        return None
    return nvimgcodec
