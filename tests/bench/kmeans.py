"""How long k-means at the size of a whole data set takes, and its memory: `python -m tests.bench.kmeans`.

The features are made, not computed from images: points around random centres, written into a store on disk, so that
clustering reads them as it would read those of `tempera score`. Making them is not timed.
"""

from __future__ import annotations

import resource
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from scoring.clusters import ITERATIONS, PASSES, SAMPLE_PER_CLUSTER, kmeans_device
from scoring.features.store import FeatureStore
from scoring.prototypes import prototype_distances
from tests.bench.command import run, say

CHUNK_SAMPLES = 4096
SPREAD = 2.0
"""Standard deviation of the centres; the members' is 1, so that clusters overlap in few of many dimensions."""
PRODUCT_ROWS = 8192
PRODUCT_REPEATS = 5


def kmeans(
    *,
    samples: int = 1_280_000,
    width: int = 384,
    clusters: int = 1000,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    folder: Path | None = None,
) -> dict[str, Any]:
    """Cluster made features, read from disk, and measure their distances, as `tempera score` does: seconds and memory.

    `cpu_seconds` are those of all threads together, which a busy machine lengthens less; `of_product` is the rate of
    multiplications relative to that of a plain matrix product of the same shape here; `purity` is the share of samples
    whose cluster's most frequent centre is their own.

    Args:
        samples: number of samples; the default is about ImageNet-1K's.
        width: values of a feature; 384 is a ViT-S's.
        clusters: K, at most samples; also the number of centres that the features are made around.
        device: auto, cpu or gpu; gpu is an error where faiss has none.
        folder: folder on a disk with room for the features (4 bytes a value, 2 GB by default).
    """
    place = kmeans_device(device)
    with tempfile.TemporaryDirectory(prefix="tempera-kmeans-", dir=folder) as name:
        store, origin = made_features(Path(name), samples, width=width, num_clusters=clusters)
        start, start_cpu = time.perf_counter(), time.process_time()
        found = prototype_distances(store, clusters, device=place, progress=partial(say, "clustering"))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    rows = ITERATIONS * min(samples, SAMPLE_PER_CLUSTER * clusters) + (PASSES + 1) * samples
    return {
        "samples": samples,
        "width": width,
        "clusters": found.num_clusters,
        "device": place,
        "threads": faiss.omp_get_max_threads(),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "feature_bytes": 4 * samples * width,
        "of_product": rows * width * clusters / seconds / product_rate(width, clusters),
        "purity": purity(found.cluster, origin),
    }


def made_features(
    folder: Path, num_samples: int, *, width: int, num_clusters: int
) -> tuple[FeatureStore, NDArray[np.int32]]:
    """Return features on disk around random centres, and each sample's centre, int32[N]."""
    random = np.random.default_rng(0)
    centres = SPREAD * random.standard_normal((num_clusters, width), dtype=np.float32)
    identity = {"made": f"{num_clusters} centres"}
    store = FeatureStore(folder, identity=identity, num_samples=num_samples, chunk_samples=CHUNK_SAMPLES)
    origin = random.integers(num_clusters, size=num_samples, dtype=np.int32)
    for chunk in store.missing():
        own = origin[store.ids(chunk)]
        store.write(chunk, centres[own] + random.standard_normal((len(own), width), dtype=np.float32))
        say("making features", chunk + 1, store.num_chunks)
    return store, origin


def product_rate(width: int, num_clusters: int) -> float:
    """Return the multiplications a second of a matrix product of rows with all centroids: the best of some repeats."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((PRODUCT_ROWS, width), dtype=np.float32)
    centroids = random.standard_normal((width, num_clusters), dtype=np.float32)
    seconds = []
    for _ in range(PRODUCT_REPEATS):
        start = time.perf_counter()
        rows @ centroids
        seconds.append(time.perf_counter() - start)
    return PRODUCT_ROWS * width * num_clusters / min(seconds)


def purity(cluster: NDArray[np.int32], origin: NDArray[np.int32]) -> float:
    """Return the share of the samples that come from the most frequent origin of their cluster, in [0, 1]."""
    pairs, counts = np.unique(np.stack([cluster, origin]), axis=1, return_counts=True)
    most = np.zeros(int(cluster.max()) + 1, np.int64)
    np.maximum.at(most, pairs[0], counts)
    return float(most.sum() / len(cluster))


if __name__ == "__main__":
    run(kmeans)
