"""Runs a study: every arm with every seed, each once, and what each of them measured.

An arm's folder is named after its whole configuration, so claims that share an arm train it once, and a study that was
cut off goes on where it was: the arm under way resumes from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.runs.config import DataConfig, RunConfig
from deploy.studies.reproduce.arms import Scale, run_config
from deploy.studies.reproduce.claims import START, Arm
from deploy.studies.reproduce.data import with_prototypes
from deploy.studies.reproduce.measure import Floor, Measure
from deploy.studies.reproduce.queue import Outcome, Queue, Task
from trainer import model_size


class Study:
    """Arms on one data set."""

    def __init__(self, *, scale: Scale, seeds: int, data: DataConfig, out: Path) -> None:
        """Prepare; nothing runs yet.

        Args:
            scale: model and length of every arm.
            seeds: how often each is trained, with seeds 0 .. seeds - 1.
            data: indexed shards of both splits.
            out: folder that keeps the arms of every claim.
        """
        self._scale, self._seeds, self._data, self._out = scale, seeds, data, out
        self._size = model_size(scale.size).image_size

    def run(self, arms: Sequence[Arm], *, queue: Queue) -> None:
        """Train and evaluate what is not there yet.

        Seeds are outermost: a study that is cut off has all arms of the first seed.
        """
        tasks: dict[str, Task] = {}
        for seed in range(self._seeds):
            for arm in arms:
                task = self._task(arm, seed)
                tasks.setdefault(task.folder.name.rpartition("-")[2], task)
        queue([task for task in tasks.values() if not task.result.is_file()])

    def outcomes(self, arms: Sequence[Arm]) -> Iterator[Outcome]:
        """What the arms measured, under their names here.

        Raises:
            FileNotFoundError: an arm was not run.
        """
        for seed in range(self._seeds):
            for arm in arms:
                found = json.loads(self._task(arm, seed).result.read_text())
                yield Outcome(**(found | {"arm": arm.name}))

    def floor(self) -> Floor:
        """What the same images give without training."""
        starts = [run_config(START, data=self._data, scale=self._scale, seed=seed).train for seed in range(self._seeds)]
        return Measure(self._data, size=self._size).floor(starts)

    def _task(self, arm: Arm, seed: int) -> Task:
        data = with_prototypes(self._data, arm, size=self._size)
        config = run_config(arm, data=data, scale=self._scale, seed=seed)
        digest = _digest(config)
        there = sorted((self._out / "arms").glob(f"*-{digest}"))
        folder = there[0] if there else self._out / "arms" / f"{config.name}-{digest}"
        return Task(config=config, folder=folder.resolve(), arm=arm.name, seed=seed, size=self._size)


def _digest(config: RunConfig) -> str:
    """Of everything that decides what is trained; its name and where the data lies do not."""
    value: dict[str, Any] = asdict(config)
    del value["name"]
    value["data"] = {
        name: Path(found).name if isinstance(found, str) else found for name, found in value["data"].items()
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
