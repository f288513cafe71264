"""Prototypes: how typical each sample is of its own cluster, as a distance in [0, 1] that the temperature acts on.

1. Features are clustered, by k-means or by labels (`scoring.clusters`).
2. The distance to the nearest centroid is min-max normalised within the cluster (Lin et al., CVPR 2025, Eq. 2-3).
3. The result is kept in one Parquet file that names its data set. The file is untrusted when it is read.
"""

from __future__ import annotations

import base64
import json
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
    choose_num_clusters,
    cluster,
    davies_bouldin,
    labelled_clusters,
)
from scoring.features.rows import Rows, normalised
from scoring.features.store import written_aside

Float32 = NDArray[np.float32]
METADATA_KEY = b"tempera.prototypes"
SCHEMA_VERSION = 1
COLUMNS = {"distance": pa.float32(), "cluster": pa.int32()}
FREE_ROWS = 1 << 20
"""A file of any length may claim this many rows; one that claims more must have a byte for each."""


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
    """Number of clusters tried -> index; the lowest was taken."""
    fingerprint: str = ""
    """Fingerprint of the data set, empty when unknown."""

    @property
    def num_clusters(self) -> int:
        return len(self.centroids)

    def save(self, path: str | Path, fingerprint: str = "") -> None:
        """Write one Parquet file, whole or not at all."""
        facts = {
            "schema": SCHEMA_VERSION,
            "fingerprint": fingerprint or self.fingerprint,
            "davies_bouldin": {str(k): value for k, value in self.davies_bouldin.items()},
            "centroids_shape": list(self.centroids.shape),
            "centroids": base64.b64encode(self.centroids.astype("<f4").tobytes()).decode(),
        }
        table = pa.table({"distance": self.distance, "cluster": self.cluster})
        with written_aside(Path(path)) as aside:
            pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(facts)}), aside)

    @staticmethod
    def load(path: str | Path) -> Prototypes:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a prototypes file.
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"prototypes {path} must exist; there is none. Run `tempera score` to make it.")
        with _opened(path) as file:
            facts = _facts(file)
            values = np.frombuffer(base64.b64decode(facts["centroids"], validate=True), "<f4")
            return Prototypes(
                distance=_column(file, "distance"),
                cluster=_column(file, "cluster"),
                centroids=values.reshape([int(side) for side in facts["centroids_shape"]]).astype(np.float32),
                davies_bouldin={int(k): float(value) for k, value in dict(facts["davies_bouldin"]).items()},
                fingerprint=str(facts["fingerprint"]),
            )


def fingerprint_of(path: str | Path) -> str:
    """Return the fingerprint of a prototypes file's data set, empty when unknown; ValueError if it is not one."""
    with _opened(path) as file:
        return str(_facts(file)["fingerprint"])


def load_distances(path: str | Path, num_samples: int) -> Float32:
    """Return the distances of a prototypes file, float32 [num_samples] in [0, 1].

    Raises:
        ValueError: if it is not one, or does not hold a distance for each sample.
    """
    with _opened(path) as file:
        found = int(file.metadata.num_rows)
        if found == num_samples:  # compared before memory is taken
            return np.asarray(_column(file, "distance"), dtype=np.float32)
    raise ValueError(f"{path} must hold a distance for each of the {num_samples} samples; it holds {found}.")


@contextmanager
def _opened(path: str | Path) -> Iterator[pq.ParquetFile]:
    """Open a prototypes file; ValueError if it is not one, or claims more than a file of its length can hold."""
    try:
        with pq.ParquetFile(path) as file:
            # A few bytes of metadata can claim 2^60 rows: refuse before anything of that size is allocated.
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
    """Return the metadata beside the columns; KeyError or ValueError if they are not of this schema."""
    facts = dict(json.loads((file.schema_arrow.metadata or {})[METADATA_KEY]))
    if facts["schema"] != SCHEMA_VERSION:
        raise ValueError(f"schema must be {SCHEMA_VERSION}; got {facts['schema']}")
    return facts


def _column(file: pq.ParquetFile, name: str) -> NDArray[Any]:
    """Read a column; ValueError unless it has its declared type and a value in every row."""
    found = file.schema_arrow.field(name).type
    if found != COLUMNS[name]:
        raise ValueError(f"column {name!r} must be {COLUMNS[name]}; it is {found}")
    column = file.read(columns=[name], use_threads=False)[name]
    if column.null_count or len(column) != file.metadata.num_rows:
        raise ValueError(f"column {name!r} must have a value in every row")
    return np.array(np.from_dlpack(column.combine_chunks()))  # `to_numpy` imports pandas


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
        labels: [N] clusters that are given, not searched; `num_clusters` is then ignored.
        normalise: a name of `scoring.features.rows.PRESETS`.
        device: value of `scoring.clusters.kmeans_device`.
        progress: called with (done, total) while K is scanned, then while rows are clustered.

    Raises:
        ValueError: the features are not a finite matrix with rows, or K is out of range.
    """
    rows = normalised(_checked_features(features), normalise)
    if labels is not None:
        clusters = labelled_clusters(rows, labels)
        tried = {len(clusters.centroids): davies_bouldin(clusters)}
    elif num_clusters is None:
        # Three samples or fewer have no second cluster to compare with.
        tried = {1: float("inf")}
        if len(rows) > 3:
            tried = choose_num_clusters(rows, seed=seed, device=device, progress=progress)
        clusters = cluster(rows, min(tried, key=tried.__getitem__), seed=seed, device=device, progress=progress)
    elif 1 <= num_clusters <= len(rows):
        clusters = cluster(rows, num_clusters, seed=seed, device=device, progress=progress)
        tried = {num_clusters: davies_bouldin(clusters)}
    else:
        raise ValueError(f"num_clusters must be between 1 and the number of samples ({len(rows)}); got {num_clusters}.")
    return Prototypes(
        distance=within_cluster(clusters),
        cluster=clusters.assignment,
        centroids=clusters.centroids,
        davies_bouldin=tried,
    )


def within_cluster(clusters: Clusters) -> Float32:
    """Return the distances min-max normalised within each cluster (Eq. 3), float32 [N] in [0, 1].

    Where all members are equally far, as in a cluster of one, the distance is 0.
    """
    count, assignment = len(clusters.centroids), clusters.assignment
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, assignment, clusters.distance)
    np.maximum.at(high, assignment, clusters.distance)
    span = (high - low)[assignment]
    scaled = (clusters.distance - low[assignment]) / np.where(span > 0, span, 1.0)
    return np.asarray(scaled, dtype=np.float32)


def _checked_features(features: Rows) -> Rows:
    """Return the features as finite rows; ValueError if they are not."""
    if not isinstance(features, np.ndarray):  # a store checks its rows when they are written
        return features
    matrix = np.ascontiguousarray(features, dtype=np.float32)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"features must be a matrix [N, F] with rows; got shape {matrix.shape}.")
    if not np.isfinite(matrix).all():
        row = int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])
        raise ValueError(f"features must be finite; row {row} is not. Leave that image out or compute it again.")
    return matrix
