"""k-means clusters of features: faiss clusters, the Davies-Bouldin index chooses their number K (METHODS section 8).

1. K is scanned over a log grid on a subsample, then between the neighbours of the best value.
2. faiss finds K centroids on a sample of 256 rows a cluster, its own limit.
3. Where the data is larger than that sample, Lloyd passes over all of it finish the centroids, block by block.
4. A last pass assigns every row and measures its distance.

Rows may be an array or a store on disk: only blocks and samples of them are ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.features.rows import Rows, row_blocks

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Progress = Callable[[int, int], None]
"""Called with (done, total)."""

ITERATIONS = 20
PASSES = 2
"""Lloyd passes over the whole data after the sample's clustering."""
SAMPLE_PER_CLUSTER = 256
SCAN_SAMPLES = 100_000
SCAN_POINTS = 10
REFINE_POINTS = 4
LARGEST_K = 2000
"""The paper's ablation ends here; its index was lowest at 978."""
MEMBERS_PER_CLUSTER = 10
"""The scan stops where clusters would have fewer members on average: there the index rewards singletons."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clusters:
    """A partition of the features."""

    centroids: Float32
    """[K, F]."""
    assignment: Int32
    """[N] nearest centroid."""
    distance: Float32
    """[N] Euclidean distance to it."""


def kmeans_device(wanted: str = "auto") -> str:
    """Return where k-means runs: "cpu", or "gpu:" with the number of devices.

    Args:
        wanted: "cpu", "gpu", or "auto" for a GPU where faiss can use one.

    Raises:
        ValueError: a GPU is wanted and faiss has none; there is no silent fallback to the CPU.
    """
    import faiss  # noqa: PLC0415  # the selection service and the driver do not cluster

    built = hasattr(faiss, "StandardGpuResources")
    count = faiss.get_num_gpus() if built else 0
    if wanted not in ("auto", "cpu", "gpu"):
        raise ValueError(f"the device of k-means must be auto, cpu or gpu; got {wanted!r}.")
    if wanted == "gpu" and not count:
        found = "sees none" if built else "is a build for the CPU (faiss-cpu)"
        raise ValueError(f"k-means on a GPU needs a faiss that has one; this faiss {found}. Install tempera-mim[gpu].")
    return f"gpu:{count}" if count and wanted != "cpu" else "cpu"


def cluster(
    features: Rows, num_clusters: int, *, seed: int = 0, device: str = "cpu", progress: Progress | None = None
) -> Clusters:
    """Run k-means; the same seed gives the same clusters on one machine.

    Args:
        features: [N, F].
        num_clusters: K.
        seed: seed of the sample and of the first centroids.
        device: value of `kmeans_device`.
        progress: called with (rows done, rows of all passes).
    """
    sample = subsample(features, SAMPLE_PER_CLUSTER * num_clusters, seed)
    import faiss  # noqa: PLC0415  # the selection service and the driver do not cluster

    kmeans = faiss.Kmeans(
        sample.shape[1],
        num_clusters,
        niter=ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLE_PER_CLUSTER,
        gpu=device != "cpu",
    )
    kmeans.train(sample)
    centroids = np.ascontiguousarray(kmeans.centroids, dtype=np.float32).reshape(num_clusters, -1)
    passes = PASSES if len(sample) < len(features) else 0
    total = (passes + 1) * len(features)

    def report(number: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(number * len(features) + done, total)

    for number in range(passes):
        centroids = _lloyd_pass(features, centroids, device=device, progress=report(number))
    return assign(features, centroids, device=device, progress=report(passes))


def labelled_clusters(features: Rows, labels: NDArray[np.integer[Any]]) -> Clusters:
    """Return the clusters that labels define, each with the mean of its members: the paper's oracle.

    Raises:
        ValueError: a sample has no label.
    """
    if len(labels) != len(features) or (labels < 0).any():
        raise ValueError(
            f"clusters from labels need a label for each of the {len(features)} samples; "
            f"{int((labels < 0).sum())} have none. Cluster by k-means instead."
        )
    # Labels may have gaps: clusters are numbered by the labels that occur.
    _, assignment = np.unique(labels, return_inverse=True)
    sums, counts = np.zeros((int(assignment.max()) + 1, features.shape[1])), np.bincount(assignment)
    for start, part in row_blocks(features):
        np.add.at(sums, assignment[start : start + len(part)], part)
    centroids = (sums / counts[:, None]).astype(np.float32)
    distance = np.empty(len(features), np.float32)
    for start, part in row_blocks(features):
        own = centroids[assignment[start : start + len(part)]]
        distance[start : start + len(part)] = np.linalg.norm(part - own, axis=1)
    return Clusters(centroids=centroids, assignment=assignment.astype(np.int32), distance=distance)


def assign(features: Rows, centroids: Float32, *, device: str = "cpu", progress: Progress | None = None) -> Clusters:
    """Find the nearest centroid of every row, and measure its distance."""
    index = _index(centroids, device)
    assignment, distance = np.empty(len(features), np.int32), np.empty(len(features), np.float32)
    for start, part in row_blocks(features):
        rows = slice(start, start + len(part))
        assignment[rows] = index.search(part, 1)[1][:, 0]
        # faiss's own distance expands |x - c|^2 and loses the small ones to cancellation.
        distance[rows] = np.linalg.norm(part - centroids[assignment[rows]], axis=1)
        if progress is not None:
            progress(rows.stop, len(features))
    return Clusters(centroids=centroids, assignment=assignment, distance=distance)


def _lloyd_pass(features: Rows, centroids: Float32, *, device: str, progress: Progress | None) -> Float32:
    """Return the mean of the rows nearest to each centroid; a centroid without members stays."""
    index = _index(centroids, device)
    sums, counts = np.zeros(centroids.shape), np.zeros(len(centroids))
    for start, part in row_blocks(features):
        nearest = index.search(part, 1)[1][:, 0]
        # Summed cluster by cluster, in float64: np.add.at would take many times as long.
        order = np.argsort(nearest, kind="stable")
        used, first = np.unique(nearest[order], return_index=True)
        sums[used] += np.add.reduceat(part[order].astype(np.float64), first, axis=0)
        counts += np.bincount(nearest, minlength=len(centroids))
        if progress is not None:
            progress(start + len(part), len(features))
    means = sums / np.maximum(counts, 1.0)[:, None]
    return np.where(counts[:, None] > 0, means, centroids).astype(np.float32)


def davies_bouldin(clusters: Clusters) -> float:
    """Return the Davies-Bouldin index, lower is better; infinity for fewer than two clusters with members.

    DB = mean over i of max over j of (S_i + S_j) / |mu_i - mu_j|, S the mean distance of a cluster's members
    (Davies and Bouldin, 1979). Clusters without members are left out.
    """
    members = np.bincount(clusters.assignment, minlength=len(clusters.centroids))
    used = members > 0
    if used.sum() < 2:
        return float("inf")
    summed = np.bincount(clusters.assignment, weights=clusters.distance, minlength=len(members))
    spread = summed[used] / members[used]
    centroids = clusters.centroids[used].astype(np.float64)
    # |a - b|^2 expanded, which holds K * K numbers and not K * K * F; rounding may put it below 0.
    square = (centroids**2).sum(axis=1)
    apart = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * centroids @ centroids.T, 0.0))
    np.fill_diagonal(apart, np.inf)
    with np.errstate(divide="ignore"):  # two equal centroids are infinitely bad
        return float(((spread[:, None] + spread[None]) / apart).max(axis=1).mean())


def choose_num_clusters(
    features: Rows,
    *,
    seed: int = 0,
    largest: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[int, float]:
    """Return K -> Davies-Bouldin index over a log grid and around its best point, ascending in K."""
    sample = subsample(features, SCAN_SAMPLES, seed)
    limit = min(LARGEST_K, max(2, len(sample) // MEMBERS_PER_CLUSTER)) if largest is None else largest
    grid = np.unique(np.geomspace(2, limit, SCAN_POINTS).round().astype(int)).tolist()
    total = len(grid) + REFINE_POINTS
    index: dict[int, float] = {}

    def scan(candidates: Sequence[int]) -> None:
        for k in candidates:
            index[k] = davies_bouldin(cluster(sample, k, seed=seed, device=device))
            if progress is not None:
                progress(min(len(index), total), total)

    scan(grid)
    # Refine between the best point's neighbours on the grid.
    best = grid.index(min(grid, key=index.__getitem__))
    low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    between = np.unique(np.geomspace(low, high, REFINE_POINTS + 3).round().astype(int)).tolist()
    scan([k for k in between if k not in index][:REFINE_POINTS])
    if progress is not None:
        progress(total, total)
    return dict(sorted(index.items()))


def subsample(features: Rows, count: int, seed: int) -> Float32:
    """Return `count` rows at random, all where there are fewer: contiguous float32 [min(count, N), F].

    The same seed gives the same rows.
    """
    if len(features) <= count:
        return np.ascontiguousarray(features[:])
    # Ascending, for features may lie on disk: each of their files is then opened once.
    rows = np.random.default_rng(seed).choice(len(features), count, replace=False)
    return np.ascontiguousarray(features[np.sort(rows)])


def _index(centroids: Float32, device: str) -> Any:
    import faiss  # noqa: PLC0415  # the selection service and the driver do not cluster

    index: Any = faiss.IndexFlatL2(centroids.shape[1])
    if device != "cpu":
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(centroids)
    return index
