"""Keeps the desired number of loaders alive: decisions and bookkeeping, no Ray.

Every `tick` looks at each loader once. A lost loader is replaced under its own name, so that routing does not change;
loaders beyond the desired size are drained; missing ones are launched. Loaders that die young are relaunched with
growing pauses. Whatever happens is an event, which the driver polls and copies into the run's log.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from loader.errors import LoaderLost
from loader.fleet.desired_size import DesiredSize, load_desired_size, save_desired_size
from loader.fleet.scaling import Autoscaler, ScalePolicy

State = Literal["starting", "ready", "lost"]
EventKind = Literal["scale", "loader_started", "loader_lost", "loader_removed", "fleet_restarted"]

_MAX_LOADERS: Final = 1024
_TICK_S: Final = 0.25
_MIN_PAUSE_S: Final = 0.25
_MAX_PAUSE_S: Final = 15.0
_MIN_STARTING: Final = 8
"""Loaders that may start at the same time, or as many as are ready if those are more. A crowd that starts together on
few processors is not ready in time, is replaced, and never gets to work."""
_MATURE_S: Final = 30.0
"""A loader that lived this long did not die of its start: its replacement starts without a pause."""


class Process(Protocol):
    """A launched loader: an actor under Ray, or a loader in this process."""

    handle: Any
    """Where requests are sent."""
    info: dict[str, Any]
    """Its pid, node and stats as of its last answer; empty before the first."""
    why: str
    """Why it was lost; empty while it is not."""

    def poll(self) -> State:
        """Return its state, without waiting."""

    def drain(self) -> None:
        """Let it finish its requests and end."""

    def kill(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetEvent:
    """A change of the fleet."""

    sequence: int
    """Number of the event, from 1; ask for the events after the last one seen."""
    time: float
    """Seconds since the epoch."""
    kind: EventKind
    author: str
    """Cause: a person, the trainer, or `fleet`."""
    message: str
    """One line, shown to people."""
    value: float
    """The desired size after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleReply:
    """Answer to a change of size."""

    previous: int
    """Desired loaders before."""
    size: int
    author: str
    reason: str


@dataclass(slots=True)
class _Slot:
    """A loader's name over its life: the process that bears it now, and when the next one may start."""

    process: Process | None = None
    launched_s: float = 0.0
    not_before_s: float = 0.0
    pause_s: float = _MIN_PAUSE_S
    restarts: int = 0
    announced: bool = False
    """Its process was ready at least once: it is a member."""
    why: str = ""
    """Why the last process was lost."""


