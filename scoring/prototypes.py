"""Prototypes: how typical each sample is of its own cluster, as a distance in [0, 1] that the temperature acts on.

Features are clustered, the distance to the nearest centroid is min-max normalised within the cluster (Lin et al., CVPR
2025, Eq. 2-3), and the result is kept in one Parquet file that names the data set it belongs to.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scoring.clusters import (
    Clusters,
    Progress,
    Rows,
    choose_num_clusters,
    cluster,
    davies_bouldin,
    labelled_clusters,
)
from scoring.features.normalise import normalised

Float32 = NDArray[np.float32]
METADATA_KEY = b"tempera.prototypes"
SCHEMA_VERSION = 1
COLUMNS = {"distance": pa.float32(), "cluster": pa.int32()}
FREE_ROWS = 1 << 20
"""Any file may have so many rows; one with more takes a byte a row at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prototypes:
    """Distances of a data set to its prototypes."""

    distance: Float32
    """[N] in [0, 1]; 0 for the nearest member of each cluster, 1 for the farthest."""
    cluster: NDArray[np.int32]
    """[N] cluster of each sample."""
    centroids: Float32
    """[K, F] the prototypes."""
    davies_bouldin: dict[int, float]
    """Index by number of clusters tried; the lowest was taken."""
    fingerprint: str = ""
    """Fingerprint of the data set, empty when unknown."""

    @property
    def num_clusters(self) -> int:
        """Number of prototypes."""
        return len(self.centroids)

    def save(self, path: str | Path, fingerprint: str = "") -> None:
        """Write one Parquet file, aside first and then renamed, so that a reader never sees half of it."""
        facts = {
            "schema": SCHEMA_VERSION,
            "fingerprint": fingerprint or self.fingerprint,
            "davies_bouldin": {str(k): value for k, value in self.davies_bouldin.items()},
            "centroids_shape": list(self.centroids.shape),
            "centroids": base64.b64encode(self.centroids.astype("<f4").tobytes()).decode(),
        }
        table = pa.table({"distance": self.distance, "cluster": self.cluster})
        target = Path(path)
        aside = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(facts)}), aside)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | Path) -> Prototypes:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a prototypes file.
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"prototypes {path} must exist; there is none. Run `tempera score` to make it.")
        with _opened(path) as file:
            facts = _facts(file)
            columns = [_column(file, name) for name in COLUMNS]
            return Prototypes(
                distance=columns[0],
                cluster=columns[1],
                centroids=_centroids(facts),
                davies_bouldin={int(k): float(value) for k, value in dict(facts["davies_bouldin"]).items()},
                fingerprint=str(facts["fingerprint"]),
            )


