"""`tempera shards`: write images into WebDataset shards, index them, check them, describe them."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from deploy.console import Answer, progress_bar, table


def build(source: Positional[Path], *, out: Path, samples_per_shard: int = 10_000) -> Answer:
    """Write a folder of images into WebDataset shards, and index them.

    Args:
        source: folder with one sub-folder of images a class.
        out: new folder for the shards, classes.json and index.parquet.
        samples_per_shard: images in each tar.
    """
    import loader

    with progress_bar("writing shards") as advance:
        shards = loader.build_shards(loader.class_folders(source), out, max_samples=samples_per_shard, progress=advance)
    return index(tuple(str(shard) for shard in shards), out=out / "index.parquet")


def index(shards: Positional[tuple[str, ...]], *, out: Path) -> Answer:
    """Index shards: one Parquet row a sample, and a DALI .idx beside each local tar.

    Args:
        shards: tar files or URLs, in order.
        out: the Parquet file to write.
    """
    import loader

    with progress_bar("indexing shards") as advance:
        loader.build_index(shards, out, progress=advance)
    return info(out)


def verify(path: Positional[Path], *, full: bool = False) -> Answer:
    """Check that the shards are those that were indexed.

    Args:
        path: index.parquet.
        full: read every sample and check its CRC-32, instead of sizes only.
    """
    from loader import ShardIndex

    index = ShardIndex.load(path)
    with progress_bar("verifying") as advance:
        index.verify(full=full, progress=advance)
    checked = "every byte" if full else "names and sizes"
    data = {"samples": len(index), "shards": len(index.shard_urls), "fingerprint": index.fingerprint, "full": full}
    return Answer(
        data=data, view=f"{path}: {len(index):,} samples in {len(index.shard_urls)} shards are as indexed ({checked})."
    )


def info(path: Positional[Path]) -> Answer:
    """Describe an index.

    Args:
        path: index.parquet.
    """
    from loader import ShardIndex

    index = ShardIndex.load(path)
    classes = int(index.label.max(initial=-1)) + 1
    data = {
        "index": str(path),
        "samples": len(index),
        "shards": len(index.shard_urls),
        "bytes": int(sum(index.shard_bytes)),
        "classes": classes,
        "mean_width": float(index.width.mean()),
        "mean_height": float(index.height.mean()),
        "fingerprint": index.fingerprint,
    }
    return Answer(
        data=data, view=table("", ("", ""), [(name.replace("_", " "), str(value)) for name, value in data.items()])
    )
