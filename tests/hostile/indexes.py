"""Index and prototype files that are cut, lie about their shards, or are something else."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.canaries import Evil
from tests.hostile.case import ACCEPTED, SUBSTITUTED, Case
from tests.hostile.images import jpeg, picture
from tests.hostile.tars import BLOCK, member, sound

MISSING, STALE = "MissingIndexError", "StaleIndexError"
TYPES = {
    "shard": pa.int32(),
    "offset": pa.int64(),
    "size": pa.int32(),
    "crc32": pa.uint32(),
    "width": pa.uint16(),
    "height": pa.uint16(),
    "label": pa.int32(),
    "key": pa.string(),
}
Make = Callable[[], bytes]


def rows() -> dict[str, list[Any]]:
    """The index of the sound tar, which lies beside it as sound.tar."""
    size, second, (width, height) = len(jpeg()), len(member(b"a.jpg")) + BLOCK, picture().size
    return {
        "shard": [0, 0],
        "offset": [BLOCK, second],
        "size": [size, size],
        "crc32": [zlib.crc32(jpeg())] * 2,
        "width": [width, width],
        "height": [height, height],
        "label": [0, 1],
        "key": ["a", "b"],
    }


def metadata(**changes: Any) -> dict[str, Any]:
    facts = {"format": 1, "shard_urls": ["sound.tar"], "shard_bytes": [len(sound())], "class_names": []}
    changed = {**facts, "fingerprint": "ab" * 32, **changes}
    return {name: value for name, value in changed.items() if value is not ...}


def index(facts: Any = None, types: dict[str, Any] | None = None, **columns: Any) -> bytes:
    """An index with these columns instead of its own; ... leaves one out."""
    values = {name: value for name, value in {**rows(), **columns}.items() if value is not ...}
    kinds = {**TYPES, **(types or {})}
    table = pa.table({name: pa.array(value, kinds[name]) for name, value in values.items()})
    text = facts if isinstance(facts, bytes) else json.dumps(metadata() if facts is None else facts).encode()
    return written(table.replace_schema_metadata({b"tempera.index": text}))


def written(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def many_rows(millions: int) -> bytes:
    """An index of so many alike rows, in a few kilobytes."""
    part = pa.table({n: pa.array([v[0]] * 100_000, TYPES[n]) for n, v in rows().items()})
    part = part.replace_schema_metadata({b"tempera.index": json.dumps(metadata()).encode()})
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, part.schema, compression="zstd") as writer:
        for _ in range(10 * millions):
            writer.write_table(part)
    return sink.getvalue()


def unpickling_type() -> bytes:
    """An index with a column of the extension type that Arrow once unpickled (CVE-2023-47248)."""
    names = ("name", "metadata"), (b"arrow.py_extension_type", pickle.dumps(Evil()))
    facts = {f"ARROW:extension:{name}": value for name, value in zip(*names, strict=True)}
    field = pa.field("key", pa.string(), metadata=facts)
    arrays = [pa.array(value, TYPES[name]) for name, value in rows().items()]
    fields = [field if name == "key" else pa.field(name, kind) for name, kind in TYPES.items()]
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
    return written(table.replace_schema_metadata({b"tempera.index": json.dumps(metadata()).encode()}))


def _files() -> Iterator[tuple[str, Make, str, str]]:
    yield "sound", index, ACCEPTED, "2 samples"
    for share in (10, 50, 90):
        yield f"cut at {share} %", partial(lambda part: index()[: len(index()) * part // 100], share), MISSING, ""
    yield "cut by one byte", lambda: index()[:-1], MISSING, ""
    yield "nothing", bytes, MISSING, ""
    yield "text", lambda: b"shard,offset,size\n0,512,4\n", MISSING, ""
    yield "marks only", lambda: b"PAR1PAR1", MISSING, ""
    yield "a footer of 4 GB", lambda: index()[:-8] + b"\xff\xff\xff\xffPAR1", MISSING, ""
    yield "a footer of nothing", lambda: index()[:-8] + b"\0\0\0\0PAR1", MISSING, ""
    yield "a footer of zeros", lambda: index()[:-500] + bytes(492) + index()[-8:], MISSING, ""
    for number in (200, 600, 1200):
        yield f"zeros at byte {number}", partial(zeroed, number), *DAMAGED
    yield "two million rows", partial(many_rows, 2), MISSING, "claims 2000000 rows"
    yield "a key of 64 MB", lambda: index(key=["k" * (64 << 20), "b"]), MISSING, "claims to unpack"
    yield "a type that unpickles", unpickling_type, "accepted or refused", ""
    yield "a type of sparse lists", lambda: index(types={"shard": pa.list_(pa.int32())}, shard=[[0], [0]]), MISSING, ""


DAMAGED = ("accepted or refused", "")


def zeroed(at: int) -> bytes:
    return index()[:at] + bytes(16) + index()[at + 16 :]


def _facts() -> Iterator[tuple[str, Make, str, str]]:
    plain = pa.table({"shard": [1]})
    yield "of something else", lambda: written(plain), MISSING, "not a sample index"
    for what, text in (("no JSON", b"{"), ("a list", b"[1]"), ("null", b"null"), ("deep", b"[" * 100_000)):
        yield f"facts: {what}", partial(index, bytes(text)), MISSING, ""
    yield "facts: nested in names", lambda: index(facts=metadata(class_names=[["a"]])), MISSING, "class_names"
    for name, value in (
        ("format", 2),
        ("format", ...),
        ("shard_urls", ...),
        ("shard_urls", "sound.tar"),
        ("shard_urls", [1]),
        ("shard_urls", []),
        ("shard_bytes", ...),
        ("shard_bytes", [-1]),
        ("shard_bytes", [1.5]),
        ("shard_bytes", [True]),
        ("shard_bytes", [2**63]),
        ("shard_bytes", []),
        ("class_names", ...),
        ("class_names", {"a": 1}),
        ("fingerprint", ...),
        ("fingerprint", 7),
    ):
        what = "left out" if value is ... else str(value)
        make = partial(lambda n, v: index(facts=metadata(**{n: v})), name, value)
        yield f"facts: {name} {what}", make, MISSING, "format" if name == "format" else name.split("_")[0]


def _columns() -> Iterator[tuple[str, Make, str, str]]:
    for name in TYPES:
        yield f"no column {name}", partial(index, **{name: ...}), MISSING, ""
    for name, kind, values in (
        ("offset", pa.float64(), [float("nan"), 512.0]),
        ("size", pa.int64(), [1, 2**40]),
        ("width", pa.int32(), [-1, 70_000]),
        ("shard", pa.string(), ["0", "0"]),
        ("crc32", pa.binary(), [b"1", b"2"]),
        ("key", pa.int32(), [1, 2]),
        ("label", pa.bool_(), [True, False]),
    ):
        make = partial(index, types={name: kind}, **{name: values})
        yield f"column {name} of {kind}", make, MISSING, f"'{name}' must be"
    for name in ("shard", "offset", "label", "key"):
        yield f"column {name} with nothing in a row", partial(index, **{name: [rows()[name][0], None]}), MISSING, ""
    for name, value in (
        ("shard", -1),
        ("shard", 7),
        ("offset", 0),
        ("offset", -512),
        ("offset", 2**62),
        ("offset", len(sound())),
        ("size", -1),
        ("size", 2**31 - 1),
        ("label", -5),
    ):
        make = partial(index, **{name: [rows()[name][0], value]})
        yield f"{name} of {value}", make, MISSING, "row 1 must lie"


def _lies() -> Iterator[tuple[str, Make, str, str]]:
    yield "offset within a member", lambda: index(offset=[BLOCK, 2 * BLOCK]), STALE, "no member"
    yield "another checksum", lambda: index(crc32=[0, 0]), SUBSTITUTED, "CRC-32 mismatch"
    yield "other sides", lambda: index(width=[999, 9999]), SUBSTITUTED, "the index says 999"
    yield "sides of 0", lambda: index(width=[0, 0], height=[0, 0]), SUBSTITUTED, "the index says 0"
    yield "another length of its shard", lambda: index(facts=metadata(shard_bytes=[10**9])), STALE, "bytes, not"
    for url, verdict, says in (
        ("gone.tar", STALE, "missing"),
        ("/dev/zero", STALE, "no regular file"),
        ("/dev/stdin", STALE, ""),
        ("file:///dev/random", STALE, "no regular file"),
        ("file://elsewhere/x.tar", "ValueError", "this machine"),
        (".", STALE, "no regular file"),
        ("pipe:touch $TEMPERA_CANARY", STALE, "missing"),
        (" pipe:cat /etc/passwd", STALE, "missing"),
        ("x-{000000..999999}.tar", "ValueError", "brace"),
        ("http://169.254.169.254/latest/meta-data", "ValueError", "must be"),
        ("https://169.254.169.254/latest/meta-data", "ValueError", "not a public address"),
        ("gopher://127.0.0.1/x", "ValueError", "must be"),
        ("sound.tar\0.png", "ValueError", ""),
    ):
        yield f"shard {url!r}", partial(lambda u: index(facts=metadata(shard_urls=[u])), url), verdict, says


def prototypes(facts: dict[str, Any] | None = None, **columns: Any) -> bytes:
    """A file of `tempera score` for two samples, with these columns or facts instead of its own."""
    centroids = np.zeros((1, 4), "<f4")
    stored = {
        "schema": 1,
        "fingerprint": "aa",
        "davies_bouldin": {"1": 0.0},
        "centroids_shape": [1, 4],
        "centroids": base64.b64encode(centroids.tobytes()).decode(),
        **(facts or {}),
    }
    text = json.dumps({name: value for name, value in stored.items() if value is not ...})
    own = {"distance": pa.array([0.0, 1.0] * 4, pa.float32()), "cluster": pa.array([0] * 8, pa.int32())}
    values = own | columns
    table = pa.table({name: value for name, value in values.items() if value is not ...})
    return written(table.replace_schema_metadata({b"tempera.prototypes": text.encode()}))


def _prototypes() -> Iterator[tuple[str, str, Make, str, str]]:
    files, live, wrong = "prototypes", "distances", "ValueError"
    yield files, "sound", prototypes, ACCEPTED, ""
    yield live, "sound", prototypes, ACCEPTED, ""
    yield files, "cut", lambda: prototypes()[:-9], wrong, "tempera score"
    yield live, "cut", lambda: prototypes()[:-9], wrong, "tempera score"
    for name in ("schema", "centroids", "centroids_shape", "davies_bouldin", "fingerprint"):
        yield files, f"no {name}", partial(prototypes, {name: ...}), wrong, name
    for name, value in (
        ("schema", 9),
        ("centroids", "???"),
        ("centroids", 7),
        ("centroids_shape", [10**9, 10**9]),
        ("centroids_shape", "x"),
        ("davies_bouldin", [1]),
        ("davies_bouldin", {"x": "y"}),
    ):
        yield files, f"{name} {value}", partial(prototypes, {name: value}), wrong, "tempera score"
    yield files, "distances of text", lambda: prototypes(distance=pa.array(["a"] * 8)), wrong, "must be float"
    nothing = pa.array([None] * 8, pa.float32())
    yield files, "a distance missing", lambda: prototypes(distance=nothing), wrong, "every row"
    yield live, "distances of other data", lambda: prototypes({"fingerprint": "bb"}), wrong, "must be of the run's data"
    for value in (float("nan"), float("inf")):
        column = pa.array([value] + [0.5] * 7, pa.float32())
        yield live, f"a distance of {value}", partial(prototypes, None, distance=column), wrong, "finite"
    few = {"distance": pa.array([0.5], pa.float32()), "cluster": pa.array([0], pa.int32())}
    yield live, "too few distances", partial(prototypes, None, **few), wrong, "for each of the 8"
    yield live, "distances all alike", lambda: prototypes(distance=pa.array([0.5] * 8, pa.float32())), wrong, "at least"


def cases() -> Iterator[Case]:
    for family in (_files, _facts, _columns, _lies):
        for name, make, verdict, says in family():
            yield Case(name=f"index/{name}", place="index", verdict=verdict, says=says, make=make, suffix=".parquet")
    for place, name, make, verdict, says in _prototypes():
        title = f"prototypes/{name} as {place}"
        yield Case(name=title, place=place, verdict=verdict, says=says, make=make, suffix=".parquet")
