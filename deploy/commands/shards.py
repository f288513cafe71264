"""`tempera shards`: write images into WebDataset shards, index, verify and describe them."""

from __future__ import annotations

import os
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from deploy.commands.combined import AllowHosts
from deploy.console import Answer, progress_bar, say, table, working
from deploy.launch.ray_tasks import over_ray

if TYPE_CHECKING:
    from loader.shards.listings import Listing
    from loader.shards.parallel import Runner


def build(
    source: Positional[Path],
    *,
    out: Path,
    samples_per_shard: int = 10_000,
    short_side: int = 0,
    quality: int = 90,
    image_column: str = "image",
    label_column: str = "label",
    processes: int = 0,
    workers: int = 0,
) -> Answer:
    """Write images into WebDataset shards and index them. After an interruption the same command continues.

    Args:
        source: folder of class folders, flat folder of images, or a file or folder of Parquet files or of tars.
        out: folder for the shards, classes.json and index.parquet.
        samples_per_shard: images in each tar.
        short_side: re-encode larger images as JPEG with this short side in pixels; 0 keeps every byte.
        quality: JPEG quality of re-encoded images, 1..100.
        image_column: Parquet column of encoded images.
        label_column: Parquet column of integer labels.
        processes: processes on this machine; 0 uses one per core.
        workers: parallel Ray tasks instead of processes (RAY_ADDRESS, or a Ray on this machine); 0 uses no Ray.
    """
    import loader

    shrink = loader.Shrink(short_side=short_side, quality=quality) if short_side else None
    with _runner(processes, workers) as run:
        listing = _listing(source, image_column, label_column, run)
        with progress_bar("writing, then indexing shards") as advance:
            loader.build_dataset(
                listing,
                out,
                samples_per_shard=samples_per_shard,
                shrink=shrink,
                run=run,
                progress=advance,
                index_progress=advance,
            )
    answer = info(out / "index.parquet")
    left_out = len(listing) - answer.data["samples"]
    if not left_out:
        return answer
    say(f"{left_out} unreadable images were left out; {out / 'left_out.jsonl'} lists them and why.")
    return Answer(data=answer.data | {"left_out": left_out}, view=answer.view)


def index(
    shards: Positional[tuple[str, ...]],
    *,
    out: Path,
    allow_hosts: AllowHosts = (),
    processes: int = 0,
    workers: int = 0,
) -> Answer:
    """Index shards: one Parquet row per sample, and a DALI .idx beside each local tar.

    Args:
        shards: tar files or URLs (file, https, s3, gs), in order; a folder is replaced by its tars.
        out: the Parquet file to write.
        processes: processes on this machine; 0 uses one per core.
        workers: parallel Ray tasks instead of processes; 0 uses no Ray.
    """
    import loader
    from loader.shards.listings import files_with_suffix

    urls: list[str | Path] = []
    for shard in shards:
        found = files_with_suffix(Path(shard), ".tar") if Path(shard).is_dir() else [shard]
        if not found:
            raise ValueError(
                f"a folder of shards must hold .tar files; {shard} has none. Name the tars, or their folder."
            )
        urls += found
    with _runner(processes, workers) as run, progress_bar("indexing shards") as advance:
        loader.build_index(urls, out, progress=advance, allow_hosts=allow_hosts, run=run)
    return info(out)


def _runner(processes: int, workers: int) -> AbstractContextManager[Runner]:
    """Return the runner of the tasks: over Ray if workers are given, otherwise in processes of this machine."""
    from loader import in_processes

    return over_ray(workers) if workers else nullcontext(in_processes(processes or len(os.sched_getaffinity(0))))


def _listing(source: Path, image: str, label: str, run: Runner) -> Listing:
    """List the images of tars, of Parquet files or of a folder: the first of these that `source` holds."""
    import loader
    from loader.shards.listings import files_with_suffix

    if not source.exists():
        raise ValueError(f"the source must be a folder of images, Parquet files or tars; {source} does not exist.")
    # files_with_suffix returns a single file whatever its name is.
    if found := [path for path in files_with_suffix(source, ".tar") if path.suffix == ".tar"]:
        # A tar has no table of contents: index it to list its images.
        with tempfile.TemporaryDirectory() as scratch, progress_bar("reading tars") as advance:
            index = loader.build_index(found, Path(scratch) / "index.parquet", progress=advance, run=run)
            return loader.list_tars(index)
    if found := [path for path in files_with_suffix(source, ".parquet") if path.suffix == ".parquet"]:
        with working("listing the images of Parquet files"):
            return loader.list_parquet(found, image=image, label=label)
    with working("listing images"):
        return loader.list_folder(source)


def verify(path: Positional[Path], *, full: bool = False, allow_hosts: AllowHosts = ()) -> Answer:
    """Check that the shards are the ones that were indexed.

    Args:
        path: index.parquet.
        full: check the CRC-32 of every sample, not only the sizes and the first sample of each shard.
    """
    from loader import ShardIndex

    index = ShardIndex.load(path)
    with progress_bar("verifying") as advance:
        index.verify(full=full, allow_hosts=allow_hosts, progress=advance)
    checked, shards = "every byte" if full else "names and sizes", len(index.shard_urls)
    data = {"samples": len(index), "shards": shards, "fingerprint": index.fingerprint, "full": full}
    return Answer(data=data, view=f"{path}: {len(index):,} samples in {shards} shards are as indexed ({checked}).")


def info(path: Positional[Path]) -> Answer:
    """Describe an index.

    Args:
        path: index.parquet.
    """
    from loader import ShardIndex

    index = ShardIndex.load(path)
    data = {
        "index": str(path),
        "samples": len(index),
        "shards": len(index.shard_urls),
        "bytes": int(sum(index.shard_bytes)),
        "classes": int(index.label.max(initial=-1)) + 1,
        "mean_width": float(index.width.mean()),
        "mean_height": float(index.height.mean()),
        "fingerprint": index.fingerprint,
    }
    rows = [(name.replace("_", " "), str(value)) for name, value in data.items()]
    return Answer(data=data, view=table("", ("", ""), rows))
