"""k-means clusters of features, and their number: faiss does the clustering, the Davies-Bouldin index chooses K.

K is scanned over a log grid on a subsample, then between the neighbours of the best value; the whole data is clustered
once, with the K found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Progress = Callable[[int, int], None]

ITERATIONS = 20
SCAN_SAMPLES = 100_000
SCAN_POINTS = 10
REFINE_POINTS = 4
LARGEST_K = 2000  # the paper's ablation range ends here; it found 978
MEMBERS_PER_CLUSTER = 10
"""The scan stops where clusters would have fewer members on average: there the index rewards singletons."""
ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Clusters:
    """A partition of the features."""

    centroids: Float32
    """[K, F]."""
    assignment: Int32
    """[N] nearest centroid."""
    distance: Float32
    """[N] Euclidean distance to it."""


def cluster(features: Float32, num_clusters: int, *, seed: int = 0) -> Clusters:
    """k-means with faiss; the same seed gives the same clusters on one machine."""
    dimension = features.shape[1]
    kmeans = faiss.Kmeans(dimension, num_clusters, niter=ITERATIONS, seed=seed, min_points_per_centroid=1)
    kmeans.train(features)
    centroids = np.ascontiguousarray(kmeans.centroids, dtype=np.float32).reshape(num_clusters, dimension)
    assignment = np.empty(len(features), np.int32)
    distance = np.empty(len(features), np.float32)
    for start in range(0, len(features), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        assignment[rows] = kmeans.index.search(features[rows], 1)[1][:, 0]
        # Not faiss's own distance: it expands |x - c|^2 and loses the small ones to cancellation.
        distance[rows] = np.linalg.norm(features[rows] - centroids[assignment[rows]], axis=1)
    return Clusters(centroids=centroids, assignment=assignment, distance=distance)


def davies_bouldin(clusters: Clusters) -> float:
    """Davies-Bouldin index: mean over clusters of max (S_i + S_j) / |mu_i - mu_j|, S the mean member distance.

    Lower is better. Clusters without members are left out; fewer than two clusters give infinity.
    """
    members = np.bincount(clusters.assignment, minlength=len(clusters.centroids))
    used = members > 0
    if used.sum() < 2:
        return float("inf")
    summed = np.bincount(clusters.assignment, weights=clusters.distance, minlength=len(members))
    spread = summed[used] / members[used]
    centroids = clusters.centroids[used].astype(np.float64)
    square = (centroids**2).sum(axis=1)
    apart = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * centroids @ centroids.T, 0.0))
    np.fill_diagonal(apart, np.inf)
    with np.errstate(divide="ignore"):  # two equal centroids: infinitely bad, as the index says
        return float(((spread[:, None] + spread[None]) / apart).max(axis=1).mean())


def choose_num_clusters(
    features: Float32, *, seed: int = 0, largest: int | None = None, progress: Progress | None = None
) -> dict[int, float]:
    """Davies-Bouldin index by K over a log grid and around its best point, ascending in K."""
    sample = _subsample(features, seed)
    limit = min(LARGEST_K, max(2, len(sample) // MEMBERS_PER_CLUSTER)) if largest is None else largest
    grid = np.unique(np.geomspace(2, limit, SCAN_POINTS).round().astype(int))
    total = len(grid) + REFINE_POINTS
    index: dict[int, float] = {}
    for candidates in (lambda: grid, lambda: _between_neighbours(index)):
        for k in candidates():
            index[int(k)] = davies_bouldin(cluster(sample, int(k), seed=seed))
            if progress is not None:
                progress(min(len(index), total), total)
    if progress is not None:
        progress(total, total)
    return dict(sorted(index.items()))


def _between_neighbours(index: dict[int, float]) -> list[int]:
    """New values of K between the best one and those next to it."""
    known = sorted(index)
    place = known.index(min(known, key=lambda k: index[k]))
    low, high = known[max(0, place - 1)], known[min(len(known) - 1, place + 1)]
    points = np.unique(np.geomspace(low, high, REFINE_POINTS + 3).round().astype(int))
    return [int(k) for k in points if int(k) not in index][:REFINE_POINTS]


def _subsample(features: Float32, seed: int) -> Float32:
    if len(features) <= SCAN_SAMPLES:
        return features
    rows = np.random.default_rng(seed).choice(len(features), SCAN_SAMPLES, replace=False)
    return np.ascontiguousarray(features[np.sort(rows)])
