"""Builds shards from a listing with any number of workers: the same bytes from one as from a hundred.

Which images go into which shard is decided before anything is written, so shards are independent tasks. Each is
written under a temporary name and renamed when it is whole: after a kill the same call goes on with those that are
missing. A plan file in the folder says what is being built; it is removed at the end, when the index is there.
Images that cannot be read are left out, listed in `left_out.jsonl`, and too many of them stop the build.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from loader.errors import BadSampleError, TooManyBadSamplesError
from loader.shards.index import ShardIndex
from loader.shards.index_builder import build_index
from loader.shards.listings import Listing
from loader.shards.parallel import Runner, here
from loader.shards.sources import ImageSample, check_shrinking, shrunk
from loader.shards.writer import CLASSES_FILE, Members, members, write_tar

log = logging.getLogger(__name__)

PLAN_FILE: Final = ".build.json"
LEFT_OUT_FILE: Final = "left_out.jsonl"
_MAX_BAD_SHARE: Final = 0.05
_FEW: Final = 20
"""So many unreadable images never stop a build by themselves, unless nothing else is there."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shrink:
    """Re-encode larger images on their way into shards."""

    short_side: int
    """Longest short side, in pixels."""
    quality: int = 90
    """JPEG quality, 1..100."""

    def __post_init__(self) -> None:
        check_shrinking(self.short_side, self.quality)


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
    run: Runner = here,
    progress: Progress | None = None,
    index_progress: Progress | None = None,
) -> ShardIndex:
    """Write shards and their index, or go on with a build that was interrupted.

    Args:
        listing: The images.
        out_dir: Folder for `shard-000000.tar`, ..., `classes.json` and `index.parquet`: new, empty, or one that the
            same call has begun.
        samples_per_shard: Images in each shard; the last one may hold fewer.
        shrink: Makes images smaller; None keeps their bytes.
        run: Where shards are written; they are the same whatever it is.
        progress: Called with (images done, images in all).
        index_progress: Called with (bytes indexed, bytes in all).

    Returns:
        The index.

    Raises:
        ValueError: If the folder holds something else, or there are no images.
        TooManyBadSamplesError: If more than a few images cannot be read.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1; got {samples_per_shard}")
    if not len(listing):
        raise ValueError("no images to write into shards")
    out = Path(out_dir)
    _begin(out, _plan(listing, samples_per_shard, shrink))
    starts = range(0, len(listing), samples_per_shard)
    paths = [out / f"shard-{number:06d}.tar" for number in range(len(starts))]
    tasks = [
        ShardTask(images=listing.part(start, start + samples_per_shard), path=str(path), shrink=shrink)
        for start, path in zip(starts, paths, strict=True)
        if not path.exists()
    ]
    _write(tasks, out, total=len(listing), run=run, progress=progress)
    if listing.class_names:
        (out / CLASSES_FILE).write_text(json.dumps(list(listing.class_names), indent=0) + "\n")
    index = build_index(paths, out / "index.parquet", run=run, progress=index_progress)
    (out / PLAN_FILE).unlink()
    return index


def write_shard(task: ShardTask) -> list[LeftOut]:
    """Write one shard, and return what could not be put into it."""
    left_out: list[LeftOut] = []

    def readable() -> Iterator[Members]:
        for sample in task.images.read():
            try:
                yield members(_shrunk(sample, task.shrink))
            except BadSampleError as error:
                left_out.append(LeftOut(shard=Path(task.path).name, origin=sample.origin, reason=str(error)))

    write_tar(Path(task.path), readable())
    return left_out


def _shrunk(sample: ImageSample, shrink: Shrink | None) -> ImageSample:
    if shrink is None:
        return sample
    return replace(sample, data=shrunk(sample.data, shrink.short_side, shrink.quality))


def _plan(listing: Listing, samples_per_shard: int, shrink: Shrink | None) -> dict[str, Any]:
    """Return what decides the shards' bytes."""
    return {
        "images": len(listing),
        "identity": listing.identity(),
        "samples_per_shard": samples_per_shard,
        "shrink": None if shrink is None else asdict(shrink),
    }


def _begin(out: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or check that the folder holds a part of the same build."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / PLAN_FILE
    if path.is_file():
        if json.loads(path.read_text()) != plan:
            raise ValueError(
                f"{out} holds a part of another build: the images or the options have changed since. "
                "Remove it, or give an empty directory."
            )
        for torn in out.glob(".shard-*.tmp"):
            torn.unlink()
        return
    if any(out.glob("*.tar")):
        raise ValueError(f"{out} already holds shards; give an empty directory or remove them")
    temporary = out / f"{PLAN_FILE}.tmp"
    temporary.write_text(json.dumps(plan))
    temporary.rename(path)


def _write(tasks: Sequence[ShardTask], out: Path, *, total: int, run: Runner, progress: Progress | None) -> None:
    done = total - sum(len(task.images) for task in tasks)
    left_out: list[LeftOut] = []
    for number, bad in run(write_shard, tasks):
        done += len(tasks[number].images)
        left_out += bad
        for image in bad:
            log.warning("left out: %s: %s", image.origin, image.reason)
            with (out / LEFT_OUT_FILE).open("a") as file:
                file.write(json.dumps(asdict(image)) + "\n")
        if len(left_out) > max(_FEW, _MAX_BAD_SHARE * total):
            raise TooManyBadSamplesError(
                f"{len(left_out)} of the first {done} images cannot be read; the last one is {left_out[-1].origin}: "
                f"{left_out[-1].reason}. {out / LEFT_OUT_FILE} lists them."
            )
        if progress is not None:
            progress(done, total)
