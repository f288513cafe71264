"""Walks a tar without extracting it: names, offsets and sizes of its regular files.

Reads USTAR, PAX (`x` and `g` records) and GNU (`L` long names, base-256 sizes). Links, devices and directories are
passed over, sparse files refused; nothing is ever written to disk. Every header's checksum is verified and every size
is bounded by the file, so a truncated or hostile archive is an error before anything is allocated for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from loader.errors import BadShardError

BLOCK: Final = 512
_MAX_METADATA: Final = 1 << 20
"""Longest PAX or GNU name record that is read, in bytes."""
MAX_NAME: Final = 4096
"""Longest name of a member, in bytes: Linux's longest path."""
_REGULAR: Final = (b"0", b"\0", b"7")
_METADATA: Final = (b"x", b"X", b"g", b"L", b"K")
_WITHOUT_DATA: Final = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, directories and pipes: what their size field says does not follow them."""
_KEPT_FIELDS: Final = ("path", "size")
_ZEROS: Final = bytes(BLOCK)

ReadAt = Callable[[int, int], bytes]
"""(offset, size) -> bytes; fewer only at the end of the file."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """One regular file in a tar."""

    name: str
    offset: int
    """Where its bytes start in the tar."""
    size: int
    """Its length in bytes."""


def walk_tar(read_at: ReadAt, total_bytes: int, *, url: str) -> Iterator[TarMember]:
    """Yield the regular files of a tar in order.

    Args:
        read_at: Reads a range of the tar.
        total_bytes: Length of the tar.
        url: Names the tar in errors.

    Raises:
        BadShardError: If the archive is truncated, has no end marker, or a header cannot be trusted.
    """
    position = 0
    defaults: dict[str, str] = {}
    extra: dict[str, str] = {}
    while True:
        block = read_at(position, BLOCK)
        if len(block) < BLOCK:
            raise BadShardError(_cut(url, position, "it has no end-of-archive marker"))
        if block == _ZEROS:
            return
        kind = _kind(block)
        size = _checked_size(block, {} if kind in _METADATA else extra, url=url, position=position)
        size = 0 if kind in _WITHOUT_DATA else size
        data = position + BLOCK
        if data + size > total_bytes:
            raise BadShardError(_cut(url, position, f"a member of {size} bytes does not fit in {total_bytes}"))
        position = data + -(-size // BLOCK) * BLOCK
        if kind in _METADATA:
            record = _metadata(read_at(data, _bounded(size, url, data)), kind, url=url)
            if kind == b"g":
                defaults |= record
            else:
                extra = record | extra  # of two records for one member the first holds, as for Python's tarfile
            continue
        fields = defaults | extra
        extra = {}
        name = fields.get("path", member_name(block))
        if len(name) > MAX_NAME:
            raise BadShardError(f"{url} has a name of {len(name)} characters at byte {position}; at most {MAX_NAME}")
        if kind == b"S" or any(field.startswith("GNU.sparse") for field in fields):
            raise BadShardError(
                f"{url} holds {fields.get('GNU.sparse.name', name)!r} as a sparse file, whose bytes are not in one "
                "piece. Pack it again without --sparse."
            )
        if kind in _REGULAR:
            yield TarMember(name, data, size)


def is_member_header(block: bytes, size: int) -> bool:
    """Return whether a block is a valid tar header of a regular file of `size` bytes (PAX sizes excepted)."""
    if len(block) != BLOCK or not _checksum_ok(block) or _kind(block) not in _REGULAR:
        return False
    stored = _number(block[124:136])
    return stored in (size, 0)


def _checked_size(block: bytes, extra: dict[str, str], *, url: str, position: int) -> int:
    if not _checksum_ok(block):
        raise BadShardError(f"{url} is not a valid tar: bad header checksum at byte {position}. Rebuild or re-copy it.")
    text = extra.get("size")
    size = _number(block[124:136]) if text is None else _decimal(text)
    if size is None or size < 0:
        raise BadShardError(f"{url} is not a valid tar: unreadable member size at byte {position}. Rebuild it.")
    return size


def _checksum_ok(block: bytes) -> bool:
    """Compare with the sum of the header's bytes, its own field read as blanks: unsigned, or signed as old tars did."""
    stored = _number(block[148:156])
    total = sum(block) - sum(block[148:156]) + 8 * 32
    if stored == total:
        return True
    high = sum(byte >= 128 for byte in block[:148]) + sum(byte >= 128 for byte in block[156:])
    return stored == total - 256 * high


def _number(field: bytes) -> int | None:
    """Octal digits, or GNU's big-endian base-256 when the first bit is set; None when it is neither."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    return int(digits, 8) if all(48 <= digit < 56 for digit in digits) else None


def _decimal(text: str) -> int | None:
    """Return the number of a PAX record; None when it is none, or one that no file has."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _kind(block: bytes) -> bytes:
    """Return a header's type; before POSIX, a file whose name ended in a slash was a directory."""
    kind = block[156:157]
    return b"5" if kind == b"\0" and block[:100].split(b"\0", 1)[0].endswith(b"/") else kind


def member_name(block: bytes) -> str:
    """Return the name in a member's own header; records before it may hold a longer one."""
    name = block[:100].rstrip(b"\0").split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _bounded(size: int, url: str, position: int) -> int:
    if size > _MAX_METADATA:
        raise BadShardError(f"{url} has a name record of {size} bytes at byte {position}; at most {_MAX_METADATA}")
    return size


def _metadata(body: bytes, kind: bytes, *, url: str) -> dict[str, str]:
    if kind == b"L":
        return {"path": body.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
    fields = {} if kind == b"K" else _pax(body, url=url)
    if kind == b"g" and "size" in fields:
        raise BadShardError(f"{url} is not a valid tar: one record gives all its members one size. Rebuild it.")
    return fields


def _pax(body: bytes, *, url: str) -> dict[str, str]:
    """Each record is its length, a blank, key=value and a newline; the length counts itself.

    Only what decides a member's name, size and kind is kept: the rest may be anything, and as much as it likes.
    """
    fields, at, end = {}, 0, len(body.rstrip(b"\0"))
    while at < end:
        digits, _, _ = body[at : at + 16].partition(b" ")
        stop = at + int(digits) if digits.isdigit() else 0
        key, found, value = body[at + len(digits) + 1 : stop - 1].partition(b"=")
        if not found or stop > len(body) or body[stop - 1 : stop] != b"\n":
            raise BadShardError(f"{url} is not a valid tar: malformed PAX record. Rebuild or re-copy it.")
        name = key.decode("utf-8", "replace")
        if name in _KEPT_FIELDS or name == "GNU.sparse.name":
            fields[name] = value.decode("utf-8", "surrogateescape").rstrip("/")
        elif name.startswith("GNU.sparse"):
            fields["GNU.sparse"] = ""
        at = stop
    return fields


def _cut(url: str, position: int, why: str) -> str:
    return f"{url} is truncated: {why} (byte {position}). Copy it again, or rebuild it with `tempera shards build`."
