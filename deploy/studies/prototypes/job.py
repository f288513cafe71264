"""From an index to prototypes: features, k-means, distances.

1. Every image is described once in a feature space; the features stay on disk while the job lasts.
2. They are clustered by k-means, K chosen by the Davies-Bouldin index, or by the labels.
3. The distances are written to prototypes.parquet. `deploy.studies.prototypes.report` draws its pictures.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.console import progress_bar
from deploy.studies.prototypes.features import FeatureSpec, compute_features
from loader import ShardIndex
from scoring import Prototypes, prototype_distances
from scoring.clusters import kmeans_device


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Result of `score`."""

    prototypes: Prototypes
    bad: tuple[str, ...]
    """One line for each sample that could not be decoded; its distance is 1, the least prototypical."""
    kmeans_device: str
    """Where k-means ran: cpu, or gpu with the number of devices."""

    @property
    def at_border(self) -> bool:
        """Whether the index chose the largest K that was tried, so that a larger one may be better."""
        tried = self.prototypes.davies_bouldin
        return len(tried) > 1 and self.prototypes.num_clusters == max(tried)


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
    """Cluster the images of an index and write each one's distance to its prototype into `out`, prototypes.parquet.

    An interrupted job continues from the features on disk. `labels_as_clusters` clusters by the labels (the paper's
    oracle). `size`, the side of the evaluation crop in pixels, is used where `features` is a name. `normalise` is a
    preset of `scoring.features.rows`, `device` that of k-means (auto, cpu or gpu). `workers` compute under Ray.
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
    if bad:  # a black image may lie near a centroid, and would be drawn often
        distance = prototypes.distance.copy()
        distance[[int(line.split(" ", 1)[0]) for line in bad]] = 1.0
        prototypes = replace(prototypes, distance=distance)
    prototypes.save(out, index.fingerprint)
    if not keep_features:  # last, since an interrupted job continues from them
        shutil.rmtree(folder)
    return Scored(prototypes=prototypes, bad=tuple(line.split(" ", 1)[1] for line in bad), kmeans_device=place)
