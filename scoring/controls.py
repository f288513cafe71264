"""Controls: changes of what is drawn, from the request to the log, and from which window on each one holds.

`Controls.apply` is the one way in: it finds the control's kind in CONTROLS, takes the locks, refuses what is repeated,
outdated or wrong, writes the entry to the log, and only then changes the state. A change takes effect in the first
window that is not being drawn and that no trainer has. It waits in `_ahead` until that window is the next one. So the
reply names the right window even if drawing fails and is tried again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scoring import control_state
from scoring.config import SelectionConfig
from scoring.control_state import ControlState, Value
from scoring.errors import VersionConflict
from scoring.log.group_commit import GroupCommit
from scoring.log.history import History
from scoring.log.runlog import RunLog
from scoring.log.window_store import WindowStore
from scoring.policies import parse_policy
from scoring.records import ADAPTIVE, SCHEDULE, TAKEN_KINDS, TRAINER, Control, ControlReply, Event, LogEntry
from scoring.table.weights import WeightKey, WeightTable

Change = tuple[LogEntry, WeightKey]
"""A logged change, and the key of the weights after it."""


class Controls:
    """The controls of a run, for the next window and for those after it.

    Methods that take no lock themselves are called with the state lock held, but for `settle`, which needs the table
    lock. Where both are held, the table lock was taken first.
    """

    def __init__(
        self,
        config: SelectionConfig,
        history: History,
        runlog: RunLog,
        windows: WindowStore,
        reports: GroupCommit,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.table_lock = threading.RLock()
        """Held while a window is made or the table changes: up to seconds."""
        self.state_lock = threading.RLock()
        """Held for moments."""
        self.drawing = False
        """Whether the next window is being drawn, so that a change takes effect after it."""
        self.state = ControlState.initial(config)
        """Controls in force for the next window, schedule apart."""
        self.known_sizes: dict[str, float] = {}
        """Effective size by policy, of the last window and of policies set after it: only their weights gave it."""
        self._config, self._history, self._log, self._windows = config, history, runlog, windows
        self._reports, self._clock = reports, clock
        self._ahead: list[LogEntry] = []
        self.key = self.resolve(self.state)
        """Key of the weights that the state gives."""

    def recover(self, entries: list[LogEntry]) -> None:
        """Fold in the log, whose windows are in the store."""
        next_window, last = self._windows.next_window, self._windows.last
        self.state = self.state.after_all(entry for entry in entries if entry.window <= next_window)
        self._ahead = [entry for entry in entries if entry.window > next_window]
        self.key = self.resolve(self.state)
        self.known_sizes = {last.policy: last.effective_size} if last else {}
        for entry in entries:
            if entry.window >= next_window and entry.kind == "policy" and entry.effective_size is not None:
                self.known_sizes[str(entry.value)] = entry.effective_size

    def latest(self) -> ControlState:
        """Return the state after all changes, also those that take effect later."""
        return self.state.after_all(self._ahead)

    def latest_key(self) -> WeightKey:
        """Return the key of the weights that `latest` gives."""
        return self.key if not self._ahead else self.resolve(self.latest())

    def resolve(self, state: ControlState) -> WeightKey:
        """See `ControlState.resolve`."""
        return state.resolve(self._history.table, self._config.curriculum.user_policies)

    def settle(self) -> None:
        """Merge the committed scores into the table.

        They wait until the windows that trainers have are drawn again, because these must see the older scores.
        """
        if self._windows.next_window >= self._log.unlogged.end:
            self._history.merge_scores(self._reports.take())

    def schedule(self, requested: float | None) -> tuple[ControlState, WeightKey, list[LogEntry]]:
        """Return state and key of the next window, with the log entry of its scheduled size if that is a new one.

        Raises:
            ValueError: if the size is out of range or reach, or was sent although the schedule is adaptive.
        """
        curriculum = self._config.curriculum
        size = self.state.next_scheduled(curriculum, requested)
        if size == self.state.scheduled:
            return self.state, self.key, []
        state = self.state.after(SCHEDULE, size)
        key = self.resolve(state)
        author = ADAPTIVE if curriculum.adaptive else TRAINER
        # A size that has no effect now, under a person's value or a policy without temperature, is logged all the same.
        in_force = state.manual is None and parse_policy(key.policy, curriculum.user_policies).direction is not None
        entry = self._entry(Control(kind=SCHEDULE, value=size, author=author), state, key)
        return state, key, [replace(entry, in_force=in_force)]

    def advance(self, state: ControlState, key: WeightKey, weights: WeightTable) -> None:
        """Go on to the window after the one that was drawn under these; fold in the changes that wait for it."""
        next_window = self._windows.next_window
        # Changes that came while the window was drawn named the one after it, which is the next one now.
        due = [entry for entry in self._ahead if entry.window <= next_window]
        self._ahead = self._ahead[len(due) :]
        self.state = state.after_all(due)
        self.key = self.resolve(self.state) if due else key
        self.known_sizes = {key.policy: weights.effective_size}

    def apply(self, control: Control) -> ControlReply:
        """Apply a control; on disk when this returns. See `Selection.control`."""
        kind, table_lock = self._kind_of(control)
        # The order of locks: the table lock first, then the state lock.
        with table_lock:
            study = kind.study(self, control) if kind.study else None  # may take seconds, in which windows are served
            with self.state_lock:
                # Sent again after a lost answer or a restart: answer alike, before the version is compared.
                earlier = self._log.entry_of(control.request)
                if earlier is not None:
                    return earlier.reply()
                latest = self.latest()
                if control.expected_version not in (None, latest.version):
                    raise VersionConflict(control.expected_version or 0, latest.version)
                value = kind.check(control, latest, self._config.curriculum.user_policies)
                self._windows.flush()  # no change is acknowledged while a window that came before is not in the log
                state = latest.after(control.kind, value)
                entry, key = kind.apply(self, replace(control, value=value), state, study)
                self._put_in_force(entry, state, key)
                return entry.reply()

    def forecast(self, control: Control) -> WeightKey:
        """Return the values that a control would put in force, and change nothing; ValueError as in `apply`."""
        kind, table_lock = self._kind_of(control)
        with table_lock, self.state_lock:
            latest = self.latest()
            value = kind.check(control, latest, self._config.curriculum.user_policies)
            return self.resolve(latest.after(control.kind, value))

    def _kind_of(self, control: Control) -> tuple[ControlKind, AbstractContextManager[Any]]:
        """Return the kind of a control, and the table lock if that kind reads or changes the table."""
        if control.kind not in CONTROLS:
            raise ValueError(f"kind must be one of {', '.join(CONTROLS)}; got {control.kind!r}.")
        if not control.author or (control.author == TRAINER and control.kind != "round"):
            raise ValueError(f"author must name a person or a program, and not be {TRAINER!r}; got {control.author!r}.")
        kind = CONTROLS[control.kind]
        reads_table = kind.study is not None or kind.apply is not Controls._change_state
        return kind, self.table_lock if reads_table else nullcontext()

    def record(self, event: Event) -> None:
        """Write an event into the log; on disk when this returns. See `Selection.record`."""
        if not event.kind or event.kind in TAKEN_KINDS or not event.author:
            raise ValueError(f"an event needs a kind of its own and an author; got {event.kind!r}, {event.author!r}.")
        with self.state_lock:
            if self._log.entry_of(event.request) is not None:
                return
            self._windows.flush()
            latest = self.latest()
            state = latest.after(event.kind, event.value, event.message)
            change = Control(
                kind=event.kind, value=event.value, author=event.author, reason=event.message, request=event.request
            )
            entry = self._entry(change, state)
            self._log.append(entry)
            if state != latest:
                self._put_in_force(entry, state, self.key)

    def _change_state(self, control: Control, state: ControlState, size: Any) -> Change:
        # The key is solved before the entry is written: a value that cannot be reached is refused and leaves no trace.
        key = self.resolve(state)
        entry = self._entry(control, state, key if size is None else replace(key, effective_size=size))
        self._log.append(entry)
        return entry, key

    def _weigh_policy(self, control: Control) -> float | None:
        """Return the effective size of a policy where only its weights give it; this checks the weights, too."""
        with self.state_lock:
            latest = self.latest()
        policy = parse_policy(str(control.value), self._config.curriculum.user_policies).name
        key = self.resolve(latest.after("policy", policy))
        if key.effective_size is not None:
            return None
        self.settle()
        return self._history.weigh_now(key).effective_size

    def _find_cutoff(self, control: Control) -> dict[str, Any]:
        """Find the cutoff that keeps exactly floor(rho * N) samples, by the scores that are in the log now."""
        with self.state_lock:
            kind = str(control_state.check_round(control, self.latest(), ()))
            if self._log.entry_of(control.request) is not None:
                return {}  # it was applied before, and is only answered again
            self._require_settled()
        self.settle()
        cutoff = self._history.table.find_cutoff(kind, self._config.rho)
        return {**cutoff, "scores_through": self._history.position.scores_through}

    def _close_round(self, control: Control, state: ControlState, cutoff: Any) -> Change:
        """Keep the samples above the cutoff from the next window on."""
        # The entry names no temperature: that follows from the subset, which is made after the entry is in the log.
        entry = self._entry(control, state, detail=json.dumps(cutoff))
        self._log.append(entry)
        self._history.apply(entry, self._log)
        key = self.resolve(state)
        return replace(entry, temperature=key.temperature, effective_size=key.effective_size), key

    def _swap_distances(self, control: Control, state: ControlState, _: Any) -> Change:
        """Draw by the distances of a file from the next window on."""
        self._require_settled()
        path, fingerprint = Path(str(control.value)), self._config.fingerprint
        # The table changes before the log, unlike in a round: then it shows whether it can give the effective size.
        with self._history.trying_distances(path, self._log, fingerprint=fingerprint) as detail:
            key = self.resolve(state)
            entry = self._entry(control, state, key, detail=json.dumps(detail))
            self._log.append(entry)
        self._history.note_distances(entry)
        return entry, key

    def _put_in_force(self, entry: LogEntry, state: ControlState, key: WeightKey) -> None:
        """Put a logged change in force, or keep it for the window that its entry names."""
        if entry.window > self._windows.next_window:
            self._ahead.append(entry)
        else:
            self.state, self.key = state, key
        if entry.kind == "policy" and entry.effective_size is not None:
            self.known_sizes[str(entry.value)] = entry.effective_size

    def _require_settled(self) -> None:
        """Refuse a change of the table, which takes effect at once, while changes wait for a later window."""
        window = self._windows.next_window
        if self._ahead or self._log.unlogged.end > window:
            raise ValueError(
                f"a change of the table must follow a drawn window; window {window} failed, and changes wait for the "
                "one after it. Ask for that window again, then repeat the change."
            )

    def _entry(
        self, control: Control, state: ControlState, key: WeightKey | None = None, *, detail: str = ""
    ) -> LogEntry:
        """Make the log entry of a change or an event that comes now; without a key it names no temperature."""
        window = self._windows.next_window
        # The schedule's value is for the window that asked for it. Other changes leave windows as they are that are
        # being drawn or that trainers have, and keep their order.
        if control.kind != SCHEDULE:
            floor = self._ahead[-1].window if self._ahead else 0
            window = max(window + self.drawing, floor, self._log.unlogged.end)
        return LogEntry(
            sequence=self._log.take_sequence(),
            time=self._clock(),
            author=control.author,
            kind=control.kind,
            value=control.value,
            reason=control.reason,
            window=window,
            step=window * self._config.window_steps,
            version=state.version,
            temperature=None if key is None else key.temperature,
            effective_size=None if key is None else key.effective_size,
            in_force=True,
            request=control.request,
            detail=detail,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlKind:
    """How one kind of control is checked and applied."""

    check: Callable[[Control, ControlState, Iterable[str]], Value]
    """Return the value in its final type, given the state and the user's policies; ValueError naming what is wrong."""
    apply: Callable[[Controls, Control, ControlState, Any], Change] = Controls._change_state
    """Write the log entry and change the table, given the checked control, the state after it, and the study."""
    study: Callable[[Controls, Control], Any] | None = None
    """Read the table, which may take seconds; the table lock is held, the state lock is not."""


CONTROLS: dict[str, ControlKind] = {
    "effective_size": ControlKind(check=control_state.check_number),
    "temperature": ControlKind(check=control_state.check_number),
    "policy": ControlKind(check=control_state.check_policy, study=Controls._weigh_policy),
    "release": ControlKind(check=control_state.check_release),
    "round": ControlKind(check=control_state.check_round, study=Controls._find_cutoff, apply=Controls._close_round),
    "distances": ControlKind(check=control_state.check_distances, apply=Controls._swap_distances),
}
"""A new kind is a line here, and a name in `records.CONTROL_KINDS`."""
