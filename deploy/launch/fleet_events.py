"""Copies what happens to the loader fleet into the run log, so that one log tells the whole story of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from deploy.observe.periodic import repeated
from scoring import Event

POLL_S = 0.5


class FleetEvent(Protocol):
    """What the scribe reads of a fleet's event."""

    @property
    def sequence(self) -> int:
        """Counts from 1."""

    @property
    def kind(self) -> str:
        """One word."""

    @property
    def author(self) -> str:
        """Who caused it."""

    @property
    def message(self) -> str:
        """One line for people."""

    @property
    def value(self) -> float:
        """Loaders wished for after it."""


@contextmanager
def events_copied(events: Callable[[int], Sequence[FleetEvent]], record: Callable[[Event], None]) -> Iterator[None]:
    """Copy the fleet's events for as long as the block lasts, and once more at its end.

    Args:
        events: gives the fleet's events after a sequence number.
        record: writes one into the run log; what it does not take now is written the next time.
    """
    seen = 0

    def copy() -> None:
        nonlocal seen
        for event in events(seen):
            record(Event(kind=event.kind, author=event.author, message=event.message, value=event.value))
            seen = event.sequence

    trouble = "the fleet's events could not be copied into the run log yet"
    with repeated(copy, every_s=POLL_S, name="scribe", trouble=trouble):
        yield
