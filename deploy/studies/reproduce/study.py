"""Runs a study: its data, every arm with every seed, each once, and their outcomes.

1. `prepare_data` writes and indexes the shards of both splits, once below the study's folder.
2. `Study.run` queues the arms that have no outcome yet. An arm's folder is named after its whole configuration, so
   claims that share an arm train it once, and an interrupted study continues: the arm under way resumes from its
   checkpoint. Prototypes are scored when the first arm needs them.
3. `Study.outcomes` and `Study.floor` read what the arms measured, and measure the same images without training.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.console import progress_bar
from deploy.runs.config import DataConfig
from deploy.runs.rundir import RunError
from deploy.studies.prototypes import job
from deploy.studies.reproduce.claims import START, Arm
from deploy.studies.reproduce.measure import Floor, Measure
from deploy.studies.reproduce.plan import Scale, run_config
from deploy.studies.reproduce.queue import Outcome, Queue, Task
from loader import ImageSample, ImageSource, ShardIndex, build_index, build_shards, class_folders
from scoring import Prototypes
from trainer import model_size

SPLITS = ("train", "test")
FEWEST_IN_CLUSTER = 10
"""Least mean number of images in a cluster: on few images there are fewer prototypes than an arm asks for."""


class Study:
    """Arms on one data set, each trained with the seeds 0 .. seeds - 1; `out` keeps the arms of every claim."""

    def __init__(self, *, scale: Scale, seeds: int, data: DataConfig, out: Path) -> None:
        self._scale, self._seeds, self._data, self._out = scale, seeds, data, out
        self._size = model_size(scale.size).image_size

    def run(self, arms: Sequence[Arm], *, queue: Queue) -> None:
        """Train and evaluate the arms that have no outcome yet."""
        tasks: dict[str, Task] = {}
        for seed in range(self._seeds):  # outermost, so that an interrupted study has all arms of the first seed
            for arm in arms:
                # By digest: arms that differ in name alone are one training.
                task = self._task(arm, seed)
                tasks.setdefault(task.folder.name.rpartition("-")[2], task)
        queue([task for task in tasks.values() if not task.result.is_file()])

    def outcomes(self, arms: Sequence[Arm]) -> Iterator[Outcome]:
        """Yield the arms' measurements, under the names that the arms have here.

        Raises:
            FileNotFoundError: an arm was not run.
        """
        for seed in range(self._seeds):
            for arm in arms:
                found = json.loads(self._task(arm, seed).result.read_text())
                yield Outcome(**(found | {"arm": arm.name}))

    def floor(self) -> Floor:
        """Measure the same images without training."""
        starts = [run_config(START, data=self._data, scale=self._scale, seed=seed).train for seed in range(self._seeds)]
        return Measure(self._data, size=self._size).floor(starts)

    def _task(self, arm: Arm, seed: int) -> Task:
        """Return an arm's training with one seed; its folder ends in a digest of the whole configuration."""
        data = with_prototypes(self._data, arm, size=self._size)
        config = run_config(arm, data=data, scale=self._scale, seed=seed)
        # Everything that decides what is trained: not the run's name, nor the folder of the data.
        value: dict[str, Any] = asdict(config)
        del value["name"]
        value["data"] = {
            name: Path(found).name if isinstance(found, str) else found for name, found in value["data"].items()
        }
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
        # An arm that another claim trained under another name is found by its digest.
        there = sorted((self._out / "arms").glob(f"*-{digest}"))
        folder = there[0] if there else self._out / "arms" / f"{config.name}-{digest}"
        return Task(config=config, folder=folder.resolve(), arm=arm.name, seed=seed, size=self._size)


def prepare_data(source: Path, out: Path, *, samples: int | None, test_samples: int | None = None) -> DataConfig:
    """Write and index the shards of both splits, unless they exist.

    `source` holds train/ and test/, each with one folder of images a class. Of the training images `samples` are taken,
    the same number of each class, of the test images `test_samples`; None takes all.

    Raises:
        RunError: the folder has no train/ or no test/.
    """
    missing = [split for split in SPLITS if not (source / split).is_dir()]
    if missing:
        raise RunError(
            f"--data must hold train/ and test/, with a folder a class in each; {source} has no {missing[0]}/."
        )
    indices = {split: out / split / "index.parquet" for split in SPLITS}
    for (split, index), most in zip(indices.items(), (samples, test_samples), strict=True):
        if index.is_file():
            continue
        images = class_folders(source / split)
        with progress_bar(f"writing {split} shards") as advance:
            shards = build_shards(images if most is None else _balanced(images, most), index.parent, progress=advance)
        with progress_bar(f"indexing {split} shards") as advance:
            build_index(shards, index, progress=advance)
    return DataConfig(index=str(indices["train"].resolve()), test_index=str(indices["test"].resolve()))


def _balanced(source: ImageSource, samples: int) -> ImageSource:
    """Return the first images of each class, the same number of each."""
    each = max(1, samples // max(1, len(source.class_names)))

    def chosen() -> Iterator[ImageSample]:
        taken: dict[int, int] = defaultdict(int)
        for sample in source.samples:
            taken[sample.label] += 1
            if taken[sample.label] <= each:
                yield sample

    return ImageSource(chosen(), source.class_names, each * len(source.class_names))


def with_prototypes(data: DataConfig, arm: Arm, *, size: int) -> DataConfig:
    """Return the data with the arm's prototypes, scored unless they exist; unchanged for an arm that needs none."""
    if not any(part in arm.policy for part in ("prototypical", "hard")):
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
        # The same distances on other images: whatever the curriculum gains by them, it gains by drawing few images.
        dealt = prototypes.with_stem(f"{prototypes.stem}-shuffled")
        if not dealt.is_file():
            found = Prototypes.load(prototypes)
            replace(found, distance=np.random.default_rng(0).permutation(found.distance)).save(dealt)
        prototypes = dealt
    return replace(data, prototypes=str(prototypes))
