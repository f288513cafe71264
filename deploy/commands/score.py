"""`tempera score`: features, clusters, and how prototypical each sample is."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from deploy.console import Answer, table


def score(
    index: Positional[Path],
    *,
    out: Path | None = None,
    features: str = "pixels",
    size: int = 32,
    clusters: int | None = None,
    seed: int = 0,
) -> Answer:
    """Cluster the images of an index and store each one's distance to its prototype.

    Args:
        index: index.parquet.
        out: prototypes.parquet to write; beside the index by default.
        features: feature space.
        size: side of the evaluation crop in pixels.
        clusters: number of clusters; by default the Davies-Bouldin index chooses it.
        seed: of k-means.
    """
    from deploy import plots
    from deploy import scoring_job as job

    target = out or index.parent / "prototypes.parquet"
    scored = job.score(index, target, features=features, size=size, num_clusters=clusters, seed=seed)
    picture = target.parent / "report" / "prototypes.png"
    plots.prototypes(picture, rows=job.prototype_rows(index, scored.prototypes, size=size))
    data = {
        "prototypes": str(target),
        "picture": str(picture),
        "samples": len(scored.prototypes.distance),
        "clusters": scored.num_clusters,
        "mean_distance": float(scored.prototypes.distance.mean()),
        "bad_samples": list(scored.bad),
    }
    return Answer(
        data=data, view=table("", ("", ""), [(name.replace("_", " "), str(value)) for name, value in data.items()])
    )
