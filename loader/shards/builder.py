"""Builds shards from a listing in any number of processes: one gives the same bytes as a hundred.

1. The plan says which images go into which shard, before anything is written, so shards are independent tasks. A plan
   file in the folder records it.
2. Each shard is written under a temporary name and renamed when it is complete: after a kill the same call continues
   with the missing ones.
3. Images that cannot be read are left out and listed in `left_out.jsonl`; too many of them stop the build.
4. The index is built, and the plan file removed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from loader.errors import BadSampleError, TooManyBadSamplesError
from loader.shards.index import ShardIndex
from loader.shards.index_builder import build_index
from loader.shards.listings import Listing
from loader.shards.parallel import Progress, Runner, run_serially
from loader.shards.sources import Shrink
from loader.shards.writer import Members, members_of, write_class_names, write_tar

log = logging.getLogger(__name__)

PLAN_FILE: Final = ".build.json"
LEFT_OUT_FILE: Final = "left_out.jsonl"
_MAX_BAD_SHARE: Final = 0.05
_ALWAYS_ALLOWED_BAD: Final = 20
"""Unreadable images that never stop a build, unless no others are there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """One shard to write."""

    images: Listing
    path: str
    shrink: Shrink | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """An image that is not in the shards."""

    shard: str
    origin: str
    reason: str


def build_dataset(
    listing: Listing,
    out_dir: str | Path,
    *,
    samples_per_shard: int = 10_000,
    shrink: Shrink | None = None,
    run: Runner = run_serially,
    progress: Progress | None = None,
    index_progress: Progress | None = None,
) -> ShardIndex:
    """Write shards and their index, or continue a build that was interrupted.

    Args:
        listing: The images.
        out_dir: Folder for `shard-000000.tar`, ..., `classes.json` and `index.parquet`: new, empty, or left by the same
            call when it was interrupted.
        samples_per_shard: Images in each shard; the last one may hold fewer.
        shrink: Re-encodes larger images; None keeps every byte.
        run: Runs the tasks. The shards do not depend on it.
        progress: Called with (images done, images in all).
        index_progress: Called with (bytes indexed, bytes in all).

    Raises:
        ValueError: If the folder holds something else, or there are no images.
        TooManyBadSamplesError: If more than a few images cannot be read.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1; got {samples_per_shard}")
    if not len(listing):
        raise ValueError("no images to write into shards; check the source")
    out = Path(out_dir)
    # The plan holds everything that decides the shards' bytes, so that a continued build cannot mix two versions.
    _begin(
        out,
        {
            "images": len(listing),
            "identity": listing.identity,
            "samples_per_shard": samples_per_shard,
            "shrink": None if shrink is None else asdict(shrink),
        },
    )
    starts = range(0, len(listing), samples_per_shard)
    paths = [out / f"shard-{number:06d}.tar" for number in range(len(starts))]
    tasks = [
        ShardTask(images=listing.part(start, start + samples_per_shard), path=str(path), shrink=shrink)
        for start, path in zip(starts, paths, strict=True)
        if not path.exists()
    ]
    _write_shards(tasks, out, len(listing), run, progress)
    write_class_names(out, listing.class_names)
    index = build_index(paths, out / "index.parquet", run=run, progress=index_progress)
    (out / PLAN_FILE).unlink()
    return index


def write_shard(task: ShardTask) -> list[LeftOut]:
    """Write one shard under a temporary name, rename it, and return the images that were left out of it."""
    left_out: list[LeftOut] = []
    path = Path(task.path)

    def readable() -> Iterator[Members]:
        for sample in task.images.read():
            try:
                data = sample.data if task.shrink is None else task.shrink.apply(sample.data)
                yield members_of(replace(sample, data=data))
            except BadSampleError as error:
                left_out.append(LeftOut(shard=path.name, origin=sample.origin, reason=str(error)))

    # Only complete shards have their name: a build that continues takes them as they are.
    temporary = path.with_name(f".{path.name}.tmp")
    write_tar(temporary, readable())
    temporary.rename(path)
    return left_out


def _write_shards(tasks: list[ShardTask], out: Path, total: int, run: Runner, progress: Progress | None) -> None:
    """Run the tasks, record the images that they left out, and stop when these are too many."""
    done = total - sum(len(task.images) for task in tasks)
    num_bad = 0
    for number, bad in run(write_shard, tasks):
        done += len(tasks[number].images)
        num_bad += len(bad)
        # Written as each shard ends, since a build that is killed does not come back to finished shards.
        for image in bad:
            log.warning("left out: %s: %s", image.origin, image.reason)
            with (out / LEFT_OUT_FILE).open("a") as file:
                file.write(json.dumps(asdict(image)) + "\n")
        if bad and num_bad > max(_ALWAYS_ALLOWED_BAD, _MAX_BAD_SHARE * total):
            raise TooManyBadSamplesError(
                f"at most {_MAX_BAD_SHARE:.0%} of the images may be unreadable; {num_bad} of the first {done} are. The "
                f"last one is {bad[-1].origin}: {bad[-1].reason}. {out / LEFT_OUT_FILE} lists them."
            )
        if progress is not None:
            progress(done, total)


def _begin(out: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or check that the folder holds a part of the same build and remove its unfinished shards."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / PLAN_FILE
    if path.is_file():
        if json.loads(path.read_text()) != plan:
            raise ValueError(
                f"{out} holds a part of another build: the images or the options have changed since. "
                "Remove it, or give an empty directory."
            )
        for unfinished in out.glob(".shard-*.tmp"):
            unfinished.unlink()
        return
    if any(out.glob("*.tar")):
        raise ValueError(f"{out} already holds shards; give an empty directory or remove them")
    # Renamed when complete: a plan that is cut short would make every later call fail.
    temporary = out / f"{PLAN_FILE}.tmp"
    temporary.write_text(json.dumps(plan))
    temporary.rename(path)
