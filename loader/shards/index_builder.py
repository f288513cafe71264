"""Builds the sample index of a set of tars: walk, group members into samples, check headers, write.

A sample is a run of members that share a name up to its first dot (WebDataset's rule); its image is the first
member that ends in an image extension, its label the integer in `.cls`. Beside each local tar an `.idx` in DALI's
wds2idx v1.2 format is written, so that DALI reads the same shards as they are.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loader.decode.header import read_header
from loader.errors import BadSampleError, BadShardError
from loader.shards.dali_index import read_dali_index, write_dali_index
from loader.shards.index import IndexRows, ShardIndex, write_index
from loader.shards.index_checks import COLUMNS
from loader.shards.parallel import Runner, here
from loader.shards.reader import local_path, open_shard
from loader.shards.tar import ReadAt, TarMember, walk_tar
from loader.storage.connections import Connections
from loader.storage.remote import ReadAhead

log = logging.getLogger(__name__)

IMAGE_EXTENSIONS: Final = ("jpg", "jpeg", "png", "webp")
_MAX_IMAGE_BYTES: Final = 2**31 - 1
_NO_LIMIT: Final = 2**40
"""The index records any size; a loader's own `max_pixels` decides what is decoded."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ShardRows:
    """One shard's share of an index."""

    num_bytes: int
    """Length of the shard."""
    values: NDArray[np.int64]
    """int64[n, 6]: offset, size, crc32, width, height, label."""
    keys: list[str]


def build_index(
    urls: Sequence[str | Path],
    out: str | Path,
    *,
    progress: Progress | None = None,
    allow_hosts: tuple[str, ...] = (),
    run: Runner = here,
) -> ShardIndex:
    """Index tars and write the index to `out`.

    Args:
        urls: The shards, in the order that numbers their samples.
        out: Path of the Parquet file; replaced in one step when the index is complete.
        progress: Called with (bytes walked, bytes in all).
        allow_hosts: Hosts of remote shards that may have private addresses.
        run: Where shards are walked: here, or in several processes. The index is the same.

    Raises:
        BadShardError: If a tar is malformed or holds a member twice.
        ValueError: If there are no shards, or no images in them.
    """
    if not urls:
        raise ValueError("no shards to index; give at least one .tar")
    shards = [str(url) for url in urls]
    parts = _walk_all(shards, progress, allow_hosts, run)
    merged = _merge(parts)
    if not merged.keys:
        raise ValueError(
            f"no images in {len(shards)} shards; looked for members ending in {', '.join(IMAGE_EXTENSIONS)}"
        )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_index(
        out, merged, shard_urls=shards, shard_bytes=[p.num_bytes for p in parts], class_names=_class_names(shards[0])
    )
    return ShardIndex.load(out)


def _walk_all(
    shards: list[str], progress: Progress | None, allow_hosts: tuple[str, ...], run: Runner
) -> list[ShardRows]:
    """Index every shard, and return their rows in the order of the shards."""
    total = sum(_length(url, allow_hosts) for url in shards) if progress is not None else 0
    parts: dict[int, ShardRows] = {}
    done = 0

    def walk(url: str) -> ShardRows:
        report = None if progress is None else partial(_report, progress, done, total)
        return index_shard(url, report, allow_hosts=allow_hosts)

    # In this process a shard's own progress can be told as well; others only tell when they are done.
    one_shard = walk if run is here else partial(index_shard, allow_hosts=allow_hosts)
    for number, part in run(one_shard, shards):
        parts[number] = part
        done += part.num_bytes
        if progress is not None:
            progress(done, total)
    return [parts[number] for number in range(len(shards))]


