"""Copies what happens to the loader fleet into the run log, so that one log tells the whole story of a run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from scoring import Event

log = logging.getLogger(__name__)

POLL_S = 0.5
JOIN_S = 10.0


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


class Scribe:
    """A thread that polls the fleet's events for as long as its `with` block lasts, and once more at its end."""

    def __init__(self, events: Callable[[int], Sequence[FleetEvent]], record: Callable[[Event], None]) -> None:
        """Name both ends.

        Args:
            events: gives the fleet's events after a sequence number.
            record: writes one into the run log.
        """
        self._events, self._record = events, record
        self._seen = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="scribe", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(JOIN_S)

    def _follow(self) -> None:
        over = False
        while not over:
            over = self._over.wait(POLL_S)
            try:
                self._copy()
            except Exception:  # the fleet or the service is away for a moment; the events wait
                log.warning("the fleet's events could not be copied into the run log yet", exc_info=True)

    def _copy(self) -> None:
        for event in self._events(self._seen):
            self._record(Event(kind=event.kind, author=event.author, message=event.message, value=event.value))
            self._seen = event.sequence
