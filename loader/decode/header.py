"""The check before any decoder sees the bytes: which kind of image is this, and is it safe to allocate for it?

A JPEG of 3 KB can claim 20,000 x 20,000 pixels, or carry 2,000 scans of a few bytes each that take minutes. Decoders
allocate before they find out, so sides and scans are read from the markers here, in microseconds. PNG and WebP get the
same treatment.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final, Literal

from loader.errors import BadSampleError

ImageFormat = Literal["jpeg", "png", "webp"]

MAX_SCANS: Final = 100
"""Progressive encoders write about 10 scans; libjpeg's own fuzzers stop at 500."""
MAX_SIDE: Final = 65_500
"""libjpeg's JPEG_MAX_DIMENSION; also what the index's 16-bit columns hold."""

_ALWAYS_ALLOWED_PIXELS: Final = 1 << 22
_MAX_PIXELS_PER_BYTE: Final = 256
"""A JPEG of one flat colour packs 170 pixels into a byte. A large image that claims more is a bomb."""

_SOF_SUPPORTED: Final = frozenset((0xC0, 0xC1, 0xC2))
_SOF_ALL: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE: Final = frozenset((0x01, *range(0xD0, 0xD9)))
_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHeader:
    """The fields of a header that passed the check, sides in pixels."""

    format: ImageFormat
    width: int
    height: int
    components: int
    """Colour channels in the file: 1 gray, 3 colour, 4 CMYK or with alpha."""
    frame_offset: int = 0
    """Byte at which a JPEG's frame header starts; the height is 5 bytes further."""
    progressive: bool = False
    """True for a JPEG of several scans, which only decodes as a whole."""


def read_header(data: bytes, *, max_pixels: int) -> ImageHeader:
    """Return the header of an encoded image.

    Raises:
        BadSampleError: If it is not a JPEG, PNG or WebP that may be decoded, or has more than `max_pixels` (width *
            height); the message is the reason.
    """
    # The format is read from the bytes: names and extensions of real datasets are often wrong.
    if data[:3] == b"\xff\xd8\xff":
        header = _read_jpeg(data)
    elif data[:8] == _PNG_MAGIC:
        header = _read_png(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = _read_webp(data)
    else:
        raise BadSampleError(
            f"not a JPEG, PNG or WebP: {len(data)} bytes starting {bytes(data[:4]).hex() or '(empty)'}"
        )
    # The sides are claims: they are compared with limits before any decoder allocates for them.
    if not (0 < header.width <= MAX_SIDE and 0 < header.height <= MAX_SIDE):
        raise BadSampleError(f"image sides must be in 1..{MAX_SIDE} pixels; got {header.width} x {header.height}")
    if header.width * header.height > max_pixels:
        raise BadSampleError(f"image is over {max_pixels} pixels: its header says {header.width} x {header.height}")
    if header.width * header.height > max(_ALWAYS_ALLOWED_PIXELS, _MAX_PIXELS_PER_BYTE * len(data)):
        raise BadSampleError(
            f"image claims {header.width} x {header.height} pixels in {len(data)} bytes; "
            f"a large image may claim at most {_MAX_PIXELS_PER_BYTE} per byte"
        )
    return header


def _read_jpeg(data: bytes) -> ImageHeader:
    """Walk the marker segments up to the first scan."""
    position, frame = 2, None
    while position + 5 <= len(data):
        if data[position] != 0xFF:
            raise BadSampleError(f"JPEG marker expected at byte {position}; got 0x{data[position]:02x}")
        marker = data[position + 1]
        # Fill bytes before a marker, and markers without a segment, have no length after them.
        if marker == 0xFF or marker in _STANDALONE:
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            break
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if length < 2:
            raise BadSampleError(f"JPEG segment 0x{marker:02x} has length {length}")
        if marker in _SOF_ALL:
            if frame is not None:
                raise BadSampleError("JPEG has two frame headers")
            frame = _read_frame(marker, data[position + 4 : position + 2 + length], position)
        elif marker == 0xDA:
            if frame is None:
                raise BadSampleError("JPEG scan comes before the frame header")
            # Decoders stop after a first scan that holds all components; otherwise the number of scans sets the cost.
            if not frame.progressive and data[position + 4] == frame.components:
                return frame
            scans = data.count(b"\xff\xda", position)
            if scans > MAX_SCANS:
                raise BadSampleError(f"JPEG has {scans} scans; at most {MAX_SCANS} are decoded")
            return replace(frame, progressive=True)
        position += 2 + length
    raise BadSampleError("JPEG ends before its first scan")


def _read_frame(marker: int, body: bytes, position: int) -> ImageHeader:
    if marker not in _SOF_SUPPORTED:
        raise BadSampleError(f"JPEG coding 0x{marker:02x} is not supported; baseline and progressive Huffman are")
    if len(body) < 6:
        raise BadSampleError("JPEG frame header is cut short")
    precision, height, width, components = struct.unpack_from(">BHHB", body)
    if precision != 8 or components not in (1, 3, 4):
        raise BadSampleError(f"JPEG must have 8 bits and 1, 3 or 4 components; got {precision} and {components}")
    return ImageHeader(
        format="jpeg",
        width=width,
        height=height,
        components=components,
        frame_offset=position,
        progressive=marker == 0xC2,
    )


def _read_png(data: bytes) -> ImageHeader:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise BadSampleError("PNG does not start with its IHDR chunk")
    width, height, _, colour = struct.unpack_from(">IIBB", data, 16)
    components = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour)
    if components is None:
        raise BadSampleError(f"PNG colour type {colour} does not exist")
    return ImageHeader(format="png", width=width, height=height, components=components)


def _read_webp(data: bytes) -> ImageHeader:
    """Read the canvas from the first chunk: VP8X (extended), VP8L (lossless) or VP8 (lossy)."""
    chunk = data[12:16]
    if len(data) < 30:
        raise BadSampleError("WebP ends inside its first chunk")
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
    elif chunk == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise BadSampleError(f"WebP starts with an unknown chunk {bytes(chunk).hex()}")
    return ImageHeader(format="webp", width=width, height=height, components=3)
