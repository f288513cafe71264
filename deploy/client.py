"""RunClient: the one way to look at and to change a live run. The command line and the demo use nothing else.

It talks to the run's two named actors: the selection service (what is drawn) and the loader fleet (who decodes).
Every call has a deadline.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.cluster import join
from deploy.rundir import RunDir, RunError
from scoring import Control, Event

CALL_TIMEOUT_S = 20.0


class RunClient:
    """A live run, seen from outside."""

    def __init__(self, selection: Any, fleet: Any) -> None:
        """Wrap the clients of a run's actors; `attach` finds them.

        Args:
            selection: scoring.actors.SelectionClient.
            fleet: loader.actors.FleetClient.
        """
        self.selection, self.fleet = selection, fleet

    @classmethod
    def attach(cls, run: RunDir) -> RunClient:
        """Connect to a run that another process drives.

        Raises:
            RunError: the run is not alive.
        """
        endpoint = run.endpoint()
        if endpoint is None:
            raise RunError(
                f"{run.path} is not running. `tempera resume {run.path}` continues it; `tempera log` reads its history."
            )
        join(endpoint)
        from loader.actors import connect_fleet
        from scoring.actors import SelectionClient

        return cls(
            SelectionClient(name=endpoint.selection, namespace=endpoint.namespace, timeout_s=CALL_TIMEOUT_S),
            connect_fleet(endpoint.fleet),
        )

    def control(
        self,
        kind: str,
        value: float | str | None,
        *,
        author: str,
        reason: str = "",
        expected_version: int | None = None,
    ) -> dict[str, Any]:
        """Change what is drawn; the reply names the first window and step under the change.

        Args:
            kind: effective_size, temperature, policy or release.
            value: a number, a policy's name, or None for a release.
            author: for the log.
            reason: for the log.
            expected_version: refuse unless the control version is still this one.

        Raises:
            ValueError: the value is out of range.
            VersionConflict: another control came first.
        """
        control = Control(kind=kind, value=value, author=author, reason=reason, expected_version=expected_version)
        return asdict(self.selection.control(control))

    def scale(self, loaders: int, *, author: str, reason: str = "") -> dict[str, Any]:
        """Wish for another number of loader workers; the fleet fulfils it, the run log tells.

        Raises:
            ValueError: fewer than one.
        """
        return asdict(self.fleet.scale(loaders, author=author, reason=reason))

    def record(self, kind: str, *, author: str, message: str, value: float | str | None = None) -> None:
        """Write an event into the run log."""
        self.selection.record(Event(kind=kind, author=author, message=message, value=value))

    def state(self) -> dict[str, Any]:
        """What the selection has in force now."""
        state: dict[str, Any] = self.selection.state()
        return state

    def loaders(self) -> list[dict[str, Any]]:
        """The loader workers: name, state, pid, node, restarts, images, images_per_s."""
        members: list[dict[str, Any]] = self.fleet.status()["loaders"]
        return members

    def inspect(self, *, top: int, export: Path | None) -> dict[str, Any]:
        """The sample table at a glance, and all of it as Parquet.

        Args:
            top: how many of the most probable samples to list.
            export: file for the whole table, on a disk that the service reaches; or None.
        """
        summary: dict[str, Any] = self.selection.summary(top=top)
        return summary if export is None else summary | {"exported_rows": self.selection.export(export.resolve())}

    def times_drawn(self) -> Any:
        """How often each sample was drawn, uint32[N]."""
        return self.selection.times_drawn()
