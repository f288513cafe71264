"""Runs a study: every arm with every seed, each once, and what each of them measured.

An arm's folder is named after its whole configuration, so claims that share an arm train it once, and a study that was
cut off goes on where it was: the arm under way resumes from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.config import DataConfig, RunConfig
from deploy.console import say
from deploy.launch import launch_in_process
from deploy.reproduce.arms import run_config
from deploy.reproduce.claims import Arm
from deploy.reproduce.data import with_prototypes
from deploy.reproduce.measure import Measure
from deploy.reproduce.plan import Plan
from deploy.rundir import RunDir, RunError, write_json
from deploy.terminal.training_bar import training_bar
from trainer import model_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One trained and evaluated arm."""

    arm: str
    """Its name."""
    seed: int
    """Its seed."""
    metrics: dict[str, float]
    """Of the final encoder."""
    curve: dict[str, list[list[float]]]
    """Metric -> [step, value] pairs of the training curve."""
    steps: int
    """Optimizer steps."""
    seconds: float
    """Of the last session that trained it."""


class Study:
    """The arms of a plan on one data set."""

    def __init__(self, plan: Plan, arms: tuple[Arm, ...], *, data: DataConfig, out: Path) -> None:
        """Prepare; nothing runs yet.

        Args:
            plan: seeds and scale.
            arms: what is trained.
            data: indexed shards of both splits.
            out: folder that keeps the arms of every claim.
        """
        self.plan, self._arms, self._data, self._out = plan, arms, data, out
        self.size = model_size(plan.scale.size).image_size
        self.measure = Measure(data, size=self.size)

    def run(self) -> Iterator[Outcome]:
        """Train and evaluate what is not there yet, one arm after the other.

        Seeds are outermost: a study that is cut off has all arms of the first seed.
        """
        jobs = [(arm, seed) for seed in range(self.plan.seeds) for arm in self._arms]
        for number, (arm, seed) in enumerate(jobs, start=1):
            data = with_prototypes(self._data, arm, size=self.size)
            config = run_config(arm, data=data, scale=self.plan.scale, seed=seed)
            yield self._outcome(
                config, arm=arm.name, seed=seed, title=f"[{number}/{len(jobs)}] {arm.name}, seed {seed}"
            )

    def _outcome(self, config: RunConfig, *, arm: str, seed: int, title: str) -> Outcome:
        run = RunDir(self._out / "arms" / f"{config.name}-{_digest(config)}")
        result = run.path / "outcome.json"
        if result.is_file():
            say(f"{title}: already there")
            return Outcome(**(json.loads(result.read_text()) | {"arm": arm}))
        began = time.monotonic()
        with run.held(), training_bar(run, total_steps=config.train.total_steps, description=title):
            ended = launch_in_process(config, run)
        if ended.reason != "finished":
            raise RunError(f"{title} was stopped at step {ended.step}; the same command goes on from there.")
        outcome = Outcome(
            arm=arm,
            seed=seed,
            metrics=self.measure(run.path),
            curve=_curve(run),
            steps=ended.step,
            seconds=time.monotonic() - began,
        )
        write_json(result, asdict(outcome))
        return outcome


def _curve(run: RunDir) -> dict[str, list[list[float]]]:
    lines = run.metric_lines()
    names = sorted({name for line in lines for name in line if name.startswith("nn_")} | {"loss"})
    return {name: [[line["step"], line[name]] for line in lines if line.get(name) is not None] for name in names}


def _digest(config: RunConfig) -> str:
    """Of everything that decides what is trained; where the data lies does not."""
    value: dict[str, Any] = asdict(config)
    value["data"] = {
        name: Path(found).name if isinstance(found, str) else found for name, found in value["data"].items()
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
