"""What a storm did and saw, for its verdict."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Injection:
    """One fault, as it happened."""

    time: float
    """Seconds since the epoch."""
    kind: str
    """A name in FAULTS."""
    what: str
    """In words."""


@dataclass
class Record:
    """What was done and seen, for the verdict."""

    injections: list[Injection] = field(default_factory=list)
    """In order."""
    usage: list[tuple[float, int, int]] = field(default_factory=list)
    """(time, resident bytes, descriptors) of the process that drives the run."""
    poisoned: frozenset[int] = frozenset()
    """Samples that were damaged."""
    exit_status: int | None = None
    """Of the driving process; None when it had to be killed."""
    strays: int = 0
    """Processes left over."""
    shared_memory: tuple[str, ...] = ()
    """Files left over in /dev/shm."""
