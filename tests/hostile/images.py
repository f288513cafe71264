"""Images that lie about their sides, carry more than they say, end early, or are something else."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
from PIL import Image

from tests.hostile.case import ACCEPTED, EITHER, SUBSTITUTED, Case, rng
from tests.samples import encoded, with_sides

Make = Callable[[], bytes]


@cache
def picture(mode: str = "RGB", width: int = 40, height: int = 30) -> Image.Image:
    """A gradient with noise."""
    noise = np.random.default_rng(5).integers(0, 60, (height, width, 3))
    ramp = np.linspace(0, 190, width)[None, :, None] + np.linspace(0, 5, height)[:, None, None]
    return Image.fromarray((ramp + noise).astype(np.uint8)).convert(mode)


@cache
def jpeg(mode: str = "RGB", progressive: bool = False) -> bytes:
    return encoded(picture(mode), progressive=progressive, quality=85)


def made(kind: str, mode: str = "RGB", **options: object) -> bytes:
    return encoded(picture(mode), kind, **options)


def frame(marker: int, *, precision: int = 8, components: int | None = None) -> bytes:
    """A JPEG with another kind of frame header."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, precision
    data[at + 9] = components if components is not None else data[at + 9]
    return bytes(data)


def with_segment(segment: bytes) -> bytes:
    """A JPEG with bytes put in behind its start."""
    return jpeg()[:2] + segment + jpeg()[2:]


