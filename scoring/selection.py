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

import hashlib
import json
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scoring.config import SelectionConfig
from scoring.controls import ControlState, Resolved, Resolver, checked_control
from scoring.drawing import Law, Weighed, draw_window
from scoring.errors import CorruptLog, LogUnavailable, VersionConflict
from scoring.history import History
from scoring.intake import ScoreIntake
from scoring.records import (
    ADAPTIVE,
    CONTROL_KINDS,
    SCHEDULE,
    TRAINER,
    Control,
    ControlReply,
    Event,
    LogEntry,
    ScoreAck,
    Window,
    WindowFacts,
)
from scoring.replay import redraw
from scoring.runlog import RunLog
from scoring.scores import SCORE_KINDS, ScoreReport, checked_scores
from scoring.snapshots import SnapshotStore
from scoring.table import Range, SampleTable, local_ranges
from scoring.temperature import checked_distance, checked_effective_size

log = logging.getLogger(__name__)

RECENT_WINDOWS = 4
"""Windows kept in memory; older ones are read from the log."""
UNWRITTEN_LIMIT = 64
"""Windows handed out while the log cannot be written, after which requests fail too."""


class Selection:
    """The selection of one run. Safe to use from several threads."""

    def __init__(
        self,
        distance: ArrayLike | None,
        config: SelectionConfig,
        *,
        runlog: RunLog | None = None,
        clock: Callable[[], float] = time.time,
        ranges: Sequence[Range] | None = None,
    ) -> None:
        """Open or recover a run.

        Args:
            distance: [N] prototype distances, finite; None for policies that need none.
            config: what was configured; it must be what the log was begun with.
            runlog: the durable log; None keeps it in memory.
            clock: seconds since the epoch, for the log.
            ranges: the id ranges of the sample table where they are not to be made here.

        Raises:
            ValueError: if the distances or the size of the data set are wrong, or cannot give the effective size.
            RunMismatch: if the log belongs to another run.
            CorruptLog: if the log is damaged beyond what it can be recovered from.
        """
        self.config = config
        narrow = None if distance is None else checked_distance(distance).astype(np.float32, copy=False)
        self.num_samples = _num_samples(narrow, config)
        self.table = SampleTable(
            ranges or local_ranges(narrow, self.num_samples, ranges=config.ranges), options=config.options
        )
        self._distance, self._clock = narrow, clock
        self._log = runlog or RunLog()
        self._log.begin(_identity(narrow, self.num_samples, config))
        self._snapshots = None if self._log.path is None else SnapshotStore(self._log.path)
        self._intake, self._history = ScoreIntake(self._log), History(self.table)
        self._resolver = Resolver(self.table, config)
        self._drawing, self._state = threading.RLock(), threading.RLock()
        self._recent: OrderedDict[int, Window] = OrderedDict()
        self._unwritten: list[tuple[WindowFacts, Window, list[LogEntry]]] = []
        self._last: WindowFacts | None = None
        self._weighed: Weighed | None = None
        self._busy = False
        self._controls = ControlState.initial(config)
        self._ahead: list[LogEntry] = []
        self._resolved = self._resolver.resolve(self._controls)
        self._recover()
        self._scored = self.table.scored()

    # -- windows ------------------------------------------------------------------------------------------------------

    @property
    def next_window(self) -> int:
        """The first window that is not yet materialised."""
        return 0 if self._last is None else self._last.index + 1

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
            if index in self._recent:
                return self._recent[index]
        if 0 <= index < self.next_window:
            return self._from_log(index)
        with self._drawing:
            if not 0 <= index <= self.next_window:
                raise ValueError(
                    f"window must be one already drawn or the next ({self.next_window}); got {index}. Ask in order."
                )
            return self._materialise(effective_size) if index == self.next_window else self.window(index)

    def _from_log(self, index: int) -> Window:
        window = self._log.window(index)
        return window if window is not None else redraw(self._log, self.config, self._distance, index)

    def _materialise(self, requested: float | None) -> Window:
        """Schedule, resolve, weigh, draw, log, and only then become the state."""
        with self._state:
            self._busy, controls = True, self._controls
        try:
            self._history.merge(self._intake.take())
            scheduled = self._scheduled(controls, requested)
            if scheduled != controls.scheduled:
                controls = controls.after(SCHEDULE, scheduled)
            resolved = self._resolved if controls == self._controls else self._resolver.resolve(controls)
            entries = [] if controls is self._controls else [self._schedule_entry(controls, resolved)]
            weighed = self._weigh(resolved)
            facts, window = draw_window(
                self.config,
                weighed,
                num_samples=self.num_samples,
                index=self.next_window,
                version=self._version(weighed),
            )
            self._write(facts, window, entries)
            self._become(controls, resolved, weighed)
            self._remember(facts, window)
        finally:
            with self._state:
                self._busy = False
        self._keep_house(window.index)
        return window

    def _scheduled(self, controls: ControlState, requested: float | None) -> float:
        adaptive = self.config.adaptive
        if adaptive is None:
            return controls.scheduled if requested is None else checked_effective_size(requested)
        if requested is not None:
            raise ValueError(
                f"effective_size must not be sent with window requests of a run whose schedule is adaptive; got "
                f"{requested}. Leave it out."
            )
        return adaptive.effective_size(controls.metrics)

    def _weigh(self, resolved: Resolved) -> Weighed:
        position = self._history.position
        law = Law.of(resolved, scores_through=position.scores_through, rounds_through=position.rounds_through)
        if self._weighed is not None and self._weighed.law == law:
            return self._weighed
        return Weighed.build(self.table, resolved, law)

    def _version(self, weighed: Weighed) -> int:
        last = self._last
        return 1 if last is None else last.version + (Law.of_window(last) != weighed.law)

    def _write(self, facts: WindowFacts, window: Window, entries: list[LogEntry]) -> None:
        """Commit the window. While the log cannot be written windows are handed out all the same, for nothing else is
        acknowledged then, so drawing them again after a crash gives the same ones.
        """  # noqa: D205
        self._unwritten.append((facts, window, entries))
        try:
            self._log.append_windows(self._unwritten)
            self._unwritten = []
        except LogUnavailable:
            if len(self._unwritten) > UNWRITTEN_LIMIT:
                self._unwritten.pop()
                raise
            log.warning("window %d is handed out unwritten; no change is accepted until the log is", facts.index)

    def _become(self, controls: ControlState, resolved: Resolved, weighed: Weighed) -> None:
        """The state for the window after this one: what was drawn under, and what has landed meanwhile."""
        with self._state:
            following = self.next_window + 1
            due = [entry for entry in self._ahead if entry.window <= following]
            self._ahead = [entry for entry in self._ahead if entry.window > following]
            self._controls = controls.after_all(due)
            self._weighed = weighed
            self._resolved = self._resolver.resolve(self._controls) if due else resolved

    def _remember(self, facts: WindowFacts, window: Window) -> None:
        self._history.count(facts.index, window.sample_ids)
        with self._state:
            self._last = facts
            self._recent[facts.index] = window
            while len(self._recent) > max(RECENT_WINDOWS, len(self._unwritten) + 1):
                self._recent.popitem(last=False)

    def _keep_house(self, index: int) -> None:
        """Every so often: a snapshot, and the draws of old windows dropped from the log."""
        if self._snapshots is None or self._unwritten or (index + 1) % self.config.snapshot_windows:
            return
        try:
            self.snapshot()
            self._log.drop_draws(before=index + 1 - self.config.kept_windows)
        except (OSError, LogUnavailable) as error:
            log.warning("no snapshot at window %d: %s. The log alone is enough; recovery takes longer", index, error)

    def snapshot(self) -> None:
        """Write the sample table aside the log, so that recovery begins there."""
        assert self._snapshots is not None, "a log in memory has no snapshots"
        with self._drawing:
            self._snapshots.save(self._history.position, self.table.each(lambda part: part.pack()))

    # -- changes ------------------------------------------------------------------------------------------------------

    def control(self, control: Control) -> ControlReply:
        """Apply a change; on disk when this returns.

        A change of policy weighs the table once, and a round reads all scores: both wait for a window being drawn.

        Raises:
            ValueError: naming the field that is wrong; nothing changed.
            VersionConflict: if another control came since `expected_version`; nothing changed.
            LogUnavailable: if the disk does not take it; nothing changed.
        """
        if control.kind in ("policy", "round"):
            with self._drawing:
                return self._control(control)
        return self._control(control)

    def _control(self, control: Control) -> ControlReply:
        with self._state:
            earlier = self._log.entry_of(control.request)
            if earlier is not None:
                return _reply(earlier)
            latest = self._latest()
            if control.expected_version not in (None, latest.version):
                raise VersionConflict(control.expected_version or 0, latest.version)
            value = checked_control(control, latest, self._resolver)
            self._require_written()
            controls = latest.after(control.kind, value)
            if control.kind == "round":
                return self._close_round(control, str(value), controls)
            resolved = self._resolver.resolve(controls)
            size = resolved.effective_size
            if control.kind == "policy" and size is None:
                self._history.merge(self._intake.take())
                size = self._weigh(resolved).effective_size
            entry = self._entry(control, value, controls, (resolved.temperature, size))
            self._log.append(entry)
            self._land(entry, controls, resolved)
            return _reply(entry)

    def _close_round(self, control: Control, kind: str, controls: ControlState) -> ControlReply:
        """Take exactly floor(rho * N) by score, of the scores that are in the log now."""
        self._history.merge(self._intake.take())
        kept, threshold, last_id = self.table.find_round(kind, self.config.options.rho)
        through = self._history.position.scores_through
        border = {"threshold": threshold, "last_id": last_id, "kept": kept, "scores_through": through}
        size = (self._resolved.temperature, self._resolved.effective_size)
        entry = self._entry(control, kind, controls, size, detail=json.dumps(border))
        self._log.append(entry)
        self._history.close_round(entry)
        self._resolver.forget_subsets()
        resolved = self._resolver.resolve(controls)
        self._land(entry, controls, resolved)
        return _reply(entry)

    def _land(self, entry: LogEntry, controls: ControlState, resolved: Resolved) -> None:
        """Put a change in force, or keep it for the window that it named."""
        if entry.window > self.next_window:
            self._ahead.append(entry)
        else:
            self._controls, self._resolved = controls, resolved

    def record(self, event: Event) -> None:
        """Write an event (scaling, a lost loader, a bad sample, a metric) into the history; on disk when this returns.

        Raises:
            ValueError: for an event without kind or author, or of a control's kind.
            LogUnavailable: if the disk does not take it.
        """
        if not event.kind or event.kind in (*CONTROL_KINDS, SCHEDULE) or not event.author:
            raise ValueError(f"an event needs a kind of its own and an author; got {event.kind!r}, {event.author!r}.")
        with self._state:
            if self._log.entry_of(event.request) is not None:
                return
            self._require_written()
            request = Control(kind=event.kind, author=event.author, reason=event.message, request=event.request)
            controls = self._latest().after(event.kind, event.value, event.message)
            entry = self._entry(request, event.value, controls, (None, None))
            self._log.append(entry)
            if controls.metrics != self._latest().metrics:
                self._land(entry, controls, self._resolved)

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
        if kind not in SCORE_KINDS:
            raise ValueError(f"kind must be one of {', '.join(SCORE_KINDS)}; got {kind!r}.")
        if min(step, sequence) < 0 or not producer:
            raise ValueError(
                f"step and sequence must be 0 or more, producer named; got {step}, {sequence}, {producer!r}."
            )
        if fingerprint and fingerprint != self.config.fingerprint:
            raise ValueError(f"fingerprint must be the run's own ({self.config.fingerprint}); got {fingerprint}.")
        good_ids, good_values, rejected = checked_scores(ids, values, self.num_samples)
        if len(good_ids):
            self._require_written()
            self._intake.submit(
                ScoreReport(
                    ids=good_ids,
                    values=good_values,
                    kind=kind,
                    step=int(step),
                    producer=producer,
                    sequence=int(sequence),
                )
            )
            if self._intake.merge_is_due:
                self.settle()
        return ScoreAck(accepted=len(good_ids), rejected=rejected)

    def settle(self) -> None:
        """Merge what was reported into the table, between two windows."""
        with self._drawing:
            self._history.merge(self._intake.take())

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
            controls = self._latest()
            resolved = self._resolved if controls == self._controls else self._resolver.resolve(controls)
            weighed = self._weighed
            size = resolved.effective_size
            if size is None and weighed is not None and weighed.law.policy == resolved.plan.name:
                size = weighed.effective_size
            return {
                "policy": controls.policy,
                "temperature": resolved.temperature if math.isfinite(resolved.temperature) else None,
                "effective_size": size,
                "scheduled_effective_size": controls.scheduled,
                "manual": controls.manual is not None,
                "manual_kind": controls.manual[0] if controls.manual else None,
                "control_version": controls.version,
                "version": self._last.version if self._last else 0,
                "next_window": self.next_window,
                "next_step": self.next_window * self.config.window_steps,
                "num_samples": self.num_samples,
                "scored": self._scored,
                "times_drawn": _draw_summary(self.table.draw_histogram()),
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

    def weighed(self) -> Weighed:
        """The weight table that the next window would be drawn from, schedule apart."""
        with self._drawing:
            self.settle()
            return self._weigh(self._resolved)

    def log(self, limit: int | None = None) -> list[LogEntry]:
        """The last `limit` entries of the history (all by default), oldest first."""
        return self._log.entries(limit=limit)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _latest(self) -> ControlState:
        """The state with everything that has been asked for, also what lands later."""
        return self._controls.after_all(self._ahead)

    def _landing(self) -> int:
        """The window in which a change lands now: the first that is not being drawn, and not before an earlier's."""
        floor = self._ahead[-1].window if self._ahead else 0
        return max(self.next_window + self._busy, floor)

    def _require_written(self) -> None:
        """Bring handed-out windows into the log before anything that could change later ones is acknowledged."""
        with self._state:
            if self._unwritten:
                self._log.append_windows(self._unwritten)
                self._unwritten = []

    def _entry(
        self,
        control: Control,
        value: float | str | None,
        controls: ControlState,
        law: tuple[float | None, float | None],
        *,
        in_force: bool = True,
        detail: str = "",
    ) -> LogEntry:
        window = self.next_window if control.kind == SCHEDULE else self._landing()
        return LogEntry(
            sequence=self._log.take_sequence(),
            time=self._clock(),
            author=control.author,
            kind=control.kind,
            value=value,
            reason=control.reason,
            window=window,
            step=window * self.config.window_steps,
            version=controls.version,
            temperature=law[0],
            effective_size=law[1],
            in_force=in_force,
            request=control.request,
            detail=detail,
        )

    def _schedule_entry(self, controls: ControlState, resolved: Resolved) -> LogEntry:
        author = ADAPTIVE if self.config.adaptive else TRAINER
        in_force = controls.manual is None and resolved.plan.direction is not None
        request = Control(kind=SCHEDULE, author=author)
        law = (resolved.temperature, resolved.effective_size)
        return self._entry(request, controls.scheduled, controls, law, in_force=in_force)

    def _recover(self) -> None:
        """Newest snapshot, then the scores, rounds and windows after it, then the controls."""
        newest = self._snapshots.load() if self._snapshots else None
        if newest is not None:
            self._history.restore(*newest)
        self._history.follow(self._log)
        last = self._log.last_facts()
        for facts, _ in self._log.facts(first=self._history.position.next_window):
            self._remember(facts, self._from_log(facts.index))
        self._last = last[0] if last else None
        if self._history.position.next_window != self.next_window:
            raise CorruptLog(
                f"the log must hold every window of its snapshot ({self._history.position.next_window}); it ends at "
                f"{self.next_window}. Restore run.sqlite from a copy, or remove its snapshots."
            )
        entries = self._log.entries()
        self._controls = self._controls.after_all(entry for entry in entries if entry.window <= self.next_window)
        self._ahead = [entry for entry in entries if entry.window > self.next_window]
        self._resolver.forget_subsets()
        self._resolved = self._resolver.resolve(self._controls)


def _reply(entry: LogEntry) -> ControlReply:
    return ControlReply(
        version=entry.version,
        window=entry.window,
        step=entry.step,
        effective_size=math.nan if entry.effective_size is None else entry.effective_size,
        temperature=math.inf if entry.temperature is None else entry.temperature,
    )


def _draw_summary(histogram: NDArray[np.int64]) -> dict[str, Any]:
    """Quantiles, mean and zeros of a count of counts."""
    cumulative, draws = np.cumsum(histogram), np.arange(len(histogram))
    total = int(cumulative[-1])
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    return {
        "quantiles": [float(np.searchsorted(cumulative, max(1.0, share * total))) for share in shares],
        "mean": float((histogram * draws).sum() / total),
        "never": int(histogram[0]),
    }


def _num_samples(distance: NDArray[np.float32] | None, config: SelectionConfig) -> int:
    if distance is None:
        if not config.num_samples:
            raise ValueError("num_samples must be given when there are no distances; got 0.")
        return config.num_samples
    if config.num_samples not in (0, len(distance)):
        raise ValueError(
            f"distance must have one value for each of the {config.num_samples} samples; got {len(distance)}. "
            "Run `tempera score` on this index."
        )
    return len(distance)


def _identity(distance: NDArray[np.float32] | None, num_samples: int, config: SelectionConfig) -> dict[str, Any]:
    """What must not change while a run lives."""
    digest = "none"
    if distance is not None:
        digest = hashlib.blake2b(np.ascontiguousarray(distance).data, digest_size=16).hexdigest()
    return {**config.identity(), "num_samples": num_samples, "distance": digest}
