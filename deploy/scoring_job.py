"""From an index to prototypes: images through a loader, features, k-means, distances, and the picture of what came out.

1. every image once, evaluation crop, decoded by a LoaderWorker in this process;
2. features; 3. k-means with K by the Davies-Bouldin index; 4. prototypes.parquet and report/prototypes.png.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.console import Advance, progress_bar
from loader import BatchSpec, LoaderConfig, LoaderWorker, ShardIndex, Transform
from scoring import Prototypes, image_features, prototype_distances

SWEEP_IMAGES = 256
"""Images decoded at once in a sweep."""
SHOWN_CLUSTERS, SHOWN_IMAGES = 12, 14
"""Rows and columns of the prototypes picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What `score` found."""

    prototypes: Prototypes
    """Distance and cluster of each sample."""
    num_clusters: int
    """K that the Davies-Bouldin index chose, or the one asked for."""
    bad: tuple[str, ...]
    """Samples that could not be decoded; they get the distance 1 (least prototypical) and are listed here."""


def score(
    index_path: Path,
    out: Path,
    *,
    features: str = "pixels",
    size: int = 32,
    num_clusters: int | None = None,
    seed: int = 0,
) -> Scored:
    """Score an indexed data set and save the result.

    Args:
        index_path: index.parquet.
        out: prototypes.parquet to write.
        features: a feature space known to scoring.image_features.
        size: side of the evaluation crop in pixels.
        num_clusters: K, or None to choose it by the Davies-Bouldin index.
        seed: of k-means.
    """
    index = ShardIndex.load(index_path)
    transform = evaluation_transform(size)
    bad: list[str] = []

    def batches(advance: Advance) -> Iterator[NDArray[np.uint8]]:
        for ids, images, failures in sweep(index_path, transform):
            bad.extend(failures)
            yield images
            advance(int(ids[-1]) + 1, len(index))

    with progress_bar(f"computing {features} features") as advance:
        matrix = image_features(batches(advance), kind=features)
    with progress_bar("clustering (K by Davies-Bouldin)") as advance:
        prototypes = prototype_distances(matrix, num_clusters, seed, progress=advance)
    prototypes.save(out, index.fingerprint)
    return Scored(prototypes=prototypes, num_clusters=len(prototypes.centroids), bad=tuple(bad))


def evaluation_transform(size: int) -> Transform:
    """The deterministic crop for features and evaluation: short side resized to 256/224 of the size, center cropped."""
    return Transform(
        kind="center_crop", size=size, short_side=max(size, round(size * 256 / 224)) if size >= 64 else size, flip=False
    )


def sweep(
    index_path: Path, transform: Transform, *, ids: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], list[str]]]:
    """Each sample once, in order of id.

    Args:
        index_path: index.parquet.
        transform: usually `evaluation_transform`.
        ids: only these samples, or all.

    Yields:
        (ids int64[n], images uint8[n,3,H,W] with zeros for bad samples, one line for each bad sample).
    """
    index = ShardIndex.load(index_path)
    wanted = np.arange(len(index)) if ids is None else ids
    worker = LoaderWorker(LoaderConfig(index=str(index_path), threads=len(os.sched_getaffinity(0))))
    for start in range(0, len(wanted), SWEEP_IMAGES):
        part = wanted[start : start + SWEEP_IMAGES]
        pixels = worker.load(BatchSpec(sample_ids=part, draws=part, seed=0, transform=transform))
        yield part, pixels.images, [f"{sample.key}: {sample.reason}" for sample in pixels.bad]


def prototype_rows(index_path: Path, prototypes: Prototypes, *, size: int) -> list[tuple[str, NDArray[np.uint8]]]:
    """Images of the largest clusters, each from nearest to farthest, for `plots.prototypes`."""
    sizes = np.bincount(prototypes.cluster, minlength=len(prototypes.centroids))
    shown = np.argsort(-sizes, kind="stable")[:SHOWN_CLUSTERS]
    rows = []
    for cluster in shown[sizes[shown] > 0]:
        members = np.flatnonzero(prototypes.cluster == cluster)
        members = members[np.argsort(prototypes.distance[members], kind="stable")]
        picked = members[np.linspace(0, len(members) - 1, min(SHOWN_IMAGES, len(members))).round().astype(np.int64)]
        images = np.concatenate([batch for _, batch, _ in sweep(index_path, evaluation_transform(size), ids=picked)])
        rows.append((f"{cluster} ({len(members)})", images))
    return rows
