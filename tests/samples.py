"""Bytes of images and tars, sound ones and such as lie about themselves."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping

from PIL import Image


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """Return an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_sides(jpeg: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose frame header claims other sides."""
    at = next(jpeg.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in jpeg) + 5
    return jpeg[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + jpeg[at + 4 :]


def scan_bomb(progressive_jpeg: bytes) -> bytes:
    """Return a progressive JPEG that repeats its first scan 2,000 times."""
    scan = progressive_jpeg.index(b"\xff\xda")
    return progressive_jpeg[:scan] + progressive_jpeg[scan : scan + 60] * 2000 + b"\xff\xd9"


def tar_of(
    members: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    *,
    pax_headers: Mapping[str, str] | None = None,
    **options: object,
) -> bytes:
    """Return a tar of files, in order; a name may come twice when pairs are given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), dict(pax_headers or {})
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def with_size_field(tar: bytes, field: bytes) -> bytes:
    """Return a tar with another size in its first header, and a checksum that is right."""
    block = bytearray(tar[:512])
    block[124:136] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + tar[512:]
