"""The parts of one trainer rank, with Ray or without: schedule -> windows -> batches -> training loop.

Selection (or its client) -- ScheduledWindows -- BatchStream -- RecordedStream -- train()
                  ^                                  |                            |
                  +---- bad samples, scores, metrics +----------------------------+
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.launch.consumed import RecordedStream
from deploy.launch.evaluation import ReportPictures, probe_of
from deploy.launch.metric_reports import LOSS, MetricReports
from deploy.runs.config import RunConfig
from deploy.runs.curriculum import effective_size_schedule
from deploy.runs.rundir import RunDir
from loader import BadSample, BatchStream, LoaderPool, ShardIndex, StreamConfig
from loader.sweep import each_once, evaluation_transform
from scoring import Control, Event, SelectionPort
from trainer import RunHooks, ScheduledWindows
from trainer.ranks.context import Context
from trainer.sweep import Sweep, SweepResult

log = logging.getLogger(__name__)

SWEEP_AUTHOR = "sweep"
"""Author of the selection rounds in the run log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankParts:
    """Makes a rank's parts in the rank's own process. Picklable."""

    config: RunConfig
    """The whole run."""
    run: RunDir
    """Its directory, an absolute path under Ray: Ray Train gives ranks a working directory of their own."""
    reach_selection: Callable[[], SelectionPort]
    """Connects to the selection from the rank's process."""
    reach_loaders: Callable[[], LoaderPool]
    """Connects to the loaders from there; each stream has a pool of its own."""

    def selection(self, context: Context) -> SelectionPort:
        """Return the selection that the rank reports scores to."""
        return self.reach_selection()

    def stream(self, context: Context) -> BatchStream | RecordedStream:
        """Return the rank's batches; the first rank also writes down when it takes each."""
        config, train = self.config, self.config.train
        config.load_extensions()  # a rank gets the configuration by value: its process has imported nothing yet
        selection = self.reach_selection()
        schedule = None if config.curriculum.adaptive else effective_size_schedule(config)
        stream = BatchStream(
            ScheduledWindows(selection, schedule, train.window_steps, train.total_steps),
            self.reach_loaders(),
            StreamConfig(
                seed=train.seed,
                global_batch=train.global_batch,
                total_steps=train.total_steps,
                transform=config.data.transform,
                window_steps=train.window_steps,
                rank=context.rank,
                world_size=context.world_size,
            ),
            on_bad=_bad_sample_reporter(selection),
        )
        return stream if context.rank else RecordedStream(stream, self.run.consumed, window_steps=train.window_steps)

    def hooks(self, context: Context) -> RunHooks:
        """Return what the run adds to the training loop: requests of people, evaluations, pictures, PASS's sweep."""
        config = self.config
        adaptive = config.curriculum.adaptive
        on_step: Callable[[int, dict[str, Any]], None] | None = None
        evaluate: Callable[[int, Any], dict[str, float]] | None = probe_of(config) if config.evaluate_every else None
        if adaptive and context.rank == 0:
            reports = MetricReports(
                self.reach_selection(), metric=adaptive.metric, window_steps=config.train.window_steps
            )
            if adaptive.metric == LOSS:
                on_step = reports.on_step
            elif evaluate:
                evaluate = reports.after(evaluate)
        return RunHooks(
            on_step=on_step,
            evaluate_every=config.evaluate_every,
            on_evaluate=evaluate,
            on_milestone=ReportPictures(config, self.run) if config.pictures else None,
            should_stop=self.run.stop_request.exists,
            should_pause=self.run.pause_request.exists,
            sweep=self._sweep() if config.train.model.pass_.enabled else None,
        )

    def _sweep(self) -> Sweep:
        """Return PASS's sweep: score the whole data set, then close the selection round."""
        config = self.config
        selection, loaders = self.reach_selection(), self.reach_loaders()
        transform = evaluation_transform(config.train.model.image_size)

        def batches(ids: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Any]]:
            return each_once(ids, loaders, transform=transform)

        def close_round(result: SweepResult) -> None:
            reason = f"scored {result.scored} of this rank's samples at step {result.step}"
            kind = config.train.model.pass_.score
            selection.control(Control(kind="round", value=kind, author=SWEEP_AUTHOR, reason=reason))

        return Sweep(batches, selection, num_samples=len(ShardIndex.load(config.data.index)), after=close_round)


def _bad_sample_reporter(selection: SelectionPort) -> Callable[[BadSample], None]:
    """Return a callback that writes a substituted sample into the run log; training does not depend on it."""

    def report(sample: BadSample) -> None:
        message = f"draw {sample.draw}: {sample.key}: {sample.reason}"
        try:
            selection.record(Event(kind="bad_sample", author="loader", message=message, value=sample.sample_id))
        except Exception:
            log.warning("a bad sample could not be written into the run log: %s", message, exc_info=True)

    return report