def index_shard(
    url: str, progress: Callable[[int], None] | None = None, *, allow_hosts: tuple[str, ...] = ()
) -> ShardRows:
    """Walk one tar, write its `.idx`, and return its rows. Shards are independent: callers may index them in parallel.

    Raises:
        BadShardError: If the tar is malformed or holds a member twice.
    """
    values: list[tuple[int, int, int, int, int, int]] = []
    keys: list[str] = []
    bundles: list[list[TarMember]] = []
    skipped = 0
    path = local_path(url)
    with Connections(allow_hosts=allow_hosts) as connections, closing(open_shard(url, connections=connections)) as file:
        read_at = file.read_at if path is not None else ReadAhead(file.read_at).read_at
        members = _members(path, read_at, file.num_bytes, url)
        for key, group in groupby(members, lambda member: split_name(member.name)[0]):
            bundle = list(group)
            if not key or key.endswith("/"):
                continue
            bundles.append(bundle)
            images = [member for member in bundle if is_image(member.name)]
            if not images:
                continue
            skipped += len(images) - 1
            values.append(_row(read_at, images[0], bundle, url))
            keys.append(readable(key))
            if progress is not None and len(keys) % 64 == 0:
                progress(images[0].offset)
        num_bytes = file.num_bytes
    _refuse_duplicates(bundles, url)
    if skipped:
        log.warning("%s: %d samples' further images are not used; the first of each sample is", url, skipped)
    if path is not None:
        write_dali_index(path.with_suffix(".idx"), bundles)
    if progress is not None:
        progress(num_bytes)
    return ShardRows(num_bytes, np.array(values, np.int64).reshape(-1, 6), keys)


def _members(path: Path | None, read_at: ReadAt, num_bytes: int, url: str) -> Iterable[TarMember]:
    """Return the members of a tar: from the `.idx` beside it if that fits, or else by walking it."""
    listed = read_dali_index(path.with_suffix(".idx"), read_at, num_bytes) if path is not None else None
    return walk_tar(read_at, num_bytes, url=url) if listed is None else listed


def split_name(name: str) -> tuple[str, str]:
    """Return a member's sample key and its extension: WebDataset splits at the first dot after the last slash."""
    dot = name.find(".", name.rfind("/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :])


def readable(name: str) -> str:
    """Return a name as text that can be stored and shown: bytes of it that are no UTF-8 become escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_image(name: str) -> bool:
    """Return whether a member's name ends in an image extension."""
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def _row(read_at: ReadAt, image: TarMember, bundle: list[TarMember], url: str) -> tuple[int, int, int, int, int, int]:
    if image.size > _MAX_IMAGE_BYTES:
        raise BadShardError(f"{url}: {image.name} has {image.size} bytes; at most {_MAX_IMAGE_BYTES} are supported")
    data = read_at(image.offset, image.size)
    width, height = _sides(data, image.name, url)
    label = next((_label(read_at, m) for m in bundle if split_name(m.name)[1] == "cls"), -1)
    return image.offset, image.size, zlib.crc32(data), width, height, label


def _sides(data: bytes, name: str, url: str) -> tuple[int, int]:
    """Return (width, height), or (0, 0) for an image that no loader will be able to decode: it keeps its place."""
    try:
        header = read_header(data, max_pixels=_NO_LIMIT)
    except BadSampleError as error:
        log.warning("%s: %s will be substituted when it is drawn: %s", url, name, error)
        return 0, 0
    return header.width, header.height


def _label(read_at: ReadAt, member: TarMember) -> int:
    text = read_at(member.offset, min(member.size, 32)).strip()
    return int(text) if text.isdigit() and len(text) < 10 else -1


def _refuse_duplicates(bundles: list[list[TarMember]], url: str) -> None:
    seen: dict[str, int] = {}
    for member in (member for bundle in bundles for member in bundle):
        if member.name in seen:
            raise BadShardError(
                f"{url} holds {member.name!r} twice, at bytes {seen[member.name]} and {member.offset}. "
                "Give every sample its own name and rebuild the shard."
            )
        seen[member.name] = member.offset


def _merge(parts: list[ShardRows]) -> IndexRows:
    values = np.concatenate([part.values for part in parts])
    names = ("offset", "size", "crc32", "width", "height", "label")
    columns = {name: values[:, i].astype(COLUMNS[name]) for i, name in enumerate(names)}
    columns["shard"] = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.keys) for part in parts])
    return IndexRows(columns=columns, keys=[key for part in parts for key in part.keys])


def _class_names(url: str) -> list[str]:
    """Return the names in `classes.json` beside the first shard, or none."""
    shard = local_path(url)
    if shard is None or not (path := shard.parent / "classes.json").is_file():
        return []
    try:
        names = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} must be a JSON list of class names; fix or remove it")
    return names


def _length(url: str, allow_hosts: tuple[str, ...]) -> int:
    with Connections(allow_hosts=allow_hosts) as connections, closing(open_shard(url, connections=connections)) as file:
        return file.num_bytes


def _report(progress: Progress, done: int, total: int, in_shard: int) -> None:
    progress(done + in_shard, total)
