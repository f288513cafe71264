"""FleetClient: what people and trainers ask of a loader fleet, however it is reached."""

from __future__ import annotations

from typing import Any, Final, Literal, Protocol

from loader.fleet.supervisor import FleetEvent, ScaleReply

FleetMethod = Literal["scale", "observe", "members", "status", "events"]
CALL_TIMEOUT_S: Final = 10.0


class FleetPort(Protocol):
    """A way to a fleet. Every question has a deadline."""

    def ask(self, method: FleetMethod, *args: object, timeout_s: float, **options: object) -> Any:
        """Call a method of the fleet and return its answer.

        Raises:
            LoaderLost: If the fleet does not answer in time.
        """

    def tell(self, method: FleetMethod, *args: object) -> None:
        """Call a method of the fleet without waiting; nobody hears whether it came."""

    def close(self) -> None:
        """End the fleet."""


class FleetClient:
    """Calls to a loader fleet. Can be sent to other processes if its port can."""

    def __init__(self, port: FleetPort) -> None:
        self.port = port

    def scale(self, size: int, *, author: str, reason: str = "") -> ScaleReply:
        """Wish for another number of loaders; returns at once."""
        reply: ScaleReply = self.port.ask("scale", size, author=author, reason=reason, timeout_s=CALL_TIMEOUT_S)
        return reply

    def observe(self, wait_share: float) -> None:
        """Tell the share of its time that a trainer waited since it last told; a fleet with a policy scales by it."""
        self.port.tell("observe", wait_share)

    def members(self, *, timeout_s: float = CALL_TIMEOUT_S) -> dict[str, Any]:
        """Return the loaders that are ready, by name."""
        members: dict[str, Any] = self.port.ask("members", timeout_s=timeout_s)
        return members

    def status(self) -> dict[str, Any]:
        """Return size, author, reason, and for each loader name, state, pid, node, restarts, reason and stats."""
        status: dict[str, Any] = self.port.ask("status", timeout_s=CALL_TIMEOUT_S)
        return status

    def events(self, after: int = 0) -> list[FleetEvent]:
        """Return what happened since the event of that sequence number."""
        events: list[FleetEvent] = self.port.ask("events", after, timeout_s=CALL_TIMEOUT_S)
        return events

    def close(self) -> None:
        """End every loader, then the fleet."""
        self.port.close()


def first_line(error: Exception) -> str:
    """Return the line of an error that says what happened: the last one when it quotes a traceback."""
    lines = str(error).strip().splitlines() or ["no details"]
    quoted = "Traceback" in str(error) or ".__init__()" in lines[0]
    return f"{type(error).__name__}: {lines[-1 if quoted else 0].strip()}"
