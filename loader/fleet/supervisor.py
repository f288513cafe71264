"""Keeps the wished number of loaders alive: decisions and bookkeeping, no Ray.

Every `tick` looks at each loader once: a loader that is lost is replaced under its own name (so routing does not
change), one that is too many is drained, one that is missing is launched. Loaders that die young are relaunched
with growing pauses. Everything that happens is an event that the driver can poll and write to the run's log.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from loader.errors import LoaderLost
from loader.fleet.desired_size import Wish, WishFile
from loader.fleet.scaling import Autoscaler, ScalePolicy

State = Literal["starting", "ready", "lost"]
EventKind = Literal["scale", "loader_started", "loader_lost", "loader_removed", "fleet_restarted"]

MAX_LOADERS: Final = 1024
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 15.0
_LEAST_STARTING: Final = 8
"""So many loaders may start at a time, or as many as are ready if they are more: a crowd that starts together on few
processors is not ready in time, is replaced, and never comes to work."""
_GROWN_UP_S: Final = 30.0
"""A loader that lived so long did not die of its start: the next one starts without a pause."""


class Process(Protocol):
    """A launched loader."""

    @property
    def handle(self) -> Any:
        """What requests are sent to."""

    def poll(self) -> State:
        """Return how it is, without waiting."""

    def info(self) -> dict[str, Any]:
        """Return what is known of it: pid, node, stats."""

    def why(self) -> str:
        """Return why it was lost."""

    def drain(self) -> None:
        """Let it finish what it has and end."""

    def kill(self) -> None:
        """End it now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetEvent:
    """Something that happened to the fleet."""

    sequence: int
    """Counts from 1; ask for the events after the last one seen."""
    time: float
    """Seconds since the epoch."""
    kind: EventKind
    """What happened."""
    author: str
    """Who caused it: a person, the trainer, or `fleet`."""
    message: str
    """For people."""
    value: float
    """The size wished for after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleReply:
    """Answer to a change of size."""

    previous: int
    """Loaders wished for before."""
    size: int
    """Loaders wished for now."""
    author: str
    """Who asked."""
    reason: str
    """Why."""


@dataclass(slots=True)
class _Slot:
    """A name, and the loader that bears it at the moment."""

    process: Process | None = None
    launched_s: float = 0.0
    not_before_s: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    restarts: int = 0
    announced: bool = False
    why: str = ""


class Fleet:
    """A wished size and the loaders that fulfil it. Thread-safe.

    Args:
        launch: Starts a loader of the given name and returns at once.
        size: Loaders wished for, from 1.
        clock: Seconds since the epoch.
        policy: Scales by itself when told how long trainers wait; None leaves the size to `scale`.
        wishes: Remembers the size over a restart of this process; None starts with `size` always.
    """

    def __init__(
        self,
        launch: Callable[[str], Process],
        *,
        size: int,
        clock: Callable[[], float],
        policy: ScalePolicy | None = None,
        wishes: WishFile | None = None,
    ) -> None:
        self._launch, self._clock, self._wishes = launch, clock, wishes
        self._scaler = Autoscaler(policy) if policy is not None else None
        self._worked: dict[str, tuple[float, float]] = {}
        self._waits: list[float] = []
        self._observed_s = clock()
        self._slots: dict[str, _Slot] = {}
        self._events: deque[FleetEvent] = deque(maxlen=10_000)
        self._sequence = 0
        self._lock = threading.RLock()
        self._size, self._author, self._reason = _checked(size), "fleet", "initial size"
        last = wishes.load() if wishes is not None else None
        if last is not None:
            self._size, self._author, self._reason = _checked(last.size), last.author, last.reason
            self._sequence = last.sequence
            self._event("fleet_restarted", "fleet", f"the fleet was restarted and wants {last.size} loaders as before")

    def scale(self, size: int, *, author: str, reason: str = "") -> ScaleReply:
        """Wish for another number of loaders. Returns at once; `tick` fulfils it.

        Raises:
            ValueError: If the size is out of range.
        """
        with self._lock:
            previous, self._size = self._size, _checked(size)
            self._author, self._reason = author, reason
            if self._scaler is not None:
                self._scaler.changed(self._clock())
            self._event("scale", author, f"{previous} -> {size} loaders" + (f": {reason}" if reason else ""))
            return ScaleReply(previous=previous, size=size, author=author, reason=reason)

    def observe(self, wait_share: float) -> ScaleReply | None:
        """Take in the share of its time that a trainer waited since it last told, and scale if the policy says so."""
        if self._scaler is None:
            return None
        with self._lock:
            now, period_s = self._clock(), self._scaler.policy.period_s
            self._waits.append(wait_share)
            if now - self._observed_s < period_s:
                return None
            # Ranks compute in step: the one that waits longest holds up the others.
            longest, self._waits, self._observed_s = max(self._waits), [], now
            decision = self._scaler.observe(
                size=self._size, wait_share=longest, busy_share=self._busy_share(), now_s=now
            )
            return None if decision is None else self.scale(decision.size, author="fleet", reason=decision.reason)

    def tick(self) -> None:
        """Look at every loader once and do what its state asks for."""
        with self._lock:
            wished = [f"loader-{number}" for number in range(self._size)]
            for name in wished:
                self._attend(name, self._slots.setdefault(name, _Slot()))
            # Loaders at work leave once those that stay can take over: the fleet never shrinks to nobody.
            settled = all(self._slots[name].announced for name in wished)
            for name in [name for name in self._slots if name not in wished]:
                if settled or not self._slots[name].announced:
                    self._remove(name)

    def members(self) -> dict[str, Any]:
        """Return the handle of every loader that is ready, by name."""
        with self._lock:
            return {name: slot.process.handle for name, slot in self._slots.items() if slot.process and slot.announced}

    def events(self, after: int = 0) -> list[FleetEvent]:
        """Return what happened since the event of that sequence number."""
        with self._lock:
            return [event for event in self._events if event.sequence > after]

    def status(self) -> dict[str, Any]:
        """Return size, author and reason of the last change, and for each loader its name, state, restarts and info."""
        with self._lock:
            return {
                "size": self._size,
                "author": self._author,
                "reason": self._reason,
                "pid": os.getpid(),
                "loaders": [self._loader_status(name, slot) for name, slot in sorted(self._slots.items(), key=_number)],
            }

    def close(self) -> None:
        """End every loader now."""
        with self._lock:
            for slot in self._slots.values():
                if slot.process is not None:
                    slot.process.kill()
            self._slots.clear()
            self._size = 0

    def _busy_share(self) -> float:
        """Return the share of their time that loaders worked since this was last asked; 1 when unknown."""
        shares = []
        before, self._worked = self._worked, {}
        for name, slot in self._slots.items():
            info = slot.process.info() if slot.process is not None else {}
            if "uptime_s" not in info:
                continue
            worked_s, uptime_s = self._worked[name] = (info["decode_s"], info["uptime_s"])
            worked_before_s, uptime_before_s = before.get(name, (0.0, 0.0))
            if uptime_s > uptime_before_s:
                shares.append((worked_s - worked_before_s) / (uptime_s - uptime_before_s))
        return min(1.0, sum(shares) / len(shares)) if shares else 1.0

    def _attend(self, name: str, slot: _Slot) -> None:
        now = self._clock()
        if slot.process is None:
            if now >= slot.not_before_s and self._may_start():
                slot.process, slot.launched_s, slot.announced = self._launch(name), now, False
            return
        state = slot.process.poll()
        if state == "ready" and not slot.announced:
            slot.announced = True
            self._event("loader_started", "fleet", f"{name} is ready after {now - slot.launched_s:.1f} s")
        elif state == "lost":
            self._lose(name, slot, now)

    def _may_start(self) -> bool:
        launched = [slot.announced for slot in self._slots.values() if slot.process is not None]
        num_ready = sum(launched)
        return len(launched) - num_ready < max(_LEAST_STARTING, num_ready)

    def _lose(self, name: str, slot: _Slot, now: float) -> None:
        assert slot.process is not None
        slot.why = slot.process.why()
        slot.process.kill()
        young = now - slot.launched_s < _GROWN_UP_S
        slot.pause_s = min(2 * slot.pause_s, _LONGEST_PAUSE_S) if young else _FIRST_PAUSE_S
        slot.not_before_s = now + slot.pause_s / 2
        slot.process, slot.announced = None, False
        slot.restarts += 1
        self._event("loader_lost", "fleet", f"{name} was lost ({slot.why}); it is replaced")

    def _remove(self, name: str) -> None:
        slot = self._slots.pop(name)
        if slot.process is not None:
            slot.process.drain()
        self._event("loader_removed", self._author, f"{name} ends after its last request")

    def _loader_status(self, name: str, slot: _Slot) -> dict[str, Any]:
        state = "waiting" if slot.process is None else "ready" if slot.announced else "starting"
        info = slot.process.info() if slot.process is not None else {}
        return {"name": name, "state": state, "restarts": slot.restarts, "reason": slot.why, **info}

    def _event(self, kind: EventKind, author: str, message: str) -> None:
        self._sequence += 1
        self._events.append(
            FleetEvent(
                sequence=self._sequence,
                time=self._clock(),
                kind=kind,
                author=author,
                message=message,
                value=float(self._size),
            )
        )
        if self._wishes is not None:
            wish = Wish(size=self._size, author=self._author, reason=self._reason, sequence=self._sequence)
            self._wishes.save(wish)


def wait_until_ready(status: Callable[[], dict[str, Any]], *, size: int, timeout_s: float) -> None:
    """Wait until a fleet has that many loaders ready. On a crowded machine it may not answer every question.

    Raises:
        LoaderLost: If that takes too long, or every loader has died before one was ready; the message says why.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            loaders = status()["loaders"]
        except LoaderLost:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
            continue
        num_ready = sum(loader["state"] == "ready" for loader in loaders)
        if num_ready >= size:
            return
        hopeless = bool(loaders) and not num_ready and all(loader["restarts"] for loader in loaders)
        if hopeless or time.monotonic() > deadline:
            reasons = "; ".join(sorted({loader["reason"] or loader["state"] for loader in loaders}))
            raise LoaderLost(f"{size} loaders cannot start: {reasons}")
        time.sleep(0.1)


def _checked(size: int) -> int:
    if not 1 <= size <= MAX_LOADERS:
        raise ValueError(f"the number of loaders must be in 1..{MAX_LOADERS}; got {size}")
    return size


def _number(item: tuple[str, _Slot]) -> int:
    return int(item[0].rpartition("-")[2])
