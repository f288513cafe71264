"""Builds the sample index of a set of tars.

1. Each shard is walked on its own. A sample is a run of members that share a name up to its first dot (WebDataset's
   rule); its image is the first member with an image extension, its label the integer in `.cls`. The image's header is
   checked and its CRC-32 computed. Beside a local tar an `.idx` for DALI is written.
2. The rows of all shards are joined in the order of the shards, and written in one step.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Sequence
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
from loader.shards.index import ShardIndex, write_index
from loader.shards.index_checks import COLUMNS
from loader.shards.parallel import Progress, Runner, run_serially
from loader.shards.tar import ReadAt, TarMember, read_ahead, split_name, walk_tar
from loader.storage.connections import Connections
from loader.storage.shard_files import local_path, open_shard

log = logging.getLogger(__name__)

CLASSES_FILE: Final = "classes.json"
IMAGE_EXTENSIONS: Final = ("jpg", "jpeg", "png", "webp")
_MAX_IMAGE_BYTES: Final = 2**31 - 1
_NO_LIMIT: Final = 2**40
"""The index records any size; a loader's own `max_pixels` decides which images are decoded."""


@dataclass(frozen=True, slots=True)
class ShardRows:
    """One shard's share of an index."""

    num_bytes: int
    values: NDArray[np.int64]
    """int64[n, 6]: offset, size, crc32, width, height, label."""
    keys: list[str]


def build_index(
    urls: Sequence[str | Path],
    out: str | Path,
    *,
    progress: Progress | None = None,
    allow_hosts: tuple[str, ...] = (),
    run: Runner = run_serially,
) -> ShardIndex:
    """Index tars and write the index to `out`.

    Args:
        urls: The shards, in the order that numbers their samples.
        out: Parquet file; replaced in one step when the index is complete.
        progress: Called with (bytes walked, bytes in all).
        allow_hosts: Hosts of remote shards that may have private addresses.
        run: Walks the shards, in this process or in several. The index does not depend on it.

    Raises:
        BadShardError: If a tar is malformed or holds a member twice.
        ValueError: If there are no shards, or no images in them.
    """
    if not urls:
        raise ValueError("no shards to index; give at least one .tar")
    shards = [str(url) for url in urls]
    parts = _walk_all(shards, progress, allow_hosts, run)
    keys = [key for part in parts for key in part.keys]
    if not keys:
        raise ValueError(
            f"no images in {len(shards)} shards; looked for members ending in {', '.join(IMAGE_EXTENSIONS)}"
        )
    values = np.concatenate([part.values for part in parts])
    names = ("offset", "size", "crc32", "width", "height", "label")
    columns = {name: values[:, i].astype(COLUMNS[name]) for i, name in enumerate(names)}
    columns["shard"] = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.keys) for part in parts])
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_index(
        out,
        columns,
        keys,
        shard_urls=shards,
        shard_bytes=[part.num_bytes for part in parts],
        class_names=_class_names(shards[0]),
    )
    return ShardIndex.load(out)


def _walk_all(
    shards: list[str], progress: Progress | None, allow_hosts: tuple[str, ...], run: Runner
) -> list[ShardRows]:
    """Index every shard; return their rows in the order of the shards."""
    total = done = 0
    # Opening every shard only for its length takes round trips, so it is left out when nobody watches.
    if progress is not None:
        with Connections(allow_hosts=allow_hosts) as connections:
            for url in shards:
                with closing(open_shard(url, connections=connections)) as file:
                    total += file.num_bytes

    def walk(url: str) -> ShardRows:
        report = None if progress is None else lambda position: progress(done + position, total)
        return index_shard(url, report, allow_hosts=allow_hosts)

    # A walk in this process reports its progress inside a shard; another process reports only whole shards.
    function = walk if run is run_serially else partial(index_shard, allow_hosts=allow_hosts)
    parts: dict[int, ShardRows] = {}
    # Shards end in any order; their numbers put the rows back in the order of the shards.
    for number, part in run(function, shards):
        parts[number] = part
        done += part.num_bytes
        if progress is not None:
            progress(done, total)
    return [parts[number] for number in range(len(shards))]


