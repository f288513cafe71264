"""What one trainer rank assembles, with Ray or without: schedule -> windows -> batches -> training loop.

Selection (or its client) -- ScheduledWindows -- BatchStream -- train()
                  ^                                  |             |
                  +---- bad samples, scores ---------+-------------+
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.launch.consumed import RecordedStream
from deploy.launch.evaluation import Evaluation, Looks
from deploy.launch.metric_reports import LOSS, MetricReports
from deploy.runs.config import RunConfig
from deploy.runs.curriculum import effective_size_schedule
from deploy.runs.rundir import RunDir
from deploy.studies.prototypes.job import SWEEP_IMAGES, evaluation_transform
from loader import BadSample, BatchStream, FixedWindows, LoaderPool, ShardIndex, StreamConfig, Transform
from scoring import Control, Event
from trainer import Method, RunHooks, ScheduledWindows
from trainer.ranks.context import Context
from trainer.record.recorder import Stream
from trainer.sweep import Sweep, SweepResult

log = logging.getLogger(__name__)

SWEEP_AUTHOR = "sweep"
"""Author of the selection rounds in the run log."""


class SelectionPort(Protocol):
    """What a rank asks of the selection service; `scoring.Selection` and `scoring.actors.SelectionClient` offer it."""

    def window(self, index: int, *, effective_size: float | None = None) -> Any:
        """The draws of one window."""

    def report_scores(
        self, ids: Any, values: Any, *, kind: str = "bss", step: int, producer: str, sequence: int
    ) -> Any:
        """Scores from a trainer."""

    def control(self, control: Control) -> Any:
        """A change of what is drawn."""

    def record(self, event: Event) -> None:
        """An entry for the run log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """The parts of one trainer rank, made in the rank's own process. Picklable."""

    config: RunConfig
    """The whole run."""
    report: Path
    """The run's report folder, reached by the first rank."""
    reach_selection: Callable[[], SelectionPort]
    """Reaches the selection from the rank's process."""
    reach_loaders: Callable[[], LoaderPool]
    """Reaches the loaders from there; each stream has a pool of its own."""

    def selection(self, context: Context) -> SelectionPort:
        """What the rank reports scores to."""
        return self.reach_selection()

    def stream(self, context: Context) -> Stream:
        """The rank's batches; the first rank notes what it takes, for whoever watches."""
        config = self.config
        config.load_extensions()  # a rank gets the configuration by value: nothing was imported in its process yet
        selection = self.reach_selection()
        schedule = None if config.curriculum.adaptive else effective_size_schedule(config)
        windows = ScheduledWindows(selection, schedule, config.train.window_steps, config.train.total_steps)
        stream_config = StreamConfig(
            seed=config.train.seed,
            global_batch=config.train.global_batch,
            total_steps=config.train.total_steps,
            transform=config.data.transform,
            window_steps=config.train.window_steps,
            rank=context.rank,
            world_size=context.world_size,
        )
        stream: Stream = BatchStream(windows, self.reach_loaders(), stream_config, on_bad=_reporter(selection))
        if context.rank:
            return stream
        return RecordedStream(stream, RunDir(self.report.parent).consumed, window_steps=config.train.window_steps)

    def sweep(self, context: Context) -> Sweep | None:
        """Scores the whole data set for a selection round; None for a run that selects nothing."""
        config, settings = self.config, self.config.train.model.pass_
        if not settings.enabled:
            return None
        selection, loaders = self.reach_selection(), self.reach_loaders()
        size = config.train.model.image_size

        def batches(ids: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Any]]:
            return each_once(ids, loaders, transform=evaluation_transform(size))

        def close_round(result: SweepResult) -> None:
            reason = f"scored {result.scored} of this rank's samples at step {result.step}"
            selection.control(Control(kind="round", value=settings.score, author=SWEEP_AUTHOR, reason=reason))

        num_samples = len(ShardIndex.load(config.data.index))
        return Sweep(batches, selection, num_samples=num_samples, after=close_round)

    def hooks(self, context: Context) -> RunHooks:
        """Return the rank's hooks: evaluation, pictures, the sweep, and the requests of the run directory."""
        run = RunDir(self.report.parent)
        return RunHooks(
            on_step=self.on_step(context) if self.follows_loss and context.rank == 0 else None,
            evaluate_every=self.config.evaluate_every,
            on_evaluate=self.evaluation(context) if self.config.evaluate_every else None,
            on_milestone=self.looks(context) if self.config.pictures else None,
            should_stop=run.stop_request.exists,
            should_pause=run.pause_request.exists,
            sweep=self.sweep(context),
        )

    def evaluation(self, context: Context) -> Callable[[int, Method], dict[str, float]]:
        """Looks at the encoder while it trains, on the run's own images; an adaptive schedule hears of it."""
        evaluation, reports = Evaluation(self.config), self._metric_reports()
        return reports.after(evaluation) if reports and not self.follows_loss else evaluation

    @property
    def follows_loss(self) -> bool:
        """Whether the schedule is adaptive and follows the training loss."""
        adaptive = self.config.curriculum.adaptive
        return adaptive is not None and adaptive.metric == LOSS

    def on_step(self, context: Context) -> Callable[[int, dict[str, Any]], None]:
        """Tells the selection the loss that its schedule follows."""
        reports = self._metric_reports()
        assert reports is not None, "only an adaptive run reports its loss"
        return reports.on_step

    def _metric_reports(self) -> MetricReports | None:
        adaptive = self.config.curriculum.adaptive
        if adaptive is None:
            return None
        return MetricReports(
            self.reach_selection(), metric=adaptive.metric, window_steps=self.config.train.window_steps
        )

    def looks(self, context: Context) -> Looks:
        """Draws what the method does at the start, in the middle and at the end of the run."""
        return Looks(self.config, self.report)


def each_once(
    ids: NDArray[np.int64], loaders: LoaderPool, *, transform: Transform
) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """Samples in the order given, each once, through the loaders; samples that cannot be decoded are left out.

    Args:
        ids: int64[n].
        loaders: who makes pixels.
        transform: the evaluation crop.

    Yields:
        (sample ids int64[m], images uint8[m,3,H,W] tensor).
    """
    steps = math.ceil(len(ids) / SWEEP_IMAGES)
    stream_config = StreamConfig(
        seed=0, global_batch=SWEEP_IMAGES, total_steps=steps, transform=transform, max_bad_share=1.0
    )
    for batch in BatchStream(FixedWindows(ids, stream_config), loaders, stream_config):
        good = np.arange(min(SWEEP_IMAGES, len(ids) - batch.step * SWEEP_IMAGES))
        good = np.setdiff1d(good, [sample.row for sample in batch.substituted])
        yield batch.sample_ids[good], batch.images[good]


def _reporter(selection: SelectionPort) -> Callable[[BadSample], None]:
    """Writes a substituted sample into the run log; training does not depend on it."""

    def report(sample: BadSample) -> None:
        message = f"draw {sample.draw}: {sample.key}: {sample.reason}"
        try:
            selection.record(Event(kind="bad_sample", author="loader", message=message, value=sample.sample_id))
        except Exception:
            log.warning("a bad sample could not be written into the run log: %s", message, exc_info=True)

    return report
