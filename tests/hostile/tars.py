"""Tars that lie: about sizes, names, kinds and ends; and DALI indices beside a sound one."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from functools import cache, partial

from tests.hostile.case import ACCEPTED, SUBSTITUTED, Case
from tests.hostile.images import jpeg

BLOCK = 512
END = bytes(2 * BLOCK)
BAD = "BadShardError"


def octal(number: int, digits: int) -> bytes:
    return b"%0*o\0" % (digits - 1, number)


def header(
    name: bytes, size: int = 0, kind: bytes = b"0", *, field: bytes | None = None, magic: bytes = b"ustar\x0000"
) -> bytes:
    """A member's header with a checksum that is right; `field` stands where its size would."""
    block = bytearray(BLOCK)
    block[0 : len(name[:100])] = name[:100]
    block[100:124] = octal(0o644, 8) + octal(0, 8) + octal(0, 8)
    block[124:136] = octal(size, 12) if field is None else field.ljust(12, b"\0")
    block[136:148] = octal(0, 12)
    block[156:157] = kind
    block[257 : 257 + len(magic)] = magic
    return checked(block)


def checked(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes | None = None, kind: bytes = b"0", **how: bytes) -> bytes:
    data = jpeg() if data is None else data
    return header(name, len(data), kind, **how) + data + bytes(-len(data) % BLOCK)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """A PAX header with these `key=value` records."""
    return member(b"PaxHeader", b"".join(map(record, records)), kind)


def record(text: bytes) -> bytes:
    length = len(text) + 3
    while len(b"%d %s\n" % (length, text)) != length:
        length += 1
    return b"%d %s\n" % (length, text)


@cache
def two() -> bytes:
    """Two sound members, without an end."""
    return member(b"a.jpg") + member(b"b.jpg")


def sound() -> bytes:
    return two() + END


def first_size(field: bytes) -> bytes:
    """A sound tar whose first member's size is this field."""
    return header(b"a.jpg", field=field) + sound()[BLOCK:]


def signed_checksum() -> bytes:
    block = bytearray(header("é.jpg".encode("latin-1"), len(jpeg())))
    total = sum(byte - 256 * (byte > 127) for byte in block[:148]) + 256 + sum(block[156:])
    block[148:156] = b"%06o\0 " % total
    return bytes(block) + jpeg() + bytes(-len(jpeg()) % BLOCK) + END


def in_between(*parts: bytes) -> bytes:
    """A sound tar with these parts between its members."""
    return member(b"a.jpg") + b"".join(parts) + member(b"b.jpg") + END


Make = Callable[[], bytes]