def index_shard(
    url: str, progress: Callable[[int], None] | None = None, *, allow_hosts: tuple[str, ...] = ()
) -> ShardRows:
    """Walk one tar, write its `.idx`, and return its rows.

    Raises:
        BadShardError: If the tar is malformed or holds a member twice.
    """
    values: list[tuple[int, int, int, int, int, int]] = []
    keys: list[str] = []
    samples: list[list[TarMember]] = []
    skipped = 0
    path = local_path(url)
    with Connections(allow_hosts=allow_hosts) as connections, closing(open_shard(url, connections=connections)) as file:
        num_bytes = file.num_bytes
        read_at = file.read_at if path is not None else read_ahead(file.read_at)
        members = walk_tar(read_at, num_bytes, url=url)
        for key, group in groupby(members, lambda member: split_name(member.name)[0]):
            sample = list(group)
            if not key or key.endswith("/"):  # a hidden file, such as macOS's ._name
                continue
            samples.append(sample)
            images = [member for member in sample if member.name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS]
            if not images:
                continue
            skipped += len(images) - 1
            values.append(_row(read_at, images[0], sample, url))
            # Bytes that are not UTF-8 become escapes, so that the key can be stored and shown.
            keys.append(key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
            if progress is not None and len(keys) % 64 == 0:
                progress(images[0].offset)
    # Reports name samples by their keys, so a key must mean one sample.
    _refuse_duplicates(samples, url)
    if skipped:
        log.warning("%s: %d further images are not used; the first one of each sample is", url, skipped)
    if path is not None:
        _write_dali_index(path.with_suffix(".idx"), samples)
    if progress is not None:
        progress(num_bytes)
    return ShardRows(num_bytes, np.array(values, np.int64).reshape(-1, 6), keys)


def _row(read_at: ReadAt, image: TarMember, sample: list[TarMember], url: str) -> tuple[int, int, int, int, int, int]:
    """Return a sample's offset, size, CRC-32, width, height and label."""
    if image.size > _MAX_IMAGE_BYTES:
        raise BadShardError(f"{url}: images must have at most {_MAX_IMAGE_BYTES} bytes; {image.name} has {image.size}")
    data = read_at(image.offset, image.size)
    width = height = 0
    try:
        header = read_header(data, max_pixels=_NO_LIMIT)
        width, height = header.width, header.height
    except BadSampleError as error:
        # No loader will be able to decode it. It keeps its row, so that sample ids follow from the tars alone.
        log.warning("%s: %s will be substituted when it is drawn: %s", url, image.name, error)
    label = -1
    for member in sample:
        if split_name(member.name)[1] == "cls":
            text = read_at(member.offset, min(member.size, 32)).strip()
            label = int(text) if text.isdigit() and len(text) < 10 else -1
            break
    return image.offset, image.size, zlib.crc32(data), width, height, label


def _write_dali_index(path: Path, samples: list[list[TarMember]]) -> None:
    """Write the `.idx` of a tar's samples as wds2idx v1.2 does; if that is impossible, warn.

    Each line names the members of one sample: extension, offset, size, name.
    """
    lines = [f"v1.2 {len(samples)}"]
    lines += [" ".join(f"{split_name(m.name)[1]} {m.offset} {m.size} {m.name}" for m in sample) for sample in samples]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        log.warning("DALI index not written: %s. Only DALI's own readers need it.", error)


def _refuse_duplicates(samples: list[list[TarMember]], url: str) -> None:
    """Raise BadShardError if a tar holds two members of one name; tar itself allows it."""
    seen: dict[str, int] = {}
    for member in (member for sample in samples for member in sample):
        if member.name in seen:
            raise BadShardError(
                f"{url} holds {member.name!r} twice, at bytes {seen[member.name]} and {member.offset}. "
                "Give every sample its own name and rebuild the shard."
            )
        seen[member.name] = member.offset


def _class_names(url: str) -> list[str]:
    """Return the names in `classes.json` beside the first shard, or none."""
    shard = local_path(url)
    if shard is None or not (path := shard.parent / CLASSES_FILE).is_file():
        return []
    try:
        names = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} must be a JSON list of class names; fix or remove it")
    return names