def scans(count: int, *, progressive: bool) -> bytes:
    """A JPEG that repeats one scan."""
    data = jpeg(progressive=progressive)
    at = data.index(b"\xff\xda")
    scan = data[at : at + 60] if progressive else b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"\x00" * 20
    return data[:at] + scan * count + b"\xff\xd9"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, raw: bytes, *extra: bytes, colour: int = 2, depth: int = 8, end: bool = True) -> bytes:
    """A PNG of these bytes, with chunks between its header and its data."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(raw, 9)) if raw else b""
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + body + (chunk(b"IEND", b"") if end else b"")


def rows(width: int, height: int) -> bytes:
    return (b"\0" + bytes(3 * width)) * height


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    return b"VP8X", bytes((flags, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def flat_webp(side: int) -> bytes:
    return encoded(Image.new("RGB", (side, side)), "WEBP", lossless=True)


def _jpegs() -> Iterator[tuple[str, Make, str, str]]:
    for mode in ("RGB", "L", "CMYK"):
        for progressive in (False, True):
            yield f"sound {mode} {progressive}", partial(jpeg, mode, progressive), ACCEPTED, ""
    for width, height in ((20_000, 20_000), (65_500, 65_500), (65_535, 1), (7_000, 7_000), (0, 30), (40, 0)):
        lie = partial(lambda w, h: with_sides(jpeg(), w, h), width, height)
        yield f"claims {width} x {height}", lie, SUBSTITUTED, f"{width} x {height}"
        lie = partial(lambda w, h: with_sides(jpeg("CMYK"), w, h), width, height)
        yield f"CMYK claims {width} x {height}", lie, SUBSTITUTED, f"{width} x {height}"
    yield "claims a row more", lambda: with_sides(jpeg(), 40, 64), SUBSTITUTED, ""
    yield "2,000 progressive scans", partial(scans, 2000, progressive=True), SUBSTITUTED, "scans"
    yield "2,000 sequential scans", partial(scans, 2000, progressive=False), SUBSTITUTED, "scans"
    for marker in (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF):
        yield f"frame 0x{marker:x}", partial(frame, marker), SUBSTITUTED, "not supported"
    yield "baseline called progressive", partial(frame, 0xC2), SUBSTITUTED, ""
    yield "12 bits", partial(frame, 0xC1, precision=12), SUBSTITUTED, "8 bits"
    for components in (0, 2, 5, 255):
        yield f"{components} components", partial(frame, 0xC0, components=components), SUBSTITUTED, "components"
    second = jpeg()[jpeg().index(b"\xff\xc0") :][:19]
    yield "two frames", lambda: with_segment(second), SUBSTITUTED, "two frame headers"
    yield "no frame", lambda: jpeg().replace(second, b""), SUBSTITUTED, "before the frame"
    yield "frame after the scan", lambda: jpeg().replace(second, b"")[:-2] + second + b"\xff\xd9", SUBSTITUTED, "before"
    yield "no scan", lambda: jpeg()[: jpeg().index(b"\xff\xda")], SUBSTITUTED, "before its first scan"
    yield "no end", lambda: jpeg()[:-2], SUBSTITUTED, ""
    yield "an end at once", lambda: b"\xff\xd8\xff\xd9" * 10, SUBSTITUTED, ""
    yield "start only", lambda: b"\xff\xd8\xff", SUBSTITUTED, "before its first scan"
    yield "segment of length 0", lambda: with_segment(b"\xff\xe1\x00\x00"), SUBSTITUTED, "length 0"
    yield "segment past the end", lambda: with_segment(b"\xff\xe1\xff\xff"), SUBSTITUTED, ""
    yield "garbage between segments", lambda: with_segment(b"\xff\xfe\0\2gar"), SUBSTITUTED, "marker expected"
    yield "60,000 fill bytes", lambda: with_segment(b"\xff" * 60_000), ACCEPTED, ""
    yield "10,000 comments", lambda: with_segment(b"\xff\xfe\x00\x02" * 10_000), ACCEPTED, ""
    yield "64 KB of EXIF", lambda: with_segment(b"\xff\xe1\xff\xffExif\0\0" + b"M" * 65_527), ACCEPTED, ""
    yield "a profile in 255 parts", lambda: with_segment(b"\xff\xe2\x00\x12ICC_PROFILE\0\x01\xffxx" * 255), EITHER, ""
    yield "a megabyte behind it", lambda: jpeg() + bytes(1_000_000), EITHER, ""
    yield "an image behind it", lambda: jpeg() + jpeg("L"), EITHER, ""
    yield "restart interval of 1", lambda: with_segment(b"\xff\xdd\x00\x04\x00\x01"), SUBSTITUTED, ""
    for part in range(1, 10):
        cut = partial(lambda tenth: jpeg()[: len(jpeg()) * tenth // 10], part)
        yield f"cut at {part}0 %", cut, SUBSTITUTED, ""
    for number in range(12):
        yield f"bits flipped {number}", partial(flipped, jpeg, number), EITHER, ""
        yield f"progressive bits flipped {number}", partial(flipped, partial(jpeg, "RGB", True), number), EITHER, ""
        yield f"CMYK bits flipped {number}", partial(flipped, partial(jpeg, "CMYK"), number), EITHER, ""


def flipped(make: Make, number: int) -> bytes:
    data, random = bytearray(make()), rng(f"flip {number}")
    for _ in range(1 + number):
        data[random.randrange(20, len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def _pngs() -> Iterator[tuple[str, Make, str, str]]:
    for mode in ("RGB", "L", "RGBA", "P", "LA", "1"):
        yield f"PNG {mode}", partial(made, "PNG", mode), ACCEPTED, ""
    yield "PNG of 16 bits", lambda: png(8, 8, (b"\0" + bytes(range(48))) * 8, depth=16), ACCEPTED, ""
    yield "PNG of 2^31", lambda: png(2**31 - 1, 2**31 - 1, b"x"), SUBSTITUTED, "sides"
    yield "PNG of nothing", lambda: png(0, 0, b"x"), SUBSTITUTED, "sides"
    yield "PNG of 60,000 x 800", lambda: png(60_000, 800, b"x"), SUBSTITUTED, "per byte"
    yield "PNG of 6,000 x 6,000 zeros", lambda: png(6000, 6000, rows(6000, 6000)), SUBSTITUTED, "per byte"
    yield "PNG of one bit, 7,000 x 7,000", lambda: png(7000, 7000, bytes(876 * 7000), colour=0, depth=1), *PACKED
    yield "PNG that unpacks to 100 MB", lambda: png(30, 30, rows(30, 30) + bytes(10**8)), EITHER, ""
    text = b"Comment\0\0" + zlib.compress(bytes(10**8), 9)
    yield "PNG with 100 MB of text", lambda: png(30, 30, rows(30, 30), chunk(b"zTXt", text)), EITHER, ""
    profile = b"icc\0\0" + zlib.compress(bytes(10**8), 9)
    yield "PNG with 100 MB of profile", lambda: png(30, 30, rows(30, 30), chunk(b"iCCP", profile)), EITHER, ""
    words = b"Comment\0\1\0\0\0" + zlib.compress(bytes(10**8), 9)
    yield "PNG with 100 MB of words", lambda: png(30, 30, rows(30, 30), chunk(b"iTXt", words)), EITHER, ""
    yield "PNG without data", lambda: png(30, 30, b""), SUBSTITUTED, ""
    yield "PNG without an end", lambda: png(30, 30, rows(30, 30), end=False), EITHER, ""
    yield "PNG too short", lambda: png(30, 30, rows(30, 20)), EITHER, ""
    yield "PNG without a palette", lambda: png(30, 30, bytes(31 * 30), colour=3), EITHER, ""
    yield "PNG of colour type 5", lambda: png(30, 30, rows(30, 30), colour=5), SUBSTITUTED, "colour type"
    yield "PNG of depth 3", lambda: png(30, 30, rows(30, 30), depth=3), SUBSTITUTED, ""
    yield "PNG filter 9", lambda: png(8, 8, (b"\x09" + bytes(24)) * 8), SUBSTITUTED, ""
    yield "PNG with short chunks", lambda: png(30, 30, rows(30, 30), *SHORT_CHUNKS), EITHER, ""
    yield "PNG with two headers", lambda: png(30, 30, rows(30, 30), png(9, 9, b"")[8:33]), EITHER, ""
    yield "PNG with a wrong CRC", lambda: made("PNG")[:-20] + b"\0" + made("PNG")[-19:], EITHER, ""
    frames = {"save_all": True, "append_images": [picture().rotate(90 * n) for n in (1, 2, 3)], "duration": 5}
    yield "APNG", partial(made, "PNG", **frames), ACCEPTED, ""
    claims = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    yield "APNG of 2^31 frames", lambda: png(30, 30, rows(30, 30), claims), EITHER, ""
    for number in range(6):
        yield f"PNG bits flipped {number}", partial(flipped, partial(made, "PNG"), number), EITHER, ""


PACKED = (SUBSTITUTED, "per byte")
SHORT_CHUNKS = tuple(chunk(kind, b"\1") for kind in (b"gAMA", b"cHRM", b"pHYs", b"sRGB", b"tRNS", b"eXIf", b"fcTL"))


def _webps() -> Iterator[tuple[str, Make, str, str]]:
    for lossless in (False, True):
        yield f"WebP lossless={lossless}", partial(made, "WEBP", lossless=lossless), ACCEPTED, ""
    yield "WebP of one pixel", partial(flat_webp, 1), ACCEPTED, ""
    yield "WebP of 16,000 x 16,000", lambda: riff(vp8x(16_000, 16_000)) + bytes(20), SUBSTITUTED, "over"
    yield "WebP of 2^24", lambda: riff(vp8x(2**24, 2**24)) + bytes(20), SUBSTITUTED, "sides"
    yield "WebP of 5,000 x 5,000, flat", partial(flat_webp, 5000), SUBSTITUTED, "per byte"
    yield "WebP canvas without a picture", lambda: riff(vp8x(50, 50)) + bytes(20), SUBSTITUTED, ""
    small = made("WEBP")[12:]
    large = b"RIFF" + struct.pack("<I", 22 + len(small)) + b"WEBP" + riff(vp8x(2000, 2000))[12:] + small
    yield "WebP canvas larger than its picture", lambda: large, SUBSTITUTED, ""
    yield "WebP of no known chunk", lambda: riff((b"EVIL", bytes(40))), SUBSTITUTED, "unknown chunk"
    yield "WebP cut in its head", lambda: made("WEBP")[:25], SUBSTITUTED, ""
    yield "WebP cut", lambda: made("WEBP")[:-100], SUBSTITUTED, ""
    yield "WebP of a wrong length", lambda: b"RIFF\xff\xff\xff\xff" + made("WEBP")[8:], EITHER, ""
    frames = {"save_all": True, "append_images": [picture().rotate(90 * n) for n in (1, 2, 3)], "duration": 5}
    yield "WebP that moves", partial(made, "WEBP", **frames), ACCEPTED, ""
    for number in range(6):
        yield f"WebP bits flipped {number}", partial(flipped, partial(made, "WEBP"), number), EITHER, ""


def _others() -> Iterator[tuple[str, Make, str, str]]:
    for what, data in (
        ("GIF", b"GIF89a" + bytes(40)),
        ("BMP", b"BM" + bytes(60)),
        ("TIFF", b"II*\0" + bytes(60)),
        ("SVG with a script", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"),
        ("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n"),
        ("PDF", b"%PDF-1.7\n" + bytes(60)),
        ("web page", b"<!doctype html><img src=x onerror=alert(1)>"),
        ("zip", b"PK\x03\x04" + bytes(60)),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60)),
        ("AVIF", b"\0\0\0\x1cftypavif" + bytes(60)),
        ("one byte", b"\xff"),
        ("zeros", bytes(4096)),
    ):
        yield f"{what} called an image", partial(bytes, data), SUBSTITUTED, "not a JPEG, PNG or WebP"


def cases() -> Iterator[Case]:
    for family in (_jpegs, _pngs, _webps, _others):
        for name, make, verdict, says in family():
            yield Case(name=f"image/{name}", place="sample", verdict=verdict, says=says, make=make, suffix=".jpg")