def _sizes() -> Iterator[tuple[str, Make, str, str]]:
    for name, field, says in (
        ("negative size", b"\xff" * 12, "unreadable member size"),
        ("size of 2^70", b"\x80" + (2**70).to_bytes(11, "big"), "does not fit"),
        ("size of 8 GB", b"77777777777\0", "does not fit"),
        ("size in letters", b"zzzzzzzzzzz\0", "unreadable member size"),
        ("size in hex", b"0x10\0", "unreadable member size"),
        ("size with a sign", b"-0000000010\0", "unreadable member size"),
        ("size left out", b" " * 12, "bad header checksum"),
        ("size after a zero byte", b"\x00" + b"7" * 11, "bad header checksum"),
        ("size of zero", b"0\0", "bad header checksum"),
    ):
        yield name, partial(first_size, field), BAD, says
    yield "one byte cut off the data", lambda: sound()[: len(two()) - BLOCK], BAD, "truncated"
    yield "cut in a header", lambda: sound()[: BLOCK // 2], BAD, "truncated"
    yield "cut after a header", lambda: sound()[:BLOCK], BAD, "truncated"
    yield "cut between members", lambda: member(b"a.jpg"), BAD, "no end-of-archive marker"
    yield "no end", two, BAD, "no end-of-archive marker"
    yield "an end of one block", lambda: two() + bytes(BLOCK), ACCEPTED, "2 samples"
    yield "bytes after the end", lambda: sound() + b"x" * 100_000, ACCEPTED, "2 samples"
    yield "members after the end", lambda: sound() + member(b"c.jpg") + END, ACCEPTED, "2 samples"
    yield "no byte", bytes, BAD, "truncated"
    yield "zeros only", lambda: bytes(20 * BLOCK), "ValueError", "no images"
    yield "half a block of zeros", lambda: bytes(256), BAD, "truncated"
    yield "garbage", lambda: bytes(range(256)) * 100, BAD, "bad header checksum"


def _kinds() -> Iterator[tuple[str, Make, str, str]]:
    kinds = ("hard link", "symbolic link", "character device", "block device", "directory", "pipe")
    for kind, what in enumerate(kinds, start=1):
        link = header(b"c.jpg", 5 * BLOCK, b"%d" % kind)
        yield f"{what} with a size", partial(in_between, link), ACCEPTED, "2 samples"
    yield "old directory with a size", lambda: in_between(header(b"folder/", 5 * BLOCK, b"\0")), ACCEPTED, "2 samples"
    for what, kind in (("unknown kind", b"Z"), ("volume label", b"V"), ("second volume", b"M"), ("dump", b"D")):
        yield what, partial(in_between, member(b"c.jpg", b"x" * 600, kind)), ACCEPTED, "2 samples"
    yield "sparse file", lambda: in_between(member(b"c.jpg", kind=b"S")), BAD, "sparse"
    for number in (b"GNU.sparse.size=9", b"GNU.sparse.map=0,9", b"GNU.sparse.major=1"):
        label = number.decode().partition("=")[0]
        yield f"sparse by {label}", partial(in_between, pax(number), member(b"c.jpg")), BAD, "sparse"
    yield "contiguous file", lambda: in_between(member(b"c.jpg", kind=b"7")), ACCEPTED, "3 samples"
    yield "before POSIX", lambda: member(b"a.jpg", kind=b"\0", magic=b"") + END, ACCEPTED, "1 samples"
    yield "no checksum", lambda: sound().replace(sound()[148:156], bytes(8), 1), BAD, "bad header checksum"
    yield "wrong checksum", lambda: sound()[:148] + b"000001\0 " + sound()[156:], BAD, "bad header checksum"
    yield "checksum of signed bytes", signed_checksum, ACCEPTED, "1 samples"
    yield "compressed", lambda: gzip.compress(sound(), mtime=0), BAD, "bad header checksum"


def _names() -> Iterator[tuple[str, Make, str, str]]:
    yield "absolute path", lambda: member(b"/etc/cron.d/x.jpg") + END, ACCEPTED, "1 samples"
    yield "path upwards", lambda: member(b"../../../etc/x.jpg") + END, ACCEPTED, "1 samples"
    yield "name of other letters", lambda: member(b"\xe9\xff.jpg") + END, ACCEPTED, "1 samples"
    yield "name with lines", lambda: member(b"a\nb\x1b[2J.jpg") + END, ACCEPTED, "1 samples"
    yield "no name", lambda: member(b"") + END, "ValueError", "no images"
    yield "name is a dot", lambda: member(b".jpg") + END, "ValueError", "no images"
    yield "a name twice", lambda: member(b"a.jpg") + sound(), BAD, "twice"
    yield "a name twice apart", lambda: two() + member(b"a.jpg") + END, BAD, "twice"
    yield "long name", lambda: in_between(member(b"L", b"n" * 5000 + b"\0", b"L"), member(b"c")), BAD, "5000 characters"
    yield "longest name", lambda: in_between(member(b"L", b"n" * 2_000_000, b"L")), BAD, "name record of 2000000"
    yield "long name of nobody", lambda: member(b"L", b"n" * 200 + b"\0", b"L") + END, "ValueError", "no images"
    yield "long name without an end", lambda: two() + member(b"L", b"n" * 200, b"L")[:600], BAD, "truncated"
    yield "long link", lambda: in_between(member(b"K", b"n" * 200 + b"\0", b"K")), ACCEPTED, "2 samples"
    yield "a thousand long names", lambda: in_between(member(b"L", b"n\0", b"L") * 1000), ACCEPTED, "1 samples"
    yield "twenty thousand empty members", lambda: header(b"x.txt") * 1 + _empty_members(), ACCEPTED, "1 samples"
    yield "zero bytes of image", lambda: member(b"a.jpg", b"") + member(b"b.jpg") + END, SUBSTITUTED, "0 bytes"
    for what, label in (("negative", b"-5"), ("huge", b"9" * 40), ("not a number", b"nan"), ("long", b"1" * 10**6)):
        tar = partial(lambda text: member(b"a.jpg") + member(b"a.cls", text) + END, label)
        yield f"label {what}", tar, ACCEPTED, "label -1"
    yield "label of a billion", lambda: member(b"a.jpg") + member(b"a.cls", b"999999999") + END, ACCEPTED, "1 samples"


def _empty_members() -> bytes:
    return b"".join(header(b"%05d.txt" % number) for number in range(20_000)) + member(b"a.jpg") + END


def _paxes() -> Iterator[tuple[str, Make, str, str]]:
    right = b"size=%d" % len(jpeg())
    for what, body, verdict, says in (
        ("another path", pax(b"path=other.jpg") + member(b"c.jpg"), ACCEPTED, "3 samples"),
        ("path of a link", pax(b"path=other.jpg") + header(b"c.jpg", 9, b"2"), ACCEPTED, "2 samples"),
        ("the right size", pax(right) + header(b"c.jpg") + member(b"")[BLOCK:], ACCEPTED, "3 samples"),
        ("too large a size", pax(b"size=999999999") + member(b"c.jpg"), BAD, "does not fit"),
        ("too small a size", pax(b"size=1") + member(b"c.jpg"), BAD, "bad header checksum"),
        ("negative size", pax(b"size=-1") + member(b"c.jpg"), BAD, "unreadable member size"),
        ("size of a fraction", pax(b"size=1.5") + member(b"c.jpg"), BAD, "unreadable member size"),
        ("size of many digits", pax(b"size=" + b"9" * 5000) + member(b"c.jpg"), BAD, "unreadable member size"),
        ("size in other digits", pax("size=\u0661".encode()) + member(b"c.jpg"), BAD, "unreadable member size"),
        ("size of all", pax(b"size=9", kind=b"g") + member(b"c.jpg"), BAD, "one size"),
        (
            "size of a long name",
            pax(b"size=9") + member(b"L", b"nn\0", b"L") + member(b"c.jpg", b"123456789"),
            ACCEPTED,
            "2 samples",
        ),
        ("path of 9,000", pax(b"path=" + b"p" * 9000) + member(b"c.jpg"), BAD, "9000 characters"),
        ("two records, the first holds", pax(b"path=b.txt") + pax(b"path=a.jpg") + member(b"c"), ACCEPTED, "2 samples"),
        ("length of zero", member(b"P", b"0 a=b\n", b"x"), BAD, "malformed PAX"),
        ("length too long", member(b"P", b"999 a=b\n", b"x"), BAD, "malformed PAX"),
        ("length of many digits", member(b"P", b"9" * 600 + b" a=b\n", b"x"), BAD, "malformed PAX"),
        ("length negative", member(b"P", b"-6 a=b\n", b"x"), BAD, "malformed PAX"),
        ("no value", member(b"P", b"5 ab\n", b"x"), BAD, "malformed PAX"),
        ("no line end", member(b"P", b"6 a=bc", b"x"), BAD, "malformed PAX"),
        ("record cut", member(b"P", b"60 a=" + b"v" * 20, b"x"), BAD, "malformed PAX"),
        ("binary record", member(b"P", bytes(range(1, 255)), b"x"), BAD, "malformed PAX"),
    ):
        yield f"pax: {what}", partial(in_between, body), verdict, says
    small = b"6 a=b\n" * (1_000_000 // 6)
    yield "pax: 166,666 records", lambda: in_between(member(b"PaxHeader", small, b"x")), ACCEPTED, "2 samples"
    large = b"v" * 1_000_000
    keyed = partial(map, lambda number: pax(b"key%d=" % number + large), range(80))
    yield "pax: 80 MB of records", lambda: in_between(*keyed()), ACCEPTED, "2 samples"
    yield "pax: for all, of all", lambda: pax(b"path=same.jpg", kind=b"g") + sound(), BAD, "twice"


def cases() -> Iterator[Case]:
    for family in (_sizes, _kinds, _names, _paxes):
        for name, make, verdict, says in family():
            yield Case(name=f"tar/{name}", place="shard", verdict=verdict, says=says, make=make, suffix=".tar")
