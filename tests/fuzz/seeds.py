"""Where each target begins: sound inputs, and those that the hostile corpus has for it."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from tests.fuzz.targets import sound_log, sound_rows, sound_snapshot
from tests.samples import encoded

METADATA = {"format": 1, "shard_urls": ["x.tar"], "shard_bytes": [4096], "class_names": [], "fingerprint": "ab"}


def seeds(target: str) -> list[bytes]:
    """Inputs that reach deep into a target."""
    return list(SEEDS[target]())


def mutants(target: str, *, count: int, seed: int = 0) -> Iterator[bytes]:
    """Seeded damage to the seeds: bytes flipped, cut, doubled, and parts of one in another."""
    rng, sound = random.Random(f"{target} {seed}"), seeds(target)
    for number in range(count):
        data = bytearray(sound[number % len(sound)])
        for _ in range(rng.randrange(1, 5)):
            at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 64))
            other = rng.choice(sound)
            start = rng.randrange(len(other) + 1)
            piece = rng.choice((bytes(length), rng.randbytes(length), b"\xff" * length, other[start : start + length]))
            data[at : at + rng.choice((0, length, length))] = rng.choice((piece, b"", piece * 3))
        yield bytes(data)


def _index() -> Iterator[bytes]:
    sink = io.BytesIO()
    pq.write_table(sound_rows(b"").replace_schema_metadata({b"tempera.index": json.dumps(METADATA).encode()}), sink)
    yield b"\0" + sink.getvalue()
    places = bytes((9, 6, 0, 2, 0, 0, 0, 0))
    yield b"\1" + places + json.dumps(METADATA).encode()
    for change in ({"format": 2}, {"shard_bytes": [1 << 62]}, {"shard_urls": "x.tar"}, {"shard_bytes": [1.5]}):
        yield b"\1" + places + json.dumps(METADATA | change).encode()


def _tar() -> Iterator[bytes]:
    long = "n" * 150
    for form, name in ((tarfile.USTAR_FORMAT, "a.jpg"), (tarfile.PAX_FORMAT, long), (tarfile.GNU_FORMAT, long)):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
            for number in range(2):
                member = tarfile.TarInfo(f"{number}{name}")
                member.size = 700 * number
                if form == tarfile.PAX_FORMAT:
                    member.pax_headers = {"size": str(member.size), "comment": "x"}
                tar.addfile(member, io.BytesIO(bytes(member.size)))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
            tar.addfile(link)
        yield sink.getvalue()[: 12 * 512]


def _image() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    for mode in ("RGB", "L", "CMYK"):
        for progressive in (False, True):
            yield encoded(picture.convert(mode), "JPEG", progressive=progressive)
    for mode in ("RGB", "L", "RGBA", "P", "LA", "1", "I;16"):
        yield encoded(picture.convert("I;16" if mode == "I;16" else mode), "PNG")
    yield encoded(picture, "PNG", save_all=True, append_images=[picture.rotate(90)], duration=10)
    for lossless in (False, True):
        yield encoded(picture, "WEBP", lossless=lossless)
    yield encoded(picture, "WEBP", save_all=True, append_images=[picture.rotate(180)], duration=10)


def _replay() -> Iterator[bytes]:
    yield b"\1" + sound_log()
    yield b"\0"
    rng = random.Random(1)
    for table in range(4):
        for column in range(14):
            yield b"\0" + bytes((table, column, rng.randrange(6), rng.randrange(10))) + rng.randbytes(8)


def _snapshot() -> Iterator[bytes]:
    yield sound_snapshot()
    length = int.from_bytes(sound_snapshot()[:2], "little")
    header, arrays = json.loads(sound_snapshot()[2 : 2 + length]), sound_snapshot()[2 + length :]
    for place, value in (("shape", [1 << 40]), ("dtype", "|O"), ("bytes", -4), ("name", "score.none")):
        changed = json.loads(json.dumps(header))
        changed["arrays"][0][place] = value
        text = json.dumps(changed).encode()
        yield len(text).to_bytes(2, "little") + text + arrays


def _control() -> Iterator[bytes]:
    kinds: dict[str, tuple[object, ...]] = {
        "effective_size": (0.3, 1e-300), "temperature": (0.1, 1e-320, 10**400),
        "policy": ("hard", "prototypical*bss", "os:system"), "release": (None,),
    }  # fmt: skip
    for kind, values in kinds.items():
        for value in values:
            yield json.dumps({"kind": kind, "value": value, "author": "ann", "reason": "why", "request": "1"}).encode()


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    make.__name__.lstrip("_"): make for make in (_index, _tar, _image, _replay, _snapshot, _control)
}
