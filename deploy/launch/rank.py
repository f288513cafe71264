"""The parts of one trainer rank, with Ray or without: its batches, its scores, its hooks into the training loop.

Selection (or its client) -- ScheduledWindows -- BatchStream -- train()
                  ^                                  |             |
                  +---- bad samples, scores ---------+-------------+

The parts are made in the rank's own process. This module is also imported by processes that compute nothing, so torch
and what needs it are imported inside the functions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir
from loader import ShardIndex, StreamConfig
from scoring import Control, Event, SelectionPort

if TYPE_CHECKING:
    from loader import BadSample, LoaderPool
    from trainer import RunHooks
    from trainer.ranks.context import Context
    from trainer.record.recorder import OnEvaluate, OnStep, Stream
    from trainer.sweep import Sweep, SweepResult

log = logging.getLogger(__name__)

SWEEP_AUTHOR = "sweep"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankParts:
    """Makes the parts of a rank from the run's configuration. Picklable: Ray sends it to the ranks by value."""

    config: RunConfig
    run: RunDir
    """Its directory, absolute under Ray: Ray Train gives ranks a working directory of their own."""
    reach_selection: Callable[[], SelectionPort]
    """Returns the selection, or a client of it, in the rank's process."""
    reach_loaders: Callable[[], LoaderPool]
    """Returns a pool of the loaders in the rank's process; each stream has its own."""

    def stream(self, context: Context) -> Stream:
        """Return the rank's batches; rank 0 also records what it consumes, for the API."""
        from deploy.launch.consumed import RecordedStream
        from loader import BatchStream
        from trainer import ScheduledWindows

        config, train, selection = self.config, self.config.train, self.reach_selection()
        config.load_extensions()  # the config arrived as a pickle, which imports none of the user's modules
        # An adaptive run sends no effective size with its requests: the selection derives it from the metrics.
        schedule = None if config.curriculum.adaptive else config.curriculum.schedule_by_progress()
        windows = ScheduledWindows(selection, schedule, train.window_steps, train.total_steps)
        stream_config = StreamConfig(
            seed=train.seed,
            global_batch=train.global_batch,
            total_steps=train.total_steps,
            transform=config.data.transform,
            window_steps=train.window_steps,
            rank=context.rank,
            world_size=context.world_size,
        )

        def report_bad(sample: BadSample) -> None:
            message = f"draw {sample.draw}: {sample.key}: {sample.reason}"
            try:
                selection.record(Event(kind="bad_sample", author="loader", message=message, value=sample.sample_id))
            except Exception:  # training does not depend on the entry
                log.warning("a bad sample could not be written into the run log: %s", message, exc_info=True)

        # Every rank reports its own bad samples; only rank 0 measures latency, as ranks take each step together.
        stream = BatchStream(windows, self.reach_loaders(), stream_config, on_bad=report_bad)
        if context.rank:
            return stream
        return RecordedStream(stream, self.run.consumed, window_steps=train.window_steps)

    def hooks(self, context: Context) -> RunHooks:
        """Return the rank's hooks: evaluation, pictures, the sweep, and the requests of the run directory."""
        from deploy.launch.evaluation import LOSS, MetricReports, ReportPictures, build_probe
        from trainer import RunHooks

        config, run, evaluate = self.config, self.run, build_probe(self.config)
        on_step: OnStep | None = None
        on_evaluate: OnEvaluate = evaluate
        if growth := config.curriculum.adaptive:
            record, window_steps = self.reach_selection().record, config.train.window_steps
            reports = MetricReports(record, metric=growth.metric, window_steps=window_steps)
            if growth.metric == LOSS:
                on_step = reports.on_step
            else:
                on_evaluate = reports.after(evaluate)
        return RunHooks(
            on_step=on_step,
            evaluate_every=config.evaluate_every,
            on_evaluate=on_evaluate if config.evaluate_every else None,
            on_milestone=ReportPictures(config, run) if config.pictures else None,
            should_stop=run.stop_request.exists,
            should_pause=run.pause_request.exists,
            sweep=self._sweep() if config.train.model.pass_.enabled else None,
        )

    def _sweep(self) -> Sweep:
        """Return the function that scores the whole data set for a selection round and closes the round."""
        from loader.sweep import each_once, evaluation_transform
        from trainer.sweep import Sweep

        config, selection, loaders = self.config, self.reach_selection(), self.reach_loaders()
        # Without randomness: a sample's score must not depend on the crop that it happens to get.
        transform = evaluation_transform(config.train.model.image_size)

        def batches(ids: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Any]]:
            return each_once(ids, loaders, transform=transform)

        def close_round(result: SweepResult) -> None:
            reason = f"scored {result.scored} of this rank's samples at step {result.step}"
            score = config.train.model.pass_.score
            selection.control(Control(kind="round", value=score, author=SWEEP_AUTHOR, reason=reason))

        num_samples = len(ShardIndex.load(config.data.index))
        return Sweep(batches, selection, num_samples=num_samples, after=close_round)
