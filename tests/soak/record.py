"""What a fault run did and saw, for its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.soak.processes import Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Injection:
    """One fault, as it happened."""

    time: float
    """Seconds since the epoch."""
    kind: str
    """A name in FAULTS."""
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Holdings:
    """What the run holds while nothing is wrong."""

    resources: Mapping[str, float]
    """Ray resources that are free, by name."""
    processes: Mapping[str, int]
    """Role -> how many."""


@dataclass
class Record:
    """What was done and seen, for the verdict."""

    injections: list[Injection] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)
    """What its processes held, every few seconds."""
    before: Holdings | None = None
    """Before the first fault."""
    after: Holdings | None = None
    """After the last, as many loaders being wished for as before."""
    mapped: set[str] = field(default_factory=set)
    """Files in shared memory that it has used."""
    poisoned: frozenset[int] = frozenset()
    """Samples that were damaged."""
    exit_status: int | None = None
    """Exit status of the driving process; None when it had to be killed."""
    strays: int = 0
    """Processes left over."""
    shared_memory: tuple[str, ...] = ()
    """Files in shared memory left over."""
