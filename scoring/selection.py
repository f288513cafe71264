"""Selection: decides which samples a run sees, window by window, and can be steered while it does.

The life of a selection:
1. `__init__` opens the run's log, checks that it belongs to this run, and recovers: the newest snapshot, then the
   entries after it.
2. `window(i)` turns the controls in force into a weight table, draws, writes the window to the log and returns it. A
   repeated call returns the same window.
3. `control`, `report_scores` and `record` write to the log first, then change the state. A control takes effect in the
   next window that is not being drawn, which its reply names.

There are two locks, always taken in this order. The table changes only under the table lock, which is held while a
window is made, a round closed or a snapshot written; that may take seconds. The state lock is held for moments; most
controls, reports, and windows already drawn need no other. The data, the configuration and the log alone decide a
window, so a process that dies loses nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scoring.config import SelectionConfig
from scoring.controls import Controls
from scoring.draw import draw_window
from scoring.errors import CorruptLog
from scoring.log.compaction import Compaction
from scoring.log.group_commit import BACKLOG_LIMIT, GroupCommit
from scoring.log.history import History
from scoring.log.runlog import RunLog
from scoring.log.window_store import WindowStore
from scoring.records import Control, ControlReply, Event, LogEntry, ScoreAck, Window
from scoring.replay import redraw
from scoring.table.draw_counts import draw_summary
from scoring.table.samples import SampleTable
from scoring.table.scores import ScoreReport, checked_report
from scoring.table.weights import WeightKey
from scoring.temperature import checked_distance
from scoring.views import VIEWS


class Selection:
    """The selection of one run. Safe to use from several threads."""

    def __init__(
        self,
        distance: ArrayLike | None,
        config: SelectionConfig,
        *,
        runlog: RunLog | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open or recover a run.

        Args:
            distance: [N] prototype distances, finite; None for policies that need none.
            config: configuration; it must be the one that the log was begun with.
            runlog: the durable log; None keeps it in memory.
            clock: seconds since the epoch, for the log.

        Raises:
            ValueError: if the distances or the size of the data set are wrong, or cannot give the effective size.
            RunMismatch: if the log belongs to another run.
            CorruptLog: if the log is damaged beyond what it can be recovered from.
        """
        narrow = None if distance is None else checked_distance(distance).astype(np.float32, copy=False)
        self.config, self.num_samples = config, config.size_of(narrow)
        self.table = SampleTable(narrow, num_samples=self.num_samples, options=config.policy_options)
        self._log = runlog or RunLog()
        self._log.begin(config.identity(narrow))
        self._windows = WindowStore(self._log, redraw=lambda index: redraw(self._log, config, narrow, index))
        self._reports, self._history = GroupCommit(self._log), History(self.table, config.curriculum.user_policies)
        self._compaction = Compaction(self._log, self._history, config)
        self._controls = Controls(config, self._history, self._log, self._windows, self._reports, clock=clock)
        self._table_lock, self._state_lock = self._controls.table_lock, self._controls.state_lock
        self._recover()
        self._scored = self.table.scored()

    def _recover(self) -> None:
        """Read the newest snapshot, then the scores, rounds and windows after it, then the controls."""
        # Windows that trainers have but the log lacks are drawn again first: scores that came after them must wait.
        unlogged, next_window = self._log.unlogged, self._windows.next_window
        through = unlogged.scores_through if unlogged.end > next_window else None
        self._compaction.restore()
        self._history.follow(self._log, scores_through=through)
        if through is not None:
            self._reports.refill(self._log.reports(after=through))
        for index in range(self._history.position.next_window, next_window):
            self._history.count_draws(index, self._windows.load(index).sample_ids)
        if self._history.position.next_window != next_window:
            raise CorruptLog(
                f"the log must hold every window of its snapshot ({self._history.position.next_window}); it ends at "
                f"{next_window}. Restore run.sqlite from a copy, or remove its snapshots."
            )
        self._controls.recover(self._log.entries())

    # -- windows ------------------------------------------------------------------------------------------------------

    @property
    def next_window(self) -> int:
        """The first window that is not drawn yet."""
        return self._windows.next_window

    def window(self, index: int, *, effective_size: float | None = None) -> Window:
        """Return the draws of one window; the first request draws it, later ones get the same.

        Args:
            index: at most `next_window`.
            effective_size: the trainer's scheduled value for this window, which a person's value overrides; None
                keeps the last one.

        Raises:
            ValueError: for a window ahead of the next, or an effective size that is out of range, cannot be reached, or
                is sent although the configuration has an adaptive schedule.
            LogUnavailable: if the log could not be written for very long.
        """
        # Windows that exist are served without the table lock, so that trainers do not wait for a draw of seconds.
        with self._state_lock:
            recent, drawn = self._windows.recent.get(index), 0 <= index < self.next_window
        if recent is not None:
            return recent
        if drawn:
            return self._windows.load(index)
        with self._table_lock:
            if not 0 <= index <= self.next_window:
                raise ValueError(
                    f"window must be one already drawn or the next ({self.next_window}); got {index}. Ask in order."
                )
            # Another thread may have drawn it while this one waited for the lock.
            return self._draw_next(effective_size) if index == self.next_window else self.window(index)

    def _draw_next(self, requested: float | None) -> Window:
        """Schedule, weigh, draw, log, and only then change the state."""
        index, controls = self.next_window, self._controls
        try:
            with self._state_lock:
                controls.drawing = True  # from here on changes take effect after this window
                state, key, entries = controls.schedule(requested)
            controls.settle()
            weights, last = self._history.weigh_now(key), self._windows.last
            version = 1 if last is None else last.version + (WeightKey.of_window(last) != weights.key)
            facts, window = draw_window(self.config, weights, index=index, version=version)
            with self._state_lock:
                self._windows.add(facts, window, entries, scores_through=self._history.position.scores_through)
                controls.advance(state, key, weights)
            self._history.count_draws(index, window.sample_ids)
        finally:
            with self._state_lock:
                controls.drawing = False
        # A snapshot must not be ahead of the log.
        if not self._windows.unwritten:
            self._compaction.after_window(index)
        return window

    # -- changes ------------------------------------------------------------------------------------------------------

    def control(self, control: Control) -> ControlReply:
        """Apply a change; on disk when this returns.

        Three kinds wait until a window that is being drawn is done: a round, which reads all scores; distances, which
        are read from their file; and a policy whose effective size must be computed from its weights.

        Raises:
            ValueError: naming the field that is wrong; nothing changed.
            VersionConflict: if another control came since `expected_version`; nothing changed.
            LogUnavailable: if the disk does not take it; nothing changed.
        """
        return self._controls.apply(control)

    def record(self, event: Event) -> None:
        """Write an event (scaling, a lost loader, a bad sample, a metric) into the history; on disk when this returns.

        One whose identity is in the log already changes nothing.

        Raises:
            ValueError: for an event without kind or author, or of a control's kind.
            LogUnavailable: if the disk does not take it.
        """
        self._controls.record(event)

    def report_scores(
        self,
        ids: ArrayLike,
        values: ArrayLike,
        *,
        kind: str = "bss",
        step: int,
        producer: str,
        sequence: int,
        fingerprint: str = "",
    ) -> ScoreAck:
        """Merge scores; the accepted ones are on disk when this returns. The same report twice changes nothing.

        Args:
            ids: [n] sample ids.
            values: [n] scores, finite and not negative; others are refused one by one and counted.
            kind: one of SCORE_KINDS.
            step: optimizer step of the measurement; of two values for a sample the later holds.
            producer: name of the reporting rank.
            sequence: number of this report among the producer's.
            fingerprint: of the data set that the ids belong to; empty is not compared.

        Raises:
            ValueError: if a field as a whole is wrong; nothing changed.
            LogUnavailable: if the disk does not take it; nothing changed.
        """
        if fingerprint and fingerprint != self.config.fingerprint:
            raise ValueError(f"fingerprint must be the run's own ({self.config.fingerprint}); got {fingerprint}.")
        report = ScoreReport(
            ids=np.asarray(ids), values=np.asarray(values), kind=kind, step=step, producer=producer, sequence=sequence
        )
        report, rejected = checked_report(report, self.num_samples)
        if len(report.ids):
            # Scores must not overtake windows that are not in the log: a replay would read them in the wrong order.
            if self._windows.unwritten:
                with self._state_lock:
                    self._windows.flush()
            self._reports.submit(report)
            if self._reports.backlog > BACKLOG_LIMIT:
                self.settle()
        return ScoreAck(accepted=len(report.ids), rejected=rejected)

    def settle(self) -> None:
        """Merge the reported scores into the table, between two windows."""
        with self._table_lock:
            self._controls.settle()

    # -- reading ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the values in force now, as plain JSON; an infinite temperature is None.

        Does not wait for a window that is being drawn; "scored" is then the value of the call before.
        """
        if self._table_lock.acquire(blocking=False):
            try:
                self.settle()
                self._scored = self.table.scored()
            finally:
                self._table_lock.release()
        with self._state_lock:
            controls, key, last = self._controls.latest(), self._controls.latest_key(), self._windows.last
            size = self._controls.known_sizes.get(key.policy) if key.effective_size is None else key.effective_size
            return {
                "policy": controls.policy,
                "temperature": key.temperature if math.isfinite(key.temperature) else None,
                "effective_size": size,
                "scheduled_effective_size": controls.scheduled,
                "manual": controls.manual is not None,
                "manual_kind": controls.manual[0] if controls.manual else None,
                "control_version": controls.version,
                "version": last.version if last else 0,
                "next_window": self.next_window,
                "next_step": self.next_window * self.config.window_steps,
                "num_samples": self.num_samples,
                "scored": self._scored,
                "times_drawn": draw_summary(self.table.counts.histogram),
            }

    def view(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Return one of `scoring.views.VIEWS` for the weights now in force, as plain JSON values.

        The view "forecast" returns the values that a control (kind, value) would put in force, and changes nothing:
        "policy", "temperature" (None for infinity) and "effective_size" (None where it depends on the weights).

        Raises:
            ValueError: naming the argument that is wrong.
        """
        if name == "forecast":  # reads the controls, not the weights: it does not wait for a window being drawn
            key = self._controls.forecast(Control(author="forecast", **arguments))
            temperature = key.temperature if math.isfinite(key.temperature) else None
            return {"policy": key.policy, "temperature": temperature, "effective_size": key.effective_size}
        with self._table_lock:
            self.settle()
            return VIEWS[name](self.table, self._history.weigh_now(self._controls.latest_key()), **arguments)

    def times_drawn(self) -> NDArray[np.uint32]:
        """Return how often each sample was drawn in the windows so far, spares not counted; a copy."""
        with self._table_lock:
            return self.table.counts.part(0, self.num_samples)

    def scores(self, kind: str = "bss") -> NDArray[np.float32]:
        """Return the score of each sample, NaN where none was reported; a copy."""
        with self._table_lock:
            self.settle()
            return self.table.scores(kind)

    def log(self, limit: int | None = None, **bounds: Any) -> list[LogEntry]:
        """Return the last `limit` entries of the history, oldest first; `bounds` are those of `RunLog.entries`."""
        return self._log.entries(limit=limit, **bounds)

    def close(self) -> None:
        """Close the log; everything acknowledged is in it."""
        with self._table_lock, self._state_lock:
            self._log.close()