class Fleet:
    """A desired size, and the loaders that are kept alive to meet it. Thread-safe.

    Args:
        launch: Starts a loader of the given name and returns at once.
        clock: Returns seconds since the epoch.
        policy: Scales by the trainers' waits; None leaves the size to `scale`.
        memory: File that keeps the size over a restart of this process; None always starts with `size`.
    """

    def __init__(
        self,
        launch: Callable[[str], Process],
        *,
        size: int,
        clock: Callable[[], float],
        policy: ScalePolicy | None = None,
        memory: Path | None = None,
    ) -> None:
        self._launch, self._clock, self._memory = launch, clock, memory
        self._scaler = Autoscaler(policy, started_s=clock()) if policy is not None else None
        self._slots: dict[str, _Slot] = {}
        self._events: deque[FleetEvent] = deque(maxlen=10_000)  # a loader that dies for days must not fill memory
        self._sequence = 0
        self._lock = threading.RLock()  # `observe` calls `scale`
        self._closed = threading.Event()
        self._size, self._author, self._reason = _checked(size), "fleet", "initial size"
        last = load_desired_size(memory) if memory is not None else None
        if last is not None:
            # This process replaces one that died. What was set live counts more than what the run began with.
            self._size, self._author, self._reason = _checked(last.size), last.author, last.reason
            self._sequence = last.sequence
            self._event("fleet_restarted", "fleet", f"the fleet was restarted with {last.size} loaders as before")

    def scale(self, size: int, *, author: str, reason: str = "") -> ScaleReply:
        """Set the desired number of loaders. Returns at once; `tick` starts and ends loaders.

        Raises:
            ValueError: The size is out of range.
        """
        with self._lock:
            previous, self._size = self._size, _checked(size)
            self._author, self._reason = author, reason
            if self._scaler is not None:
                # The autoscaler must see the effect of this size before it judges again, even when a person set it.
                self._scaler.restart_cooldown(self._clock())
            self._event("scale", author, f"{previous} -> {size} loaders" + (f": {reason}" if reason else ""))
            return ScaleReply(previous=previous, size=size, author=author, reason=reason)

    def observe(self, wait_share: float) -> ScaleReply | None:
        """Record the share of its time, in [0, 1], that a trainer waited since its last report.

        Scale if the policy says so and return the change; None when the size stays, as it always does without a policy.
        """
        if self._scaler is None:
            return None
        with self._lock:
            infos = {name: slot.process.info for name, slot in self._slots.items() if slot.process is not None}
            decision = self._scaler.report(wait_share, infos, size=self._size, now_s=self._clock())
            return None if decision is None else self.scale(decision.size, author="fleet", reason=decision.reason)

    def run(self) -> None:
        """Call `tick` four times a second until `close`."""
        while not self._closed.wait(_TICK_S):
            self.tick()

    def tick(self) -> None:
        """Look at every loader once: launch the missing, replace the lost, drain those beyond the desired size."""
        with self._lock:
            desired = [f"loader-{number}" for number in range(self._size)]
            for name in desired:
                self._supervise(name, self._slots.setdefault(name, _Slot()))
            # Working loaders leave only when those that stay can take over: shrinking never leaves a fleet of none.
            settled = all(self._slots[name].announced for name in desired)
            for name in [name for name in self._slots if name not in desired]:
                if settled or not self._slots[name].announced:
                    process = self._slots.pop(name).process
                    if process is not None:
                        process.drain()
                    self._event("loader_removed", self._author, f"{name} ends after its last request")

    def members(self) -> dict[str, Any]:
        """Return the handle of every loader that is ready, by name."""
        with self._lock:
            return {name: slot.process.handle for name, slot in self._slots.items() if slot.process and slot.announced}

    def events(self, after: int = 0) -> list[FleetEvent]:
        """Return the events with a sequence number above `after`."""
        with self._lock:
            return [event for event in self._events if event.sequence > after]

    def status(self) -> dict[str, Any]:
        """Return desired size, author and reason of the last change, this process's pid, and a dict for each loader.

        A loader has name, state (waiting, starting or ready), restarts, reason (of the last loss), and its info: pid,
        node and the worker's stats.
        """
        with self._lock:
            loaders = []
            # By number, so that loader-10 comes after loader-9.
            for name in sorted(self._slots, key=lambda name: int(name.rpartition("-")[2])):
                slot = self._slots[name]
                state = "waiting" if slot.process is None else "ready" if slot.announced else "starting"
                info = slot.process.info if slot.process is not None else {}
                loaders.append({"name": name, "state": state, "restarts": slot.restarts, "reason": slot.why, **info})
            return {
                "size": self._size,
                "author": self._author,
                "reason": self._reason,
                "pid": os.getpid(),
                "loaders": loaders,
            }

    def close(self) -> None:
        """End every loader now, and replace none."""
        self._closed.set()
        with self._lock:
            for slot in self._slots.values():
                if slot.process is not None:
                    slot.process.kill()
            self._slots.clear()
            self._size = 0

    def _supervise(self, name: str, slot: _Slot) -> None:
        """Launch, announce or replace one loader, as its state demands."""
        now = self._clock()
        if slot.process is None:
            launched = [other.announced for other in self._slots.values() if other.process is not None]
            may_start = launched.count(False) < max(_MIN_STARTING, launched.count(True))
            if may_start and now >= slot.not_before_s:
                slot.process, slot.launched_s, slot.announced = self._launch(name), now, False
            return
        state = slot.process.poll()
        if state == "ready" and not slot.announced:
            slot.announced = True
            self._event("loader_started", "fleet", f"{name} is ready after {now - slot.launched_s:.1f} s")
        elif state == "lost":
            slot.why = slot.process.why or "unknown"
            slot.process.kill()  # it may only hang: its processor and memory belong to its replacement
            # A loader that dies of its start will do so again: each time it waits twice as long.
            young = now - slot.launched_s < _MATURE_S
            slot.pause_s = min(2 * slot.pause_s, _MAX_PAUSE_S) if young else _MIN_PAUSE_S
            slot.not_before_s = now + slot.pause_s / 2
            slot.process, slot.announced = None, False
            slot.restarts += 1
            self._event("loader_lost", "fleet", f"{name} was lost ({slot.why}); it is replaced")

    def _event(self, kind: EventKind, author: str, message: str) -> None:
        """Number an event and keep it, with the size in force saved beside its number."""
        self._sequence += 1
        now, size = self._clock(), float(self._size)
        self._events.append(
            FleetEvent(sequence=self._sequence, time=now, kind=kind, author=author, message=message, value=size)
        )
        if self._memory is not None:
            # With every event, not only with a new size: a restarted fleet must not use an event's number twice.
            desired = DesiredSize(size=self._size, author=self._author, reason=self._reason, sequence=self._sequence)
            save_desired_size(self._memory, desired)


def wait_until_ready(status: Callable[[], dict[str, Any]], *, size: int, timeout_s: float) -> None:
    """Wait until `status`, which is `Fleet.status`, shows `size` loaders ready.

    A LoaderLost is tried again, since a crowded machine may miss an answer.

    Raises:
        LoaderLost: The time is over, or every loader has died before one was ready; the message says why.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            loaders = status()["loaders"]
        except LoaderLost:
            if time.monotonic() > deadline:
                raise
        else:
            num_ready = sum(loader["state"] == "ready" for loader in loaders)
            if num_ready >= size:
                return
            # When each has died at least once and none came up, the rest of the time would not help.
            hopeless = bool(loaders) and not num_ready and all(loader["restarts"] for loader in loaders)
            if hopeless or time.monotonic() > deadline:
                reasons = "; ".join(sorted({loader["reason"] or loader["state"] for loader in loaders}))
                raise LoaderLost(f"{size} loaders cannot start: {reasons}")
        time.sleep(0.1)


def _checked(size: int) -> int:
    if not 1 <= size <= _MAX_LOADERS:
        raise ValueError(f"the number of loaders must be in 1..{_MAX_LOADERS}; got {size}")
    return size
