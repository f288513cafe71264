"""Steering: what has been asked for, and from which window on each wish holds.

A change lands in the first window that is not being drawn and that no trainer has. Until that is the next one it waits
in `_ahead` and is folded in then, so a reply's promise holds even if drawing fails and is tried again. Not locked: the
selection holds its lock around every call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from scoring.config import SelectionConfig
from scoring.controls import ControlState, Resolved, Resolver
from scoring.records import ADAPTIVE, SCHEDULE, TRAINER, Control, ControlReply, LogEntry
from scoring.temperature import checked_effective_size


class Steering:
    """The controls of a run, for the next window and for those after it."""

    def __init__(
        self,
        config: SelectionConfig,
        resolver: Resolver,
        *,
        take_sequence: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self.next_window = 0
        """First window that is not materialised."""
        self.promised = 0
        """First window that nobody was given; above `next_window` after a crash on a full disk."""
        self.busy = False
        """Whether that window is being drawn."""
        self.state = ControlState.initial(config)
        """Controls in force for that window, schedule apart."""
        self.resolved = resolver.resolve(self.state)
        """The law that they give."""
        self._config, self._resolver, self._clock = config, resolver, clock
        self._take_sequence = take_sequence
        self._ahead: list[LogEntry] = []

    def latest(self) -> ControlState:
        """Everything that has been asked for, also what lands later."""
        return self.state.after_all(self._ahead)

    @property
    def waits(self) -> bool:
        """Whether a change waits for a window after the next: one came during a draw that failed, or after a crash."""
        return bool(self._ahead) or self.promised > self.next_window

    def latest_resolved(self) -> Resolved:
        """The law of `latest`."""
        return self.resolved if not self._ahead else self._resolver.resolve(self.latest())

    def schedule(self, requested: float | None) -> tuple[ControlState, Resolved, list[LogEntry]]:
        """Controls and law for the next window, with the log entry of its scheduled size if that is a new one.

        Raises:
            ValueError: if the size is out of range or reach, or was sent although the schedule is adaptive.
        """
        size = self._scheduled(requested)
        if size == self.state.scheduled:
            return self.state, self.resolved, []
        controls = self.state.after(SCHEDULE, size)
        resolved = self._resolver.resolve(controls)
        author = ADAPTIVE if self._config.curriculum.adaptive else TRAINER
        in_force = controls.manual is None and resolved.plan.direction is not None
        request = Control(kind=SCHEDULE, author=author)
        entry = self._written(request, size, controls, window=self.next_window, in_force=in_force)
        return controls, resolved, [with_law(entry, resolved.temperature, resolved.effective_size)]

    def entry(
        self, request: Control, value: float | str | None, controls: ControlState, *, detail: str = ""
    ) -> LogEntry:
        """The log entry of a change or an event that lands now."""
        floor = self._ahead[-1].window if self._ahead else 0
        window = max(self.next_window + self.busy, floor, self.promised)
        return self._written(request, value, controls, window=window, detail=detail)

    def land(self, entry: LogEntry, controls: ControlState, resolved: Resolved) -> None:
        """Put a change in force, or keep it for the window that it named."""
        if entry.window > self.next_window:
            self._ahead.append(entry)
        else:
            self.state, self.resolved = controls, resolved

    def advance(self, controls: ControlState, resolved: Resolved) -> None:
        """The next window was drawn under these; take in what has landed meanwhile."""
        self.next_window += 1
        due = [entry for entry in self._ahead if entry.window <= self.next_window]
        self._ahead = self._ahead[len(due) :]
        self.state = controls.after_all(due)
        self.resolved = self._resolver.resolve(self.state) if due else resolved

    def recover(self, entries: Iterable[LogEntry], next_window: int) -> None:
        """Fold a log that ends before `next_window`."""
        self.next_window, everything = next_window, list(entries)
        self.state = self.state.after_all(entry for entry in everything if entry.window <= next_window)
        self._ahead = [entry for entry in everything if entry.window > next_window]
        self.resolved = self._resolver.resolve(self.state)

    def _scheduled(self, requested: float | None) -> float:
        curriculum = self._config.curriculum
        if curriculum.adaptive is None:
            return self.state.scheduled if requested is None else checked_effective_size(requested)
        if requested is not None:
            raise ValueError(
                "effective_size must not be sent with window requests of a run whose schedule is adaptive; got "
                f"{requested}. Leave it out."
            )
        return curriculum.adaptive.effective_size(self.state.metrics, start=curriculum.start, end=curriculum.end)

    def _written(
        self,
        request: Control,
        value: float | str | None,
        controls: ControlState,
        *,
        window: int,
        in_force: bool = True,
        detail: str = "",
    ) -> LogEntry:
        return LogEntry(
            sequence=self._take_sequence(),
            time=self._clock(),
            author=request.author,
            kind=request.kind,
            value=value,
            reason=request.reason,
            window=window,
            step=window * self._config.window_steps,
            version=controls.version,
            temperature=None,
            effective_size=None,
            in_force=in_force,
            request=request.request,
            detail=detail,
        )


def with_law(entry: LogEntry, temperature: float, effective_size: float | None) -> LogEntry:
    """The entry with the law that is in force from its window on."""
    return replace(entry, temperature=temperature, effective_size=effective_size)


def reply_to(entry: LogEntry) -> ControlReply:
    """What the author of a control is told."""
    temperature = entry.temperature
    return ControlReply(
        version=entry.version,
        window=entry.window,
        step=entry.step,
        effective_size=entry.effective_size,
        temperature=None if temperature is None or math.isinf(temperature) else temperature,
    )
