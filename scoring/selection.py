"""Selection: decides which samples a run sees, window by window, and can be steered while it does.

In order of life:
1. It opens the run's log, checks that the log is of this run, and recovers: newest snapshot, then what came after it.
2. `window(i)` turns the controls in force into a weight table, draws, writes the window to the log, hands it out. Asked
   again, it hands out the same window.
3. `control`, `report_scores` and `record` write to the log first, then change the state; the change lands in the next
   window that is not being drawn yet, and the reply names it.

Two locks. `_drawing` is held while a window is made, a round closed or a snapshot written, which may take seconds: the
columns change only under it. `_state` is held for moments; controls, reports, and windows already drawn need no more.
Nothing but the data, the configuration and the log decides a window, so a process that dies loses nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scoring.config import SelectionConfig
from scoring.controls import Resolved, Resolver, checked_control
from scoring.draw.drawing import Law, Weighed, draw_window
from scoring.errors import CorruptLog, VersionConflict
from scoring.log.compaction import Housekeeping
from scoring.log.group_commit import ScoreIntake
from scoring.log.history import History
from scoring.log.replay import redraw
from scoring.log.runlog import RunLog
from scoring.records import TABLE_CHANGES, TAKEN_KINDS, Control, ControlReply, Event, LogEntry, ScoreAck, Window
from scoring.steering import Steering, reply_to, with_law
from scoring.table.changes import TableChanges
from scoring.table.draw_counts import draw_summary
from scoring.table.samples import SampleTable, local_ranges
from scoring.table.scores import ScoreReport, checked_report
from scoring.temperature import checked_distance
from scoring.window_store import WindowShelf


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
            config: what was configured; it must be what the log was begun with.
            runlog: the durable log; None keeps it in memory.
            clock: seconds since the epoch, for the log.

        Raises:
            ValueError: if the distances or the size of the data set are wrong, or cannot give the effective size.
            RunMismatch: if the log belongs to another run.
            CorruptLog: if the log is damaged beyond what it can be recovered from.
        """
        narrow = None if distance is None else checked_distance(distance).astype(np.float32, copy=False)
        self.config, self.num_samples = config, config.size_of(narrow)
        self.table = SampleTable(local_ranges(narrow, self.num_samples), options=config.policy_options)
        self._log = runlog or RunLog()
        self._log.begin(config.identity(narrow))
        self._shelf = WindowShelf(self._log, redraw=lambda index: redraw(self._log, config, narrow, index))
        self._intake, self._history = ScoreIntake(self._log), History(self.table)
        self._house = Housekeeping(self._log, self._history, config)
        self._resolver = Resolver(self.table, config)
        self._steering = Steering(config, self._resolver, take_sequence=self._log.take_sequence, clock=clock)
        self._changes = TableChanges(config, self._log, self._history, self._resolver, self._steering)
        self._weighed: Weighed | None = None
        self._sizes: dict[str, float] = {}
        self._drawing, self._state = threading.RLock(), threading.RLock()
        self._recover()
        self._scored = self.table.scored()

    def _recover(self) -> None:
        """Newest snapshot, then the scores, rounds and windows after it, then the controls."""
        promise, self._steering.promised = self._log.promise, self._log.promise.end
        through = promise.scores_through if promise.end > self._shelf.next_window else None
        self._house.restore()
        self._history.follow(self._log, scores_through=through)
        if through is not None:
            self._intake.refill(self._log.reports(after=through))
        for index in range(self._history.position.next_window, self._shelf.next_window):
            self._history.count(index, self._shelf.load(index).sample_ids)
        if self._history.position.next_window != self._shelf.next_window:
            raise CorruptLog(
                f"the log must hold every window of its snapshot ({self._history.position.next_window}); it ends at "
                f"{self._shelf.next_window}. Restore run.sqlite from a copy, or remove its snapshots."
            )
        entries, last = self._log.entries(), self._shelf.last
        self._steering.recover(entries, self._shelf.next_window)
        self._sizes = {last.policy: last.effective_size} if last else {}
        for entry in entries:
            if entry.window >= self._shelf.next_window:
                self._note_size(entry)

    def _note_size(self, entry: LogEntry) -> None:
        """Remember the effective size of a policy that was set, for only weights may tell it."""
        if entry.kind == "policy" and entry.effective_size is not None:
            self._sizes[str(entry.value)] = entry.effective_size

    # -- windows ------------------------------------------------------------------------------------------------------

    @property
    def next_window(self) -> int:
        """The first window that is not yet materialised."""
        return self._shelf.next_window

    def window(self, index: int, *, effective_size: float | None = None) -> Window:
        """The draws of one window; the first request materialises it, later ones get the same.

        Args:
            index: at most `next_window`.
            effective_size: the trainer's scheduled value for this window, in force unless a person's holds; None
                leaves the last.

        Raises:
            ValueError: for a window ahead of the next, an effective size out of range or out of reach, or one that is
                sent although the configuration has an adaptive schedule.
            LogUnavailable: if the log could not be written for very long.
        """
        with self._state:
            recent, materialised = self._shelf.recent(index), 0 <= index < self._shelf.next_window
        if recent is not None:
            return recent
        if materialised:
            return self._shelf.load(index)
        with self._drawing:
            if not 0 <= index <= self.next_window:
                raise ValueError(
                    f"window must be one already drawn or the next ({self.next_window}); got {index}. Ask in order."
                )
            return self._materialise(effective_size) if index == self.next_window else self.window(index)

    def _materialise(self, requested: float | None) -> Window:
        """Schedule, resolve, weigh, draw, log, and only then become the state."""
        index = self.next_window
        try:
            with self._state:
                self._steering.busy = True
                controls, resolved, entries = self._steering.schedule(requested)
            self._merge()
            weighed = self._weigh(resolved)
            facts, window = draw_window(
                self.config, weighed, num_samples=self.num_samples, index=index, version=self._version(weighed)
            )
            with self._state:
                self._shelf.write(facts, window, entries, scores_through=self._history.position.scores_through)
                self._shelf.keep(facts, window)
                self._steering.advance(controls, resolved)
                self._sizes = {facts.policy: facts.effective_size}
            self._history.count(index, window.sample_ids)
        finally:
            with self._state:
                self._steering.busy = False
        if self._shelf.is_flushed:
            self._house.after_window(index)
        return window

    def _merge(self) -> None:
        """Take in the scores that came; not while windows that were handed out have to be drawn again."""
        if self.next_window >= self._steering.promised:
            self._history.merge(self._intake.take())

    def _weigh(self, resolved: Resolved) -> Weighed:
        """The weight table of a law, made if it is not the one at hand."""
        position = self._history.position
        law = Law.of(
            resolved,
            scores_through=position.scores_through,
            rounds_through=position.rounds_through,
            distances_through=self._history.distances_through,
        )
        if self._weighed is None or self._weighed.law != law:
            self._weighed = Weighed.build(self.table, resolved, law)
        return self._weighed

    def _version(self, weighed: Weighed) -> int:
        last = self._shelf.last
        return 1 if last is None else last.version + (Law.of_window(last) != weighed.law)

    def snapshot(self) -> None:
        """Write the sample table beside the log, so that recovery begins there."""
        with self._drawing:
            self._shelf.flush()
            self._house.snapshot()

    # -- changes ------------------------------------------------------------------------------------------------------

    def control(self, control: Control) -> ControlReply:
        """Apply a change; on disk when this returns.

        A round reads all scores, distances come from their file, and a policy whose effective size only its weights
        tell is weighed: these wait for a window that is being drawn.

        Raises:
            ValueError: naming the field that is wrong; nothing changed.
            VersionConflict: if another control came since `expected_version`; nothing changed.
            LogUnavailable: if the disk does not take it; nothing changed.
        """
        waits = control.kind in ("policy", *TABLE_CHANGES)
        columns: AbstractContextManager[Any] = self._drawing if waits else nullcontext()
        with columns:
            size = self._size_of_policy(control) if control.kind == "policy" else None
            border = self._border_of_round(control) if control.kind == "round" else None
            with self._state:
                earlier = self._log.entry_of(control.request)
                if earlier is not None:
                    return reply_to(earlier)
                latest = self._steering.latest()
                if control.expected_version not in (None, latest.version):
                    raise VersionConflict(control.expected_version or 0, latest.version)
                value = checked_control(control, latest, self._resolver)
                self._shelf.flush()
                if border is not None:
                    return self._changes.close_round(control, border)
                if control.kind == "distances":
                    return self._changes.swap_distances(control)
                controls = latest.after(control.kind, value)
                resolved = self._resolver.resolve(controls)
                known = resolved.effective_size if size is None else size
                entry = with_law(self._steering.entry(control, value, controls), resolved.temperature, known)
                self._log.append(entry)
                self._steering.land(entry, controls, resolved)
                self._note_size(entry)
                return reply_to(entry)

    def outcome(self, control: Control) -> Resolved:
        """What a control would put in force; nothing is changed.

        Raises:
            ValueError: naming the field that is wrong.
        """
        columns: AbstractContextManager[Any] = self._drawing if control.kind == "policy" else nullcontext()
        with columns, self._state:
            latest = self._steering.latest()
            return self._resolver.resolve(latest.after(control.kind, checked_control(control, latest, self._resolver)))

    def _size_of_policy(self, control: Control) -> float | None:
        """Effective size of a policy that would come, where only its weights tell; checks those weights."""
        with self._state:
            latest = self._steering.latest()
        resolved = self._resolver.resolve(latest.after("policy", self._resolver.plan(str(control.value)).name))
        if resolved.effective_size is not None:
            return None
        self._merge()
        return self._weigh(resolved).effective_size

    def _border_of_round(self, control: Control) -> dict[str, Any]:
        """What parts exactly floor(rho * N) samples from the rest, by the scores that are in the log now."""
        with self._state:
            kind = str(checked_control(control, self._steering.latest(), self._resolver))
            if self._log.entry_of(control.request) is not None:
                return {}
            self._changes.require_settled()
        self._merge()
        return self._changes.find_border(kind)

    def record(self, event: Event) -> None:
        """Write an event (scaling, a lost loader, a bad sample, a metric) into the history; on disk when this returns.

        Raises:
            ValueError: for an event without kind or author, or of a control's kind.
            LogUnavailable: if the disk does not take it.
        """
        if not event.kind or event.kind in TAKEN_KINDS or not event.author:
            raise ValueError(f"an event needs a kind of its own and an author; got {event.kind!r}, {event.author!r}.")
        request = Control(kind=event.kind, author=event.author, reason=event.message, request=event.request)
        with self._state:
            if self._log.entry_of(event.request) is not None:
                return
            self._shelf.flush()
            latest = self._steering.latest()
            controls = latest.after(event.kind, event.value, event.message)
            entry = self._steering.entry(request, event.value, controls)
            self._log.append(entry)
            if controls != latest:
                self._steering.land(entry, controls, self._steering.resolved)

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
        """Merge scores; what is accepted is on disk when this returns. The same report twice changes nothing.

        Args:
            ids: [n] sample ids.
            values: [n] scores, finite and not negative; others are refused one by one and counted.
            kind: one of SCORE_KINDS.
            step: optimizer step of the measurement; of two values for a sample the later holds.
            producer: name of the reporting rank.
            sequence: number of this report among the producer's.
            fingerprint: data set that the ids are of; empty does not compare.

        Raises:
            ValueError: if a field is wrong as a whole; nothing changed.
            LogUnavailable: if the disk does not take it; nothing changed.
        """
        if fingerprint and fingerprint != self.config.fingerprint:
            raise ValueError(f"fingerprint must be the run's own ({self.config.fingerprint}); got {fingerprint}.")
        report = ScoreReport(
            ids=np.asarray(ids), values=np.asarray(values), kind=kind, step=step, producer=producer, sequence=sequence
        )
        report, rejected = checked_report(report, self.num_samples)
        if len(report.ids):
            if not self._shelf.is_flushed:
                with self._state:
                    self._shelf.flush()
            self._intake.submit(report)
            if self._intake.merge_is_due:
                self.settle()
        return ScoreAck(accepted=len(report.ids), rejected=rejected)

    def settle(self) -> None:
        """Merge what was reported into the table, between two windows."""
        with self._drawing:
            self._merge()

    # -- reading ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What is in force now, as plain JSON values; an infinite temperature is None."""
        if self._drawing.acquire(blocking=False):
            try:
                self.settle()
                self._scored = self.table.scored()
            finally:
                self._drawing.release()
        with self._state:
            controls, resolved = self._steering.latest(), self._steering.latest_resolved()
            size, last = resolved.effective_size, self._shelf.last
            size = self._sizes.get(resolved.plan.name) if size is None else size
            return {
                "policy": controls.policy,
                "temperature": resolved.temperature if math.isfinite(resolved.temperature) else None,
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
                "times_drawn": draw_summary(self.table.draw_histogram()),
            }

    def times_drawn(self) -> NDArray[np.uint32]:
        """How often each sample was drawn in the windows so far, spares not counted; a copy."""
        with self._drawing:
            return self.table.times_drawn()

    def scores(self, kind: str = "bss") -> NDArray[np.float32]:
        """Score of each sample, NaN where none was reported; a copy."""
        with self._drawing:
            self.settle()
            return self.table.scores(kind)

    def with_weights(self, look: Callable[[SampleTable, Weighed], Any]) -> Any:
        """What `look` makes of the table and the law now in force; nothing changes while it looks."""
        with self._drawing:
            self.settle()
            return look(self.table, self._weigh(self._steering.latest_resolved()))

    def view(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Return a view of `scoring.views` by name."""
        from scoring.views import VIEWS  # noqa: PLC0415 - views read a selection

        return VIEWS[name](self, **arguments)

    def close(self) -> None:
        """Close the log; what was acknowledged is in it."""
        with self._drawing, self._state:
            self._log.close()

    def log(self, limit: int | None = None, **bounds: Any) -> list[LogEntry]:
        """The last `limit` entries of the history (all by default), oldest first; `RunLog.entries` knows the bounds."""
        return self._log.entries(limit=limit, **bounds)
