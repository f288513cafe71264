"""Connections with a deadline: uvicorn's HTTP protocol, which would wait for a silent peer forever, with three rules.

A connection on which no request is under way for HEADER_TIMEOUT_S is closed, and one whose peer takes nothing of an
answer for SEND_TIMEOUT_S; where there are more than CONNECTIONS, the one that has been idle the longest makes room. So
neither silent nor slow peers use up the process's descriptors, which a trainer in it needs too.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from deploy.api.options import CONNECTIONS, HEADER_TIMEOUT_S, SEND_TIMEOUT_S


class WatchedProtocol(H11Protocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock; make room."""
        super().connection_made(transport)
        self._idle_since_s = self.loop.time()
        self._watch()
        if len(self.connections) > CONNECTIONS:
            others = cast("set[WatchedProtocol]", self.connections) - {self}
            idle = [other for other in others if not other.is_working]
            victim = min(idle, key=lambda other: other._idle_since_s) if idle else self
            victim.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        super().connection_lost(exc)
        for clock in (self._deadline, self._unread):
            if clock is not None:
                clock.cancel()

    def pause_writing(self) -> None:
        """The peer does not read as fast as we write; it has a while to."""
        super().pause_writing()
        self._unread = self.loop.call_later(SEND_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def on_response_complete(self) -> None:
        """The next request has as long as the first."""
        super().on_response_complete()
        self._idle_since_s = self.loop.time()
        self._watch()

    @property
    def is_working(self) -> bool:
        """Whether a request has come and is not answered yet."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _watch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(HEADER_TIMEOUT_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self.is_working and not self.transport.is_closing():
            self.transport.abort()
