"""LiveRun: a run's selection and fleet in the process that launched it, beside the API.

For what is not for the network: entries of the launcher's own in the log, processes to be killed by a demonstration.
"""

from __future__ import annotations

from typing import Any

from scoring import Event


class LiveRun:
    """The clients of a live run's actors. Every call has a deadline."""

    def __init__(self, selection: Any, fleet: Any) -> None:
        """Wrap them.

        Args:
            selection: scoring.actors.SelectionClient.
            fleet: loader.fleet.client.FleetClient.
        """
        self.selection, self.fleet = selection, fleet

    def record(self, kind: str, *, author: str, message: str, value: float | str | None = None) -> None:
        """Write an event into the run log."""
        self.selection.record(Event(kind=kind, author=author, message=message, value=value))

    def loaders(self) -> list[dict[str, Any]]:
        """The loader workers: name, state, pid, node, restarts, images, images_per_s."""
        members: list[dict[str, Any]] = self.fleet.status()["loaders"]
        return members

    def times_drawn(self) -> Any:
        """How often each sample was drawn, uint32[N]."""
        return self.selection.times_drawn()
