"""Selection: decides which samples a run sees, window by window, and can be steered while it does.

In order of life:
1. It opens the run's log, checks that the log is of this run, and folds it: controls, times drawn, scores.
2. `window(i)` turns the controls in force into a weight table, draws, writes the window to the log, hands it out.
   Asked again, it hands out the same window.
3. `control`, `report_scores` and `record` write to the log first, then change the state; what they change shows from
   the next window that is not yet materialised, and the reply names it.

Nothing but the data, the configuration and the log decides a window, so a process that dies loses nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scoring.config import SelectionConfig
from scoring.controls import SCHEDULE, ControlState, Resolved, checked_control, resolve
from scoring.errors import VersionConflict
from scoring.permutation import permuted_ids
from scoring.policies import PolicyPlan, TableInputs
from scoring.records import CONTROL_KINDS, TRAINER, Control, ControlReply, Event, LogEntry, ScoreAck, Window
from scoring.runlog import RunLog
from scoring.sampling import Rows, WeightTable, random_uniforms
from scoring.scores import SCORE_KINDS, ScoreReport, ScoreTable, checked_scores
from scoring.temperature import DistanceProfile, checked_distance, checked_effective_size

RECENT_WINDOWS = 4
"""Windows kept in memory; older ones are read from the log."""


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
        """
        self.config = config
        self._distance = None if distance is None else checked_distance(distance).astype(np.float32, copy=False)
        self.num_samples = _num_samples(self._distance, config)
        self._profile = None if self._distance is None else DistanceProfile(self._distance)
        self._log, self._clock, self._mutex = runlog or RunLog(), clock, threading.RLock()
        self._log.begin(_identity(self._distance, self.num_samples, config))
        self._times_drawn = np.zeros(self.num_samples, np.uint32)
        self._scores: dict[str, ScoreTable] = {}
        self._recent: OrderedDict[int, Window] = OrderedDict()
        self._last: Window | None = None
        self._table: tuple[str, float, WeightTable] | None = None
        self._controls = ControlState(policy=config.policy, scheduled=config.effective_size)
        self._resolved = resolve(self._controls, self._profile, self.num_samples)
        self._recover()

    # -- windows ------------------------------------------------------------------------------------------------------

    @property
    def next_window(self) -> int:
        """The first window that is not yet materialised: where the next change lands."""
        return 0 if self._last is None else self._last.index + 1

    def window(self, index: int, *, effective_size: float | None = None) -> Window:
        """The draws of one window; the first request materialises it, later ones get the same.

        Args:
            index: at most `next_window`.
            effective_size: the trainer's scheduled value for this window, in force unless a person's holds; None
                leaves the last.

        Raises:
            ValueError: for a window ahead of the next, or an effective size out of range or out of reach.
        """
        with self._mutex:
            if not 0 <= index <= self.next_window:
                raise ValueError(
                    f"window must be one already drawn or the next ({self.next_window}); got {index}. Ask in order."
                )
            if index < self.next_window:
                return self._drawn(index)
            return self._materialise(effective_size)

    def _drawn(self, index: int) -> Window:
        if index in self._recent:
            return self._recent[index]
        window = self._log.window(index)
        assert window is not None, "a window below next_window is in the log"
        return window

    def _materialise(self, scheduled: float | None) -> Window:
        """Schedule, resolve, draw, log, and only then become the state."""
        controls, entries = self._controls, []
        if scheduled is not None and checked_effective_size(scheduled) != controls.scheduled:
            controls = controls.after(SCHEDULE, scheduled)
        resolved = self._resolve(controls)
        if controls is not self._controls:
            in_force = controls.manual is None and resolved.plan.direction is not None
            request = Control(kind=SCHEDULE, value=scheduled, author=TRAINER)
            entries = [self._entry(request, request.value, controls, resolved, in_force=in_force)]
        window, table = self._draw(resolved)
        self._log.append_window(window, scores_through=0, entries=entries)
        self._controls, self._resolved, self._table = controls, resolved, table
        self._remember(window)
        return window

    def _draw(self, resolved: Resolved) -> tuple[Window, tuple[str, float, WeightTable]]:
        config, index = self.config, self.next_window
        table = self._table_for(resolved.plan, resolved.temperature)
        first_draw = index * config.window_draws
        drawn = table[2].draw(random_uniforms(config.seed, index, config.window_draws + config.window_spares))
        if resolved.plan.permuted:
            drawn[0][: config.window_draws] = permuted_ids(
                first_draw, config.window_draws, num_samples=self.num_samples, seed=config.seed
            )
        last = self._last
        same = last is not None and (last.policy, last.temperature) == table[:2]
        window = Window.sealed(
            index=index,
            version=1 if last is None else last.version + (not same),
            first_draw=first_draw,
            drawn=drawn,
            num_spares=config.window_spares,
            policy=resolved.plan.name,
            temperature=resolved.temperature,
            effective_size=math.nan if resolved.effective_size is None else resolved.effective_size,
        )
        return window, table

    def _table_for(self, plan: PolicyPlan, temperature: float) -> tuple[str, float, WeightTable]:
        if self._table is not None and self._table[:2] == (plan.name, temperature):
            return self._table
        weigh = self._weigher(plan, temperature)
        return plan.name, temperature, WeightTable(weigh, self.num_samples)

    def _weigher(self, plan: PolicyPlan, temperature: float) -> Callable[[Rows], NDArray[np.float64]]:
        distance, profile = self._distance, self._profile
        span = (profile.low, profile.high) if profile else (0.0, 1.0)

        def weigh(rows: Rows) -> NDArray[np.float64]:
            count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
            part = None if distance is None else distance[rows]
            inputs = TableInputs(num_rows=count, temperature=temperature, distance=part, distance_range=span)
            return plan.weigh(inputs)

        return weigh

    def _remember(self, window: Window) -> None:
        ids, counts = np.unique(window.sample_ids, return_counts=True)
        self._times_drawn[ids] += counts.astype(np.uint32)
        self._last = self._recent[window.index] = window
        while len(self._recent) > RECENT_WINDOWS:
            self._recent.popitem(last=False)

    # -- changes ------------------------------------------------------------------------------------------------------

    def control(self, control: Control) -> ControlReply:
        """Apply a person's change; on disk when this returns.

        Raises:
            ValueError: naming the field that is wrong; nothing changed.
            VersionConflict: if another control came since `expected_version`; nothing changed.
        """
        with self._mutex:
            earlier = self._log.entry_of(control.request)
            if earlier is not None:
                return _reply(earlier)
            if control.expected_version not in (None, self._controls.version):
                raise VersionConflict(control.expected_version or 0, self._controls.version)
            value = checked_control(control, self._controls)
            controls = self._controls.after(control.kind, value)
            resolved = self._resolve(controls)
            entry = self._entry(control, value, controls, resolved)
            self._log.append(entry)
            self._controls, self._resolved = controls, resolved
            return _reply(entry)

    def record(self, event: Event) -> None:
        """Write an event (scaling, a lost loader, a bad sample) into the history."""
        with self._mutex:
            if not event.kind or event.kind in (*CONTROL_KINDS, SCHEDULE) or not event.author:
                raise ValueError(
                    f"an event needs a kind of its own and an author; got {event.kind!r}, {event.author!r}."
                )
            if self._log.entry_of(event.request) is not None:
                return
            request = Control(kind=event.kind, author=event.author, reason=event.message, request=event.request)
            self._log.append(self._entry(request, event.value, self._controls, None))

    def report_scores(
        self, ids: ArrayLike, values: ArrayLike, *, kind: str = "bss", step: int, producer: str, sequence: int
    ) -> ScoreAck:
        """Merge scores; what is accepted is on disk when this returns. The same report twice changes nothing.

        Args:
            ids: [n] sample ids.
            values: [n] scores, finite and not negative; others are refused one by one and counted.
            kind: one of SCORE_KINDS.
            step: optimizer step of the measurement; of two values for a sample the later holds.
            producer: name of the reporting rank.
            sequence: number of this report among the producer's.

        Raises:
            ValueError: if a field is wrong as a whole; nothing changed.
        """
        if kind not in SCORE_KINDS:
            raise ValueError(f"kind must be one of {', '.join(SCORE_KINDS)}; got {kind!r}.")
        if min(step, sequence) < 0 or not producer:
            raise ValueError(
                f"step and sequence must be 0 or more, producer named; got {step}, {sequence}, {producer!r}."
            )
        good_ids, good_values, rejected = checked_scores(ids, values, self.num_samples)
        report = ScoreReport(
            ids=good_ids, values=good_values, kind=kind, step=int(step), producer=producer, sequence=int(sequence)
        )
        with self._mutex:
            if len(good_ids) and self._log.append_scores(report):
                self._scores.setdefault(kind, ScoreTable(self.num_samples)).merge(report)
        return ScoreAck(accepted=len(good_ids), rejected=rejected)

    # -- reading ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What is in force now, as plain JSON values; an infinite temperature is None."""
        with self._mutex:
            resolved, controls = self._resolved, self._controls
            drawn = self._times_drawn
            quantiles = np.quantile(drawn, (0.0, 0.25, 0.5, 0.75, 1.0)) if self._last else np.zeros(5)
            return {
                "policy": controls.policy,
                "temperature": resolved.temperature if math.isfinite(resolved.temperature) else None,
                "effective_size": resolved.effective_size,
                "scheduled_effective_size": controls.scheduled,
                "manual": controls.manual is not None,
                "manual_kind": controls.manual[0] if controls.manual else None,
                "control_version": controls.version,
                "version": self._last.version if self._last else 0,
                "next_window": self.next_window,
                "next_step": self.next_window * self.config.window_steps,
                "num_samples": self.num_samples,
                "scored": {kind: table.scored for kind, table in self._scores.items()},
                "times_drawn": {
                    "quantiles": [float(value) for value in quantiles],
                    "mean": float(drawn.mean()),
                    "never": int(np.count_nonzero(drawn == 0)),
                },
            }

    def times_drawn(self) -> NDArray[np.uint32]:
        """How often each sample was drawn in the windows so far, spares not counted; a copy."""
        with self._mutex:
            return self._times_drawn.copy()

    def scores(self, kind: str = "bss") -> NDArray[np.float32]:
        """Score of each sample, NaN where none was reported; a copy."""
        with self._mutex:
            table = self._scores.get(kind)
            return np.full(self.num_samples, np.nan, np.float32) if table is None else table.values.copy()

    def log(self, limit: int | None = None) -> list[LogEntry]:
        """The last `limit` entries of the history (all by default), oldest first."""
        return self._log.entries(limit=limit)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _resolve(self, controls: ControlState) -> Resolved:
        if controls == self._controls:
            return self._resolved
        return resolve(controls, self._profile, self.num_samples)

    def _entry(
        self,
        control: Control,
        value: float | str | None,
        controls: ControlState,
        resolved: Resolved | None,
        *,
        in_force: bool = True,
    ) -> LogEntry:
        return LogEntry(
            sequence=self._log.take_sequence(),
            time=self._clock(),
            author=control.author,
            kind=control.kind,
            value=value,
            reason=control.reason,
            window=self.next_window,
            step=self.next_window * self.config.window_steps,
            version=controls.version,
            temperature=resolved.temperature if resolved else None,
            effective_size=resolved.effective_size if resolved else None,
            in_force=in_force,
            request=control.request,
        )

    def _recover(self) -> None:
        """Fold the log: controls, then windows, then scores."""
        controls = self._controls.after_all(self._log.entries())
        self._resolved = self._resolve(controls)
        self._controls = controls
        for window in self._log.windows():
            self._remember(window)
        for _, report in self._log.reports():
            self._scores.setdefault(report.kind, ScoreTable(self.num_samples)).merge(report)


def _reply(entry: LogEntry) -> ControlReply:
    return ControlReply(
        version=entry.version,
        window=entry.window,
        step=entry.step,
        effective_size=math.nan if entry.effective_size is None else entry.effective_size,
        temperature=math.inf if entry.temperature is None else entry.temperature,
    )


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
    digest = "none" if distance is None else hashlib.blake2b(distance.tobytes(), digest_size=16).hexdigest()
    return {**dataclasses.asdict(config), "num_samples": num_samples, "distance": digest}
