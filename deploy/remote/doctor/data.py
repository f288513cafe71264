"""Whether a run's images can be read here: the index is fresh, and a sample of each shard decodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deploy.remote.doctor.findings import Finding

MOST_SHARDS = 64
"""Shards of which a sample is read; evenly taken when there are more."""


def data_findings(path: Path, *, allow_hosts: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Check an index against its shards, and read one image of each.

    Args:
        path: the index.
        allow_hosts: hosts of shards that may have private addresses.
    """
    from loader import LoaderError, ShardIndex

    try:
        index = ShardIndex.load(path)
        index.verify(allow_hosts=allow_hosts)
    except (LoaderError, ValueError, OSError) as error:
        yield Finding(check="index", level="error", found=str(path), advice=str(error))
        return
    found = f"{len(index):,} samples in {len(index.shard_urls)} shards, fingerprint {index.fingerprint[:12]}"
    yield Finding(check="index", level="ok", found=found)
    yield _readable(path, index, allow_hosts)


def _readable(path: Path, index: object, allow_hosts: tuple[str, ...]) -> Finding:
    """Read, check and decode one sample of each shard, through the same code as a run."""
    from loader import BatchSpec, LoaderConfig, LoaderError, LoaderWorker, ShardIndex, Transform

    assert isinstance(index, ShardIndex)
    _, first = np.unique(index.shard, return_index=True)
    picked = first[np.linspace(0, len(first) - 1, min(len(first), MOST_SHARDS)).round().astype(np.int64)]
    ids = picked.astype(np.int64)
    spec = BatchSpec(sample_ids=ids, draws=ids, seed=0, transform=Transform(size=32))
    try:
        with LoaderWorker(LoaderConfig(index=str(path), allow_hosts=allow_hosts)) as worker:
            pixels = worker.load(spec)
    except (LoaderError, OSError) as error:
        advice = "check that this machine reaches the storage, and its credentials"
        return Finding(check="shards", level="error", found=str(error), advice=advice)
    if pixels.bad:
        advice = "`tempera shards verify --full` lists every sample that cannot be read"
        bad = f"{len(pixels.bad)} of {len(ids)} tried samples are bad; {pixels.bad[0].key}: {pixels.bad[0].reason}"
        return Finding(
            check="shards", level="error" if len(pixels.bad) == len(ids) else "warning", found=bad, advice=advice
        )
    return Finding(check="shards", level="ok", found=f"a sample of each of {len(ids)} shards was read and decoded")
