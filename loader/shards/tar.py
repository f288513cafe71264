"""Walks a tar without extracting it: names, offsets and sizes of its regular files.

Reads USTAR, PAX (`x` and `g` records) and GNU (`L` long names, base-256 sizes). Links, devices and directories are
skipped, sparse files refused; nothing is ever written to disk. Every header's checksum is verified and every size is
bounded by the file, so a truncated or hostile archive is an error before anything is allocated for it.
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
"""Links, devices, directories and pipes: no data follows their header, whatever its size field holds."""
_USED_FIELDS: Final = ("path", "size", "GNU.sparse.name")
_ZEROS: Final = bytes(BLOCK)
_COPY_AGAIN: Final = "Copy it again, or rebuild it with `tempera shards build`."

ReadAt = Callable[[int, int], bytes]
"""(offset, size) -> bytes; fewer only at the end of the file."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """One regular file in a tar: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


def walk_tar(read_at: ReadAt, total_bytes: int, *, url: str) -> Iterator[TarMember]:
    """Yield the regular files of a tar in order.

    Raises:
        BadShardError: If the archive is truncated, has no end marker, or a header cannot be trusted.
    """
    position = 0
    defaults: dict[str, str] = {}
    extra: dict[str, str] = {}
    while True:
        block = read_at(position, BLOCK)
        if len(block) < BLOCK:
            raise BadShardError(f"{url} is truncated: it has no end-of-archive marker (byte {position}). {_COPY_AGAIN}")
        if block == _ZEROS:
            return  # the archive ends with zero blocks; one is enough for us
        kind = _kind(block)
        # A PAX size belongs to the member, not to a further record between the two.
        size = _member_size(block, None if kind in _METADATA else extra.get("size"), url=url, position=position)
        size = 0 if kind in _WITHOUT_DATA else size
        data = position + BLOCK
        # Before anything of the member is read: the size is the file's own claim.
        if data + size > total_bytes:
            raise BadShardError(
                f"{url} is truncated: a member of {size} bytes does not fit in {total_bytes} (byte {position}). "
                f"{_COPY_AGAIN}"
            )
        position = data + -(-size // BLOCK) * BLOCK
        # Records of these kinds describe the member after them (`g`: all members after it).
        if kind in _METADATA:
            if size > _MAX_METADATA:
                raise BadShardError(f"{url} has a name record of {size} bytes at byte {data}; at most {_MAX_METADATA}")
            record = _read_metadata(read_at(data, size), kind, url=url)
            if kind == b"g":
                defaults |= record
            else:
                extra = record | extra  # the first of two records for one member wins, as in Python's tarfile
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
    """Return whether a block is a valid tar header of a regular file of `size` bytes, or 0 with a PAX size."""
    if len(block) != BLOCK or not _checksum_ok(block) or _kind(block) not in _REGULAR:
        return False
    return _number(block[124:136]) in (size, 0)


def member_name(block: bytes) -> str:
    """Return the name in a member's own header; a record before it may hold a longer one."""
    # Only POSIX headers ("ustar" and a zero) have a prefix; GNU's keep times in those bytes.
    name = block[:100].rstrip(b"\0").split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def split_name(name: str) -> tuple[str, str]:
    """Return a member's sample key and extension.

    WebDataset splits at the first dot after the last slash: "a/b.seg.png" is ("a/b", "seg.png").
    """
    dot = name.find(".", name.rfind("/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :])


def read_ahead(read_at: ReadAt, *, chunk_bytes: int = 8 << 20) -> ReadAt:
    """Return a function, for one thread, that turns a walk's small, rising reads into few of at least `chunk_bytes`.

    Over a network each read costs a round trip.
    """
    start, data = 0, b""

    def read(offset: int, size: int) -> bytes:
        nonlocal start, data
        if not start <= offset or offset + size > start + len(data):
            start, data = offset, read_at(offset, max(size, chunk_bytes))
        return data[offset - start : offset - start + size]

    return read


def _kind(block: bytes) -> bytes:
    """Return a header's type. Before POSIX, a regular file whose name ends in a slash was a directory."""
    kind = block[156:157]
    return b"5" if kind == b"\0" and block[:100].split(b"\0", 1)[0].endswith(b"/") else kind


def _member_size(block: bytes, pax_size: str | None, *, url: str, position: int) -> int:
    """Return a member's size from a PAX record, or else from its header, whose checksum is verified first."""
    if not _checksum_ok(block):
        raise BadShardError(f"{url} is not a valid tar: bad header checksum at byte {position}. Rebuild or re-copy it.")
    size: int | None
    if pax_size is None:
        size = _number(block[124:136])
    else:
        size = int(pax_size) if pax_size.isascii() and pax_size.isdigit() and len(pax_size) < 20 else None
    if size is None or size < 0:
        raise BadShardError(f"{url} is not a valid tar: unreadable member size at byte {position}. Rebuild it.")
    return size


def _checksum_ok(block: bytes) -> bool:
    """Compare with the sum of the header's bytes, its own field read as blanks: unsigned, or signed as in old tars."""
    stored = _number(block[148:156])
    total = sum(block) - sum(block[148:156]) + 8 * 32
    if stored == total:
        return True
    # Read as signed, each byte from 128 up counts 256 less.
    high = sum(byte >= 128 for byte in block[:148]) + sum(byte >= 128 for byte in block[156:])
    return stored == total - 256 * high


def _number(field: bytes) -> int | None:
    """Read octal digits, or GNU's big-endian base-256 when the first bit is set; None when it is neither."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    return int(digits, 8) if all(48 <= digit < 56 for digit in digits) else None


def _read_metadata(body: bytes, kind: bytes, *, url: str) -> dict[str, str]:
    """Return the fields of a GNU or PAX record that decide a member's name, size or kind.

    A PAX field is its length, a blank, key=value and a newline, where the length counts itself. Other fields may hold
    anything and are skipped.
    """
    if kind == b"L":
        return {"path": body.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
    if kind == b"K":
        return {}
    fields: dict[str, str] = {}
    at, end = 0, len(body.rstrip(b"\0"))
    while at < end:
        digits, _, _ = body[at : at + 16].partition(b" ")
        stop = at + int(digits) if digits.isdigit() else 0
        key, found, value = body[at + len(digits) + 1 : stop - 1].partition(b"=")
        if not found or stop > len(body) or body[stop - 1 : stop] != b"\n":
            raise BadShardError(f"{url} is not a valid tar: malformed PAX record. Rebuild or re-copy it.")
        name = key.decode("utf-8", "replace")
        if name in _USED_FIELDS:
            fields[name] = value.decode("utf-8", "surrogateescape").rstrip("/")
        elif name.startswith("GNU.sparse"):
            fields["GNU.sparse"] = ""
        at = stop
    if kind == b"g" and "size" in fields:
        raise BadShardError(f"{url} is not a valid tar: one record gives all its members one size. Rebuild it.")
    return fields
