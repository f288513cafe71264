"""A run of seconds with every part real: log, selection, loaders, stream, oracle, training loop, checkpoints."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.launch.rank import RankParts
from deploy.runs.config import DataConfig, RunConfig, prototype_distances, save_config, selection_config
from deploy.runs.overrides import override
from deploy.runs.recipes import debug
from deploy.runs.rundir import RunDir
from loader import LoaderConfig, LoaderWorker, LocalLoaders, ShardIndex
from scoring import RunLog, Selection
from tests.faults.failpoints import failpoints
from tests.faults.oracle import RECORDED
from tests.integration.checker import Verdict, check, read_evidence
from trainer import Context, RunHooks, train

STEPS = 50
SETTINGS = (
    f"train.total_steps={STEPS}",
    "train.checkpoint_every=4",
    "train.global_batch=8",
    "train.log_every=1",
    "train.keep_checkpoints=2",
    "train.model.width=32",
    "train.model.depth=1",
    "train.model.decoder_width=16",
    "train.model.decoder_depth=1",
    "pictures=false",
    RECORDED,
)
OnStep = Callable[[int, dict[str, Any]], None]


class Crash(Exception):
    """The process is lost here, as far as the run can tell."""


def small(digits: DataConfig, *changes: str) -> RunConfig:
    """The run's configuration."""
    return override(debug(digits), (*SETTINGS, *changes))


def drive(
    config: RunConfig, run: RunDir, *, loaders: int = 1, on_step: OnStep | None = None, most_steps: int | None = None
) -> None:
    """Begin or continue the run, with so many loaders in this process."""
    run.path.mkdir(parents=True, exist_ok=True)
    save_config(config, run.config)
    index = ShardIndex.load(config.data.index)
    workers = [LoaderWorker(config.data.index, LoaderConfig()) for _ in range(loaders)]
    with closing(RunLog(run.log)) as runlog, closing(LocalLoaders(workers)) as pool:
        part = selection_config(config, num_samples=len(index), fingerprint=index.fingerprint)
        part = replace(part, snapshot_windows=2)
        selection = Selection(prototype_distances(config), part, runlog=runlog)
        rank = RankParts(config=config, run=run, reach_selection=lambda: selection, reach_loaders=lambda: pool)
        context = Context()
        train(
            config.train,
            rank.stream(context),
            run_dir=run.path,
            selection=selection,
            context=context,
            hooks=RunHooks(on_step=on_step, should_stop=None if most_steps is None else _after(most_steps)),
        )


def crash_at(step: int) -> OnStep:
    """Lose the process once so many steps are done."""

    def on_step(done: int, metrics: dict[str, Any]) -> None:
        if done == step:
            raise Crash

    return on_step


def kill_at(step: int) -> OnStep:
    """SIGKILL to this process once so many steps are done."""

    def on_step(done: int, metrics: dict[str, Any]) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step


def in_a_process(config: RunConfig, folder: str, loaders: int, step: int, failpoint: str) -> None:
    """What a forked process does: the run with a failpoint, or killed at a step."""
    failpoints.set(failpoint)
    drive(config, RunDir(Path(folder)), loaders=loaders, on_step=kill_at(step) if step else None)


def judged(run: RunDir, *, acknowledged: Sequence[Any] = ()) -> Verdict:
    """The checker's word on a run."""
    return check(read_evidence(run.path, acknowledged=tuple(acknowledged)))


def _after(steps: int) -> Callable[[], bool]:
    asked = iter(range(1, 10**9))
    return lambda: next(asked) >= steps
