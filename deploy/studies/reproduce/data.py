"""The data of a study: shards, indices and prototypes, written once below its folder and used by every arm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from deploy.console import progress_bar
from deploy.runs.config import DataConfig
from deploy.runs.rundir import RunError
from deploy.studies.prototypes import job
from deploy.studies.reproduce.claims import Arm
from loader import ImageSample, ImageSource, ShardIndex, build_index, build_shards, class_folders
from scoring import Prototypes

SPLITS = ("train", "test")
FEWEST_IN_CLUSTER = 10


def prepare_data(
    source: Path, out: Path, *, samples: int | None, test_samples: int | None = None, size: int
) -> DataConfig:
    """Write and index the shards of both splits, unless they are there.

    Args:
        source: folder with train/ and test/, each with one folder of images a class.
        out: folder for the shards.
        samples: training images to take, the same number of each class; None takes all.
        test_samples: the same for test images.
        size: the training crop's side, for the configuration that is returned.

    Raises:
        RunError: the folder has no train/ and test/, or their classes differ.
    """
    missing = [split for split in SPLITS if not (source / split).is_dir()]
    if missing:
        raise RunError(
            f"--data must hold train/ and test/, with a folder a class in each; {source} has no {missing[0]}/."
        )
    indices = {split: out / split / "index.parquet" for split in SPLITS}
    for (split, index), most in zip(indices.items(), (samples, test_samples), strict=True):
        if not index.is_file():
            _write(class_folders(source / split), index, split=split, samples=most)
    return DataConfig(index=str(indices["train"].resolve()), test_index=str(indices["test"].resolve()))


def with_prototypes(data: DataConfig, arm: Arm, *, size: int) -> DataConfig:
    """The data with the arm's prototypes, scored unless they are there; unchanged for an arm that needs none.

    On few images there are fewer prototypes than the arm asks for: a cluster has ten images or more on average.
    """
    if not arm.draws_by_distance:
        return data
    index = Path(data.index)
    clusters = min(arm.num_clusters, max(1, len(ShardIndex.load(index)) // FEWEST_IN_CLUSTER))
    oracle = arm.clusters_from == "labels"
    prototypes = index.parent / f"prototypes-{arm.features}-{'labels' if oracle else clusters}.parquet"
    if not prototypes.is_file():
        job.score(
            index,
            prototypes,
            features=arm.features,
            size=size,
            num_clusters=None if oracle else clusters,
            labels_as_clusters=oracle,
        )
    if arm.shuffled:
        prototypes = _shuffled(prototypes)
    return replace(data, prototypes=str(prototypes))


def _shuffled(prototypes: Path) -> Path:
    """The same distances, dealt to the images at random; beside the file that they come from."""
    shuffled = prototypes.with_stem(f"{prototypes.stem}-shuffled")
    if not shuffled.is_file():
        found = Prototypes.load(prototypes)
        replace(found, distance=np.random.default_rng(0).permutation(found.distance)).save(shuffled)
    return shuffled


def _write(source: ImageSource, index: Path, *, split: str, samples: int | None) -> None:
    chosen = source if samples is None else _balanced(source, samples)
    with progress_bar(f"writing {split} shards") as advance:
        shards = build_shards(chosen, index.parent, progress=advance)
    with progress_bar(f"indexing {split} shards") as advance:
        build_index(shards, index, progress=advance)


def _balanced(source: ImageSource, samples: int) -> ImageSource:
    """The first images of each class, the same number of each."""
    each = max(1, samples // max(1, len(source.class_names)))

    def chosen() -> Iterator[ImageSample]:
        taken: dict[int, int] = defaultdict(int)
        for sample in source.samples:
            taken[sample.label] += 1
            if taken[sample.label] <= each:
                yield sample

    return ImageSource(chosen(), source.class_names, each * len(source.class_names))
