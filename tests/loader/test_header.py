from __future__ import annotations

import time

import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loader.decode.header import read_header
from loader.errors import BadSampleError
from tests.samples import encoded, scan_bomb, with_sides

LIMIT = 50_000_000


def encode(kind: str, mode: str = "RGB", **options: object) -> bytes:
    return encoded(Image.new(mode, (37, 21)), kind, **options)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode("JPEG"), ("jpeg", 37, 21, 3, False)),
        (encode("JPEG", "L"), ("jpeg", 37, 21, 1, False)),
        (encode("JPEG", "CMYK"), ("jpeg", 37, 21, 4, False)),
        (encode("JPEG", progressive=True), ("jpeg", 37, 21, 3, True)),
        (encode("JPEG", exif=b"Exif\0\0" + bytes(500)), ("jpeg", 37, 21, 3, False)),
        (encode("PNG"), ("png", 37, 21, 3, False)),
        (encode("PNG", "RGBA"), ("png", 37, 21, 4, False)),
        (encode("WEBP"), ("webp", 37, 21, 3, False)),
        (encode("WEBP", lossless=True), ("webp", 37, 21, 3, False)),
        (encode("WEBP", "RGBA", exif=b"Exif\0\0" + bytes(50)), ("webp", 37, 21, 3, False)),
    ],
)
def test_headers_are_read(data, expected):
    header = read_header(data, max_pixels=LIMIT)
    assert (header.format, header.width, header.height, header.components, header.progressive) == expected


def seconds_to_refuse(data: bytes, message: str) -> float:
    """The best of ten: what it costs, not what the machine was busy with."""
    seconds = []
    for _ in range(10):
        started = time.thread_time()
        with pytest.raises(BadSampleError, match=message):
            read_header(data, max_pixels=LIMIT)
        seconds.append(time.thread_time() - started)
    return min(seconds)


def test_a_dimension_bomb_is_refused_in_five_milliseconds():
    assert seconds_to_refuse(with_sides(encode("JPEG"), 20_000, 20_000), "20000 x 20000") < 0.005


def test_a_scan_bomb_is_refused_in_five_milliseconds():
    assert seconds_to_refuse(scan_bomb(encode("JPEG", progressive=True)), "scans") < 0.005


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a JPEG"),
        (b"GIF89a" + bytes(50), "not a JPEG"),
        (b"\xff\xd8\xff", "before its first scan"),
        (b"\xff\xd8\xff\xd9" + bytes(20), "before its first scan"),
        (b"\xff\xd8\xff\xe0\x00\x01" + bytes(20), "length 1"),
        (b"\xff\xd8\xff\xe0\x00\x04ab12345678", "marker expected"),
        (with_sides(encode("JPEG"), 0, 10), "sides"),
        (with_sides(encode("JPEG"), 65_501, 1), "sides"),
        (encode("JPEG").replace(b"\xff\xc0", b"\xff\xc9", 1), "not supported"),
        (encode("JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c", 1), "8 bits"),
        (encode("PNG")[:20], "IHDR"),
        (encode("WEBP")[:20], "first chunk"),
        (encode("WEBP").replace(b"VP8 ", b"VP9 ", 1), "unknown chunk"),
    ],
)
def test_what_is_not_an_image_is_refused_with_its_reason(data, message):
    with pytest.raises(BadSampleError, match=message):
        read_header(data, max_pixels=LIMIT)


@settings(max_examples=500, deadline=None)
@given(
    data=st.sampled_from([encode("JPEG"), encode("PNG"), encode("WEBP"), encode("JPEG", progressive=True)]),
    cut=st.integers(0, 800),
    at=st.integers(0, 799),
    byte=st.integers(0, 255),
)
def test_damaged_headers_never_raise_anything_else(data, cut, at, byte):
    damaged = bytearray(data[:cut])
    if at < len(damaged):
        damaged[at] = byte
    try:
        header = read_header(bytes(damaged), max_pixels=LIMIT)
    except BadSampleError:
        return
    assert 0 < header.width * header.height <= LIMIT


def test_every_photograph_passes_with_the_sides_that_the_decoder_finds(photos):
    for photo in photos:
        header = read_header(photo, max_pixels=LIMIT)
        assert (header.height, header.width) == simplejpeg.decode_jpeg_header(photo)[:2]