def num_distances(path: str | Path) -> int:
    """Samples of a file that `Prototypes.save` wrote; ValueError if it is none."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def fingerprint_of(path: str | Path) -> str:
    """Fingerprint of the data that a file of `Prototypes.save` is of, empty when unknown; ValueError if it is none."""
    with _opened(path) as file:
        return str(_facts(file)["fingerprint"])


def load_distances(path: str | Path, first: int, last: int) -> Float32:
    """Distances of the samples [first, last) of a file that `Prototypes.save` wrote; ValueError if it is none."""
    with _opened(path) as file:
        return np.asarray(_column(file, "distance")[first:last], dtype=np.float32)


@contextmanager
def _opened(path: str | Path) -> Iterator[pq.ParquetFile]:
    """The file; ValueError if it is none of ours, or claims more than a file of its length can hold."""
    try:
        with pq.ParquetFile(path) as file:
            claims, file_bytes = file.metadata, Path(path).stat().st_size
            groups = map(claims.row_group, range(claims.num_row_groups))
            if claims.num_rows > max(FREE_ROWS, file_bytes):
                raise ValueError(f"it claims {claims.num_rows} rows in {file_bytes} bytes")
            if sum(group.total_byte_size for group in groups) > 16 * (claims.num_rows + FREE_ROWS):
                raise ValueError("its columns claim more bytes than its rows need")
            yield file
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} must be a file of `tempera score`; it is not ({error}).") from error


def _facts(file: pq.ParquetFile) -> dict[str, Any]:
    """What stands beside the columns."""
    facts = dict(json.loads((file.schema_arrow.metadata or {})[METADATA_KEY]))
    if facts["schema"] != SCHEMA_VERSION:
        raise ValueError(f"schema must be {SCHEMA_VERSION}; got {facts['schema']}")
    return facts


def _column(file: pq.ParquetFile, name: str) -> NDArray[Any]:
    """A column in its type, as long as the file says."""
    found = file.schema_arrow.field(name).type
    if found != COLUMNS[name]:
        raise ValueError(f"column {name!r} must be {COLUMNS[name]}; it is {found}")
    column = file.read(columns=[name], use_threads=False)[name]
    if column.null_count or len(column) != file.metadata.num_rows:
        raise ValueError(f"column {name!r} must have a value in every row")
    return np.asarray(column.to_numpy())


def _centroids(facts: dict[str, Any]) -> Float32:
    values = np.frombuffer(base64.b64decode(facts["centroids"], validate=True), "<f4")
    return values.reshape([int(side) for side in facts["centroids_shape"]]).astype(np.float32)


def prototype_distances(
    features: Rows,
    num_clusters: int | None = None,
    seed: int = 0,
    *,
    labels: NDArray[np.integer[Any]] | None = None,
    normalise: str = "none",
    device: str = "cpu",
    progress: Progress | None = None,
) -> Prototypes:
    """Cluster features and measure how far each sample is from its prototype.

    Args:
        features: [N, F], finite; an array, or a store on disk.
        num_clusters: K, in [1, N]; None scans for the lowest Davies-Bouldin index.
        seed: seed of the clustering.
        labels: [N] clusters that are given, not found; `num_clusters` is then of no use.
        normalise: a name of `scoring.features.normalise.PRESETS`.
        device: what `scoring.clusters.kmeans_device` returned.
        progress: called with (done, total) while K is scanned, then while rows are clustered.

    Returns:
        float32 distances in [0, 1] and all that led to them.

    Raises:
        ValueError: if the features are not a finite matrix with rows, or K is out of range.
    """
    rows = normalised(_checked_features(features), normalise)
    if labels is not None:
        clusters = labelled_clusters(rows, labels)
        return _prototypes(clusters, {len(clusters.centroids): davies_bouldin(clusters)})
    if num_clusters is None:
        found = (
            choose_num_clusters(rows, seed=seed, device=device, progress=progress)
            if len(rows) > 3
            else {1: float("inf")}
        )
        best = min(found, key=lambda k: found[k])
        return _prototypes(cluster(rows, best, seed=seed, device=device, progress=progress), found)
    if not 1 <= num_clusters <= len(rows):
        raise ValueError(f"num_clusters must be between 1 and the number of samples ({len(rows)}); got {num_clusters}.")
    clusters = cluster(rows, num_clusters, seed=seed, device=device, progress=progress)
    return _prototypes(clusters, {num_clusters: davies_bouldin(clusters)})


def _prototypes(clusters: Clusters, index: dict[int, float]) -> Prototypes:
    return Prototypes(
        distance=within_cluster(clusters),
        cluster=clusters.assignment,
        centroids=clusters.centroids,
        davies_bouldin=index,
    )


def within_cluster(clusters: Clusters) -> Float32:
    """Min-max normalised distance within each cluster; 0 where all members are equally far (singletons too)."""
    count, assignment = len(clusters.centroids), clusters.assignment
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, assignment, clusters.distance)
    np.maximum.at(high, assignment, clusters.distance)
    span = (high - low)[assignment]
    scaled = (clusters.distance - low[assignment]) / np.where(span > 0, span, 1.0)
    return np.asarray(scaled, dtype=np.float32)


def _checked_features(features: Rows) -> Rows:
    """The rows; a store has checked its own when they were written."""
    if not isinstance(features, np.ndarray):
        return features
    matrix = np.ascontiguousarray(features, dtype=np.float32)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"features must be a matrix [N, F] with rows; got shape {matrix.shape}.")
    if not np.isfinite(matrix).all():
        row = int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])
        raise ValueError(f"features must be finite; row {row} is not. Leave that image out or compute it again.")
    return matrix
