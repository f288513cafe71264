"""From an index to prototypes: images through a loader, features, k-means, distances.

1. every image once, evaluation crop, described in a feature space and kept on disk while the job lasts;
2. k-means with K by the Davies-Bouldin index, or the classes of the labels;
3. prototypes.parquet. Its pictures are made by `score_report`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.console import progress_bar
from deploy.studies.prototypes.features import FeatureSpec, Images, compute_features
from loader import ShardIndex
from scoring import Prototypes, prototype_distances
from scoring.clusters import kmeans_device

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
    kmeans_device: str
    """Where k-means ran: cpu, or gpu with the number of devices."""
    at_border: bool
    """Whether the index chose the largest K that was tried, so that a larger one may be better still."""


def score(
    index_path: Path,
    out: Path,
    *,
    features: str | FeatureSpec = "pixels",
    size: int = 32,
    num_clusters: int | None = None,
    seed: int = 0,
    labels_as_clusters: bool = False,
    normalise: str = "none",
    device: str = "auto",
    workers: int = 0,
    keep_features: bool = False,
) -> Scored:
    """Score an indexed data set and save the result. Stopped, it goes on from the features that are there.

    Args:
        index_path: index.parquet.
        out: prototypes.parquet to write.
        features: a feature space, or the name of one.
        size: side of the evaluation crop in pixels, where only a name is given.
        num_clusters: K, or None to choose it by the Davies-Bouldin index.
        seed: of k-means.
        labels_as_clusters: take the classes as clusters (the paper's oracle).
        normalise: preset of `scoring.features.rows`.
        device: of k-means: auto, cpu or gpu.
        workers: processes under Ray that compute features; 0 computes here.
        keep_features: leave the features on disk.
    """
    spec = features if isinstance(features, FeatureSpec) else FeatureSpec(space=features, size=size, seed=seed)
    index, place = ShardIndex.load(index_path), kmeans_device(device)
    labels = index.label if labels_as_clusters else None
    folder = out.parent / f"{out.stem}.features"
    with progress_bar(f"computing {spec.space} features") as advance:
        store = compute_features(index_path, spec, folder, workers=workers, advance=advance)
    with progress_bar(f"clustering ({place})") as advance:
        prototypes = prototype_distances(
            store, num_clusters, seed, labels=labels, normalise=normalise, device=place, progress=advance
        )
    bad = store.bad()
    if bad:
        distance = prototypes.distance.copy()
        distance[[int(line.split(" ", 1)[0]) for line in bad]] = 1.0
        prototypes = replace(prototypes, distance=distance)
    prototypes.save(out, index.fingerprint)
    if not keep_features:
        shutil.rmtree(folder)
    tried = prototypes.davies_bouldin
    return Scored(
        prototypes=prototypes,
        num_clusters=prototypes.num_clusters,
        bad=tuple(line.split(" ", 1)[1] for line in bad),
        kmeans_device=place,
        at_border=len(tried) > 1 and prototypes.num_clusters == max(tried),
    )


def prototype_rows(
    index_path: Path, prototypes: Prototypes, *, size: int, clusters: int = SHOWN_CLUSTERS, images: int = SHOWN_IMAGES
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Images of the largest clusters, each from nearest to farthest, for `plots.prototypes`."""
    rows = picked_members(prototypes, clusters=clusters, images=images)
    decoded = Images(index_path, size)
    return [
        (f"{row.cluster} ({row.members})", np.concatenate([batch for batch, _ in decoded.batches(row.ids)]))
        for row in rows
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class PickedMembers:
    """Some members of one cluster."""

    cluster: int
    """Its number."""
    members: int
    """How many it has in all."""
    ids: NDArray[np.int64]
    """The picked ones, from nearest to farthest."""


def picked_members(prototypes: Prototypes, *, clusters: int, images: int) -> list[PickedMembers]:
    """The largest clusters, and members of each evenly from the nearest to the farthest."""
    sizes = np.bincount(prototypes.cluster, minlength=len(prototypes.centroids))
    shown = np.argsort(-sizes, kind="stable")[:clusters]
    rows = []
    for cluster in shown[sizes[shown] > 0]:
        members = np.flatnonzero(prototypes.cluster == cluster)
        members = members[np.argsort(prototypes.distance[members], kind="stable")]
        picked = members[np.linspace(0, len(members) - 1, min(images, len(members))).round().astype(np.int64)]
        rows.append(PickedMembers(cluster=int(cluster), members=len(members), ids=picked))
    return rows
