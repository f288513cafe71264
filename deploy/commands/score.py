"""`tempera score`: from images to features, clusters, and each sample's distance to its prototype."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from deploy.console import Answer, table, working

if TYPE_CHECKING:
    from deploy.studies.prototypes.features import FeatureSpec

DEFAULT_SIZE = 32
OUR_SPACES = ("pixels", "hog", "sift", "untrained")


def score(
    index: Positional[Path | None] = None,
    *,
    out: Path | None = None,
    features: str = "pixels",
    weights: Path | None = None,
    from_run: Path | None = None,
    compare: tuple[Path, ...] = (),
    size: int | None = None,
    clusters: int | None = None,
    clusters_from: Literal["kmeans", "labels"] = "kmeans",
    normalise: Literal["none", "standardise", "l2", "library"] = "none",
    workers: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    kmeans: Literal["auto", "cpu", "gpu"] = "auto",
    keep_features: bool = False,
    seed: int = 0,
) -> Answer:
    """Cluster the images of an index and store each one's distance to its prototype.

    The same command continues an interrupted one from the features on disk.

    Args:
        index: index.parquet; with --from-run the run's own.
        out: prototypes.parquet to write; beside the index by default.
        features: pixels, hog, sift, untrained (a ViT with random weights), or a timm model (vit_small_patch8_224.dino).
        weights: file with the timm model's weights (safetensors, or PyTorch tensors only); by default those of the hub.
        from_run: score with the encoder of this run; a live run draws by the new distances from its next window on.
        compare: prototype files of the same data, to measure how much their rankings agree; nothing is scored.
        size: side of the evaluation crop in pixels; by default 32, a timm model's own, or the run's.
        clusters: number of clusters; by default the Davies-Bouldin index chooses it.
        clusters_from: kmeans, or labels: the classes as clusters, the paper's oracle.
        normalise: none as in the paper, standardise for each dimension, l2 for rows of length 1, or library for both.
        workers: processes under Ray that compute features, on GPUs where there are some; 0 computes in this one.
        device: where networks compute.
        kmeans: device of k-means; gpu is an error where faiss has none.
        keep_features: keep the features beside the prototypes, for other numbers of clusters.
        seed: seed of k-means, words and random weights.
    """
    if compare:
        return _compare(compare, out)
    from deploy.studies.prototypes import job, report

    if from_run is not None:
        source, spec, default = _of_run(from_run, index)
    else:
        source, spec, default = _of_index(index, features, weights, size)
    spec, target = replace(spec, seed=seed, device=device), out or default
    target.parent.mkdir(parents=True, exist_ok=True)
    scored = job.score(
        source,
        target,
        features=spec,
        num_clusters=clusters,
        seed=seed,
        labels_as_clusters=clusters_from == "labels",
        normalise=normalise,
        device=kmeans,
        workers=workers,
        keep_features=keep_features,
    )
    title = f"{spec.space}: {scored.prototypes.num_clusters} clusters of {len(scored.prototypes.distance):,} images"
    with working("drawing pictures"):
        pictures = report.write_score_pictures(
            target.parent / "report", source, scored.prototypes, size=spec.size, title=title
        )
    tried = scored.prototypes.davies_bouldin
    data: dict[str, Any] = {
        "prototypes": str(target),
        "pictures": pictures,
        "samples": len(scored.prototypes.distance),
        "clusters": scored.prototypes.num_clusters,
        "davies_bouldin": {str(k): value for k, value in tried.items()},
        "largest_k_tried": scored.at_border,
        "kmeans_device": scored.kmeans_device,
        "mean_distance": float(scored.prototypes.distance.mean()),
        "bad_samples": list(scored.bad),
    }
    if from_run is not None:
        data["swapped_in"] = _swap_in(from_run, target)
    rows = [(name.replace("_", " "), str(value)) for name, value in data.items() if name != "davies_bouldin"]
    if scored.at_border:
        rows.append(("note", "the index is lowest at the largest K tried; its minimum may lie beyond. See --clusters."))
    return Answer(data=data, view=table("", ("", ""), rows))


def _of_index(
    index: Path | None, features: str, weights: Path | None, size: int | None
) -> tuple[Path, FeatureSpec, Path]:
    """Return the index, the feature space, and the file to write."""
    from deploy.studies.prototypes.features import FeatureSpec

    if index is None:
        raise ValueError("tempera score needs an index.parquet, --from-run or --compare; got none of them.")
    if size is None and features not in OUR_SPACES:
        # Imports torch and timm, which our own feature spaces do not need.
        from scoring.features.encoders import model_size

        size = model_size(features)
    file = None if weights is None else str(weights.absolute())
    spec = FeatureSpec(space=features, size=size or DEFAULT_SIZE, weights=file)
    return index, spec, index.parent / "prototypes.parquet"


def _of_run(run: Path, index: Path | None) -> tuple[Path, FeatureSpec, Path]:
    """Return the same for the features of a run's encoder; the file lies in the run directory."""
    from deploy.runs.config import load_config
    from deploy.runs.rundir import RunDir
    from deploy.studies.prototypes.features import FeatureSpec, checkpoint_step

    config = load_config(RunDir(run).require().config)
    spec = FeatureSpec(space="run", size=config.train.model.image_size, run=str(run.absolute()))
    target = run / "prototypes" / f"step-{checkpoint_step(run):08d}.parquet"
    return index or Path(config.data.index), spec, target


def _swap_in(run: Path, prototypes: Path) -> dict[str, Any] | None:
    """Give a live run the new distances and return its reply; None where the run is not alive."""
    from deploy.api.client import RunClient, author_name
    from deploy.runs.rundir import RunDir
    from deploy.studies.prototypes.features import checkpoint_step

    found = RunDir(run)
    if not found.is_alive:
        return None
    reason = f"scored by the run's own encoder at step {checkpoint_step(run)}"
    with RunClient.attach(found) as client:
        return client.control("distances", str(prototypes.resolve()), author=author_name(), reason=reason)


def _compare(files: tuple[Path, ...], out: Path | None) -> Answer:
    """Draw and tabulate how much files of prototypes agree."""
    from deploy.studies.prototypes.report import compare

    picture = out or files[0].parent / "report" / "overlap.png"
    with working("comparing the files"):
        data = compare(files, picture) | {"picture": str(picture)}
    rows = [
        (one, other, data["rank_correlation"][i][j], data["nearest_overlap"][i][j])
        for i, one in enumerate(data["names"])
        for j, other in enumerate(data["names"][:i])
    ]
    columns = ("space", "and space", "rank correlation", "nearest tenth in common")
    return Answer(data=data, view=table(f"agreement; picture in {picture}", columns, rows))
