"""SelectionPort: what trainers, the API and the commands ask of a selection, in process or behind an actor."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scoring.records import Control, ControlReply, Event, LogEntry, ScoreAck, Window


class SelectionPort(Protocol):
    """The methods of `Selection`; `scoring.actors.SelectionClient` has the same ones, over Ray."""

    def window(self, index: int, *, effective_size: float | None = None) -> Window:
        """Return the draws of one window; see `Selection.window`."""

    def report_scores(
        self, ids: ArrayLike, values: ArrayLike, *, kind: str = "bss", step: int, producer: str, sequence: int
    ) -> ScoreAck:
        """Merge scores of samples; a repeated (producer, sequence) changes nothing."""

    def control(self, control: Control) -> ControlReply:
        """Change what is drawn; on disk when this returns."""

    def record(self, event: Event) -> None:
        """Write an event into the log; on disk when this returns."""

    def state(self) -> dict[str, Any]:
        """Return the values in force now, as plain JSON."""

    def view(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Return a view of `scoring.views` by name, or a "forecast"; see `Selection.view`."""

    def log(self, limit: int | None = None, **bounds: Any) -> list[LogEntry]:
        """Return the last `limit` entries of the history, oldest first."""

    def times_drawn(self) -> NDArray[np.uint32]:
        """Return how often each sample was drawn, [N]."""
